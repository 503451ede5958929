"""From the costs of stages to what a host sees of a pipeline: period, latency, batches, the first inference.

`Feeding` is how the host feeds it. The two Python ways and the fresh runner are those of the published scripts: what
they add to the devices' own time is data of the hardware (`thread_ns`, `wake_ns`, `upstream_permille_*`), zero where
nobody has seen it. They serve to predict measurements, and are no part of what a plan is chosen by.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from balancer.ground.units import MIB, ceil_div

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.cost.hardware import Hardware
    from balancer.cost.segment import SegmentTerms


class Feeding(Enum):
    """How inputs reach the stages, by the names of the published measurements.

    INVOKE: each stage is called in turn, one input in flight. THREADS: a thread and a queue for each stage, in
    Python, started for each batch. RUNNER: pycoral's PipelinedModelRunner. FRESH: the same, made anew for each batch,
    so that parameters are loaded. STEADY: one thread and queue for each stage, running.
    """

    INVOKE = "invoke_median"
    THREADS = "thread_queue_median"
    RUNNER = "runner"
    FRESH = "runner_fresh"
    STEADY = "steady"


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a pipeline needs to know of a stage. output_ns is part of stage_ns."""

    stage_ns: int
    output_ns: int
    streamed_bytes: int
    cached_bytes: int


def stage_cost(terms: SegmentTerms) -> StageCost:
    return StageCost(terms.stage_ns, terms.output_ns, terms.streamed_bytes, terms.cached_bytes)


def latency_ns(stages: Sequence[StageCost], hardware: Hardware) -> int:
    """One input, nothing else in flight."""
    return sum(stage.stage_ns + hardware.host.handover_ns for stage in stages)


def period_ns(stages: Sequence[StageCost], hardware: Hardware) -> int:
    """Between two outputs of a pipeline that is kept full: the slowest stage, or the host's work for all of them."""
    return max(max(stage.stage_ns for stage in stages), hardware.host.host_ns_per_stage * len(stages))


def load_ns(stages: Sequence[StageCost], hardware: Hardware) -> int:
    """What the first inference adds: parameters that stay on chip are sent, one stage after the other."""
    return sum(_load_ns(stage, hardware) for stage in stages)


def _load_ns(stage: StageCost, hardware: Hardware) -> int:
    return ceil_div(stage.cached_bytes * hardware.link.load_ns_per_mib, MIB) + hardware.link.load_ns


def inference_ns(stages: Sequence[StageCost], hardware: Hardware, batch: int, feeding: Feeding) -> float:
    """Nanoseconds per inference when `batch` inputs are pushed at once and the last output is awaited."""
    alone = sum(stage.stage_ns for stage in stages)
    if feeding is Feeding.INVOKE:
        return float(alone)
    if feeding is Feeding.THREADS:
        return _threads_ns(stages, hardware, batch, alone)
    if feeding is Feeding.STEADY:
        period = period_ns(stages, hardware)
        return period + (latency_ns(stages, hardware) - period) / batch
    period = _runner_period_ns(stages, hardware)
    # Uploads of the stages run side by side: a batch waits for the largest.
    load = max(_load_ns(stage, hardware) for stage in stages) if feeding is Feeding.FRESH else 0
    return period + max(0, alone - period) / batch + load / batch


def _threads_ns(stages: Sequence[StageCost], hardware: Hardware, batch: int, alone: int) -> float:
    """A Python thread that slept through a long call is slow to wake: once per streaming stage in a full pipeline,
    and in every stage where one input runs alone and any stage streams.
    """
    wake = hardware.scripts.wake_ns if any(stage.streamed_bytes for stage in stages) else 0
    latency = alone + len(stages) * (hardware.scripts.thread_ns + wake)
    if batch == 1:
        return float(latency)
    slowest = max(stage.stage_ns + (hardware.scripts.wake_ns if stage.streamed_bytes else 0) for stage in stages)
    period = max(slowest, hardware.host.host_ns_per_stage * len(stages))
    return period + (latency - period) / batch


def _runner_period_ns(stages: Sequence[StageCost], hardware: Hardware) -> int:
    """The slowest stage, to which the runner adds part of what the stage before it hands over."""
    permille = {2: hardware.scripts.upstream_permille_2, 3: hardware.scripts.upstream_permille_3}
    share = permille.get(len(stages), hardware.scripts.upstream_permille_4)
    before = [0, *(stage.output_ns for stage in stages[:-1])]
    return max(stage.stage_ns + share * out // 1000 for stage, out in zip(stages, before, strict=True))
