"""How many pipelines a plan may have, and how many devices a stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.errors import InfeasibleError
from balancer.solve.periods import MOST_REPLICAS

if TYPE_CHECKING:
    from balancer.solve.problem import Problem, SolverOptions


def most_pipelines(problem: Problem, options: SolverOptions) -> int:
    """How many pipelines a plan may have."""
    count = sum(n for _, n in problem.devices)
    return min(count, 1 if options.stages else options.max_pipelines or count)


def most_replicas(options: SolverOptions) -> int:
    """How many devices a stage may have."""
    return min(options.max_replicas or MOST_REPLICAS, MOST_REPLICAS)


def whole_replicas(problem: Problem, options: SolverOptions) -> bool:
    """Whether a pipeline of one stage is written with replicas.

    One stage on k devices and k pipelines of one stage are the same thing. It is written as k pipelines where so many
    are allowed, and as one stage with k replicas where they may not be.
    """
    return most_pipelines(problem, options) < sum(count for _, count in problem.devices)


def infeasible(problem: Problem, options: SolverOptions) -> InfeasibleError:
    """What to say where there is no partition."""
    wanted = f"{options.stages} allowed segments" if options.stages else "allowed segments"
    return InfeasibleError(
        f"there is no partition into {wanted}",
        f"{problem.n_ops} ops on {sum(count for _, count in problem.devices)} TPUs",
        "allow more TPUs, another number of segments, or streaming",
    )
