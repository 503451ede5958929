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
from balancer.version import VERSION
from balancer.workers import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from balancer.plan import Plan
    from balancer.runtime.pipeline import Inputs, Pipeline
    from balancer.runtime.statistics import StageStatistics

DEVICE, SIMULATED, CPU = "device", "simulated", "cpu"
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
    """One stage: predicted beside measured. share: of the time of the slowest one, replicas counted in."""

    pipeline: int
    stage: int
    segment: str
    devices: tuple[str, ...]
    predicted_ns: int
    stage_ns: int
    share: float
    queued_ns: int
    starved_ns: int
    blocked_ns: int
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A benchmark's result. source: "device", "simulated" or "cpu". latency_ns: median of one input alone; latency: all
    of it. first_inference_ns: with the parameters being loaded. throughput_per_s: in steady state.
    """

    plan: str
    source: str
    throughput_per_s: float
    predicted_throughput_per_s: float
    latency_ns: int
    predicted_latency_ns: int
    first_inference_ns: int
    latency: Distribution
    items: int
    failures: int
    seconds: float
    bottleneck: str | None
    predicted_bottleneck: str
    stages: tuple[StageMeasurement, ...]
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
) -> Measurement:
    """Run an entered pipeline on these inputs, over and over, for about so many seconds.

    Raises StageError where an item fails, unless the pipeline goes on after errors: then failures are counted.
    ValueError for no time.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be above 0, and finite, not {seconds!r}")
    first = _one(pipeline, inputs[0])
    latencies, end = [], time.monotonic() + seconds * _LATENCY_SHARE
    for item, _ in zip(cycle(inputs), range(_MOST_LATENCIES), strict=False):
        latencies.append(_one(pipeline, item))
        if time.monotonic() > end and len(latencies) >= _LEAST_LATENCIES:
            break
    rate = _steady(pipeline, inputs, seconds * (1 - _LATENCY_SHARE), progress)
    found = pipeline.statistics()
    plan = pipeline.plan
    slowest = max((s.stage_ns / len(s.devices) for s in found.stages), default=0) or 1
    return Measurement(
        plan=plan.file_name,
        source=source_of(pipeline.devices),
        throughput_per_s=round(rate.items / rate.seconds, 6),
        predicted_throughput_per_s=plan.predicted.throughput_per_s,
        latency_ns=distribution(latencies).median,
        predicted_latency_ns=plan.predicted.latency_ns,
        first_inference_ns=first,
        latency=distribution(latencies),
        items=rate.items,
        failures=rate.failures,
        seconds=round(rate.seconds, 3),
        bottleneck=found.bottleneck,
        predicted_bottleneck=plan.pipelines[0].predicted.bottleneck,
        stages=tuple(_stage(plan, s, slowest) for s in found.stages),
        versions={"balancer": VERSION, "python": sys.version.split()[0], "runtime": runtime_label()},
    )


def source_of(devices: Sequence[str]) -> str:
    """What a measurement on these devices is."""
    if all(d in ("sim", "none") for d in devices):
        return SIMULATED
    return CPU if all(d == "cpu" for d in devices) else DEVICE


def _one(pipeline: Pipeline, item: Inputs) -> int:
    """ns from one input to its output, with nothing else in flight."""
    start = time.perf_counter_ns()
    pipeline.push(item)
    pipeline.pop()
    return time.perf_counter_ns() - start


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


def _stage(plan: Plan, found: StageStatistics, slowest: float) -> StageMeasurement:
    return StageMeasurement(
        pipeline=found.pipeline, stage=found.stage, segment=found.segment, devices=found.devices,
        predicted_ns=plan.segment(found.segment).predicted.stage_ns, stage_ns=found.stage_ns,
        share=round(found.stage_ns / len(found.devices) / slowest, 4), queued_ns=found.queued_ns,
        starved_ns=found.starved_ns, blocked_ns=found.blocked_ns, items=found.items,
    )  # fmt: skip


def segment_measurements(found: Measurement) -> dict[str, SegmentMeasurement]:
    """What the plan file says of each segment; of one that several pipelines share, the median of their medians."""
    by_segment: dict[str, list[StageMeasurement]] = {}
    for stage in found.stages:
        by_segment.setdefault(stage.segment, []).append(stage)
    return {
        name: SegmentMeasurement(
            stage_ns=distribution([s.stage_ns for s in stages]).median, runs=sum(s.items for s in stages),
            device=",".join(dict.fromkeys(d for s in stages for d in s.devices)), source=found.source,
        )
        for name, stages in by_segment.items()
    }  # fmt: skip
