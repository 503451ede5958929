"""Nanoseconds of one op and of one boundary tensor: the formulas of the cost model, each with its reason.

    op on the chip = start + gather + (cached: busy | streamed: max(busy, sending its parameters once per band))
    segment        = invoke + (stream_start if anything streams) + its ops + tensors in and out + ops on the CPU
    latency        = its stages, each with a handover

Streaming hides behind an op's own computing and the other way round; nothing else of one input overlaps. Each term is
rounded up to whole nanoseconds, so that parts never sum to less than the whole, which lower bounds rely on. Constants
and their sources: `presets/*.json`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.cost.geometry import ARRAY_INPUTS, ARRAY_OUTPUTS, TILE_SIDE, Picture, Window, window
from balancer.ground.units import MIB, ceil_div, ceil_to

if TYPE_CHECKING:
    from balancer.cost.hardware import Hardware
    from balancer.cost.layout import ParameterLayout
    from balancer.graph import Graph, Op

_GMAC = 10**9
# What the array's output stage does on the way: dense models with five dense ops, four TANH and a QUANTIZE take the
# time of five ops.
_ON_THE_WAY = {"RELU", "RELU6", "RELU_N1_TO_1", "TANH", "LOGISTIC", "QUANTIZE"}


def start_ns(op: Op, hardware: Hardware) -> int:
    """Starting the op; activation functions and requantising start with the op before them."""
    return 0 if op.type in _ON_THE_WAY else hardware.chip.op_ns


def busy_ns(graph: Graph, op: Op, layout: ParameterLayout, hardware: Hardware) -> int:
    """Time on the array with all parameters at hand, gathering apart.

    Convolutions: multiply-accumulates with the array's rounding. Dense ops move their weights past the array once.
    Others, and depthwise convolutions besides, by the bytes that they write through narrow memory.
    """
    written = sum(graph.tensors[t].bytes for t in op.outputs)
    if op.type == "FULLY_CONNECTED":
        return ceil_div(layout.cached * hardware.chip.dense_ns_per_mib, MIB)
    found = window(graph, op)
    if found is None or found.kind == "pool":
        writing = ceil_div(written * hardware.chip.written_ns_per_mib, MIB)
        return writing + ceil_div(op.macs * hardware.chip.mac_ns_per_gmac, _GMAC)
    busy = ceil_div(padded_macs(found) * hardware.chip.mac_ns_per_gmac, _GMAC)
    if found.kind == "depthwise":
        return busy + ceil_div(written * hardware.chip.written_ns_per_mib, MIB)
    # Rows at the border of two bands are computed for both.
    overlap = 2 * (bands(found, hardware) - 1)
    return busy + ceil_div(busy * overlap, max(1, found.made.height))


def padded_macs(found: Window) -> int:
    """Multiply-accumulates with the array's rounding: outputs to 64, inputs to 4, pictures to 4 x 4.

    A depthwise weight takes four bytes on the chip: it uses one of the four input lanes.
    """
    inputs = ARRAY_INPUTS if found.kind == "depthwise" else ceil_to(found.source.channels, ARRAY_INPUTS)
    # A transposed convolution makes more pixels than it works through.
    worked = found.source if found.made.pixels > found.source.pixels else found.made
    pixels = ceil_to(worked.height, TILE_SIDE) * ceil_to(worked.width, TILE_SIDE)
    return pixels * found.taps * inputs * ceil_to(found.made.channels, ARRAY_OUTPUTS)


def bands(found: Window, hardware: Hardware) -> int:
    """Into how many horizontal bands a spatial convolution is cut: how often its parameters are sent if they are not
    cached.

    Where input and output do not fit narrow memory together, one band of output is finished at a time: the whole
    output stays, the input's tile rows share what is left. Pictures of up to 4 channels are never cut. Read off
    convolutions on 64x64.
    """
    if found.kind != "conv" or found.taps == 1 or found.source.channels <= ARRAY_INPUTS:
        return 1
    source, made = _area(found.source), _area(found.made)
    if source + made <= hardware.chip.narrow_bytes:
        return 1
    tile_rows = ceil_div(found.made.height, TILE_SIDE)
    rows_at_once = max(1, (hardware.chip.band_bytes - made) * tile_rows // max(1, source))
    return min(tile_rows, max(hardware.chip.least_bands, ceil_div(tile_rows, rows_at_once)))


def _area(shape: Picture) -> int:
    return shape.pixels * ceil_to(shape.channels, ARRAY_OUTPUTS)


def gather_ns(graph: Graph, op: Op, hardware: Hardware) -> int:
    """Bringing an input of several channel groups together before a spatial convolution, on big pictures.

    Streaming does not hide it. Seen on 64x64 pictures alone, and not on smaller ones.
    """
    found = window(graph, op)
    if found is None or found.kind != "conv" or found.taps == 1 or found.source.channels <= ARRAY_OUTPUTS:
        return 0
    if found.source.pixels < hardware.chip.gather_least_pixels:
        return 0
    return hardware.chip.gather_ns + ceil_div(
        found.source.pixels * found.source.channels * hardware.chip.gather_ns_per_mib, MIB
    )


def stream_ns(graph: Graph, op: Op, layout: ParameterLayout, hardware: Hardware) -> int:
    """Time on the link for the op's parameters if they are not cached: once per band."""
    found = window(graph, op)
    times = bands(found, hardware) if found else 1
    return ceil_div(times * layout.streamed * hardware.link.stream_ns_per_mib, MIB)


def always_stream_ns(layout: ParameterLayout, hardware: Hardware) -> int:
    """Time on the link for constant operands that are never cached."""
    return ceil_div(layout.always_streamed * hardware.link.stream_ns_per_mib, MIB)


def input_ns(size: int, hardware: Hardware) -> int:
    """One boundary tensor of so many bytes into a segment."""
    beyond = max(0, size - hardware.link.large_tensor_bytes)
    return ceil_div(size * hardware.link.input_ns_per_mib + beyond * hardware.link.large_input_ns_per_mib, MIB)


def output_ns(size: int, hardware: Hardware) -> int:
    """One boundary tensor of so many bytes out of a segment."""
    beyond = max(0, size - hardware.link.large_tensor_bytes)
    return ceil_div(size * hardware.link.output_ns_per_mib + beyond * hardware.link.large_output_ns_per_mib, MIB)


def cpu_ns(graph: Graph, op: Op, hardware: Hardware) -> int:
    """Time of an op that stays on the host's CPU, one thread."""
    touched = sum(graph.tensors[t].bytes for t in (*op.outputs, *graph.activations[op.index]))
    computing = ceil_div(op.macs * hardware.cpu.cpu_ns_per_gmac, _GMAC)
    return hardware.cpu.cpu_op_ns + computing + ceil_div(touched * hardware.cpu.cpu_ns_per_mib, MIB)
