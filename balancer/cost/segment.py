"""The cost of one segment, in the terms that a plan prints.

    stage_ns = overhead_ns + compute_ns + streaming_ns + input_ns + output_ns + cpu_ns

A tensor that skips segments is handled by its producer (output) and its readers (input) alone. The formulas of the
terms stand in `timing`, what fits on the chip in `capacity` and `caching`, bytes in `layout`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from balancer.cost import timing
from balancer.cost.caching import Caching
from balancer.cost.capacity import Room, input_scratch, op_scratch
from balancer.cost.layout import ParameterLayout, layout
from balancer.cost.profile import OpCosts
from balancer.ground.opsets import OpSet, members, op_set
from balancer.ground.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from balancer.cost.hardware import Hardware
    from balancer.cost.profile import Profile
    from balancer.graph import Graph, Op


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentTerms:
    """Predicted cost of one segment. Bytes as the compiler lays them out; stage_ns is the sum of the other times.

    streaming_ns: what streaming adds to computing. overhead_ns: invoking, and starting ops.
    """

    parameter_bytes: int
    cached_bytes: int
    streamed_bytes: int
    overflow_bytes: int
    capacity_bytes: int
    compute_ns: int
    streaming_ns: int
    input_ns: int
    output_ns: int
    overhead_ns: int
    cpu_ns: int

    @property
    def stage_ns(self) -> int:
        return self.compute_ns + self.streaming_ns + self.input_ns + self.output_ns + self.overhead_ns + self.cpu_ns


class SegmentCosts:
    """Costs of the segments of one graph on one kind of hardware. `terms` is exact, `lower` a bound for pruning.

    Per op: layout; start, the ns of starting it; compute, the ns on the array; waiting, the ns that streaming adds;
    always, the ns of operands that are never cached; cpu, the ns on the CPU; scratch, bytes a tile.
    """

    def __init__(self, graph: Graph, hardware: Hardware, profile: Profile | None = None) -> None:
        """profile: per-op costs, and constants, that replace the predicted ones."""
        self.graph = graph
        self.hardware = hardware = profile.hardware(hardware) if profile else hardware
        ops = graph.ops
        known = profile.ops if profile else {}
        self.layout = [_layout(graph, op, known.get(op.index, _AS_PREDICTED)) for op in ops]
        sized = list(zip(ops, self.layout, strict=True))
        stream = [timing.stream_ns(graph, op, lay, hardware) for op, lay in sized]
        gather = [timing.gather_ns(graph, op, hardware) for op in ops]
        busy = [timing.busy_ns(graph, op, lay, hardware) for op, lay in sized]
        predicted = [b + g for b, g in zip(busy, gather, strict=True)]
        self.compute = [_ns(known, i, ns) for i, ns in enumerate(predicted)]
        # Streaming hides behind the op's own computing, but not behind the gathering of its input.
        hiding = [max(0, ns - g) for ns, g in zip(self.compute, gather, strict=True)]
        self.waiting = [max(0, s - h) for s, h in zip(stream, hiding, strict=True)]
        self.always = [timing.always_stream_ns(lay, hardware) for lay in self.layout]
        self.start = [timing.start_ns(op, hardware) for op in ops]
        self.scratch = [_scratch(known, op.index, op_scratch(graph, op, lay)) for op, lay in sized]
        self.room = _room(hardware, profile)
        self.caching = Caching(graph, self.layout, hardware.chip.dense_tile_bytes)
        self.mapped = op_set(op.index for op in ops if _mapped(known, op) and not op.folded)
        self.unmapped = graph.all_ops & ~self.mapped & ~graph.folded
        cpu = [timing.cpu_ns(graph, op, hardware) for op in ops]
        self.cpu = [_ns(known, i, ns) if self.unmapped >> i & 1 else ns for i, ns in enumerate(cpu)]

    @cached_property
    def ancestors(self) -> list[OpSet]:
        """For each op all ops that it depends on."""
        found: list[OpSet] = []
        for before in self.graph.before:
            found.append(before | _union(found[i] for i in members(before)))
        return found

    def on_cpu(self, ops: OpSet) -> OpSet:
        """The ops of a segment that stay on the CPU: unmapped ones and what depends on them.

        Unmapped ops that stand before everything mapped lead in to the Edge TPU's part and hold nothing back.
        """
        unmapped = ops & self.unmapped
        mapped = ops & self.mapped
        ending = op_set(u for u in members(unmapped) if self.ancestors[u] & mapped)
        if not ending:
            return unmapped
        return unmapped | op_set(i for i in members(mapped) if self.ancestors[i] & ending)

    def allowed(self, ops: OpSet) -> bool:
        """Whether the ops may form a segment: something to compute and to give, no state torn apart, no cut through a
        tensor whose shape is not known."""
        if not ops & ~self.graph.folded:
            return False
        if any(ops & group and ops & group != group for group in self.graph.together):
            return False
        interface = self.graph.interface(ops)
        handed_on = [t for t in interface.outputs if any(not ops >> r & 1 for r in self.graph.readers.get(t, ()))]
        known = all(self.graph.tensors[t].shape is not None for t in (*interface.inputs, *handed_on))
        return known and bool(interface.outputs)

    def terms(self, ops: OpSet, room: int | None = None) -> SegmentTerms:
        """The predicted cost of the segment that holds these ops. room: bytes for parameters, where that is known."""
        on_cpu = self.on_cpu(ops)
        on_tpu = ops & self.mapped & ~on_cpu
        inputs, outputs = self.graph.interface(ops)
        room = self.capacity(on_tpu, inputs) if room is None else room
        cached = self.caching.cached(on_tpu, room)
        overflow = [i for i in members(on_tpu & ~cached) if self.layout[i].cached]
        always = sum(self.layout[i].always_streamed for i in members(on_tpu))
        cached_bytes = sum(self.layout[i].cached for i in members(cached))
        overflow_bytes = sum(self.layout[i].streamed for i in overflow)
        waiting = sum(self.waiting[i] for i in overflow) + sum(self.always[i] for i in members(on_tpu))
        tensors, hardware = self.graph.tensors, self.hardware
        return SegmentTerms(
            parameter_bytes=cached_bytes + overflow_bytes + always,
            cached_bytes=cached_bytes,
            streamed_bytes=overflow_bytes + always,
            overflow_bytes=overflow_bytes,
            capacity_bytes=room,
            compute_ns=sum(self.compute[i] for i in members(on_tpu)),
            streaming_ns=waiting + (hardware.link.stream_start_ns if overflow_bytes + always else 0),
            input_ns=sum(timing.input_ns(tensors[t].bytes, hardware) for t in inputs),
            output_ns=sum(timing.output_ns(tensors[t].bytes, hardware) for t in outputs),
            overhead_ns=hardware.link.invoke_ns + sum(self.start[i] for i in members(on_tpu)),
            cpu_ns=sum(self.cpu[i] for i in members(on_cpu)),
        )

    def capacity(self, on_tpu: OpSet, inputs: Iterable[int]) -> int:
        """On-chip bytes for the parameters of these ops, in a segment that takes these tensors."""
        of_ops = (self.scratch[i] for i in members(on_tpu))
        read = ((t, r) for t in inputs for r in self.graph.readers.get(t, ()) if on_tpu >> r & 1)
        return self.room(max((*of_ops, *(self.input_scratch[pair] for pair in read)), default=0))

    @cached_property
    def input_scratch(self) -> dict[tuple[int, int], int]:
        """(tensor, op that reads it) -> bytes a tile where the tensor enters the op's segment."""
        graph = self.graph
        return {(t, r): input_scratch(graph, t, graph.ops[r]) for t, readers in graph.readers.items() for r in readers}

    def lower(self, ops: OpSet) -> int:
        """ns, at most the stage time of any allowed segment that contains these ops; never less for more ops.

        Each op costs the cheaper of chip and CPU; parameters beyond the largest capacity must be sent, during which
        computing hides. Transfers and scratch are left out: more ops can make them smaller.
        """
        hardware = self.hardware
        busy = sum(self.least_ns[i] for i in members(ops))
        held = sum(self.layout[i].streamed for i in members(ops & self.sure_on_tpu))
        overflow = max(0, held - self.room.largest)
        return hardware.link.invoke_ns + max(busy, overflow * hardware.link.stream_ns_per_mib // MIB)

    @cached_property
    def sure_on_tpu(self) -> OpSet:
        """The mapped ops that depend on no unmapped one: on the TPU in every segment."""
        return op_set(i for i in members(self.mapped) if not self.ancestors[i] & self.unmapped)

    @cached_property
    def least_ns(self) -> list[int]:
        """For each op the least ns that it adds to a segment, streaming for want of room apart."""
        return [self._least_ns(i) for i in range(len(self.graph.ops))]

    def _least_ns(self, i: int) -> int:
        if self.graph.ops[i].folded:
            return 0
        if self.unmapped >> i & 1:
            return self.cpu[i]
        on_tpu = self.compute[i] + self.start[i] + self.always[i]
        return on_tpu if self.sure_on_tpu >> i & 1 else min(on_tpu, self.cpu[i])


_AS_PREDICTED = OpCosts()


def _layout(graph: Graph, op: Op, known: OpCosts) -> ParameterLayout:
    """The op's layout, with the known parameter bytes where they differ from what the rules give."""
    found = layout(graph, op)
    if known.parameter_bytes is None or known.parameter_bytes == found.cached:
        return found
    return found._replace(cached=known.parameter_bytes, streamed=known.parameter_bytes)


def _ns(known: Mapping[int, OpCosts], i: int, predicted: int) -> int:
    ns = known.get(i, _AS_PREDICTED).ns
    return predicted if ns is None else ns


def _mapped(known: Mapping[int, OpCosts], op: Op) -> bool:
    mapped = known.get(op.index, _AS_PREDICTED).mapped
    return op.mapped if mapped is None else mapped


def _scratch(known: Mapping[int, OpCosts], i: int, predicted: int) -> int:
    scratch = known.get(i, _AS_PREDICTED).scratch_bytes
    return predicted if scratch is None else scratch


def _room(hardware: Hardware, profile: Profile | None) -> Room:
    if profile is None:
        return Room(hardware.chip.wide_bytes_per_tile)
    return Room(
        hardware.chip.wide_bytes_per_tile, profile.room_per_million, profile.room_more_bytes, profile.room_most_bytes
    )


def _union(sets: Iterable[OpSet]) -> OpSet:
    merged = 0
    for ops in sets:
        merged |= ops
    return merged
