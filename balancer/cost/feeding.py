"""From the costs of stages to what a host measures: the time of one inference, by how the host feeds the pipeline.

    batch of b inputs    ns per inference = period + (time of the first output - period) / b

The first output takes all stages one after the other; each further one follows after a period, which is set by the slowest
stage. `Feeding` is how inputs reach the stages: it decides what the host adds to both.

The Python scripts of the published measurements add time of their own (`Hardware.scripts`, zero on other hosts). These
predictions are compared with measurements; plans are not chosen by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from balancer.ground.rates import latency_ns, load_ns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.cost.hardware import AnyHardware, Hardware
    from balancer.ground.terms import SegmentTerms


class Feeding(Enum):
    """How inputs reach the stages. The values name the columns of the published measurements.

    INVOKE: one call for each stage in turn, with one input in flight. THREADS: a Python thread and a queue for each
    stage, started for each batch. RUNNER: pycoral's PipelinedModelRunner. FRESH: the same, made anew for each batch, so
    that each batch loads the parameters. STEADY: a thread and a queue for each stage that keep running.
    """

    INVOKE = "invoke_median"
    THREADS = "thread_queue_median"
    RUNNER = "runner"
    FRESH = "runner_fresh"
    STEADY = "steady"


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a pipeline's times depend on, for one stage.

    stage_ns: for one inference; output_ns is the part of it in which its results are fetched. streamed_bytes: of
    parameters, with each inference. cached_bytes: of parameters, loaded before the first inference.
    """

    stage_ns: int
    output_ns: int
    streamed_bytes: int
    cached_bytes: int


def stage_cost(terms: SegmentTerms) -> StageCost:
    """The cost of a stage that runs the segment with these terms."""
    return StageCost(terms.stage_ns, terms.output_ns, terms.streamed_bytes, terms.cached_bytes)


def period_ns(stages: Sequence[StageCost], hardware: AnyHardware) -> int:
    """ns between two outputs of a pipeline that is kept full.

    Either the slowest stage sets it, or the host, whose work for all stages of one inference does not overlap.
    """
    return max(max(stage.stage_ns for stage in stages), hardware.host.host_ns_per_stage * len(stages))


def inference_ns(stages: Sequence[StageCost], hardware: Hardware, batch: int, feeding: Feeding) -> float:
    """ns per inference where `batch` inputs are handed in at once and the time ends with the last output."""
    if feeding is Feeding.INVOKE:
        return float(_alone_ns(stages))
    if feeding is Feeding.THREADS:
        return _threads_ns(stages, hardware, batch)
    if feeding is Feeding.STEADY:
        latency = latency_ns((stage.stage_ns for stage in stages), hardware.host.handover_ns)
        return _batch_ns(latency, period_ns(stages, hardware), batch)
    period = _runner_period_ns(stages, hardware)
    # What delays a stage in a full runner can exceed the time of a single input.
    steady = _batch_ns(max(period, _alone_ns(stages)), period, batch)
    return steady + _upload_ns(stages, hardware) / batch if feeding is Feeding.FRESH else steady


def _batch_ns(first_ns: int, period_ns: int, batch: int) -> float:
    """ns per inference of a batch: its first output after first_ns, each further one a period later.

    >>> _batch_ns(first_ns=900, period_ns=500, batch=4)  # (900 + 3 * 500) / 4
    600.0
    """
    return period_ns + (first_ns - period_ns) / batch


def _alone_ns(stages: Sequence[StageCost]) -> int:
    """ns of one input through all stages, without what the host adds."""
    return sum(stage.stage_ns for stage in stages)


def _upload_ns(stages: Sequence[StageCost], hardware: Hardware) -> int:
    """ns to load the parameters of all stages at once: their uploads run side by side, so the longest one counts."""
    link = hardware.link
    return max(load_ns(stage.cached_bytes, link.load_ns_per_mib, link.load_ns) for stage in stages)


def _threads_ns(stages: Sequence[StageCost], hardware: Hardware, batch: int) -> float:
    """ns per inference in the published script with Python threads.

    A Python thread that slept through a long call takes `wake_ns` to wake. A stage that streams is such a call. In a full
    pipeline it delays its own stage alone; with a single input in flight, it delays each stage once any stage streams.
    """
    scripts = hardware.scripts
    wake_ns = scripts.wake_ns if any(stage.streamed_bytes for stage in stages) else 0
    first_ns = _alone_ns(stages) + len(stages) * (scripts.thread_ns + wake_ns)
    if batch == 1:
        return float(first_ns)
    slowest = max(stage.stage_ns + (scripts.wake_ns if stage.streamed_bytes else 0) for stage in stages)
    return _batch_ns(first_ns, max(slowest, hardware.host.host_ns_per_stage * len(stages)), batch)


def _runner_period_ns(stages: Sequence[StageCost], hardware: Hardware) -> int:
    """ns between two outputs of pycoral's runner: the slowest stage, delayed by part of what the stage before it sends."""
    scripts = hardware.scripts
    permille = {2: scripts.upstream_permille_2, 3: scripts.upstream_permille_3}
    share = permille.get(len(stages), scripts.upstream_permille_4)
    before = [0, *(stage.output_ns for stage in stages[:-1])]
    return max(stage.stage_ns + share * sent // 1000 for stage, sent in zip(stages, before, strict=True))
