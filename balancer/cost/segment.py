"""The cost of one segment, in the terms that a plan prints. All formulas of the cost model stand in this file.

    stage_ns = overhead_ns + compute_ns + streaming_ns + input_ns + output_ns + cpu_ns

A tensor that skips segments is handled by its producer (output) and its readers (input) alone. Nothing overlaps between
the terms of one input; between inputs, stages overlap. Times are whole nanoseconds, each term rounded up, so that parts
never sum to less than the whole, which `SegmentCosts.lower` relies on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from balancer.cost.hardware import NS_PER_S, Hardware
from balancer.cost.layout import Layout, ceil_to, layout
from balancer.graph import Graph, Op, OpSet, members, op_set

if TYPE_CHECKING:
    from collections.abc import Iterable

_MIB = 1 << 20
# The array is 64 output channels wide and takes 4 input channels a step; pictures are dealt out in tiles of 4 x 4.
_ARRAY_OUTPUTS, _ARRAY_INPUTS, _TILE_SIDE = 64, 4, 4
_CONVOLUTIONS = {"CONV_2D", "TRANSPOSE_CONV", "DEPTHWISE_CONV_2D"}
# The compiler caches whole ops: depthwise first, then dense, then the rest; inside a class the largest first.
_CACHE_CLASS = {"DEPTHWISE_CONV_2D": 0, "FULLY_CONNECTED": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentTerms:
    """Predicted cost of one segment. Bytes as the compiler lays them out; stage_ns is the sum of the other times."""

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


def ceil_div(value: int, by: int) -> int:
    return -(-value // by)


def transfer_ns(size: int, bytes_per_s: int, hardware: Hardware) -> int:
    """Time for `size` boundary bytes in one direction; beyond `large_transfer_bytes` the host's copies leave its cache."""
    beyond = max(0, size - hardware.large_transfer_bytes)
    return ceil_div(size * NS_PER_S, bytes_per_s) + ceil_div(beyond * hardware.large_ns_per_mib, _MIB)


def padded_macs(graph: Graph, op: Op) -> int:
    """Multiply-accumulates with the array's rounding: of output channels to 64, input channels to 4, pictures to 4 x 4."""
    if op.type not in _CONVOLUTIONS:
        return op.macs
    weights, picture = graph.tensors[op.inputs[1]].shape, graph.tensors[op.outputs[0]].shape
    if op.type == "TRANSPOSE_CONV":
        picture = graph.tensors[op.inputs[2]].shape
    if weights is None or picture is None or len(weights) != 4 or len(picture) != 4:
        return op.macs
    area = ceil_to(picture[1], _TILE_SIDE) * ceil_to(picture[2], _TILE_SIDE)
    taps = weights[1] * weights[2]
    if op.type == "DEPTHWISE_CONV_2D":
        return area * taps * ceil_to(weights[3], _ARRAY_OUTPUTS)
    return area * taps * ceil_to(weights[3], _ARRAY_INPUTS) * ceil_to(weights[0], _ARRAY_OUTPUTS)


def compute_ns(graph: Graph, op: Op, op_layout: Layout, hardware: Hardware) -> int:
    """Time on the array: padded multiply-accumulates; dense ops by the weights they read; others by what they write."""
    if op.type == "FULLY_CONNECTED":
        return ceil_div(op_layout.cached * NS_PER_S, hardware.dense_bytes_per_s)
    written = sum(graph.tensors[t].bytes for t in op.outputs)
    busy = ceil_div(padded_macs(graph, op) * NS_PER_S, hardware.macs_per_s)
    if op.type in ("CONV_2D", "TRANSPOSE_CONV"):
        return busy
    return busy + ceil_div(written * NS_PER_S, hardware.elementwise_bytes_per_s)


def cpu_ns(graph: Graph, op: Op, hardware: Hardware) -> int:
    """Time of an op that stays on the host's CPU."""
    touched = sum(graph.tensors[t].bytes for t in (*op.outputs, *graph.activations[op.index]))
    return (
        hardware.cpu_op_ns
        + ceil_div(op.macs * NS_PER_S, hardware.cpu_macs_per_s)
        + ceil_div(touched * NS_PER_S, hardware.cpu_bytes_per_s)
    )


def scratch_bytes(graph: Graph, op: Op, hardware: Hardware) -> int:
    """Parameter memory that the op's activations take."""
    largest = max((graph.tensors[t].bytes for t in (*op.outputs, *graph.activations[op.index])), default=0)
    return max(0, largest - hardware.scratch_free_bytes) * hardware.scratch_permille // 1000


class SegmentCosts:
    """Costs of the segments of one graph on one kind of hardware. `terms` is exact, `lower` a bound for pruning."""

    def __init__(self, graph: Graph, hardware: Hardware) -> None:
        self.graph = graph
        self.hardware = hardware
        self.layout = [layout(graph, op) for op in graph.ops]
        self.compute = [compute_ns(graph, op, lay, hardware) for op, lay in zip(graph.ops, self.layout, strict=True)]
        self.cpu = [cpu_ns(graph, op, hardware) for op in graph.ops]
        self.scratch = [scratch_bytes(graph, op, hardware) for op in graph.ops]
        self.stream = [ceil_div(lay.streamed * NS_PER_S, hardware.stream_bytes_per_s) for lay in self.layout]
        self.always = [ceil_div(lay.always_streamed * NS_PER_S, hardware.stream_bytes_per_s) for lay in self.layout]
        self.mapped = op_set(op.index for op in graph.ops if op.mapped and not op.folded)
        self.unmapped = graph.all_ops & ~self.mapped & ~graph.folded

    @cached_property
    def priority(self) -> list[int]:
        """Ops with parameters in the order in which the compiler gives them room on the chip."""
        sized = [i for i, lay in enumerate(self.layout) if lay.cached]
        ops = self.graph.ops
        return sorted(sized, key=lambda i: (_CACHE_CLASS.get(ops[i].type, 2), -self.layout[i].cached, i))

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

    def terms(self, ops: OpSet) -> SegmentTerms:
        """The predicted cost of the segment that holds these ops."""
        on_cpu = self.on_cpu(ops)
        on_tpu = list(members(ops & self.mapped & ~on_cpu))
        capacity = self.capacity(on_tpu)
        cached = self._cached(set(on_tpu), capacity)
        overflow = [i for i in on_tpu if self.layout[i].cached and i not in cached]
        always = sum(self.layout[i].always_streamed for i in on_tpu)
        cached_bytes = sum(self.layout[i].cached for i in cached)
        overflow_bytes = sum(self.layout[i].streamed for i in overflow)
        waiting = sum(max(0, self.stream[i] - self.compute[i]) for i in overflow) + sum(self.always[i] for i in on_tpu)
        interface = self.graph.interface(ops)
        tensors, hardware = self.graph.tensors, self.hardware
        return SegmentTerms(
            parameter_bytes=cached_bytes + overflow_bytes + always,
            cached_bytes=cached_bytes,
            streamed_bytes=overflow_bytes + always,
            overflow_bytes=overflow_bytes,
            capacity_bytes=capacity,
            compute_ns=sum(self.compute[i] for i in on_tpu),
            streaming_ns=waiting + (hardware.stream_setup_ns if overflow_bytes + always else 0),
            input_ns=transfer_ns(sum(tensors[t].bytes for t in interface.inputs), hardware.input_bytes_per_s, hardware),
            output_ns=transfer_ns(
                sum(tensors[t].bytes for t in interface.outputs), hardware.output_bytes_per_s, hardware
            ),
            overhead_ns=hardware.invoke_ns + hardware.host_ns_per_stage + hardware.op_ns * len(on_tpu),
            cpu_ns=sum(self.cpu[i] for i in members(on_cpu)),
        )

    def capacity(self, on_tpu: Iterable[int]) -> int:
        """On-chip bytes left for parameters: the op with the largest activations decides."""
        return max(0, self.hardware.capacity_bytes - max((self.scratch[i] for i in on_tpu), default=0))

    def _cached(self, on_tpu: set[int], capacity: int) -> set[int]:
        """Whole ops in the order of priority, each where it still fits."""
        left, cached = capacity, set()
        for i in self.priority:
            if i in on_tpu and self.layout[i].cached <= left:
                left -= self.layout[i].cached
                cached.add(i)
        return cached

    def lower(self, ops: OpSet) -> int:
        """ns, at most the stage time of any allowed segment that contains these ops; never less for more ops.

        Each op costs the cheaper of chip and CPU; parameters beyond the largest capacity must be sent, during which
        computing hides. Transfers and scratch are left out: more ops can make them smaller.
        """
        hardware, sure = self.hardware, self._sure_on_tpu
        fixed = hardware.invoke_ns + hardware.host_ns_per_stage
        busy = sum(self._least[i] for i in members(ops))
        overflow = sum(self.layout[i].streamed for i in members(ops & sure)) - hardware.capacity_bytes
        return fixed + max(busy, max(0, overflow) * NS_PER_S // hardware.stream_bytes_per_s)

    @cached_property
    def _sure_on_tpu(self) -> OpSet:
        return op_set(i for i in members(self.mapped) if not self.ancestors[i] & self.unmapped)

    @cached_property
    def _least(self) -> list[int]:
        least = []
        for i in range(len(self.graph.ops)):
            on_tpu = self.compute[i] + self.hardware.op_ns
            on_cpu = self.cpu[i]
            sure, mapped = self._sure_on_tpu >> i & 1, self.mapped >> i & 1
            least.append(
                0 if self.graph.ops[i].folded else on_tpu if sure else min(on_tpu, on_cpu) if mapped else on_cpu
            )
        return least


def _union(sets: Iterable[OpSet]) -> OpSet:
    merged = 0
    for ops in sets:
        merged |= ops
    return merged
