"""Splitting numbered ops over devices: `solve(problem, options) -> Solution`. Knows no TFLite, bytes or hardware."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from balancer.errors import InfeasibleError
from balancer.solve.allocation import Candidate, allocate
from balancer.solve.chain import MOST_REPLICAS, Chain, ChainSolver, Reached
from balancer.solve.problem import (
    NS_PER_S,
    Cost,
    Intervals,
    Kind,
    OpSet,
    Options,
    Pipeline,
    Problem,
    Solution,
    Stage,
    Value,
    evaluate,
    objective_ns,
    pipeline_rate,
    plan_rate,
    shared_rates,
    steady_rate,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Cost", "Intervals", "Kind", "OpSet", "Options", "Pipeline", "Problem", "Solution", "Stage", "Value", "evaluate",
    "interval_set", "objective_ns", "pipeline_rate", "plan_rate", "shared_rates", "solve", "steady_rate",
]  # fmt: skip


def interval_set(start: int, end: int) -> OpSet:
    """The ops from start to end - 1."""
    return (1 << end) - (1 << start)


def solve(problem: Problem, options: Options | None = None) -> Solution:
    """The best plan whose segments are intervals of the execution order.

    Raises InfeasibleError where no partition into allowed segments exists, ValueError where there are no devices.
    """
    options = options or Options()
    kind, count = problem.devices[0]
    if count < 1 or (options.stages is not None and options.stages < 1):
        raise ValueError("at least one device and one stage are needed")
    most_pipelines = min(count, 1 if options.stages else options.max_pipelines or count)
    solver = ChainSolver(
        problem.intervals(range(problem.n_ops), kind),
        count,
        most_replicas=options.max_replicas or MOST_REPLICAS,
        # Copies are pipelines of one stage each. A whole model as one replicated stage is for where there may be too
        # few pipelines for that, and only if replicas are asked for.
        whole_replicas=most_pipelines < count and options.max_replicas is not None,
    )
    reached = _reached(solver, options.stages)
    if not reached:
        wanted = f"{options.stages} allowed segments" if options.stages else "allowed segments"
        raise InfeasibleError(
            f"there is no partition into {wanted}",
            f"{problem.n_ops} ops on {count} TPUs",
            "allow more TPUs, another number of segments, or streaming",
        )
    chains = _Settled(
        solver, problem, _tied(solver, problem, reached, options.stages) if most_pipelines == 1 else reached
    )
    allocation = allocate(chains.candidates, count, most_pipelines)
    pipelines = tuple(chains.pipeline(c) for c in allocation.chosen)
    value = evaluate(problem, pipelines)
    if value is None:
        raise ValueError("the batch form of the cost allows a segment that `exact` does not")
    return Solution(
        solver="chain",
        pipelines=pipelines,
        value=value,
        bound_ns=value.objective_ns if allocation.bound_ns is None else allocation.bound_ns,
        over="intervals",
        statistics={"intervals": problem.n_ops * (problem.n_ops + 1) // 2, "pipelines": len(reached)},
    )


def _reached(solver: ChainSolver, stages: int | None) -> list[Reached]:
    """The pipelines worth having: pipelines without replicas first, deep before shallow, which is how ties are
    broken.
    """
    found = solver.reached_with(stages) if stages else list(solver.reached())
    return sorted(found, key=lambda r: (r.devices > r.stages, -r.stages, r.devices))


def _tied(solver: ChainSolver, problem: Problem, reached: Sequence[Reached], stages: int | None) -> list[Reached]:
    """What meets the best objective with the fewest devices, where one pipeline is all there is.

    Plans are compared by whole ns, and the host may be slower than the pipeline: both leave room for slower
    partitions, which may stream less.
    """
    best = min(max(math.ceil(r.period), problem.host_ns * r.stages) for r in reached)
    meeting = [r for r in solver.meeting(best) if problem.host_ns * r.stages <= best and stages in (None, r.stages)]
    fewest = min(r.devices for r in meeting)
    return [r for r in meeting if r.devices == fewest]


class _Settled:
    """Pipelines to choose from; which partition each is, is worked out when it is asked for."""

    def __init__(self, solver: ChainSolver, problem: Problem, reached: Sequence[Reached]) -> None:
        self.solver = solver
        self.problem = problem
        self.reached = reached
        self.chains: dict[int, Chain] = {}
        self.candidates = [self._candidate(k, goal) for k, goal in enumerate(reached)]

    def chain(self, k: int) -> Chain:
        if k not in self.chains:
            self.chains[k] = self.solver.settle(self.reached[k])
        return self.chains[k]

    def pipeline(self, k: int) -> Pipeline:
        chain, kind = self.chain(k), self.problem.devices[0][0]
        edges = pairwise([0, *chain.cuts, self.problem.n_ops])
        return Pipeline(
            tuple(Stage(interval_set(a, b), kind, r) for (a, b), r in zip(edges, chain.replicas, strict=True))
        )

    def _candidate(self, k: int, goal: Reached) -> Candidate:
        def settle() -> tuple[int, int]:
            chain = self.chain(k)
            return chain.streamed_bytes, chain.latency_ns + self.problem.handover_ns * goal.stages

        return Candidate(goal.devices, NS_PER_S / goal.period, self.problem.host_ns * goal.stages, settle)
