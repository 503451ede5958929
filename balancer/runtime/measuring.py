"""Measuring a pipeline: first inference, one input alone, and the rate in steady state, each by itself."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from balancer.interpreter import runtime_label
from balancer.plan import SegmentMeasurement
from balancer.runtime.provenance import (
    MeasuredOn,
    Provenance,
    costed_for_others,
    joined,
    provenance_of,
    provenance_text,
)
from balancer.runtime.recipes import LIVE
from balancer.version import VERSION
from balancer.workers import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from balancer.plan import Plan
    from balancer.runtime.items import Inputs
    from balancer.runtime.pipeline import Pipeline
    from balancer.runtime.statistics import StageStatistics

_MOST_LATENCIES = 50
_LEAST_LATENCIES = 3
_LATENCY_SHARE = 0.3  # of the time
_LEAST_ITEMS = 8
_SIMULATED = {MeasuredOn.SIMULATED, MeasuredOn.SIMULATED_LIVE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """How values in ns are distributed. count: of values."""

    count: int
    min: int
    mean: int
    median: int
    p90: int
    p95: int
    p99: int
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMeasurement:
    """One stage, predicted beside measured. source: on what it was measured. share: of the slowest stage's time, each
    divided by its replicas. Times in ns of one item: stage_ns the median; queued_ns, starved_ns and blocked_ns as in
    `StageStatistics`.
    """

    pipeline: int
    stage: int
    segment: str
    devices: tuple[str, ...]
    source: Provenance
    predicted_ns: int
    stage_ns: int
    share: float
    queued_ns: int
    starved_ns: int
    blocked_ns: int
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineMeasurement:
    """A benchmark's result.

    source: of all stages. latency_ns: median time of one input alone; latency: its distribution. predicted_handover_ns:
    the part of predicted_latency_ns that passes between stages. first_inference_ns: the first input, for which parameters
    are loaded; None where it failed. items: in steady state, and failures of them; throughput_per_s counts those that
    succeeded. failures_alone: of the inputs that ran alone, which the latency leaves out. notes: what a reader of the
    numbers has to know.
    """

    plan: str
    source: Provenance
    throughput_per_s: float
    predicted_throughput_per_s: float
    latency_ns: int
    predicted_latency_ns: int
    predicted_handover_ns: int
    first_inference_ns: int | None
    latency: Distribution
    items: int
    failures: int
    failures_alone: int
    seconds: float
    bottleneck: str | None
    predicted_bottleneck: str
    stages: tuple[StageMeasurement, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        stages = [asdict(stage) | {"source": provenance_text(stage.source)} for stage in self.stages]
        return asdict(self) | {"source": provenance_text(self.source), "stages": stages}


def distribution(values: Sequence[int]) -> Distribution:
    """Of at least one value. Percentiles are values that occurred.

    >>> found = distribution([40, 10, 30, 20])
    >>> found.min, found.mean, found.median, found.p90, found.max
    (10, 25, 30, 40, 40)
    """
    ordered = sorted(values)

    def at(share: float) -> int:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Distribution(
        count=len(ordered), min=ordered[0], mean=sum(ordered) // len(ordered), median=at(0.5), p90=at(0.9), p95=at(0.95),
        p99=at(0.99), max=ordered[-1],
    )  # fmt: skip


def measure(
    pipeline: Pipeline,
    inputs: Sequence[Inputs],
    *,
    seconds: float = 5.0,
    progress: Callable[[int], None] = lambda done: None,
) -> PipelineMeasurement:
    """Run an entered pipeline on these inputs, over and over, for about `seconds`. progress: gets the items measured.

    An item that fails is counted where the pipeline's `on_error` is "continue"; else StageError is raised. StageError is
    also raised where every input that ran alone failed, ValueError where seconds is not positive and finite.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be above 0 and finite, not {seconds!r}")
    first = _one(pipeline, inputs[0])
    alone = _alone(pipeline, inputs, seconds * _LATENCY_SHARE)
    latencies = [outcome for outcome in alone if isinstance(outcome, int)]
    if not latencies:
        raise next(outcome.error for outcome in alone if isinstance(outcome, Failure))
    rate = _steady(pipeline, inputs, seconds * (1 - _LATENCY_SHARE), progress)
    statistics, plan = pipeline.statistics(), pipeline.plan
    slowest = max((s.stage_ns / len(s.devices) for s in statistics.stages), default=0) or 1
    live = pipeline.simulation.outputs == LIVE
    stages = tuple(_stage(plan, s, slowest, provenance_of(s.devices, live=live)) for s in statistics.stages)
    return PipelineMeasurement(
        plan=plan.file_name,
        source=joined(s.source for s in stages),
        throughput_per_s=round((rate.items - rate.failures) / rate.seconds, 6),
        predicted_throughput_per_s=plan.predicted.throughput_per_s,
        latency_ns=distribution(latencies).median,
        predicted_latency_ns=plan.predicted.latency_ns,
        predicted_handover_ns=_handover_ns(plan),
        first_inference_ns=first if isinstance(first, int) else None,
        latency=distribution(latencies),
        items=rate.items,
        failures=rate.failures,
        failures_alone=len(alone) - len(latencies),
        seconds=round(rate.seconds, 3),
        bottleneck=statistics.bottleneck,
        predicted_bottleneck=_predicted_bottleneck(plan),
        stages=stages,
        notes=_notes(pipeline, stages),
        versions={"balancer": VERSION, "python": sys.version.split()[0], "runtime": runtime_label(pipeline.kernels)},
    )


def _predicted_bottleneck(plan: Plan) -> str:
    """The segment of the slowest stage of all pipelines, chosen as `statistics_of` chooses the measured one."""
    stages = [stage for pipeline in plan.pipelines for stage in pipeline.stages]
    return max(stages, key=lambda s: plan.segment(s.segment).predicted.stage_ns / s.replicas).segment


def _handover_ns(plan: Plan) -> int:
    """The part of the predicted latency, which is the slowest pipeline's, that its stages do not take."""
    slowest = max(plan.pipelines, key=lambda p: p.predicted.latency_ns)
    return slowest.predicted.latency_ns - sum(plan.segment(s.segment).predicted.stage_ns for s in slowest.stages)


def _notes(pipeline: Pipeline, stages: Sequence[StageMeasurement]) -> tuple[str, ...]:
    notes = [costed_for_others(pipeline.plan, pipeline.devices), *pipeline.notes]
    if any(MeasuredOn.SIMULATED_LIVE in s.source for s in stages):
        notes.append("simulated TPUs computed their outputs on this CPU: no time is shorter than it takes")
    handover = _handover_ns(pipeline.plan)
    if handover and any(s.source & _SIMULATED for s in stages):
        notes.append(
            f"{handover / 1e6:.3f} ms of the predicted latency are hand-over between stages, which is not simulated"
        )
    return tuple(note for note in notes if note)


def _alone(pipeline: Pipeline, inputs: Sequence[Inputs], seconds: float) -> list[int | Failure]:
    """Inputs one after the other, each alone, for about `seconds` and at least a few: what `_one` says of each."""
    outcomes, end = list[int | Failure](), time.monotonic() + seconds
    for item, _ in zip(cycle(inputs), range(_MOST_LATENCIES), strict=False):
        outcomes.append(_one(pipeline, item))
        if time.monotonic() > end and len(outcomes) >= _LEAST_LATENCIES:
            break
    return outcomes


def _one(pipeline: Pipeline, item: Inputs) -> int | Failure:
    """ns from one input to its output, with nothing else in flight; its Failure where it failed."""
    start = time.perf_counter_ns()
    pipeline.push(item)
    result = pipeline.pop()
    return result if isinstance(result, Failure) else time.perf_counter_ns() - start


@dataclass(frozen=True, slots=True)
class _Steady:
    """What came out in steady state. failures: of the items."""

    items: int
    failures: int
    seconds: float


def _steady(pipeline: Pipeline, inputs: Sequence[Inputs], seconds: float, progress: Callable[[int], None]) -> _Steady:
    """Count results from when every stage is busy until the time is up, and at least a few."""
    ending = False

    def items() -> Iterator[Inputs]:
        for item in cycle(inputs):
            if ending:
                return
            yield item

    warm = 2 * sum(len(p.stages) for p in pipeline.plan.pipelines)
    taken = failures = 0
    start = last = time.perf_counter()
    for k, result in enumerate(pipeline.map(items())):
        now = time.perf_counter()
        if k < warm:
            start = last = now
            if k + 1 == warm:
                pipeline.reset_statistics()
            continue
        if ending:
            continue  # the pipeline drains: its stages are no longer all busy
        taken, last = taken + 1, now
        failures += isinstance(result, Failure)
        progress(taken)
        ending = now - start > seconds and taken >= _LEAST_ITEMS
    return _Steady(taken, failures, last - start)


def _stage(plan: Plan, found: StageStatistics, slowest: float, source: Provenance) -> StageMeasurement:
    return StageMeasurement(
        pipeline=found.pipeline, stage=found.stage, segment=found.segment, devices=found.devices,
        source=source, predicted_ns=plan.segment(found.segment).predicted.stage_ns, stage_ns=found.stage_ns,
        share=round(found.stage_ns / len(found.devices) / slowest, 4), queued_ns=found.queued_ns,
        starved_ns=found.starved_ns, blocked_ns=found.blocked_ns, items=found.items,
    )  # fmt: skip


def segment_measurements(found: PipelineMeasurement) -> dict[str, SegmentMeasurement]:
    """Measurements as a plan holds them, by segment. A segment that several pipelines share gets the median of medians."""
    by_segment: dict[str, list[StageMeasurement]] = {}
    for stage in found.stages:
        by_segment.setdefault(stage.segment, []).append(stage)
    return {
        name: SegmentMeasurement(
            stage_ns=distribution([s.stage_ns for s in stages]).median, runs=sum(s.items for s in stages),
            device=",".join(dict.fromkeys(d for s in stages for d in s.devices)),
            source=provenance_text(joined(s.source for s in stages)),
        )
        for name, stages in by_segment.items()
    }  # fmt: skip
