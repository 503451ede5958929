"""Pipelines that a plan may be built from, and the best plan that they make."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from balancer.ground.units import NS_PER_S
from balancer.solve import allocation
from balancer.solve.allocation import Candidate, TieValues, allocate
from balancer.solve.interval_dp import best_partition
from balancer.solve.problem import PipelineSpec, StageSpec, stage_costs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.ground.opsets import OpSet
    from balancer.solve.interval_dp import IntervalGoal, IntervalTable
    from balancer.solve.period_dp import PeriodResult, ShortestPeriod
    from balancer.solve.problem import Problem


class CostedPipeline(NamedTuple):
    """A pipeline with its costs. streamed_bytes: of all replicas. stages_ns: the sum of the stages' times."""

    pipeline: PipelineSpec
    streamed_bytes: int
    stages_ns: int


@dataclass(frozen=True)
class Offer:
    """A pipeline that a plan may hold, known by its size and speed.

    period: ns between two results. trace: finds the partition itself, by the tie rules. That takes longest, so it is
    called only for offers that may be part of a best plan.
    """

    stages: int
    devices: int
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


def best_plan(problem: Problem, offers: Sequence[Offer], devices: int, most_pipelines: int) -> BestPlan:
    """Of equally good plans, one whose pipelines have no replicas is preferred, then one with deeper pipelines.

    Raises ValueError where no offer fits the devices.
    """
    ranked = sorted(
        offers, key=lambda offer: (offer.devices > offer.stages, -offer.stages, offer.devices, offer.period)
    )
    allocated = allocate([_candidate(problem, offer) for offer in ranked], devices, most_pipelines)
    return BestPlan(tuple(ranked[c].costed.pipeline for c in allocated.chosen), allocated.complete, allocated.bound_ns)


def good_objective_ns(problem: Problem, offers: Sequence[Offer], devices: int, most_pipelines: int) -> int:
    """The objective of a good plan of these offers, in a fraction of the time that the best one takes."""
    return allocation.good_objective_ns([_candidate(problem, offer) for offer in offers], devices, most_pipelines)


def _candidate(problem: Problem, offer: Offer) -> Candidate:
    def ties() -> TieValues:
        return TieValues(offer.costed.streamed_bytes, offer.costed.stages_ns + problem.handover_ns * offer.stages)

    return Candidate(offer.devices, NS_PER_S / offer.period, problem.host_ns * offer.stages, ties)


def interval_offer(problem: Problem, table: IntervalTable, goal: IntervalGoal, cuts: Sequence[OpSet]) -> Offer:
    """A pipeline of intervals of an order. cuts: of that order, as the table was made with."""

    def trace() -> CostedPipeline:
        way = best_partition(table, goal)
        kind = problem.devices[0][0]
        sets = [0, *(cuts[b] for b in way.ends)]
        stages = (
            StageSpec(after & ~before, kind, r)
            for (before, after), (_, r) in zip(pairwise(sets), way.stages, strict=True)
        )
        return CostedPipeline(PipelineSpec(tuple(stages)), way.streamed_bytes, way.latency_ns)

    return Offer(goal.stages, goal.devices, goal.period, trace)


def lattice_offer(result: PeriodResult, goal: ShortestPeriod) -> Offer:
    """A pipeline that a search among down-sets has found."""

    def trace() -> CostedPipeline:
        pipeline, path = result.settle(goal)
        return CostedPipeline(pipeline, path.streamed_bytes, path.latency_ns)

    return Offer(goal.stages, goal.device_count, goal.period, trace)


def pipeline_offer(problem: Problem, pipeline: PipelineSpec) -> Offer | None:
    """A given pipeline; None where a segment of it may not stand."""
    costs = stage_costs(problem, pipeline)
    if costs is None:
        return None  # pragma: no cover - pipelines that may not stand are left out before
    replicas = [stage.replicas for stage in pipeline.stages]
    period = max(Fraction(max(cost.time_ns, 1), r) for cost, r in zip(costs, replicas, strict=True))
    streamed = sum(cost.streamed_bytes * r for cost, r in zip(costs, replicas, strict=True))
    costed = CostedPipeline(pipeline, streamed, sum(cost.time_ns for cost in costs))
    return Offer(len(costs), pipeline.devices, period, lambda: costed)


def alone_ns(problem: Problem, stages: int, period: Fraction) -> int:
    """The objective, in ns per inference, of a plan that consists of one pipeline."""
    return max(math.ceil(period), problem.host_ns * stages)
