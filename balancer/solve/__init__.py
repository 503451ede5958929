"""Splitting numbered ops over devices: `solve(problem, options) -> Solution`. Knows no TFLite, bytes or hardware."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from balancer.errors import ConstraintError
from balancer.solve.auto import solve_auto
from balancer.solve.baselines import BASELINES, solve_baseline
from balancer.solve.chain import solve_chain
from balancer.solve.cpsat import solve_cpsat
from balancer.solve.downset import solve_downset
from balancer.solve.limits import infeasible
from balancer.solve.problem import (
    Between,
    Constraints,
    Cost,
    CostColumns,
    Kind,
    PipelineSpec,
    Problem,
    Solution,
    SolverOptions,
    StageSpec,
    Value,
    evaluate,
    steady_rate,
)
from balancer.solve.shortest_path import solve_shortest
from balancer.solve.structure import Kept, Structure, Transfer
from balancer.solve.structured import structured_problem

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "SOLVERS",
    "Between",
    "Constraints",
    "Cost",
    "CostColumns",
    "Kept",
    "Kind",
    "PipelineSpec",
    "Problem",
    "Solution",
    "SolverOptions",
    "StageSpec",
    "Structure",
    "Transfer",
    "Value",
    "evaluate",
    "solve",
    "steady_rate",
    "structured_problem",
]  # fmt: skip


SOLVERS: dict[str, Callable[[Problem, SolverOptions], Solution]] = {
    "auto": solve_auto,
    "chain": solve_chain,
    "downset": solve_downset,
    "cpsat": solve_cpsat,
    "shortest-path": solve_shortest,
    **{name: partial(solve_baseline, name) for name in BASELINES},
}


_CONSTRAINED = ("auto", "cpsat", "shortest-path")


def solve(problem: Problem, options: SolverOptions | None = None) -> Solution:
    """The best plan by the solver that the options name.

    Raises InfeasibleError where there is none, ConstraintError where the solver takes no constraints,
    ValueError where there are no devices or no such solver.
    """
    options = options or SolverOptions()
    if any(count < 1 for _, count in problem.devices) or (options.stages is not None and options.stages < 1):
        raise ValueError("at least one device and one stage are needed")
    if options.solver not in SOLVERS:
        raise ValueError(f"there is no solver {options.solver!r}, only {', '.join(SOLVERS)}")
    if options.constraints and options.solver not in _CONSTRAINED:
        raise ConstraintError("takes no constraints", f"solver {options.solver}", "use the solver cpsat")
    if options.stages is not None and options.stages > sum(count for _, count in problem.devices):
        raise infeasible(problem, options)
    return SOLVERS[options.solver](problem, options)
