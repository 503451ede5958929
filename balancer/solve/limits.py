"""Limits on plans that follow from the options and the devices: how many pipelines, and how many replicas of a stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.errors import InfeasibleError, NotFoundError
from balancer.ground.wording import counted
from balancer.solve.periods import MOST_REPLICAS

if TYPE_CHECKING:
    from balancer.solve.problem import Problem, SolverOptions


def max_pipelines(problem: Problem, options: SolverOptions) -> int:
    """The largest number of pipelines that a plan may have."""
    limit = 1 if options.stages else options.max_pipelines or problem.n_devices
    return min(problem.n_devices, limit)


def max_replicas(options: SolverOptions) -> int:
    """The largest number of replicas that a stage may have."""
    return min(options.max_replicas or MOST_REPLICAS, MOST_REPLICAS)


def may_replicate_whole(problem: Problem, options: SolverOptions) -> bool:
    """Whether a pipeline of one stage, which holds the whole model, may have replicas.

    One stage on k devices and k pipelines of one stage are the same thing. It is written as k pipelines where k are
    allowed, and as one stage with k replicas where they may not be.
    """
    return max_pipelines(problem, options) < problem.n_devices


def infeasible(problem: Problem, options: SolverOptions) -> InfeasibleError:
    """The error to raise where no partition is allowed. Its remedies are those that these options leave."""
    remedy = " or ".join(_remedies(problem, options))
    return InfeasibleError(f"no partition{_wanted(options)} is allowed", _where(problem), remedy)


def not_found(problem: Problem, options: SolverOptions) -> NotFoundError:
    """The error to raise where no partition was found, and the search was not complete."""
    what = f"no partition{_wanted(options)} was found within the limits of work and time"
    return NotFoundError(what, _where(problem), " or ".join(["allow more time", *_remedies(problem, options)]))


def _wanted(options: SolverOptions) -> str:
    return f" into {counted(options.stages, 'segment')}" if options.stages else ""


def _remedies(problem: Problem, options: SolverOptions) -> list[str]:
    remedies = ["allow more TPUs"]
    if options.stages:
        remedies.append("another number of segments")
    if any(structure.limit_bytes is not None for structure in problem.structures.values()):
        remedies.append("streaming")
    return remedies


def _where(problem: Problem) -> str:
    return f"{counted(problem.n_ops, 'op')} on {counted(problem.n_devices, 'TPU')}"
