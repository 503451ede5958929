"""Splitting numbered ops over devices: `solve(problem, options) -> Solution`. Knows no TFLite, bytes or hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.solve.auto import solve_auto
from balancer.solve.cpsat import solve_cpsat
from balancer.solve.downsets import DownSets
from balancer.solve.exact import solve_downset
from balancer.solve.intervals import solve_chain
from balancer.solve.problem import (
    Between,
    Cost,
    Costs,
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
from balancer.solve.structure import Kept, Structure, Transfer
from balancer.solve.structured import structured_problem

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "SOLVERS",
    "Between",
    "Cost",
    "Costs",
    "DownSets",
    "Kept",
    "Kind",
    "OpSet",
    "Options",
    "Pipeline",
    "Problem",
    "Solution",
    "Stage",
    "Structure",
    "Transfer",
    "Value",
    "evaluate",
    "interval_set",
    "objective_ns",
    "pipeline_rate",
    "plan_rate",
    "shared_rates",
    "solve",
    "steady_rate",
    "structured_problem",
]  # fmt: skip


SOLVERS: dict[str, Callable[[Problem, Options], Solution]] = {
    "auto": solve_auto,
    "chain": solve_chain,
    "downset": solve_downset,
    "cpsat": solve_cpsat,
}


def interval_set(start: int, end: int) -> OpSet:
    """The ops from start to end - 1."""
    return (1 << end) - (1 << start)


def solve(problem: Problem, options: Options | None = None) -> Solution:
    """The best plan by the solver that the options name.

    Raises InfeasibleError where there is none, ValueError where there are no devices or no such solver.
    """
    options = options or Options()
    if any(count < 1 for _, count in problem.devices) or (options.stages is not None and options.stages < 1):
        raise ValueError("at least one device and one stage are needed")
    if options.solver not in SOLVERS:
        raise ValueError(f"there is no solver {options.solver!r}, only {', '.join(SOLVERS)}")
    return SOLVERS[options.solver](problem, options)
