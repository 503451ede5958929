"""From a plan back to what a solver made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.errors import PlanError
from balancer.solve import PipelineSpec, Solution, StageSpec, evaluate

if TYPE_CHECKING:
    from balancer.plan import Plan
    from balancer.solve import Problem


def pipelines_of(plan: Plan) -> tuple[PipelineSpec, ...]:
    """A plan's pipelines as solvers have them."""
    kind = plan.hardware.name
    return tuple(
        PipelineSpec(tuple(StageSpec(plan.segment(s.segment).ops, kind, s.replicas) for s in p.stages))
        for p in plan.pipelines
    )


def solution_of(plan: Plan, problem: Problem) -> Solution:
    """The solution that a plan was made from, valued under this problem's costs.

    Raises PlanError where one of its segments is not allowed there.
    """
    pipelines, solver = pipelines_of(plan), plan.solver
    value = evaluate(problem, pipelines)
    if value is None:
        raise PlanError("has a segment that is not allowed", plan.file_name, "solve again")
    latency = solver.latency_bound_ns
    return Solution(
        solver=solver.name, pipelines=pipelines, value=value, bound_ns=min(solver.bound_ns, value.objective_ns),
        over=solver.over, statistics=solver.statistics,
        latency_bound_ns=None if latency is None else min(latency, value.latency_ns),
    )  # fmt: skip
