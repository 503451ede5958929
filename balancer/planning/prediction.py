"""Predicts rate, latency, shared work, energy and first inference of pipelines and plans from their stages' predicted times."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from balancer.ground.rates import latency_ns, load_ns, pipeline_rate, shared_rates
from balancer.ground.units import NS_PER_S
from balancer.plan import PipelinePrediction, PlanPrediction, SharedUse
from balancer.planning.estimating import PipelineLoad, energy_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.cost.devices import Devices
    from balancer.cost.hardware import AnyHardware
    from balancer.plan import Segment
    from balancer.solve import SharedResource

DECIMALS = 6  # of rates and ratios in files: much finer than any prediction is accurate


class CostedStage(NamedTuple):
    """A segment with its prediction, how many devices run it in turn, and of which kind they are.

    shared_ns: what one input takes of what the devices share, as in `solve.Cost`.
    """

    segment: Segment
    replicas: int
    kind: AnyHardware
    shared_ns: tuple[int, ...] = ()

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


def plan_prediction(
    pipelines: Sequence[Sequence[CostedStage]], devices: Devices, resources: Sequence[SharedResource] = ()
) -> PlanPrediction:
    """The prediction for pipelines side by side: the sum of the rates that the host and the resources allow, the longest
    latency and first inference, and the host's work for one inference, averaged over the pipelines by their rates.

    devices: all that are powered. resources: what they share besides the host.
    """
    work = [(_host_ns(stages), *_taken(stages, len(resources))) for stages in pipelines]
    capacities = (1, *(resource.capacity for resource in resources))
    rates = shared_rates([_rate(stages) for stages in pipelines], work, capacities)
    busy = [sum((r * w[k] for r, w in zip(rates, work, strict=True)), Fraction(0)) for k in range(len(capacities))]
    latencies = [_latency_ns(stages) for stages in pipelines]
    loads = [_load_ns(stages) for stages in pipelines]
    shares = [ns / (NS_PER_S * capacity) for ns, capacity in zip(busy, capacities, strict=True)]
    return PlanPrediction(
        throughput_per_s=round(float(sum(rates)), DECIMALS),
        latency_ns=max(latencies),
        host_ns=math.ceil(busy[0] / sum(rates, Fraction(0))),
        first_inference_ns=max(latency + load for latency, load in zip(latencies, loads, strict=True)),
        tpus_used=sum(stage.replicas for stages in pipelines for stage in stages),
        shared=tuple(
            SharedUse(name=resource.name, share=round(float(share), DECIMALS))
            for resource, share in zip(resources, shares[1:], strict=True)
        ),
        energy=energy_of(devices, [_pipeline_load(r, stages) for r, stages in zip(rates, pipelines, strict=True)]),
    )


def _taken(stages: Sequence[CostedStage], resources: int) -> tuple[int, ...]:
    """ns that one input takes of each resource in all stages."""
    return tuple(sum(stage.shared_ns[k] for stage in stages if stage.shared_ns) for k in range(resources))


def _pipeline_load(rate: Fraction, stages: Sequence[CostedStage]) -> PipelineLoad:
    return PipelineLoad(rate, tuple((s.kind.name, s.segment.predicted.stage_ns) for s in stages))


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
