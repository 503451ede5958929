"""A setting solved as a caller wants it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.plan import KEPT
from balancer.solve import Solution, SolverOptions, solve

if TYPE_CHECKING:
    from balancer.planning.setting import Setting


def solve_setting(setting: Setting, n_tpus: int, options: SolverOptions, overflow: str) -> Solution:
    """The best plan under the setting's costs. overflow: of `setting.OVERFLOW`. Raises InfeasibleError."""
    problem = setting.problem(n_tpus, overflow=overflow)
    if setting.state != KEPT:
        return solve(problem, options)
    # The whole plan is restricted: a stage that holds state needs all items, in their order; see `plan.state`.
    solution = solve(problem, replace(options, max_pipelines=1, max_replicas=1))
    claims = bool(solution.bound_ns)  # a baseline claims nothing
    return replace(solution, over=f"{solution.over}, as kept state needs") if claims else solution
