"""The cost of one segment, in the terms that a plan prints. The cost model is read from here.

    stage_ns = overhead_ns    to invoke the segment, to send its instructions, and to start each of its ops
             + compute_ns     its ops compute, as if all parameters were cached
             + streaming_ns   they stall while parameters arrive that are not cached
             + input_ns       boundary tensors enter it
             + output_ns      boundary tensors leave it
             + scratch_ns     activations that do not fit the chip go to the host and come back
             + cpu_ns         its ops that stay on the CPU

`SegmentCosts.terms` finds them in this order:

    step                                                           by
    1. which ops stay on the CPU; the others run on the chip       `SegmentCosts.on_cpu`
    2. which tensors enter and leave                               `Graph.interface`
    3. the largest scratch leaves a capacity for parameters        `capacity`
    4. the compiler's priority fills it: cached, or overflow       `caching`
    5. tensors that wait and fit no memory of the chip             `spilling` (`activations`)
    6. sums over ops and tensors                                   `op_terms` (`timing`, `layout`)

A tensor that skips segments costs its producer (output) and each segment that reads it (input), and no segment between
them. `batch` computes the same for many segments at once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from balancer.cost.caching import caching_rule
from balancer.cost.capacity import TILES, CapacityRule, input_scratch
from balancer.cost.compilable import Compilable, CompileRule, Judgement
from balancer.cost.instructions import BASE_BYTES
from balancer.cost.op_terms import OpTerms, op_terms, transfer_terms
from balancer.cost.profile import OpCosts
from balancer.cost.spilling import Spilling
from balancer.cost.timing import instructions_ns, scratch_ns_per_mib
from balancer.ground.opsets import OpSet, members, op_set
from balancer.ground.terms import SegmentTerms
from balancer.ground.units import MIB, ceil_div

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.cost.constant_groups import Link
    from balancer.cost.hardware import AnyHardware
    from balancer.cost.profile import Profile
    from balancer.graph import Graph


class SegmentCosts:
    """Costs of the segments of one graph on one kind of hardware. `terms` is exact, `lower` a bound for pruning.

    hardware: Edge TPUs, or the host's CPU, on which all ops of a segment are "on the CPU"; with the constants that the profile
    corrects. profile: as given. op_terms: of each op, by its index; transfers: of each tensor,
    likewise. capacity_rule, caching: what fits on the chip. mapped: the ops that the Edge TPU takes; unmapped: the others.
    Folded ops are in neither.
    """

    def __init__(self, graph: Graph, hardware: AnyHardware, profile: Profile | None = None) -> None:
        """profile: costs of ops, and constants, that replace the predicted ones."""
        known = profile.ops if profile else {}
        self.graph, self.profile = graph, profile
        self.hardware = profile.hardware(hardware) if profile else hardware
        self.op_terms = [op_terms(graph, op, self.hardware, known.get(op.index, _AS_PREDICTED)) for op in graph.ops]
        self.transfers = [transfer_terms(tensor, self.hardware) for tensor in graph.tensors]
        self.capacity_rule = _capacity_rule(self.hardware, profile)
        layouts = [op.layout for op in self.op_terms]
        self.caching = caching_rule(graph, layouts, self.hardware.chip.dense_tile_bytes)
        self.mapped = op_set(i for i, op in enumerate(self.op_terms) if op.mapped)
        self.unmapped = graph.all_ops & ~self.mapped & ~graph.folded

    def terms(self, ops: OpSet, capacity_bytes: int | None = None) -> SegmentTerms:
        """The predicted cost of the segment that holds these ops.

        capacity_bytes: for parameters, where it is known otherwise, as from a compiler's report.
        """
        on_cpu = self.on_cpu(ops)
        on_tpu = ops & self.mapped & ~on_cpu
        inputs, outputs = self.graph.interface(ops)
        if capacity_bytes is None:
            capacity_bytes = self.capacity_bytes(on_tpu, inputs)
        # Whole ops are cached, so what overflows is a set of ops, too. Ops without parameters are in neither.
        cached = self.caching.cached(on_tpu, capacity_bytes)
        running = self._terms_of(on_tpu)
        overflowing = [op for op in self._terms_of(on_tpu & ~cached) if op.layout.cached]
        cached_bytes = sum(op.layout.cached for op in self._terms_of(cached))
        overflow_bytes = sum(op.layout.streamed for op in overflowing)
        streamed_bytes = overflow_bytes + sum(op.layout.always_streamed for op in running)
        link = self.hardware.link
        room_bytes = max(0, capacity_bytes - sum(op.layout.cached for op in running))
        scratch_bytes = self.spilling.scratch_bytes(ops, on_tpu, room_bytes)
        times = {
            "compute_ns": sum(op.compute_ns for op in running),
            "streaming_ns": _streaming_ns(running, overflowing, link) if streamed_bytes else 0,
            "input_ns": sum(self.transfers[t].input_ns for t in inputs),
            "output_ns": sum(self.transfers[t].output_ns for t in outputs),
            "scratch_ns": ceil_div(scratch_bytes * scratch_ns_per_mib(self.hardware), MIB)
            + sum(op.exchange_ns for op in running),
            "overhead_ns": self.invoke_ns + sum(op.start_ns for op in running),
            "cpu_ns": sum(op.cpu_ns for op in self._terms_of(on_cpu)),
        }
        return SegmentTerms(
            parameter_bytes=cached_bytes + streamed_bytes,
            cached_bytes=cached_bytes,
            streamed_bytes=streamed_bytes,
            overflow_bytes=overflow_bytes,
            capacity_bytes=capacity_bytes,
            instruction_bytes=BASE_BYTES + sum(op.instruction_bytes for op in running) if running else 0,
            scratch_bytes=scratch_bytes,
            stage_ns=sum(times.values()),
            **times,
        )

    @cached_property
    def invoke_ns(self) -> int:
        """ns to invoke a segment: what any executable has of instructions, and what the link takes besides."""
        return self.hardware.link.invoke_ns + instructions_ns(BASE_BYTES, self.hardware)

    def judgement(self, ops: OpSet) -> Judgement:
        """Whether the vendor's compiler takes the segment that holds these ops."""
        return self.compile_rule.judgement(
            ops, ops & self.mapped & ~self.on_cpu(ops), self.graph.ending(ops, self.mapped)
        )

    @cached_property
    def compile_rule(self) -> CompileRule:
        """What judges segments."""
        return CompileRule(self.spilling, self.hardware.chip.wide_bytes_per_tile, self.unmapped)

    @cached_property
    def spilling(self) -> Spilling:
        """What leaves narrow memory in which segments."""
        return Spilling(self.graph, self.ancestors, self.hardware.chip.narrow_bytes // TILES)

    def activation_bytes(self, ops: OpSet) -> int:
        """What the activations of the segment that holds these ops take of each tile's narrow memory."""
        return self.spilling.narrow_bytes(ops, ops & self.mapped & ~self.on_cpu(ops))

    def _terms_of(self, ops: OpSet) -> list[OpTerms]:
        return [self.op_terms[i] for i in members(ops)]

    @property
    def ancestors(self) -> Sequence[OpSet]:
        """For each op all ops that it depends on, directly or through others."""
        return self.graph.ancestors

    def on_cpu(self, ops: OpSet) -> OpSet:
        """The ops of a segment that run on the CPU: see `Graph.on_cpu`."""
        return self.graph.on_cpu(ops, self.mapped)

    def allowed(self, ops: OpSet) -> bool:
        """Whether the ops may form a segment.

        It computes at least one op and hands on at least one tensor. Ops that share a variable tensor are all inside or
        all outside. Each tensor that enters it, or is read by another segment, has a known shape.
        """
        if not ops & ~self.graph.folded:
            return False
        if any(ops & group and ops & group != group for group in self.graph.together):
            return False
        inputs, outputs = self.graph.interface(ops)
        read_outside = [t for t in outputs if any(not ops >> r & 1 for r in self.graph.readers.get(t, ()))]
        known = all(self.graph.tensors[t].shape is not None for t in (*inputs, *read_outside))
        return known and bool(outputs)

    def capacity_bytes(self, on_tpu: OpSet, inputs: Iterable[int]) -> int:
        """On-chip bytes for the parameters of these ops, in a segment that takes these tensors.

        Ops run one after the other, so only the largest scratch counts: of an op, or of a tensor that enters and is read
        on the chip.
        """
        of_ops = (self.op_terms[i].scratch_bytes for i in members(on_tpu))
        entering = ((t, r) for t in inputs for r in self.graph.readers.get(t, ()) if on_tpu >> r & 1)
        of_inputs = (self.input_scratch[pair] for pair in entering)
        return self.capacity_rule.capacity_bytes(max((*of_ops, *of_inputs), default=0))

    @cached_property
    def input_scratch(self) -> dict[tuple[int, int], int]:
        """(tensor, op that reads it) -> scratch bytes in each tile where the tensor enters the op's segment."""
        graph = self.graph
        return {(t, r): input_scratch(graph, t, graph.ops[r]) for t, readers in graph.readers.items() for r in readers}

    def lower(self, ops: OpSet) -> int:
        """ns, at most the stage time of any allowed segment that contains these ops; never less for more ops.

        The larger of two bounds: the least time of each op, on the chip or on the CPU; and the time to stream the
        parameters that exceed the largest capacity. Transfers and scratch are left out, since more ops can make them smaller.
        """
        link = self.hardware.link
        busy_ns = sum(self.least_ns[i] for i in members(ops))
        # Cached bytes of an op are at least its streamed ones, so caching saves at most `largest_bytes` of streaming.
        streamed = sum(self.op_terms[i].layout.streamed for i in members(ops & self.sure_on_tpu))
        overflow_bytes = max(0, streamed - self.capacity_rule.largest_bytes)
        # Rounded down, while `terms` rounds each op's time up: the bound stays at or below the exact sum. The maximum, and
        # not the sum, since computing hides streaming.
        return self.invoke_ns + max(busy_ns, overflow_bytes * link.stream_ns_per_mib // MIB)

    @cached_property
    def sure_on_tpu(self) -> OpSet:
        """The mapped ops that run on the TPU in every segment: no unmapped op stands between them and another mapped one."""
        ending = op_set(u for u in members(self.unmapped) if self.ancestors[u] & self.mapped)
        return op_set(i for i in members(self.mapped) if not self.ancestors[i] & ending)

    @cached_property
    def best_judgement(self) -> Judgement:
        """The best judgement that the worst segment of a partition can have.

        Where all segments surely compile, none holds an op that is left out of the chip behind another, and such ops send no
        others to the CPU. So more ops run on the TPU for certain, and the best may be worse.
        """
        best = self.compile_rule.best(self.sure_on_tpu)
        if best.level is not Compilable.SURELY:
            return best
        best = self.compile_rule.best(op_set(i for i in members(self.mapped) if not self._sent_off_chip(i)))
        return best if best.level is Compilable.SURELY else replace(best, level=Compilable.PERHAPS)

    def _sent_off_chip(self, i: int) -> OpSet:
        """The unmapped ops that send the mapped op i to the CPU in some segment that surely compiles.

        A segment with such an op and i holds all ops between them. If one of these is left out of the chip, it comes behind
        whatever precedes the other in the segment, which then does not surely compile.
        """
        left_out, before = self.compile_rule.left_out, self.ancestors[i]
        ending = op_set(u for u in members(before & self.unmapped & ~left_out) if self.ancestors[u] & self.mapped)
        for v in members(left_out & before):
            ending &= ~self.ancestors[v]
        return ending

    @cached_property
    def least_ns(self) -> list[int]:
        """For each op the least ns that it adds to any segment, without streaming of parameters that can be cached."""
        return [self._least_ns(i) for i in range(len(self.graph.ops))]

    def _least_ns(self, i: int) -> int:
        # With an unmapped ancestor it depends on the segment where the op runs: the bound must hold for both.
        sure = not self.mapped >> i & 1 or self.sure_on_tpu >> i & 1
        return self.usual_ns[i] if sure else min(self.usual_ns[i], self.op_terms[i].cpu_ns)

    @cached_property
    def usual_ns(self) -> list[int]:
        """For each op the ns that it adds to a segment in which no unmapped op keeps it off the chip, without streaming of
        parameters that can be cached.
        """
        return [self._usual_ns(i) for i in range(len(self.graph.ops))]

    def _usual_ns(self, i: int) -> int:
        terms = self.op_terms[i]
        if self.graph.ops[i].folded:
            return 0
        if not terms.mapped:
            return terms.cpu_ns
        return terms.compute_ns + terms.start_ns + terms.always_streamed_ns + terms.exchange_ns


_AS_PREDICTED = OpCosts()


def _streaming_ns(running: Sequence[OpTerms], overflowing: Sequence[OpTerms], link: Link) -> int:
    """ns that streaming adds to a segment that streams anything.

    A start once, operands that are never cached of all ops on the chip, and the stalls of those whose parameters overflow.
    Source: a linear fit of dense models that stream; its intercept is `stream_start_ns`.
    """
    operands_ns = sum(op.always_streamed_ns for op in running)
    return link.stream_start_ns + operands_ns + sum(op.stall_ns for op in overflowing)


def _capacity_rule(hardware: AnyHardware, profile: Profile | None) -> CapacityRule:
    wide_bytes = hardware.chip.wide_bytes_per_tile
    if profile is None:
        return CapacityRule(wide_bytes)
    return CapacityRule(
        wide_bytes,
        profile.capacity_scale_per_million,
        profile.capacity_offset_bytes,
        profile.capacity_max_bytes,
    )
