"""Checks of arguments, made before any work."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING

from balancer.errors import ConstraintError
from balancer.ground.opsets import op_text

if TYPE_CHECKING:
    from balancer.ground.opsets import OpSet
    from balancer.solve import Constraints

MOST_TPUS = 32
_LARGEST_LIMIT = 1 << 60  # the sum of a few such numbers is still below 2^63


def check_tpus(n_tpus: int) -> None:
    """Raise ValueError unless n_tpus is a whole number from 1 to 32."""
    check_count("n_tpus", n_tpus)
    if n_tpus > MOST_TPUS:
        raise ValueError(f"n_tpus must be at most {MOST_TPUS}, not {n_tpus}")


def check_count(name: str, number: int) -> None:
    """Raise ValueError unless the number is a whole number of at least 1. name: of the argument, for the message."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {number!r}")


def check_constraints(constraints: Constraints, n_ops: int, n_tpus: int) -> None:
    """Check constraints for a model of n_ops ops on n_tpus TPUs.

    Raises ConstraintError if they name an op or a stage that cannot exist, or if they leave an op no stage to be in.
    Raises ValueError if a limit is not a whole number from 0 to 2^60.
    """
    for name in (
        "max_boundary_tensors",
        "max_boundary_bytes",
        "max_segment_bytes",
        "max_latency_ns",
        "max_objective_ns",
    ):
        limit = getattr(constraints, name)
        if limit is not None and not (isinstance(limit, int) and 0 <= limit <= _LARGEST_LIMIT):
            raise ValueError(f"{name} must be a whole number from 0 to {_LARGEST_LIMIT}, not {limit!r}")
    placed = [*constraints.pinned.items(), *constraints.kept_from]
    for op, stage in placed:
        if not 0 <= op < n_ops:
            raise ConstraintError(f"there is no op {op}", f"{op}:{stage}", f"the model has ops 0 to {n_ops - 1}")
        if not 0 <= stage < n_tpus:
            raise ConstraintError(f"there is no stage {stage}", f"{op}:{stage}", f"name stages 0 to {n_tpus - 1}")
    for group in constraints.together:
        if group >> n_ops:
            raise ConstraintError(
                f"there is no op {group.bit_length() - 1}", "keep together", f"the model has ops 0 to {n_ops - 1}"
            )
    for ops in _sharing(constraints):
        _check_place(constraints, ops, n_tpus)


def _sharing(constraints: Constraints) -> list[OpSet]:
    """The largest sets of ops that must share a stage: sets with an op in common are merged. An op that only has a stage
    given or forbidden is a set by itself.
    """
    groups: list[OpSet] = []
    alone = [1 << op for op in (*constraints.pinned, *(op for op, _ in constraints.kept_from))]
    for group in (*constraints.together, *alone):
        touching = [other for other in groups if other & group]
        groups = [other for other in groups if not other & group]
        groups.append(functools.reduce(operator.or_, touching, group))
    return groups


def _check_place(constraints: Constraints, ops: OpSet, n_tpus: int) -> None:
    """Raise ConstraintError if ops that must share a stage have no stage left: their pins differ, or every stage that
    they may be in is forbidden to one of them.
    """
    pins = {stage: op for op, stage in constraints.pinned.items() if ops >> op & 1}
    kept = {stage: op for op, stage in constraints.kept_from if ops >> op & 1}
    if (set(pins) or set(range(n_tpus))) - set(kept) and len(pins) < 2:
        return
    said = [f"op {op} pinned to stage {stage}" for stage, op in sorted(pins.items())]
    said += [f"op {op} kept from stage {stage}" for stage, op in sorted(kept.items()) if stage in pins or not pins]
    alone = ops.bit_count() == 1
    where = f"op {op_text(ops)}" if alone else f"ops {op_text(ops)} that share a stage"
    raise ConstraintError(
        f"the constraints leave no stage: {', '.join(said)}", where, "leave out one of them, or allow more TPUs"
    )
