"""Turns a plan back into the solver's solution from which it was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.errors import PlanError
from balancer.solve import Ended, PipelineSpec, Solution, StageSpec, evaluate

if TYPE_CHECKING:
    from balancer.plan import Plan
    from balancer.solve import Problem


def pipelines_of(plan: Plan) -> tuple[PipelineSpec, ...]:
    """A plan's pipelines in the form of a solver's solution."""
    return tuple(
        PipelineSpec(tuple(StageSpec(plan.segment(s.segment).ops, s.kind, s.replicas) for s in p.stages))
        for p in plan.pipelines
    )


def solution_of(plan: Plan, problem: Problem) -> Solution:
    """The solution that a plan was made from, valued with this problem's costs.

    Raises PlanError if the problem does not allow one of its segments.
    """
    pipelines, solver = pipelines_of(plan), plan.solver
    value = evaluate(problem, pipelines)
    if value is None:
        raise PlanError("has a segment that is not allowed", plan.file_name, "solve again")
    latency = solver.latency_bound_ns
    return Solution(
        solver=solver.name, pipelines=pipelines, value=value, over=solver.over, statistics=solver.statistics,
        bound_ns=None if solver.bound_ns is None else min(solver.bound_ns, value.objective_ns),
        latency_bound_ns=None if latency is None else min(latency, value.latency_ns), ended=Ended(solver.ended),
        passed_over_ns=solver.passed_over_ns,
    )  # fmt: skip
