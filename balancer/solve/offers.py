"""Pipelines to build a plan from, and the best plan that they make."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from balancer.ground.units import NS_PER_S
from balancer.solve import allocation
from balancer.solve.allocation import Candidate, allocate
from balancer.solve.problem import PipelineSpec, StageSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.ground.opsets import OpSet
    from balancer.solve.interval_dp import Chain, ChainSolver, Reached
    from balancer.solve.period_dp import PeriodResult, ShortestPeriod
    from balancer.solve.problem import Problem


class Settled(NamedTuple):
    """streamed_bytes: of all replicas. latency_ns: the sum of the stages' times."""

    pipeline: PipelineSpec
    streamed_bytes: int
    latency_ns: int


@dataclass(frozen=True)
class Offer:
    """A pipeline that a plan may hold. period: ns between two results. settle: which partition it is, worked out when it
    is asked for: that takes longest.
    """

    stages: int
    devices: int
    period: Fraction
    settle: Callable[[], Settled]

    @cached_property
    def settled(self) -> Settled:
        return self.settle()


class BestOffers(NamedTuple):
    """pipelines of the best plan of some offers; bound_ns: no plan of these has a smaller objective, None where this
    one is best.
    """

    pipelines: tuple[PipelineSpec, ...]
    bound_ns: int | None


def best_plan(problem: Problem, offers: Sequence[Offer], devices: int, most_pipelines: int) -> BestOffers:
    """Ties go to pipelines without replicas, deep before shallow."""
    ranked = sorted(
        offers, key=lambda offer: (offer.devices > offer.stages, -offer.stages, offer.devices, offer.period)
    )
    candidates = [_candidate(problem, offer) for offer in ranked]
    allocation = allocate(candidates, devices, most_pipelines)
    return BestOffers(tuple(ranked[c].settled.pipeline for c in allocation.chosen), allocation.bound_ns)


def good_objective_ns(problem: Problem, offers: Sequence[Offer], devices: int, most_pipelines: int) -> int:
    """What a good plan of them is worth, without looking for the best."""
    return allocation.good_objective_ns([_candidate(problem, offer) for offer in offers], devices, most_pipelines)


def _candidate(problem: Problem, offer: Offer) -> Candidate:
    def settle() -> tuple[int, int]:
        settled = offer.settled
        return settled.streamed_bytes, settled.latency_ns + problem.handover_ns * offer.stages

    return Candidate(offer.devices, NS_PER_S / offer.period, problem.host_ns * offer.stages, settle)


def chain_offer(problem: Problem, solver: ChainSolver, goal: Reached, cuts: Sequence[OpSet]) -> Offer:
    """A pipeline of intervals of an order, given by its cuts."""
    return Offer(goal.stages, goal.devices, goal.period, lambda: _settled(problem, solver.settle(goal), cuts))


def _settled(problem: Problem, chain: Chain, cuts: Sequence[OpSet]) -> Settled:
    kind = problem.devices[0][0]
    ops = (cuts[b] & ~cuts[a] for a, b in pairwise([0, *chain.cuts, len(cuts) - 1]))
    stages = tuple(StageSpec(s, kind, r) for s, r in zip(ops, chain.replicas, strict=True))
    return Settled(PipelineSpec(stages), chain.streamed_bytes, chain.latency_ns)


def lattice_offer(result: PeriodResult, goal: ShortestPeriod) -> Offer:
    """A pipeline of a search among down-sets."""

    def settle() -> Settled:
        pipeline, path = result.settle(goal)
        return Settled(pipeline, path.streamed_bytes, path.latency_ns)

    return Offer(goal.stages, goal.device_count, goal.period, settle)


def pipeline_offer(problem: Problem, pipeline: PipelineSpec) -> Offer | None:
    """A pipeline as it is; None where a segment of it may not stand."""
    costs = [problem.exact(stage.ops, stage.kind) for stage in pipeline.stages]
    known = [(cost, stage.replicas) for cost, stage in zip(costs, pipeline.stages, strict=True) if cost is not None]
    if len(known) < len(costs):
        return None
    period = max(Fraction(max(cost.time_ns, 1), r) for cost, r in known)
    streamed, latency = sum(cost.streamed_bytes * r for cost, r in known), sum(cost.time_ns for cost, _ in known)
    return Offer(len(known), pipeline.devices, period, lambda: Settled(pipeline, streamed, latency))


def alone_ns(problem: Problem, stages: int, period: Fraction) -> int:
    """ns per inference of a plan that is one pipeline, rounded up: what plans are compared by."""
    return max(math.ceil(period), problem.host_ns * stages)
