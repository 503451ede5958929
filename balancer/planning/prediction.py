"""What is predicted of pipelines and plans, from the predicted stage times: rate, latency, host work, first inference."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from balancer.ground.rates import latency_ns, load_ns, pipeline_rate, shared_rates
from balancer.plan import PipelinePrediction, PlanPrediction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.cost.hardware import Hardware, Host, Link
    from balancer.plan import Segment

DECIMALS = 6  # of rates and ratios in files: far below what any prediction is good for


class CostedStage(NamedTuple):
    """A segment with its prediction, and how many TPUs take turns with it."""

    segment: Segment
    replicas: int

    @property
    def period_ns(self) -> Fraction:
        return Fraction(self.segment.predicted.stage_ns, self.replicas)


def pipeline_prediction(stages: Sequence[CostedStage], host: Host) -> PipelinePrediction:
    """One pipeline by itself."""
    return PipelinePrediction(
        throughput_per_s=round(float(_rate(stages)), DECIMALS),
        latency_ns=_latency_ns(stages, host),
        host_ns=host.host_ns_per_stage * len(stages),
        bottleneck=max(stages, key=lambda stage: stage.period_ns).segment.name,
    )


def plan_prediction(pipelines: Sequence[Sequence[CostedStage]], hardware: Hardware) -> PlanPrediction:
    """Pipelines side by side under one host: their rates together, the longest latency and first inference, and the host's
    work per inference, averaged over the rates.
    """
    host = hardware.host
    hosts = [host.host_ns_per_stage * len(stages) for stages in pipelines]
    shared = shared_rates([_rate(stages) for stages in pipelines], hosts)
    mean_host = sum((r * h for r, h in zip(shared, hosts, strict=True)), Fraction(0)) / sum(shared, Fraction(0))
    latencies = [_latency_ns(stages, host) for stages in pipelines]
    loads = [_load_ns(stages, hardware.link) for stages in pipelines]
    return PlanPrediction(
        throughput_per_s=round(float(sum(shared)), DECIMALS),
        latency_ns=max(latencies),
        host_ns=math.ceil(mean_host),
        first_inference_ns=max(latency + load for latency, load in zip(latencies, loads, strict=True)),
        tpus_used=sum(stage.replicas for stages in pipelines for stage in stages),
    )


def _rate(stages: Sequence[CostedStage]) -> Fraction:
    return pipeline_rate([s.segment.predicted.stage_ns for s in stages], [s.replicas for s in stages])


def _latency_ns(stages: Sequence[CostedStage], host: Host) -> int:
    return latency_ns((s.segment.predicted.stage_ns for s in stages), host.handover_ns)


def _load_ns(stages: Sequence[CostedStage], link: Link) -> int:
    """The first inference also sends the parameters that stay on chip, one segment after the other."""
    return sum(load_ns(s.segment.predicted.cached_bytes, link.load_ns_per_mib, link.load_ns) for s in stages)
