"""What a plan remembers of how it was made: costs that replaced predicted ones, what the compiler refused, and the limits
that it was solved with.

With them the same plan can be predicted and solved again. All are null in plans of older versions.
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
DEVICES = ("edgetpu", "cpu")
COMPILABLE = ("any", "likely", "sure")
LARGEST = 1 << 53  # the largest number here: floats hold it exactly, so that every JSON reader agrees
_REMEDY = "solve again, or correct the file"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownOp:
    """Costs of one op that replace the predicted ones. Null: as predicted.

    op: index in the model. ns: on the TPU, or on the CPU if the op runs there. parameter_bytes: on the chip.
    scratch_bytes: on-chip memory that the op needs besides parameters, in each tile. mapped: whether the compiler supports
    the op.
    """

    op: int
    ns: int | None
    parameter_bytes: int | None
    scratch_bytes: int | None
    mapped: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCosts:
    """Costs that replaced predicted ones.

    label: the profile file that they come from; empty if there was none. learnt_from: what else changed them ("compiler
    reports", "measured stages"). constants: constants of the hardware, by name, with their corrected values. device: the
    costs are of such devices, "edgetpu" or "cpu".

    The four room_* numbers turn a predicted on-chip capacity for parameters into a corrected one:

        min(room_most_bytes, predicted * room_per_million / 1,000,000 + room_more_bytes - room_fewer_bytes)

    The result is at least 0. room_most_bytes: null for no limit. Two numbers stand for one difference because numbers in
    a plan file are never negative.
    """

    label: str
    learnt_from: tuple[str, ...]
    constants: dict[str, int]
    room_per_million: int
    room_more_bytes: int
    room_fewer_bytes: int
    room_most_bytes: int | None
    ops: tuple[KnownOp, ...]
    device: str = "edgetpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedPart:
    """Ops that the compiler refuses in one segment, with others or without. on_chip: those of them that run on the chip."""

    ops: OpSet = field(metadata=OP_RANGES)
    on_chip: OpSet = field(metadata=OP_RANGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRefusals:
    """What the compiler refused while the plan was made. segments: the ops of each segment. parts: the ops that explain why."""

    segments: tuple[OpSet, ...] = field(metadata=OP_RANGES)
    parts: tuple[RefusedPart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpAtStage:
    """An op (index in the model) and a stage (from 0), for a constraint."""

    op: int
    stage: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Constraints on one pipeline. Null: no such constraint.

    pinned: ops that must be in a stage. kept_from: ops that must not be in a stage. together: op sets of which each must
    be in one stage. max_boundary_tensors, max_boundary_bytes: of all tensors that cross one cut. max_segment_bytes: of the
    parameters of a segment. max_latency_ns: of one input alone. max_objective_ns: ns for each inference; with it, a rate
    is given and the latency is minimised.
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
    """The limits that a plan was solved with. Null: not limited.

    pipelines: the largest number of pipelines. replicas: the largest number of TPUs for one stage. stages: the exact
    number of stages. overflow: "stream", "error", or null if the caller left it open. limits: the constraints.
    compilable: "any", "likely", "sure", or null if the caller left it open, and in plans of older versions.
    """

    pipelines: int | None
    replicas: int | None
    stages: int | None
    overflow: str | None
    limits: Limits | None
    compilable: str | None = None


def check_remembered(costs: KnownCosts | None, held_to: HeldTo | None, n_ops: int, n_tpus: int, where: str) -> None:
    """Raise PlanError if they do not fit a plan for a model of n_ops ops on n_tpus TPUs. where: the file, for messages."""
    if costs is not None:
        _check_costs(costs, n_ops, f"{where}: costs")
    if held_to is not None:
        _check_held(held_to, n_ops, n_tpus, f"{where}: held_to")


def check_refusals(refusals: KnownRefusals, n_ops: int, where: str) -> None:
    """Raise PlanError if they do not fit a model of n_ops ops. where: the file, for messages."""
    where = f"{where}: refusals"
    _check_ops((*refusals.segments, *(part.ops for part in refusals.parts)), n_ops, where)
    for part in refusals.parts:
        if part.on_chip & ~part.ops:
            raise PlanError(f"'{op_text(part.on_chip)}' is not within '{op_text(part.ops)}'", where, _REMEDY)


def _check_costs(costs: KnownCosts, n_ops: int, where: str) -> None:
    capacity = (costs.room_per_million, costs.room_more_bytes, costs.room_fewer_bytes, costs.room_most_bytes)
    _check_within((*costs.constants.values(), *capacity), 0, LARGEST, where)
    if costs.device not in DEVICES:
        raise PlanError(f"device is '{costs.device}'", where, f"make it one of {', '.join(DEVICES)}")
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
    if held.compilable not in (None, *COMPILABLE):
        raise PlanError(f"compilable is '{held.compilable}'", where, f"make it one of {', '.join(COMPILABLE)}, or null")
    if held.limits is not None:
        _check_limits(held.limits, n_ops, n_tpus, f"{where}: limits")


def _check_limits(limits: Limits, n_ops: int, n_tpus: int, where: str) -> None:
    placed = (*limits.pinned, *limits.kept_from)
    _check_within((p.op for p in placed), 0, n_ops - 1, where)
    _check_within((p.stage for p in placed), 0, n_tpus - 1, where)
    most = (limits.max_boundary_tensors, limits.max_boundary_bytes, limits.max_segment_bytes)
    _check_within((*most, limits.max_latency_ns, limits.max_objective_ns), 0, LARGEST, where)
    _check_ops(limits.together, n_ops, where)


def _check_ops(sets: Iterable[OpSet], n_ops: int, where: str) -> None:
    for ops in sets:
        if ops >> n_ops:
            raise PlanError(f"'{op_text(ops)}' is not within ops 0 to {n_ops - 1}", where, _REMEDY)


def _check_within(values: Iterable[int | None], least: int, most: int, where: str) -> None:
    for value in values:
        if value is not None and not least <= value <= most:
            raise PlanError(f"{str(value)[:20]} is not from {least} to {most}", where, _REMEDY)
