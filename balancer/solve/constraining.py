"""Whether a pipeline keeps the constraints, and pipelines of the execution order that do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.ground.opsets import members
from balancer.solve.chain import chain_offers
from balancer.solve.orders import file_order, prefixes
from balancer.solve.problem import Constraints, evaluate
from balancer.solve.shortest_path import quickest_in_order

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balancer.ground.opsets import OpSet
    from balancer.solve.problem import PipelineSpec, Problem, SolverOptions

_MOST_STARTS = 12


def keeps(problem: Problem, pipeline: PipelineSpec, constraints: Constraints) -> bool:
    """Whether a pipeline keeps all constraints, by `exact`. False where a segment may not stand."""
    value = evaluate(problem, [pipeline])
    if value is None:
        return False  # pragma: no cover - callers ask only about pipelines that may stand
    latency, objective, held = constraints.max_latency_ns, constraints.max_objective_ns, constraints.max_segment_bytes
    sets = [stage.ops for stage in pipeline.stages]
    at = {i: j for j, ops in enumerate(sets) for i in members(ops)}
    return (
        (latency is None or value.latency_ns <= latency)
        and (objective is None or value.objective_ns <= objective)
        and all(at[i] == j for i, j in constraints.pinned.items())
        and all(at[i] != j for i, j in constraints.kept_from)
        and all(ops & group in (0, group) for group in constraints.together for ops in sets)
        and (held is None or all(sum(problem.op_bytes[i] for i in members(ops)) <= held for ops in sets))
        and _keeps_boundaries(problem, pipeline.stages[0].kind, sets, constraints)
    )


def _keeps_boundaries(problem: Problem, kind: str, sets: Sequence[OpSet], constraints: Constraints) -> bool:
    """Whether the tensors that cross each cut keep the limits on their number and size."""
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


def starts(problem: Problem, options: SolverOptions) -> Iterator[PipelineSpec]:
    """Good pipelines of intervals of the execution order that keep the constraints, to start a search from."""
    held = options.constraints
    together = replace(problem, together=(*problem.together, *held.together))
    if held.max_latency_ns is None and held.max_objective_ns is None:
        cuts, first_kind = prefixes(file_order(together)), replace(together, devices=together.devices[:1])
        offers = chain_offers(first_kind, replace(options, max_pipelines=1, constraints=Constraints()), cuts)
        offers.sort(key=lambda offer: offer.period)
        pipelines = iter([offer.costed.pipeline for offer in offers[:_MOST_STARTS]])
    else:
        pipelines = quickest_in_order(together, options)
    yield from (pipeline for pipeline in pipelines if keeps(problem, pipeline, held))
