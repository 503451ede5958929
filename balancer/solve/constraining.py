"""Whether a pipeline keeps constraints, and pipelines of the execution order that may."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.solve.chain import ChainSolver
from balancer.solve.downsets import bits
from balancer.solve.intervals import most_replicas, whole_replicas
from balancer.solve.offers import chain_offer, quick_offer
from balancer.solve.orders import file_order, order_table, prefixes
from balancer.solve.problem import evaluate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balancer.solve.downsets import OpSet
    from balancer.solve.problem import Constraints, Options, Pipeline, Problem

_MOST_STARTS = 12


def keeps(problem: Problem, pipeline: Pipeline, constraints: Constraints) -> bool:
    """By exact costs. False where a segment may not stand."""
    value = evaluate(problem, [pipeline])
    if value is None:
        return False
    latency, objective, held = constraints.max_latency_ns, constraints.max_objective_ns, constraints.max_segment_bytes
    sets = [stage.ops for stage in pipeline.stages]
    at = {i: j for j, ops in enumerate(sets) for i in bits(ops)}
    return (
        (latency is None or value.latency_ns <= latency)
        and (objective is None or value.objective_ns <= objective)
        and all(at[i] == j for i, j in constraints.pinned.items())
        and all(at[i] != j for i, j in constraints.kept_from)
        and all(ops & group in (0, group) for group in constraints.together for ops in sets)
        and (held is None or all(sum(problem.op_bytes[i] for i in bits(ops)) <= held for ops in sets))
        and _crosses_little(problem, pipeline.stages[0].kind, sets, constraints)
    )


def _crosses_little(problem: Problem, kind: str, sets: Sequence[OpSet], constraints: Constraints) -> bool:
    tensors, size = constraints.max_boundary_tensors, constraints.max_boundary_bytes
    if tensors is None and size is None:
        return True
    done = 0
    for ops in sets[:-1]:
        done |= ops
        crossing = [
            t.size_bytes
            for t in problem.structures[kind].transfers
            if t.producer is not None and done >> t.producer & 1 and any(not done >> r & 1 for r in t.readers)
        ]
        if (tensors is not None and len(crossing) > tensors) or (size is not None and sum(crossing) > size):
            return False
    return True


def starts(problem: Problem, options: Options) -> Iterator[Pipeline]:
    """Pipelines of intervals of the execution order that keep the constraints, if any of its best ones do."""
    constraints = options.constraints
    kind, count = problem.devices[0]
    cuts = prefixes(file_order(replace(problem, together=(*problem.together, *constraints.together))))
    solver = ChainSolver(
        order_table(problem, cuts, kind), count, most_replicas=most_replicas(options),
        whole_replicas=whole_replicas(problem, replace(options, max_pipelines=1)),
    )  # fmt: skip
    if constraints.max_objective_ns is not None:
        offers = [quick_offer(problem, solver, goal, cuts) for goal in solver.meeting(constraints.max_objective_ns)]
        offers.sort(key=lambda offer: (offer.stages, offer.devices))
    elif constraints.max_latency_ns is not None:
        goals = solver.within_latency(constraints.max_latency_ns, problem.handover_ns)
        offers = [quick_offer(problem, solver, goal, cuts) for goal in goals]
    else:
        offers = [chain_offer(problem, solver, goal, cuts) for goal in solver.reached()]
    if constraints.max_objective_ns is None:
        offers.sort(key=lambda offer: offer.period)
    for offer in offers[:_MOST_STARTS]:
        pipeline = offer.settled.pipeline
        if options.stages in (None, len(pipeline.stages)) and keeps(problem, pipeline, constraints):
            yield pipeline
