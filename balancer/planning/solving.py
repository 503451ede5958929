"""Solves a costed model within the limits that a caller gives."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.plan import KEPT
from balancer.solve import Problem, Solution, SolverOptions, check, solve

if TYPE_CHECKING:
    from balancer.planning.costed_model import CostedModel
    from balancer.planning.options import Options


def solve_costed_model(costed: CostedModel, n_tpus: int, options: Options, overflow: str | None = None) -> Solution:
    """The best solution under the costed model's costs that keeps the options. overflow: replaces the options' own rule.

    Raises InfeasibleError if no plan keeps them.
    """
    problem = costed.problem(n_tpus, overflow=overflow or options.overflow_now)
    if costed.state != KEPT:
        return solve_checked(problem, options.for_solver)
    # A stage that holds state needs all items in their order (see `plan.state`). The whole plan is restricted, although
    # replicas after the last such stage would do no harm: the claim of optimality says so.
    solution = solve_checked(problem, replace(options.for_solver, max_pipelines=1, max_replicas=1))
    claims = solution.bound_ns is not None
    return replace(solution, over=f"{solution.over}, as kept state needs") if claims else solution


def solve_checked(problem: Problem, options: SolverOptions) -> Solution:
    """`solve`, with the solution checked by code that shares nothing with the solvers.

    Raises InvalidSolutionError if the check fails, which is a fault of the solver, and what `solve` raises.
    """
    solution = solve(problem, options)
    check(problem, solution, options)
    return solution
