"""Baselines: other ways to cut a model, each as published. They make one pipeline with one device for each stage.

A baseline sees only as much of the cost as its own rule does. The value of its plan is computed by `exact` all the same.
"""

from __future__ import annotations

from itertools import combinations, pairwise
from math import comb
from typing import TYPE_CHECKING

from balancer.errors import BalancerError, InfeasibleError
from balancer.ground.opsets import interval_set
from balancer.ground.wording import counted
from balancer.solve.bisection import bisect_cuts
from balancer.solve.depth_balanced import depth_balanced
from balancer.solve.interval_dp import interval_table
from balancer.solve.offers import interval_offer
from balancer.solve.orders import depth_first_order, file_order, order_table, parts_in_order, prefixes
from balancer.solve.problem import Ended, PipelineSpec, Solution, StageSpec, evaluate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.ground.opsets import OpSet
    from balancer.solve.problem import Problem, SolverOptions

MOST_PARTITIONS = 200_000
OVER = "nothing"


def equal_op_counts(n_ops: int, segments: int) -> tuple[int, ...]:
    """Cuts into segments whose numbers of ops differ by at most one, longer ones last.

    >>> equal_op_counts(8, segments=3)
    (2, 5)
    """
    return tuple(n_ops * j // segments for j in range(1, segments))


def parameter_count(op_bytes: Sequence[int], segments: int) -> tuple[int, ...]:
    """Cuts by the rule of the compiler's `--num_segments`, as far as it is known.

    A segment takes ops while their bytes sum to at most total // segments + 1, and at least one op. The last segment
    takes the rest. op_bytes: parameter bytes of each op as the file holds them, in the file's order.

    Source: libcoral, `parameter_count_based_partitioner.cc`. In the file's op order it reproduces the published splits
    of the closed compiler (five-convolution models, two SSD detectors, ResNet-101).

    >>> parameter_count([2, 1, 1, 1], segments=2)
    (2,)
    """
    limit = sum(op_bytes) // segments + 1
    cuts: list[int] = []
    held = 0
    for i, size in enumerate(op_bytes):
        full = held + size > limit and i > (cuts[-1] if cuts else 0)
        starving = len(op_bytes) - i <= segments - 1 - len(cuts)  # each remaining segment needs an op
        if len(cuts) < segments - 1 and i > 0 and (full or starving):
            cuts.append(i)
            held = 0
        held += size
    return tuple(cuts)


def _segments(problem: Problem) -> int:
    return min(problem.devices[0][1], problem.n_ops)


def _sizes(problem: Problem) -> Sequence[int]:
    return problem.op_bytes or [1] * problem.n_ops


def _cut(problem: Problem, cuts: Sequence[int]) -> PipelineSpec:
    kind = problem.devices[0][0]
    return PipelineSpec(tuple(StageSpec(interval_set(a, b), kind) for a, b in pairwise([0, *cuts, problem.n_ops])))


def _equal(problem: Problem) -> PipelineSpec:
    return _cut(problem, equal_op_counts(problem.n_ops, _segments(problem)))


def _by_parameters(problem: Problem) -> PipelineSpec:
    return _cut(problem, parameter_count(_sizes(problem), _segments(problem)))


def _by_depth(problem: Problem) -> PipelineSpec:
    kind = problem.devices[0][0]

    def streams(ops: OpSet) -> bool:
        cost = problem.exact(ops, kind)
        return cost is not None and cost.streamed_bytes > 0

    sets = depth_balanced(problem.before, _sizes(problem), problem.devices[0][1], streams)
    return PipelineSpec(tuple(StageSpec(ops, kind) for ops in sets))


def _bisected(problem: Problem) -> PipelineSpec:
    """Google's profiling partitioner, with the cost model in place of the devices."""
    table = order_table(problem, prefixes(1 << i for i in range(problem.n_ops)), problem.devices[0][0])

    def latency(start: int, end: int) -> int | None:
        return int(table.time_ns[start, end]) if table.allowed[start, end] else None

    initial = parameter_count(_sizes(problem), _segments(problem))
    return _cut(problem, bisect_cuts(problem.n_ops, _segments(problem), latency, initial).cuts)


def _interval_dp(problem: Problem) -> PipelineSpec:
    """One depth-first order, then the exact dynamic program over its intervals.

    DPL of Tarnawski, Phanishayee, Devanur, Mahajan, Nina Paravecino, *Efficient algorithms for device placement of DNN
    graph operators* (NeurIPS 2020).
    """
    cuts = prefixes(parts_in_order(problem, depth_first_order(problem.before)))
    kind, count = problem.devices[0]
    table = interval_table(order_table(problem, cuts, kind), count)
    fastest = min(table.non_dominated(), key=lambda goal: goal.period, default=None)
    if fastest is None:
        raise InfeasibleError("has no allowed intervals", "the depth-first order", "use another solver")
    return interval_offer(problem, table, fastest, cuts).costed.pipeline


def _exhaustive(problem: Problem) -> PipelineSpec:
    """The best of all cuts of the execution order, each tried.

    As in Villarrubia, Costero, Igual, Olcoz, *Improving inference time in multi-TPU systems with profiled model
    segmentation* (2023). Raises BalancerError where there are more than MOST_PARTITIONS.
    """
    cuts = prefixes(file_order(problem))
    kind, count = problem.devices[0]
    most = min(count, len(cuts) - 1)
    partitions = sum(comb(len(cuts) - 2, s - 1) for s in range(1, most + 1))
    if partitions > MOST_PARTITIONS:
        raise BalancerError(
            f"there are {partitions} partitions to try, more than {MOST_PARTITIONS}",
            f"{counted(problem.n_ops, 'op')} on {counted(count, 'TPU')}",
            "use the solver chain, which need not try them",
        )
    table = order_table(problem, cuts, kind)
    time, streamed, allowed = (column.tolist() for column in table)
    best: tuple[tuple[int, ...], list[tuple[int, int]]] | None = None
    for s in range(1, most + 1):
        for inner in combinations(range(1, len(cuts) - 1), s - 1):
            edges = list(pairwise([0, *inner, len(cuts) - 1]))
            if all(allowed[a][b] for a, b in edges):
                times = [time[a][b] for a, b in edges]
                objective = max(1, problem.host_ns * s, *times)
                rank = (objective, s, sum(streamed[a][b] for a, b in edges), sum(times) + problem.handover_ns * s)
                if best is None or rank < best[0]:
                    best = rank, edges
    if best is None:
        raise InfeasibleError("has no allowed intervals", "the execution order", "use another solver")
    return PipelineSpec(tuple(StageSpec(cuts[b] & ~cuts[a], kind) for a, b in best[1]))


BASELINES: dict[str, Callable[[Problem], PipelineSpec]] = {
    "equal-op-counts": _equal,
    "parameter-count": _by_parameters,
    "depth-balanced": _by_depth,
    "profiling-bisection": _bisected,
    "dfs-interval-dp": _interval_dp,
    "exhaustive": _exhaustive,
}


def solve_baseline(name: str, problem: Problem, options: SolverOptions) -> Solution:
    """A baseline's pipeline as a solution that claims nothing. It does not look at the options.

    Raises InfeasibleError where a segment of it may not stand, BalancerError where it would take too long.
    """
    pipeline = BASELINES[name](problem)
    value = evaluate(problem, [pipeline])
    if value is None:
        raise InfeasibleError("has a segment that is not allowed here", name, "use another solver, or allow streaming")
    return Solution(solver=name, pipelines=(pipeline,), value=value, bound_ns=None, over=OVER, ended=Ended.NOT_SEARCHED)
