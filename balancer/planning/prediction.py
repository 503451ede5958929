"""Predicts rate, latency, host work and first inference of pipelines and plans from the predicted times of their stages."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from balancer.ground.rates import latency_ns, load_ns, pipeline_rate, shared_rates
from balancer.plan import PipelinePrediction, PlanPrediction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.cost.hardware import AnyHardware
    from balancer.plan import Segment

DECIMALS = 6  # of rates and ratios in files: much finer than any prediction is accurate


class CostedStage(NamedTuple):
    """A segment with its prediction, how many devices run it in turn, and of which kind they are."""

    segment: Segment
    replicas: int
    kind: AnyHardware

    @property
    def period_ns(self) -> Fraction:
        return Fraction(self.segment.predicted.stage_ns, self.replicas)


def pipeline_prediction(stages: Sequence[CostedStage]) -> PipelinePrediction:
    """The prediction for one pipeline, as if it ran alone."""
    return PipelinePrediction(
        throughput_per_s=round(float(_rate(stages)), DECIMALS),
        latency_ns=_latency_ns(stages),
        host_ns=_host_ns(stages),
        bottleneck=max(stages, key=lambda stage: stage.period_ns).segment.name,
    )


def plan_prediction(pipelines: Sequence[Sequence[CostedStage]]) -> PlanPrediction:
    """The prediction for pipelines side by side under one host: the sum of the rates that the host allows, the longest
    latency and first inference, and the host's work for one inference, averaged over the pipelines by their rates.
    """
    hosts = [_host_ns(stages) for stages in pipelines]
    shared = shared_rates([_rate(stages) for stages in pipelines], [[host_ns] for host_ns in hosts])
    mean_host = sum((r * h for r, h in zip(shared, hosts, strict=True)), Fraction(0)) / sum(shared, Fraction(0))
    latencies = [_latency_ns(stages) for stages in pipelines]
    loads = [_load_ns(stages) for stages in pipelines]
    return PlanPrediction(
        throughput_per_s=round(float(sum(shared)), DECIMALS),
        latency_ns=max(latencies),
        host_ns=math.ceil(mean_host),
        first_inference_ns=max(latency + load for latency, load in zip(latencies, loads, strict=True)),
        tpus_used=sum(stage.replicas for stages in pipelines for stage in stages),
    )


def _rate(stages: Sequence[CostedStage]) -> Fraction:
    return pipeline_rate([s.segment.predicted.stage_ns for s in stages], [s.replicas for s in stages])


def _host_ns(stages: Sequence[CostedStage]) -> int:
    return sum(s.kind.host.host_ns_per_stage for s in stages)


def _latency_ns(stages: Sequence[CostedStage]) -> int:
    return sum(latency_ns((s.segment.predicted.stage_ns,), s.kind.host.handover_ns) for s in stages)


def _load_ns(stages: Sequence[CostedStage]) -> int:
    """What the first inference takes longer: the cached parameters are loaded, one segment after the other."""
    links = [s.kind.link for s in stages]
    cached = [s.segment.predicted.cached_bytes for s in stages]
    return sum(load_ns(size, link.load_ns_per_mib, link.load_ns) for size, link in zip(cached, links, strict=True))
