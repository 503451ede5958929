"""What each op and each tensor costs by itself. `segment` sums these records over the ops and boundary tensors of a segment.

Formulas of time are in `timing`, bytes in `layout`, scratch in `capacity`. What a profile knows of an op replaces the
prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from balancer.cost import timing
from balancer.cost.capacity import op_scratch
from balancer.cost.cpu_hardware import CpuHardware
from balancer.cost.instructions import instruction_bytes
from balancer.cost.layout import ParameterLayout, layout

if TYPE_CHECKING:
    from balancer.cost.hardware import AnyHardware, Hardware
    from balancer.cost.profile import OpCosts
    from balancer.graph import Graph, Op, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class OpTerms:
    """What one op adds to the cost of a segment, on the chip or on the CPU. Which of both applies depends on the segment.

    mapped: the Edge TPU takes the op; false for folded ops, too. layout: bytes of its parameters. instruction_bytes: on the
    chip. start_ns: to send its instructions and start it on the chip. compute_ns: on the chip, with its parameters cached.
    stall_ns: how much longer it takes on the chip if its parameters are streamed. always_streamed_ns: to send constant
    operands that are never cached. exchange_ns: on the chip, to send an activation to the host and back. cpu_ns: on the CPU.
    scratch_bytes: of wide memory, in each tile.
    """

    mapped: bool
    layout: ParameterLayout
    instruction_bytes: int
    start_ns: int
    compute_ns: int
    stall_ns: int
    always_streamed_ns: int
    exchange_ns: int
    cpu_ns: int
    scratch_bytes: int


class TransferTerms(NamedTuple):
    """ns to send one tensor into a segment that reads it, and to fetch it out of the one that computes it."""

    input_ns: int
    output_ns: int


def transfer_terms(tensor: Tensor, hardware: AnyHardware) -> TransferTerms:
    """The tensor's transfers on this hardware."""
    return TransferTerms(timing.input_ns(tensor.bytes, hardware), timing.output_ns(tensor.bytes, hardware))


def op_terms(graph: Graph, op: Op, hardware: AnyHardware, known: OpCosts) -> OpTerms:
    """The op's terms on this hardware. known: what replaces the predictions, from a profile."""
    if isinstance(hardware, CpuHardware):
        return _terms_on_cpu(graph, op, hardware, known)
    return _terms_on_edge_tpu(graph, op, hardware, known)


def _terms_on_cpu(graph: Graph, op: Op, hardware: CpuHardware, known: OpCosts) -> OpTerms:
    """The terms where the whole segment runs on the CPU: no chip takes the op, so only `cpu_ns` counts."""
    ns = 0 if op.folded else timing.cpu_kind_ns(graph, op, hardware) if known.ns is None else known.ns
    return OpTerms(
        mapped=False, layout=layout(graph, op), instruction_bytes=0, start_ns=0, compute_ns=0, stall_ns=0,
        always_streamed_ns=0, exchange_ns=0, cpu_ns=ns, scratch_bytes=0,
    )  # fmt: skip


def _terms_on_edge_tpu(graph: Graph, op: Op, hardware: Hardware, known: OpCosts) -> OpTerms:
    parameters = _layout(graph, op, known)
    mapped = not op.folded and (op.mapped if known.mapped is None else known.mapped)
    gather_ns = timing.gather_ns(graph, op, hardware)
    stream_ns = timing.stream_ns(graph, op, parameters, hardware)
    predicted_ns = timing.busy_ns(graph, op, parameters, hardware) + gather_ns
    compute_ns = predicted_ns if known.ns is None else known.ns
    # A profile has one time of each op: on the chip, or on the CPU for an op that the Edge TPU does not take.
    on_cpu = not mapped and not op.folded
    cpu_ns = known.ns if on_cpu and known.ns is not None else timing.cpu_ns(graph, op, hardware)
    instructions = instruction_bytes(graph, op)
    scratch_bytes = op_scratch(graph, op, parameters) if known.scratch_bytes is None else known.scratch_bytes
    return OpTerms(
        mapped=mapped,
        layout=parameters,
        instruction_bytes=instructions,
        start_ns=timing.start_ns(graph, op, hardware) + timing.instructions_ns(instructions, hardware),
        compute_ns=compute_ns,
        stall_ns=timing.stall_ns(stream_ns, compute_ns, gather_ns),
        always_streamed_ns=timing.always_streamed_ns(parameters, hardware),
        exchange_ns=timing.exchange_ns(graph, op, hardware),
        cpu_ns=cpu_ns,
        scratch_bytes=scratch_bytes,
    )


def _layout(graph: Graph, op: Op, known: OpCosts) -> ParameterLayout:
    """The op's layout, with the parameter bytes of the profile where they differ from the predicted ones."""
    predicted = layout(graph, op)
    if known.parameter_bytes is None or known.parameter_bytes == predicted.cached:
        return predicted
    return predicted._replace(cached=known.parameter_bytes, streamed=known.parameter_bytes)
