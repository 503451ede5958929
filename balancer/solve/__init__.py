"""Splitting numbered ops over devices: `solve(problem, options) -> Solution`. Knows no TFLite, bytes or hardware."""

from __future__ import annotations

from itertools import pairwise

from balancer.errors import InfeasibleError
from balancer.solve.allocation import Candidate, allocate
from balancer.solve.chain import Chain, best_chain, best_chains
from balancer.solve.problem import (
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
)

__all__ = [
    "Cost", "Intervals", "Kind", "OpSet", "Options", "Pipeline", "Problem", "Solution", "Stage", "Value", "evaluate",
    "interval_set", "objective_ns", "pipeline_rate", "plan_rate", "solve",
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
    intervals = problem.intervals(range(problem.n_ops), kind)
    chains = _forced(intervals, options.stages) if options.stages else best_chains(intervals, count)
    if not chains:
        wanted = f"{options.stages} allowed segments" if options.stages else "allowed segments"
        raise InfeasibleError(
            f"there is no partition into {wanted}",
            f"{problem.n_ops} ops on {count} TPUs",
            "allow more TPUs, another number of segments, or streaming",
        )
    # Deeper pipelines first: the order in which a plan lists them, and so the one that ties are broken by.
    chains.sort(key=lambda chain: -chain.segments)
    candidates = [_candidate(problem, chain) for chain in chains]
    most = 1 if options.stages else options.max_pipelines
    chosen = allocate(candidates, max(count, options.stages or 0), most)
    pipelines = tuple(_pipeline(chains[c], problem.n_ops, kind) for c in chosen)
    value = evaluate(problem, pipelines)
    if value is None:
        raise ValueError("the batch form of the cost allows a segment that `exact` does not")
    return Solution(
        solver="chain",
        pipelines=pipelines,
        value=value,
        bound_ns=value.objective_ns,
        over="intervals",
        statistics={"intervals": problem.n_ops * (problem.n_ops + 1) // 2, "depths": len(chains)},
    )


def _forced(intervals: Intervals, stages: int) -> list[Chain]:
    chain = best_chain(intervals, stages)
    return [chain] if chain else []


def _candidate(problem: Problem, chain: Chain) -> Candidate:
    rate = pipeline_rate([chain.period_ns], [1])
    latency = chain.latency_ns + problem.handover_ns * chain.segments
    return Candidate(chain.segments, rate, problem.host_ns * chain.segments, chain.streamed_bytes, latency)


def _pipeline(chain: Chain, n_ops: int, kind: Kind) -> Pipeline:
    return Pipeline(tuple(Stage(interval_set(a, b), kind) for a, b in pairwise([0, *chain.cuts, n_ops])))
