"""Splits numbered ops over devices: `solve(problem, options) -> Solution`. Knows no TFLite, files or hardware.

The same room works for other accelerators: a `Problem` is a graph of ops with cost functions, and `structured_problem`
makes one from a table of times. `check` judges any solution, independently of the solvers.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

from balancer.errors import ConstraintError
from balancer.solve.auto import solve_auto
from balancer.solve.baselines import BASELINES, solve_baseline
from balancer.solve.budget import Deadline
from balancer.solve.chain import solve_chain
from balancer.solve.checking import check
from balancer.solve.cpsat import solve_cpsat
from balancer.solve.downset import solve_downset
from balancer.solve.limits import infeasible
from balancer.solve.problem import (
    Between,
    Constraints,
    Cost,
    CostColumns,
    Ended,
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
from balancer.solve.structure import Handoff, Kept, Structure, Transfer
from balancer.solve.structured import structured_problem

__all__ = [
    "SOLVERS",
    "Between",
    "Constraints",
    "Cost",
    "CostColumns",
    "Deadline",
    "Ended",
    "Handoff",
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
    "check",
    "evaluate",
    "solve",
    "steady_rate",
    "structured_problem",
]  # fmt: skip


class Solver(Protocol):
    """An algorithm that `solve` may call."""

    def __call__(self, problem: Problem, options: SolverOptions, /) -> Solution:
        """The best plan that it finds. Raises InfeasibleError where there is none."""


SOLVERS: dict[str, Solver] = {
    "auto": solve_auto,
    "chain": solve_chain,
    "downset": solve_downset,
    "cpsat": solve_cpsat,
    "shortest-path": solve_shortest,
    **{name: partial(solve_baseline, name) for name in BASELINES},
}


_CONSTRAINED = ("auto", "cpsat", "shortest-path")


def solve(problem: Problem, options: SolverOptions | None = None) -> Solution:
    """The best plan, by the solver that the options name.

    Raises InfeasibleError where there is none, ConstraintError where constraints are set and the solver takes none,
    ValueError where a number of devices or stages is below 1 or there is no such solver.
    """
    options = options or SolverOptions()
    if any(count < 1 for _, count in problem.devices) or (options.stages is not None and options.stages < 1):
        raise ValueError("at least one device and one stage are needed")
    if options.solver not in SOLVERS:
        raise ValueError(f"there is no solver {options.solver!r}, only {', '.join(SOLVERS)}")
    if options.constraints and options.solver not in _CONSTRAINED:
        raise ConstraintError("takes no constraints", f"solver {options.solver}", "use the solver cpsat")
    if options.stages is not None and options.stages > problem.n_devices:
        raise infeasible(problem, options)
    return SOLVERS[options.solver](problem, options)
