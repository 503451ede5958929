"""Measuring a pipeline: first inference, one input alone, and the rate in steady state, each by itself."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from balancer.interpreter import runtime_label
from balancer.plan import SegmentMeasurement
from balancer.runtime.provenance import SIMULATED, SIMULATED_LIVE, costed_for_others, mixture, source_of
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Nanoseconds."""

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
    """One stage: predicted beside measured. source: on what it was measured, as `provenance` names it. share: of the time
    of the slowest one, replicas counted in.
    """

    pipeline: int
    stage: int
    segment: str
    devices: tuple[str, ...]
    source: str
    predicted_ns: int
    stage_ns: int
    share: float
    queued_ns: int
    starved_ns: int
    blocked_ns: int
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineMeasurement:
    """A benchmark's result. source: of all stages, "device", "simulated", "simulated, computed live", "cpu", or "mixed:
    ..." with each of them. latency_ns: median of one input alone; latency: all of it. predicted_handover_ns: the part of
    predicted_latency_ns that is none of the stages' own. first_inference_ns: with the parameters being loaded; None
    where that input failed. items: in steady state, failures: of them; throughput_per_s: of those that came through.
    failures_alone: of the inputs that ran alone, which are no part of the latency. notes: what the numbers do not say.
    """

    plan: str
    source: str
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


def distribution(values: Sequence[int]) -> Distribution:
    """Of at least one value; percentiles are values that occurred."""
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
    """Run an entered pipeline on these inputs, over and over, for about so many seconds.

    Raises StageError where an item fails, unless the pipeline goes on after errors: then failures are counted. Raises it
    also where not one input comes through alone. ValueError for no time.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be above 0, and finite, not {seconds!r}")
    first = _one(pipeline, inputs[0])
    alone = _alone(pipeline, inputs, seconds * _LATENCY_SHARE)
    latencies = [found for found in alone if isinstance(found, int)]
    if not latencies:
        raise next(found.error for found in alone if isinstance(found, Failure))
    rate = _steady(pipeline, inputs, seconds * (1 - _LATENCY_SHARE), progress)
    found = pipeline.statistics()
    plan = pipeline.plan
    slowest = max((s.stage_ns / len(s.devices) for s in found.stages), default=0) or 1
    live = pipeline.simulation.outputs == LIVE
    stages = tuple(_stage(plan, s, slowest, source_of(s.devices, live=live)) for s in found.stages)
    return PipelineMeasurement(
        plan=plan.file_name,
        source=mixture(s.source for s in stages),
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
        bottleneck=found.bottleneck,
        predicted_bottleneck=_predicted_bottleneck(plan),
        stages=stages,
        notes=_notes(pipeline, stages),
        versions={"balancer": VERSION, "python": sys.version.split()[0], "runtime": runtime_label()},
    )


def _predicted_bottleneck(plan: Plan) -> str:
    """The slowest stage of all pipelines, as `statistics` names the measured one."""
    stages = [stage for pipeline in plan.pipelines for stage in pipeline.stages]
    return max(stages, key=lambda s: plan.segment(s.segment).predicted.stage_ns / s.replicas).segment


def _handover_ns(plan: Plan) -> int:
    """Of the predicted latency, which is that of the slowest pipeline."""
    slowest = max(plan.pipelines, key=lambda p: p.predicted.latency_ns)
    return slowest.predicted.latency_ns - sum(plan.segment(s.segment).predicted.stage_ns for s in slowest.stages)


def _notes(pipeline: Pipeline, stages: Sequence[StageMeasurement]) -> tuple[str, ...]:
    notes = [costed_for_others(pipeline.plan, pipeline.devices)]
    if any(SIMULATED_LIVE in s.source for s in stages):
        notes.append("simulated TPUs computed their outputs on this CPU: no time is shorter than it takes")
    handover = _handover_ns(pipeline.plan)
    if handover and any(SIMULATED in s.source for s in stages):
        notes.append(
            f"{handover / 1e6:.3f} ms of the predicted latency are hand-over between stages, which is not simulated"
        )
    return tuple(note for note in notes if note)


def _alone(pipeline: Pipeline, inputs: Sequence[Inputs], seconds: float) -> list[int | Failure]:
    """One after the other, for about so long, and at least a few."""
    found, end = list[int | Failure](), time.monotonic() + seconds
    for item, _ in zip(cycle(inputs), range(_MOST_LATENCIES), strict=False):
        found.append(_one(pipeline, item))
        if time.monotonic() > end and len(found) >= _LEAST_LATENCIES:
            break
    return found


def _one(pipeline: Pipeline, item: Inputs) -> int | Failure:
    """ns from one input to its output, with nothing else in flight; or what became of it."""
    start = time.perf_counter_ns()
    pipeline.push(item)
    result = pipeline.pop()
    return result if isinstance(result, Failure) else time.perf_counter_ns() - start


@dataclass(frozen=True, slots=True)
class _Steady:
    items: int
    failures: int
    seconds: float


def _steady(pipeline: Pipeline, inputs: Sequence[Inputs], seconds: float, progress: Callable[[int], None]) -> _Steady:
    """Results taken from when every stage was busy until the time was up, and at least a few."""
    ending = False

    def items() -> Iterator[Any]:
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
            continue  # the pipeline runs empty
        taken, last = taken + 1, now
        failures += isinstance(result, Failure)
        progress(taken)
        ending = now - start > seconds and taken >= _LEAST_ITEMS
    return _Steady(taken, failures, last - start)


def _stage(plan: Plan, found: StageStatistics, slowest: float, source: str) -> StageMeasurement:
    return StageMeasurement(
        pipeline=found.pipeline, stage=found.stage, segment=found.segment, devices=found.devices,
        source=source, predicted_ns=plan.segment(found.segment).predicted.stage_ns, stage_ns=found.stage_ns,
        share=round(found.stage_ns / len(found.devices) / slowest, 4), queued_ns=found.queued_ns,
        starved_ns=found.starved_ns, blocked_ns=found.blocked_ns, items=found.items,
    )  # fmt: skip


def segment_measurements(found: PipelineMeasurement) -> dict[str, SegmentMeasurement]:
    """What the plan file says of each segment; of one that several pipelines share, the median of their medians."""
    by_segment: dict[str, list[StageMeasurement]] = {}
    for stage in found.stages:
        by_segment.setdefault(stage.segment, []).append(stage)
    return {
        name: SegmentMeasurement(
            stage_ns=distribution([s.stage_ns for s in stages]).median, runs=sum(s.items for s in stages),
            device=",".join(dict.fromkeys(d for s in stages for d in s.devices)), source=mixture(s.source for s in stages),
        )
        for name, stages in by_segment.items()
    }  # fmt: skip
