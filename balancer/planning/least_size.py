"""The least size of activations that a partition can have in its largest segment: what a compiler takes, if it takes any.

It is found by the same solvers as the fastest plan, in a problem in which a segment "takes" as many ns as its activations
have bytes. The shortest period is then the size of the largest segment.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.cost.activation_sizes import ActivationSizes, Measure, activation_size
from balancer.solve import Cost, CostColumns, Problem, SolverOptions, solve

if TYPE_CHECKING:
    from balancer.cost.segment import SegmentCosts
    from balancer.ground.arrays import IndexArray
    from balancer.ground.downsets import DownSets
    from balancer.ground.opsets import OpSet
    from balancer.planning.costed_model import CostedModel
    from balancer.planning.options import Options
    from balancer.solve import Between, Kind


def least_size(costed: CostedModel, options: Options, measure: Measure) -> int:
    """The size of the largest segment, in the partition in which it is smallest.

    It keeps the number of stages that the options ask for, and their rules for overflow and for what compiles. The search
    may leave out partitions, so the least may be a little smaller. Raises InfeasibleError if there is no partition.
    """
    problem = costed.problem(overflow=options.overflow_now, worst=options.worst)
    one_each = SolverOptions(max_pipelines=1, max_replicas=1, stages=options.stages, solver="downset")
    pipeline = solve(_by_size(costed.costs, problem, measure), one_each).pipelines[0]
    return max(activation_size(costed.costs, stage.ops, measure) for stage in pipeline.stages)


def _by_size(costs: SegmentCosts, problem: Problem, measure: Measure) -> Problem:
    """The problem with the same segments, in which a segment takes as many ns as its activations have bytes by the measure."""

    def exact(ops: OpSet, kind: Kind) -> Cost | None:
        return Cost(activation_size(costs, ops, measure), 0) if problem.exact(ops, kind) else None

    def lower(ops: OpSet, kind: Kind) -> int:
        # Other ops may run on the CPU, where they need no memory of the chip.
        return activation_size(costs, ops & costs.sure_on_tpu, measure)

    def batch(sets: DownSets, kind: Kind) -> Between:
        allowed, sizes_between = problem.batch(sets, kind), ActivationSizes(costs, sets)

        def between(inners: IndexArray, outers: IndexArray) -> CostColumns:
            sizes = sizes_between(measure, inners, outers)
            return CostColumns(sizes, 0 * sizes, allowed(inners, outers).allowed)

        return between

    return replace(problem, exact=exact, lower=lower, batch=batch, structures={}, host_ns=0, handover_ns=0)
