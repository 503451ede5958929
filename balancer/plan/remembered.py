"""What a plan remembers beside its hardware: costs that replaced the predicted ones, and what it was held to.

With them a plan can be costed and solved again as it was. Both are null in plans of older versions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from balancer.errors import PlanError
from balancer.ground.opsets import OpSet, op_text
from balancer.plan.document import OP_RANGES

if TYPE_CHECKING:
    from collections.abc import Iterable

OVERFLOW = ("stream", "error")
LARGEST = 1 << 53  # of any number here: what a float holds exactly, so that any JSON reader has it
_REMEDY = "solve again, or mend the file"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownOp:
    """What was known better of one op (its index in the model) than the cost model does; null: as predicted."""

    op: int
    ns: int | None
    parameter_bytes: int | None
    scratch_bytes: int | None
    mapped: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCosts:
    """What replaced the predicted costs. label: the profile file that they come from, empty for none. learnt_from: what
    else has taught them (compiler reports, measured stages).

    constants: of the hardware, those that were found to be others. room_*: how room for parameters on the chip differs
    from the predicted one: so many bytes of a million, so many more and fewer, at most so many.
    """

    label: str
    learnt_from: tuple[str, ...]
    constants: dict[str, int]
    room_per_million: int
    room_more_bytes: int
    room_fewer_bytes: int
    room_most_bytes: int | None
    ops: tuple[KnownOp, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpAtStage:
    op: int
    stage: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Constraints on one pipeline. pinned: ops that stand in a stage; kept_from: that do not. together: op sets that
    share a stage. max_objective_ns: a rate that is to be met, under which the latency is what counts.
    """

    pinned: tuple[OpAtStage, ...]
    kept_from: tuple[OpAtStage, ...]
    together: tuple[OpSet, ...] = field(metadata=OP_RANGES)
    max_boundary_tensors: int | None
    max_boundary_bytes: int | None
    max_segment_bytes: int | None
    max_latency_ns: int | None
    max_objective_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldTo:
    """What was asked of a plan. pipelines, replicas (of a stage): at most so many; stages: exactly so many. overflow:
    "stream", "error", or null where nobody said. limits: null for none.
    """

    pipelines: int | None
    replicas: int | None
    stages: int | None
    overflow: str | None
    limits: Limits | None


def check_remembered(costs: KnownCosts | None, held_to: HeldTo | None, n_ops: int, n_tpus: int, where: str) -> None:
    """Raises PlanError where they cannot be of a plan for a model of n_ops ops on n_tpus TPUs."""
    if costs is not None:
        _check_costs(costs, n_ops, f"{where}: costs")
    if held_to is not None:
        _check_held(held_to, n_ops, n_tpus, f"{where}: held_to")


def _check_costs(costs: KnownCosts, n_ops: int, where: str) -> None:
    room = (costs.room_per_million, costs.room_more_bytes, costs.room_fewer_bytes, costs.room_most_bytes)
    _check_within((*costs.constants.values(), *room), 0, LARGEST, where)
    for known in costs.ops:
        _check_within([known.op], 0, n_ops - 1, where)
        _check_within((known.ns, known.parameter_bytes, known.scratch_bytes), 0, LARGEST, where)
    if len({known.op for known in costs.ops}) < len(costs.ops):
        raise PlanError("an op is listed twice", where, _REMEDY)


def _check_held(held: HeldTo, n_ops: int, n_tpus: int, where: str) -> None:
    _check_within((held.pipelines, held.replicas), 1, LARGEST, where)
    _check_within([held.stages], 1, n_tpus, where)
    if held.overflow not in (None, *OVERFLOW):
        raise PlanError(f"overflow is '{held.overflow}'", where, f"make it one of {', '.join(OVERFLOW)}, or null")
    if held.limits is not None:
        _check_limits(held.limits, n_ops, n_tpus, f"{where}: limits")


def _check_limits(limits: Limits, n_ops: int, n_tpus: int, where: str) -> None:
    placed = (*limits.pinned, *limits.kept_from)
    _check_within((p.op for p in placed), 0, n_ops - 1, where)
    _check_within((p.stage for p in placed), 0, n_tpus - 1, where)
    most = (limits.max_boundary_tensors, limits.max_boundary_bytes, limits.max_segment_bytes)
    _check_within((*most, limits.max_latency_ns, limits.max_objective_ns), 0, LARGEST, where)
    for group in limits.together:
        if group >> n_ops:
            raise PlanError(f"'{op_text(group)}' is not within ops 0 to {n_ops - 1}", where, _REMEDY)


def _check_within(values: Iterable[int | None], least: int, most: int, where: str) -> None:
    for value in values:
        if value is not None and not least <= value <= most:
            raise PlanError(f"{str(value)[:20]} is not from {least} to {most}", where, _REMEDY)
