"""The partition whose segments need the least memory for activations: what a compiler takes, if it takes any.

It is found by the same solvers as the fastest one: a problem in which a segment "takes" as many ns as bytes of activations
are live in it. The shortest period is then the smallest largest need of a segment. Among partitions with the same one, the
sum of squares decides, so that other segments are small as well.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.cost.live_batch import LiveBatch
from balancer.errors import InfeasibleError
from balancer.solve import Cost, CostColumns, Problem, SolverOptions, solve

if TYPE_CHECKING:
    from balancer.cost.segment import SegmentCosts
    from balancer.ground.arrays import IndexArray
    from balancer.ground.downsets import DownSets
    from balancer.ground.opsets import OpSet
    from balancer.planning.costed_model import CostedModel
    from balancer.planning.options import Options
    from balancer.solve import Between, Kind, PipelineSpec


def least_live(costed: CostedModel, n_tpus: int, options: Options) -> PipelineSpec:
    """One pipeline of segments with few live activations, on a TPU each: as many segments as there are TPUs, if possible.

    It keeps the number of stages that the options ask for, and their rules for overflow and for what compiles. Raises
    InfeasibleError if there is none.
    """
    problem = _problem(costed.costs, costed.problem(n_tpus, overflow=options.overflow_now, worst=options.worst))
    most = options.stages or n_tpus
    for stages in dict.fromkeys((most, options.stages)):
        found = _solved(problem, stages)
        if found is not None:
            return found
    raise InfeasibleError("there is no partition into allowed segments", f"{n_tpus} TPUs", "allow more TPUs")


def largest_live_bytes(costs: SegmentCosts, pipeline: PipelineSpec) -> int:
    """The most that the live activations of one of its segments take of a tile."""
    return max(costs.judgement(stage.ops).tile_bytes for stage in pipeline.stages)


def _solved(problem: Problem, stages: int | None) -> PipelineSpec | None:
    """The best pipeline over cuts of the file's order, or over all down-sets if that has none better."""
    try:
        options = SolverOptions(max_pipelines=1, max_replicas=1, stages=stages, solver="downset")
        return solve(problem, options).pipelines[0]
    except InfeasibleError:
        return None


def _problem(costs: SegmentCosts, problem: Problem) -> Problem:
    """The problem with live bytes instead of times, and their squares instead of streamed bytes."""

    def exact(ops: OpSet, kind: Kind) -> Cost | None:
        live = costs.judgement(ops).tile_bytes
        return Cost(live, live * live) if problem.exact(ops, kind) else None

    def batch(sets: DownSets, kind: Kind) -> Between:
        allowed, live_between = problem.batch(sets, kind), LiveBatch(costs, sets)

        def between(inners: IndexArray, outers: IndexArray) -> CostColumns:
            live = live_between(inners, outers)
            return CostColumns(live, live * live, allowed(inners, outers).allowed)

        return between

    return replace(
        problem, exact=exact, lower=lambda ops, kind: 0, batch=batch, structures={}, host_ns=0, handover_ns=0
    )
