"""Nanoseconds of one op and of one boundary tensor: the formulas of the cost model, each with its reason.

    op on the chip   start + instructions + gather + busy                     its parameters are cached
                     start + instructions + gather + max(busy, stream)        they are streamed with each inference
    op on the CPU    cpu
    boundary tensor  input, for the segment that reads it; output, for the segment that makes it

`segment` sums these. While the op computes (busy), the link can already carry its parameters (stream): only the longer of
the two counts. Nothing else of one inference overlaps. Start, gather and busy take as much longer as the chip's clock is
below 500 MHz; what crosses the link does not.

Each formula rounds up to whole nanoseconds. Then the parts of a sum never add up to less than the rounded whole, and a
lower bound that rounds a total down stays below any sum of parts.

Each constant is a field of `Hardware`; its source stands beside its value in `presets/*.json`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.cost.constant_groups import FULL_CLOCK_MHZ
from balancer.cost.cpu_work import joined_to, op_class, work
from balancer.cost.elementwise import exchanged_bytes, is_second_of_scaling, work_bytes, written_bytes
from balancer.cost.geometry import (
    ARRAY_INPUTS,
    ARRAY_OUTPUTS,
    TILE_SIDE,
    FeatureMap,
    Window,
    sliding_window,
)
from balancer.ground.units import MIB, ceil_div, ceil_to

if TYPE_CHECKING:
    from balancer.cost.cpu_hardware import CpuHardware
    from balancer.cost.hardware import AnyHardware, Hardware
    from balancer.cost.layout import ParameterLayout
    from balancer.graph import Graph, Op

_GMAC = 10**9
# The array's output stage applies these to values that it writes anyway. Dense models with five dense ops, four TANH and
# a QUANTIZE take the time of five ops.
_FUSED = {"RELU", "RELU6", "RELU_N1_TO_1", "TANH", "LOGISTIC", "QUANTIZE"}

# Thousandths of the bytes that an op writes on the CPU, by which it takes time there. Other ops: what they read and write.
_CPU_PERMILLE = {
    "RESHAPE": 50, "SQUEEZE": 50, "EXPAND_DIMS": 50, "CONCATENATION": 200, "RESIZE_NEAREST_NEIGHBOR": 150, "LOGISTIC": 500,
    "TANH": 500, "TRANSPOSE": 900, "STRIDED_SLICE": 8000, "SLICE": 8000, "SOFTMAX": 4000,
}  # fmt: skip


def start_ns(graph: Graph, op: Op, hardware: Hardware) -> int:
    """ns to start the op on the chip; 0 for activation functions and QUANTIZE, which start with the op before them, and for
    an op that scales what the op before it scales.
    """
    fused = op.type in _FUSED or is_second_of_scaling(graph, op)
    return 0 if fused else _at_clock(hardware.chip.op_ns, hardware)


def _at_clock(full_clock_ns: int, hardware: Hardware) -> int:
    """ns that the chip takes for what it does in `full_clock_ns` at 500 MHz."""
    return ceil_div(full_clock_ns * FULL_CLOCK_MHZ, hardware.chip.clock_mhz)


def instructions_ns(size_bytes: int, hardware: AnyHardware) -> int:
    """ns that the link carries so many bytes of instructions. The chip keeps none: they are sent with each inference.

    Source: NASNetMobile on a Raspberry Pi's USB 2 takes 49 ms more than on USB 3, as if 1.8 MiB crossed the link for each
    picture, though its parameters are cached: what is left beside the picture goes with the number of its ops, in six
    other networks, too.
    """
    return ceil_div(size_bytes * hardware.link.instruction_ns_per_mib, MIB)


def busy_ns(graph: Graph, op: Op, layout: ParameterLayout, hardware: Hardware) -> int:
    """ns that the op computes on the chip once all its parameters are there, at the chip's clock. `gather_ns` comes on top."""
    return _at_clock(_full_clock_busy_ns(graph, op, layout, hardware), hardware)


def _full_clock_busy_ns(graph: Graph, op: Op, layout: ParameterLayout, hardware: Hardware) -> int:
    """`busy_ns` at 500 MHz.

    A dense op takes the time that its parameters need to pass the array once. A convolution takes its padded
    multiply-accumulates, and once more those of the rows that two neighbouring bands both need. A depthwise convolution
    takes its padded multiply-accumulates and the writing of its output. Any other op takes the multiply-accumulates that
    it has and the bytes that it works through (see `elementwise`).
    """
    if op.type == "FULLY_CONNECTED":
        return ceil_div(layout.cached * hardware.chip.dense_ns_per_mib, MIB)
    rate = hardware.chip.written_ns_per_mib
    window = sliding_window(graph, op)
    if window is None or window.kind == "pool":
        working_ns = ceil_div(work_bytes(graph, op, hardware.chip) * rate, MIB)
        return working_ns + ceil_div(op.macs * hardware.chip.mac_ns_per_gmac, _GMAC)
    computing_ns = ceil_div(padded_macs(window) * hardware.chip.mac_ns_per_gmac, _GMAC)
    if window.kind == "depthwise":
        return computing_ns + ceil_div(written_bytes(graph, op.outputs, hardware.chip) * rate, MIB)
    # Two neighbouring bands both compute the rows at their common border.
    repeated_rows = 2 * (bands(window, hardware) - 1)
    return computing_ns + ceil_div(computing_ns * repeated_rows, max(1, window.output.height))


def padded_macs(window: Window) -> int:
    """Multiply-accumulates as the array runs them: output channels padded to 64, input channels to 4, pixels to 4 x 4.

    A depthwise convolution reads one input channel for each output channel, and pays for all four input lanes.

    >>> small, wide = FeatureMap(8, 8, 3), FeatureMap(8, 8, 70)
    >>> padded_macs(Window("conv", small, wide, 3, 3, 1)) == (8 * 8) * (3 * 3) * 4 * 128
    True
    >>> padded_macs(Window("depthwise", wide, wide, 3, 3, 1)) == (8 * 8) * (3 * 3) * 4 * 128
    True
    """
    inputs = ARRAY_INPUTS if window.kind == "depthwise" else ceil_to(window.source.channels, ARRAY_INPUTS)
    # A transposed convolution has fewer input pixels than output pixels, and works through its input pixels.
    worked = window.source if window.output.pixels > window.source.pixels else window.output
    pixels = ceil_to(worked.height, TILE_SIDE) * ceil_to(worked.width, TILE_SIDE)
    return pixels * window.taps * inputs * ceil_to(window.output.channels, ARRAY_OUTPUTS)


def bands(window: Window, hardware: Hardware) -> int:
    """The number of horizontal bands in which the chip computes a convolution with a kernel larger than 1x1.

    One band, where input and output fit narrow memory together, or where the input has at most 4 channels. Else the whole
    output stays in narrow memory, and the input is worked on in as many rows at a time as fit beside it. Parameters that
    are not cached are sent once for each band.
    Source: steps in the times of streaming convolutions on 64x64 feature maps.
    """
    if window.kind != "conv" or window.taps == 1 or window.source.channels <= ARRAY_INPUTS:
        return 1
    source_bytes, output_bytes = _narrow_bytes(window.source), _narrow_bytes(window.output)
    if source_bytes + output_bytes <= hardware.chip.narrow_bytes:
        return 1
    tile_rows = ceil_div(window.output.height, TILE_SIDE)
    rows_at_once = max(1, (hardware.chip.band_bytes - output_bytes) * tile_rows // max(1, source_bytes))
    return min(tile_rows, max(hardware.chip.least_bands, ceil_div(tile_rows, rows_at_once)))


def _narrow_bytes(shape: FeatureMap) -> int:
    """Bytes of a feature map in narrow memory, where channels are padded to 64."""
    return shape.pixels * ceil_to(shape.channels, ARRAY_OUTPUTS)


def gather_ns(graph: Graph, op: Op, hardware: Hardware) -> int:
    """ns to collect an input of more than 64 channels before a convolution with a kernel larger than 1x1 starts.

    It happens on feature maps of at least `gather_least_pixels` only, and streaming does not overlap with it.
    Source: convolutions on 64x64 feature maps, where it was seen; it was not seen on smaller ones.
    """
    window = sliding_window(graph, op)
    if window is None or window.kind != "conv" or window.taps == 1 or window.source.channels <= ARRAY_OUTPUTS:
        return 0
    if window.source.pixels < hardware.chip.gather_least_pixels:
        return 0
    source_bytes = window.source.pixels * window.source.channels
    full_clock_ns = hardware.chip.gather_ns + ceil_div(source_bytes * hardware.chip.gather_ns_per_mib, MIB)
    return _at_clock(full_clock_ns, hardware)


def stream_ns(graph: Graph, op: Op, layout: ParameterLayout, hardware: Hardware) -> int:
    """ns that the link carries the op's parameters if they are not cached: once for each band."""
    window = sliding_window(graph, op)
    times = bands(window, hardware) if window else 1
    return ceil_div(times * layout.streamed * hardware.link.stream_ns_per_mib, MIB)


def stall_ns(stream_ns: int, compute_ns: int, gather_ns: int) -> int:
    """ns that an op takes longer if its parameters are streamed: the part of streaming that outlasts its computing.

    compute_ns: of the op with its parameters cached, gathering included. Streaming does not overlap with gathering.

    >>> stall_ns(stream_ns=900, compute_ns=500, gather_ns=200)
    600
    >>> stall_ns(stream_ns=300, compute_ns=500, gather_ns=200)
    0
    """
    return max(0, stream_ns - max(0, compute_ns - gather_ns))


def always_streamed_ns(layout: ParameterLayout, hardware: Hardware) -> int:
    """ns that the link carries the op's constant operands that the compiler never caches."""
    return ceil_div(layout.always_streamed * hardware.link.stream_ns_per_mib, MIB)


def input_ns(size_bytes: int, hardware: AnyHardware) -> int:
    """ns to send one boundary tensor of this size into a segment.

    Bytes beyond `large_tensor_bytes` take `large_input_ns_per_mib` on top.
    """
    beyond_bytes = max(0, size_bytes - hardware.link.large_tensor_bytes)
    rated = size_bytes * hardware.link.input_ns_per_mib + beyond_bytes * hardware.link.large_input_ns_per_mib
    return ceil_div(rated, MIB)


def output_ns(size_bytes: int, hardware: AnyHardware) -> int:
    """ns to fetch one boundary tensor of this size out of a segment.

    Bytes beyond `large_tensor_bytes` take `large_output_ns_per_mib` on top.
    """
    beyond_bytes = max(0, size_bytes - hardware.link.large_tensor_bytes)
    rated = size_bytes * hardware.link.output_ns_per_mib + beyond_bytes * hardware.link.large_output_ns_per_mib
    return ceil_div(rated, MIB)


def scratch_ns_per_mib(hardware: AnyHardware) -> int:
    """ns to send 1 MiB of activations to the host's memory and to fetch it again, at the rates of boundary tensors."""
    return hardware.link.output_ns_per_mib + hardware.link.input_ns_per_mib


def exchange_ns(graph: Graph, op: Op, hardware: Hardware) -> int:
    """ns that an activation takes to the host and back, which does not fit beside the op's others; 0 for most ops."""
    return ceil_div(exchanged_bytes(graph, op, hardware.chip) * scratch_ns_per_mib(hardware), MIB)


def cpu_ns(graph: Graph, op: Op, hardware: Hardware) -> int:
    """ns that the op takes on one thread of the host's CPU: its start, its multiply-accumulates, and the bytes it works on.

    Source of the bytes: the builtin kernels of ai-edge-litert 2.3, each op of YOLOv8n alone, in units of 1 ns for a byte on
    one x86-64 core. A kernel that works value by value through general strides takes 8, one that copies rows next to nothing.
    """
    computing_ns = ceil_div(op.macs * hardware.cpu.cpu_ns_per_gmac, _GMAC)
    written_bytes = sum(graph.tensors[t].bytes for t in op.outputs)
    if op.type in _CPU_PERMILLE:
        work_bytes = ceil_div(written_bytes * _CPU_PERMILLE[op.type], 1000)
    else:
        work_bytes = written_bytes + sum(graph.tensors[t].bytes for t in graph.activations[op.index])
    return hardware.cpu.cpu_op_ns + computing_ns + ceil_div(work_bytes * hardware.cpu.cpu_ns_per_mib, MIB)


def cpu_kind_ns(graph: Graph, op: Op, hardware: CpuHardware) -> int:
    """ns that the op takes in a segment that runs on the CPU as a device of its own: its start and its work (`cpu_work`).

    0 for an op that the interpreter joins to a neighbour.
    """
    if joined_to(graph, op) is not None:
        return 0
    rate, done = hardware.ops.rate(op_class(graph, op)), work(graph, op, hardware.ops.lanes)
    computing_ns = ceil_div(done.macs * rate.ns_per_gmac, _GMAC)
    moved = done.bytes * rate.ns_per_mib + op.parameter_bytes * hardware.ops.parameters_ns_per_mib
    moving_ns = ceil_div(moved, MIB)
    return hardware.ops.op_ns + computing_ns + moving_ns + ceil_div(done.rows * rate.row_ps, 1000)
