"""Pipelines that a plan may be built from, and the best plan that they make."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from balancer.ground.programs import highest_gain
from balancer.ground.units import NS_PER_S
from balancer.solve import allocation
from balancer.solve.allocation import Candidate, Supply, TieValues, allocate
from balancer.solve.interval_dp import best_partition
from balancer.solve.problem import PipelineSpec, StageSpec, capacities, evaluate, shared_work, stage_costs
from balancer.solve.sizes import stage_classes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.ground.opsets import OpSet
    from balancer.solve.interval_dp import IntervalGoal, IntervalTable
    from balancer.solve.label_dp import Labelled
    from balancer.solve.period_dp import PeriodResult, ShortestPeriod
    from balancer.solve.problem import Problem
    from balancer.solve.sizes import Counts


class CostedPipeline(NamedTuple):
    """A pipeline with what it is valued by. streamed_bytes: of all replicas. latency_ns: with the hand-overs."""

    pipeline: PipelineSpec
    streamed_bytes: int
    latency_ns: int


@dataclass(frozen=True)
class Offer:
    """A pipeline that a plan may hold, known by its size and speed.

    stages: by class. devices: by kind (see `sizes`). period: ns between two results. trace: finds the partition itself, by
    the tie rules. That takes longest, so it is called only for offers that may be part of a best plan.
    """

    stages: Counts
    devices: Counts
    period: Fraction
    trace: Callable[[], CostedPipeline]

    @cached_property
    def costed(self) -> CostedPipeline:
        return self.trace()


class BestPlan(NamedTuple):
    """The best plan that some offers make. complete, bound_ns: as in `Allocation`, over plans of these offers."""

    pipelines: tuple[PipelineSpec, ...]
    complete: bool
    bound_ns: int


def best_plan(problem: Problem, offers: Sequence[Offer], devices: Counts, most_pipelines: int) -> BestPlan:
    """The best plan of these offers on at most these devices, by kind.

    Of equally good plans, one whose pipelines have no replicas is preferred, then one with deeper pipelines. Raises
    ValueError where no offer fits the devices.
    """
    ranked = sorted(offers, key=_rank)
    allocated = allocate([_candidate(problem, offer) for offer in ranked], _supply(problem, devices), most_pipelines)
    return BestPlan(tuple(ranked[c].costed.pipeline for c in allocated.chosen), allocated.complete, allocated.bound_ns)


def good_objective_ns(problem: Problem, offers: Sequence[Offer], devices: Counts, most_pipelines: int) -> int:
    """The objective of a good plan of these offers, in a fraction of the time that the best one takes."""
    candidates = [_candidate(problem, offer) for offer in offers]
    return allocation.good_objective_ns(candidates, _supply(problem, devices), most_pipelines)


def device_shares(offers: Sequence[Offer], devices: Counts) -> list[Fraction]:
    """For each kind the share of the best rate that one of its devices brings, such that those of all devices sum to 1.

    They are the prices of the linear program that gives devices to these offers in any parts.
    """
    if len(devices) == 1 or not offers:
        return [Fraction(1, sum(devices))] * len(devices)
    rates = [1 / offer.period for offer in offers]
    limits = [Fraction(count) for count in devices]
    rows = [[Fraction(offer.devices[k]) for offer in offers] for k in range(len(devices))]
    prices = highest_gain(rates, rows, limits).prices
    worth = sum((price * count for price, count in zip(prices, devices, strict=True)), Fraction(0))
    return [price / worth for price in prices]


def _rank(offer: Offer) -> tuple[bool, int, int, Fraction]:
    stages, devices = sum(offer.stages), sum(offer.devices)
    return devices > stages, -stages, devices, offer.period


def _supply(problem: Problem, devices: Counts) -> Supply:
    reluctant = (k for k, (kind, _) in enumerate(problem.devices) if kind in problem.reluctant)
    return Supply(devices, tuple(reluctant), capacities(problem))


def _candidate(problem: Problem, offer: Offer) -> Candidate:
    def ties() -> TieValues:
        return TieValues(offer.costed.streamed_bytes, offer.costed.latency_ns)

    return Candidate(offer.devices, NS_PER_S / offer.period, _work(problem, offer), ties)


def _work(problem: Problem, offer: Offer) -> tuple[int, ...]:
    """What one input takes of the host and of other resources."""
    if not problem.shared:
        return (stage_classes(problem).work_ns(offer.stages),)
    costs = stage_costs(problem, offer.costed.pipeline)
    return shared_work(problem, offer.costed.pipeline, costs or [])


def interval_offer(problem: Problem, table: IntervalTable, goal: IntervalGoal, cuts: Sequence[OpSet]) -> Offer:
    """A pipeline of intervals of an order, for one kind of device. cuts: of that order, as the table was made with."""

    def trace() -> CostedPipeline:
        way = best_partition(table, goal)
        kind = problem.devices[0][0]
        sets = [0, *(cuts[b] for b in way.ends)]
        stages = (
            StageSpec(after & ~before, kind, r)
            for (before, after), (_, r) in zip(pairwise(sets), way.stages, strict=True)
        )
        latency_ns = way.latency_ns + problem.handover_ns.get(kind, 0) * goal.stages
        return CostedPipeline(PipelineSpec(tuple(stages)), way.streamed_bytes, latency_ns)

    return Offer((goal.stages,), (goal.devices,), goal.period, trace)


def lattice_offer(result: PeriodResult, goal: ShortestPeriod) -> Offer:
    """A pipeline that a search among down-sets has found."""

    def trace() -> CostedPipeline:
        pipeline, path = result.settle(goal)
        return CostedPipeline(pipeline, path.streamed_bytes, path.latency_ns)

    return Offer(goal.stages, goal.devices, goal.period, trace)


def labelled_offer(labelled: Labelled) -> Offer:
    """A pipeline that a search for all that no other beats has found."""
    costed = CostedPipeline(labelled.pipeline, labelled.streamed_bytes, labelled.latency_ns)
    return Offer(labelled.stages, labelled.devices, labelled.period, lambda: costed)


def pipeline_offer(problem: Problem, pipeline: PipelineSpec) -> Offer | None:
    """A given pipeline; None where a segment of it may not stand."""
    value = evaluate(problem, [pipeline])
    costs = stage_costs(problem, pipeline)
    if costs is None or value is None:
        return None  # pragma: no cover - pipelines that may not stand are left out before
    replicas = [stage.replicas for stage in pipeline.stages]
    period = max(Fraction(max(cost.time_ns, 1), r) for cost, r in zip(costs, replicas, strict=True))
    own = [[stage for stage in pipeline.stages if stage.kind == kind] for kind, _ in problem.devices]
    stages = stage_classes(problem).counts(tuple(len(here) for here in own))
    devices = tuple(sum(stage.replicas for stage in here) for here in own)
    costed = CostedPipeline(pipeline, value.streamed_bytes, value.latency_ns)
    return Offer(stages, devices, period, lambda: costed)


def alone_ns(problem: Problem, stages: Counts, period: Fraction) -> int:
    """The objective, in ns per inference, of a plan that consists of one pipeline, if it may use all that is shared.

    stages: by class.
    """
    return max(math.ceil(period), stage_classes(problem).work_ns(stages))
