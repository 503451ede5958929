"""Errors of a running pipeline, named by segment and item."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.errors import BalancerError, StageError
from balancer.workers import WorkerLost

if TYPE_CHECKING:
    from balancer.plan import Plan
    from balancer.workers import Failure


def named_error(plan: Plan, failure: Failure) -> StageError:
    """The failure's error with the segment and the item in it. The original error is its cause."""
    segment = plan.pipelines[failure.line].stages[failure.stage].segment
    error = _stage_error(failure.error, f"{segment}, item {failure.item}")
    error.__cause__ = failure.error
    return error


def _stage_error(error: Exception, where: str) -> StageError:
    if isinstance(error, BalancerError):
        what, _, remedy = error.args
        return StageError(what, where, remedy)
    if isinstance(error, WorkerLost):
        return StageError(f"its device is given up: {error}", where, "see `balancer devices`")
    return StageError(f"{type(error).__name__}: {error}", where, "see the log")


def stopped_error(cause: StageError | None) -> StageError:
    """What a caller gets from a pipeline that has stopped. cause: the error of the item that stopped it, if one did."""
    because = f" because of an item ({cause.args[1]}: {cause.args[0]})" if cause else ""
    return StageError(f"has stopped{because}", "pipeline", "make a new one")
