"""What every job here starts from: the model's bytes, its graph, and the costs of its segments on given hardware."""

from __future__ import annotations

import functools
import hashlib
import operator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balancer.cost.batch import SegmentBatch
from balancer.cost.hardware import Hardware, load_hardware
from balancer.cost.profile import Profile, load_profile
from balancer.cost.segment import SegmentCosts
from balancer.cost.timing import input_ns, output_ns
from balancer.errors import ConstraintError
from balancer.ground.opsets import members, op_ranges
from balancer.plan import state_of
from balancer.solve import Between, Constraints, Cost, CostColumns, Kept, Kind, Problem, Structure, Transfer
from balancer.tflite.read import read_graph, read_model_bytes

if TYPE_CHECKING:
    from balancer.graph import Graph
    from balancer.ground.downsets import DownSets
    from balancer.ground.opsets import OpSet

OVERFLOW = ("stream", "error")
MOST_TPUS = 32
_LARGEST_LIMIT = 1 << 60  # sums of a few still fit 64 bits


@dataclass(frozen=True)
class Setting:
    """A model on hardware. origin: where its bytes come from. profile: per-op costs that replace the predicted ones.
    hardware: as it was given; `costs.hardware` has the constants that the profile knows better. keep_state: of variable
    tensors, from input to input.
    """

    data: bytes
    origin: Path | bytes
    graph: Graph
    hardware: Hardware
    profile: Profile | None = None
    keep_state: bool = False

    @property
    def state(self) -> str | None:
        """What plans say of the model's state."""
        return state_of(self.graph.stateful, keep_state=self.keep_state)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def costs(self) -> SegmentCosts:
        return SegmentCosts(self.graph, self.hardware, self.profile)

    def problem(self, n_tpus: int, *, overflow: str = "stream") -> Problem:
        """The solver's view. overflow: "error" forbids segments that stream for want of room."""
        may_overflow = overflow == "stream"

        def exact(ops: OpSet, kind: Kind) -> Cost | None:
            if not self.costs.allowed(ops):
                return None
            terms = self.costs.terms(ops)
            return Cost(terms.stage_ns, terms.streamed_bytes) if may_overflow or not terms.overflow_bytes else None

        def batch(sets: DownSets, kind: Kind) -> Between:
            segments = SegmentBatch(self.costs, sets)

            def between(inners: Any, outers: Any) -> CostColumns:
                table = segments(inners, outers)
                allowed = table.allowed if may_overflow else table.allowed & (table.overflow_bytes == 0)
                return CostColumns(table.time_ns, table.streamed_bytes, allowed)

            return between

        return Problem(
            before=self.graph.before,
            devices=((self.hardware.name, n_tpus),),
            exact=exact,
            lower=lambda ops, kind: self.costs.lower(ops),
            batch=batch,
            together=self.graph.together + _with_neighbours(self.graph),
            structures={self.hardware.name: structure(self.costs, may_overflow=may_overflow)},
            op_bytes=tuple(op.parameter_bytes for op in self.graph.ops),
            host_ns=self.hardware.host.host_ns_per_stage,
            handover_ns=self.hardware.host.handover_ns,
        )


def _with_neighbours(graph: Graph) -> tuple[OpSet, ...]:
    """Folded ops cost nothing wherever they stand: each stays with the next op that is computed, or the last one."""
    real = [op.index for op in graph.ops if not op.folded]
    return tuple(1 << i | 1 << min((r for r in real if r > i), default=real[-1]) for i in members(graph.folded) if real)


def structure(costs: SegmentCosts, *, may_overflow: bool = True) -> Structure:
    """What the cost of a segment is made of, as far as it is additive; the rest makes it dearer, never cheaper.

    Ops that may end up on the CPU count with the cheaper of both; room for parameters is the most that there can be.
    """
    hardware, graph, sure = costs.hardware, costs.graph, costs.sure_on_tpu
    caching = costs.caching
    return Structure(
        stage_ns=hardware.link.invoke_ns,
        op_ns=tuple(costs.least_ns),
        transfers=tuple(_transfer(graph, hardware, t) for t in sorted(set(graph.producer) | set(graph.readers))),
        kept=tuple(
            Kept(i, caching.size_bytes[i], costs.op_terms[i].stall_ns) for i in caching.priority if sure >> i & 1
        ),
        capacity_bytes=costs.capacity_rule.largest_bytes,
        spill_start_ns=hardware.link.stream_start_ns,
        streaming=tuple(i for i in members(sure) if costs.op_terms[i].layout.always_streamed),
        op_bytes=tuple(caching.size_bytes[i] if sure >> i & 1 else 0 for i in range(len(graph.ops))),
        limit_bytes=None if may_overflow else costs.capacity_rule.largest_bytes,
        relaxed=True,
    )


def _transfer(graph: Graph, hardware: Hardware, t: int) -> Transfer:
    size = graph.tensors[t].bytes
    return Transfer(
        producer=graph.producer.get(t),
        readers=graph.readers.get(t, ()),
        leaves=t in graph.outputs,
        receive_ns=input_ns(size, hardware),
        send_ns=output_ns(size, hardware),
        size_bytes=size,
    )


def open_setting(model: str | Path | bytes, hardware: str | Path | Hardware) -> Setting:
    """Raises ModelError or HardwareError where one of them cannot be read."""
    record = hardware if isinstance(hardware, Hardware) else load_hardware(hardware)
    if isinstance(model, bytes):
        return Setting(model, model, read_graph(model, name="model"), record)
    path = Path(model)
    data = read_model_bytes(path)
    return Setting(data, path, read_graph(data, name=path.stem, where=str(path)), record)


def with_profile(setting: Setting, path: str | Path) -> Setting:
    """The same with the costs of a profile file. Raises ProfileError where it does not fit the model."""
    return replace(setting, profile=load_profile(path, setting.graph, setting.sha256))


def check_tpus(n_tpus: int) -> None:
    """Raises ValueError where it is no number of TPUs."""
    check_count("n_tpus", n_tpus)
    if n_tpus > MOST_TPUS:
        raise ValueError(f"n_tpus must be at most {MOST_TPUS}, not {n_tpus}")


def check_count(name: str, number: int) -> None:
    """Raises ValueError where it is no whole number from 1."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name} must be a whole number from 1, not {number!r}")


def check_constraints(constraints: Constraints, n_ops: int, n_tpus: int) -> None:
    """Raises ConstraintError where they name an op or a stage that cannot be, or leave an op no stage at all; ValueError
    for a limit that is none.
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
    """Sets of ops that share a stage, among them each constrained op by itself; sets with an op in common are one."""
    found: list[OpSet] = []
    alone = [1 << op for op in (*constraints.pinned, *(op for op, _ in constraints.kept_from))]
    for group in (*constraints.together, *alone):
        touching = [other for other in found if other & group]
        found = [other for other in found if not other & group]
        found.append(functools.reduce(operator.or_, touching, group))
    return found


def _check_place(constraints: Constraints, ops: OpSet, n_tpus: int) -> None:
    """Raises ConstraintError where ops that share a stage have none to stand in."""
    pins = {stage: op for op, stage in constraints.pinned.items() if ops >> op & 1}
    kept = {stage: op for op, stage in constraints.kept_from if ops >> op & 1}
    if (set(pins) or set(range(n_tpus))) - set(kept) and len(pins) < 2:
        return
    said = [f"op {op} pinned to stage {stage}" for stage, op in sorted(pins.items())]
    said += [f"op {op} kept from stage {stage}" for stage, op in sorted(kept.items()) if stage in pins or not pins]
    alone = ops.bit_count() == 1
    where = f"op {op_ranges(members(ops))}" if alone else f"ops {op_ranges(members(ops))} that share a stage"
    raise ConstraintError(
        f"the constraints leave no stage: {', '.join(said)}", where, "leave out one of them, or allow more TPUs"
    )
