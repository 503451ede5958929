"""Bytes of the instructions that the compiler writes for each op. The host sends them to the chip with every inference.

The chip has 4 x 4 tiles, and a feature map is split over them. An instruction of 16 bytes is addressed to the tiles that do
the same work on a share of the same shape. Where height and width are multiples of 4, one copy serves all tiles; where they are
not, shares differ in size, and up to four copies are written:

    12 x 12: every tile has 3 x 3          14 x 14: 4 x 4 | 4 x 3 | 3 x 4 | 3 x 3
             one copy                               four copies

Loops over rows, columns and channels are counters inside an instruction. So size and channels play no part, up to one
limit: where an op's activations do not fit narrow memory, it runs in bands, and its instructions are written once for each
band. Before a window that is larger than its stride, tiles also exchange the rows and columns at their borders (halo).

Sources. Decoded from the packages of MobileNet v1 and v2, PoseNet, DeepLab, MoveNet and SSD MobileNet v2, where a barrier
separates ops: a 1x1 convolution takes 35 to 41 instructions with one copy and 86 to 92 with four; a depthwise 3x3 of
stride 1 takes 107 or 230 to 278, of stride 2 71 or 149 to 182; an ADD 86 or 137. Fitted to the totals of the same packages
and of YOLOv5n and YOLOv8n: the counts of ops that barriers do not separate, and the bands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.cost.geometry import ARRAY_INPUTS, TILE_SIDE, FeatureMap, Window, feature_map, sliding_window
from balancer.ground.units import KIB, ceil_to

if TYPE_CHECKING:
    from balancer.graph import Graph, Op, Tensor

INSTRUCTION_BYTES = 16
# Decoded: 80 instructions at the beginning and the end of both executables of a package, the one that runs and the one that
# fills the cache; 155 to bring a picture in and 117 to bring one out. A vector takes 45 to 60 either way.
BASE_BYTES = (80 + 155 + 117) * INSTRUCTION_BYTES

_NARROW_BYTES = 16 * 192 * KIB  # of all tiles
# Above this share of narrow memory an op runs in bands. Decoded: SSD MobileNet v2 at 300 px, 0.80, runs in one; PoseNet at
# 353 x 481 px, 0.98, in two.
_ONE_BAND_SHARE = 0.95
# Fitted to DeepLab at 513 px (two widths) and PoseNet at three sizes.
_BANDS_PER_SHARE, _BANDS_FEWER = 7, 3

# Instructions of an op: in any case, and of each copy.
_WINDOW, _WINDOW_COPY = 21, 16
_ELEMENTWISE, _ELEMENTWISE_COPY = 69, 17
_CONSTANT_OPERAND = 25  # instead of `_ELEMENTWISE`, if one operand is constant
_TABLE, _TABLE_COPY = 20, 17  # each value is looked up in a table: activation functions, QUANTIZE
_MOVED_COPY = 20  # of each tensor that is joined or cut out
_RESIZE_COPY = 150
_DENSE = 89
_REDUCTION = 500
_RESHAPE, _TRANSPOSE = 60, 100
_SOFTMAX = 500
# The compiler's latest release writes out a SOFTMAX of uint8 class by class. Decoded: 8,100 for 1,001 classes.
_SOFTMAX_PER_CLASS = 8
_LSTM = 2_500
_PER_HALO_RECORD = 6
_PER_CACHED_OP = 12  # to fill the cache

_ELEMENTWISE_TYPES = {"ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE"}
_JOINED_TYPES = {"CONCATENATION", "PACK"}
_CUT_TYPES = {"SPLIT", "STRIDED_SLICE", "SLICE", "PAD"}
_REDUCING_TYPES = {"MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"}
_FIXED = {
    "FULLY_CONNECTED": _DENSE,
    "TRANSPOSE": _TRANSPOSE,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _LSTM,
}
_LEAST_PARAMETER_BYTES = 16  # smaller constants are part of instructions


def instruction_bytes(graph: Graph, op: Op) -> int:
    """Bytes of the op's instructions if it runs on the chip, those included that fill the cache with its parameters."""
    if op.folded or not op.inputs or not op.outputs:
        return 0
    constants = (graph.tensors[t] for t in op.inputs if t >= 0 and graph.tensors[t].is_parameter)
    cached = _PER_CACHED_OP if any(t.bytes >= _LEAST_PARAMETER_BYTES for t in constants) else 0
    return INSTRUCTION_BYTES * (_instructions(graph, op) * bands(graph, op) + cached)


def copies(shape: FeatureMap) -> int:
    """How many shapes the shares of a feature map have: 1, 2 or 4.

    >>> copies(FeatureMap(12, 12, 8)), copies(FeatureMap(14, 12, 8)), copies(FeatureMap(14, 14, 8)), copies(FeatureMap(1, 1, 8))
    (1, 2, 4, 1)
    """
    return _axis_copies(shape.height) * _axis_copies(shape.width)


def _axis_copies(length: int) -> int:
    return 1 if length % TILE_SIDE == 0 or length == 1 else 2


def bands(graph: Graph, op: Op) -> int:
    """In how many bands the op runs: more than one where its activations, or those of an op next to it, do not fit.

    Ops run in bands together: the first computes a band, the next ones reduce it, and only then comes the next band.
    """
    beside = {graph.producer[t] for t in graph.activations[op.index] if t in graph.producer}
    beside |= {r for t in op.outputs for r in graph.readers.get(t, ())}
    most_bytes = max(_activation_bytes(graph, graph.ops[i]) for i in (op.index, *beside))
    share = most_bytes / _NARROW_BYTES
    return 1 if share <= _ONE_BAND_SHARE else max(2, round(_BANDS_PER_SHARE * share) - _BANDS_FEWER)


def _activation_bytes(graph: Graph, op: Op) -> int:
    """Bytes of what the op reads and makes, channels padded to 4."""
    shapes = [feature_map(graph.tensors[t]) for t in (*graph.activations[op.index], *op.outputs)]
    return sum(shape.pixels * ceil_to(shape.channels, ARRAY_INPUTS) for shape in shapes)


def _instructions(graph: Graph, op: Op) -> int:
    """The op's instructions in one band."""
    output = feature_map(graph.tensors[op.outputs[0]])
    window = sliding_window(graph, op)
    if op.type in _REDUCING_TYPES or (window is not None and window.kind == "pool" and _is_global(window)):
        return _REDUCTION
    if window is not None:
        return _WINDOW + _WINDOW_COPY * copies(output) + _PER_HALO_RECORD * _halo_records(graph, op, window)
    if op.type in _ELEMENTWISE_TYPES:
        constant = any(graph.tensors[t].is_parameter for t in op.inputs if t >= 0)
        return (_CONSTANT_OPERAND if constant else _ELEMENTWISE) + _ELEMENTWISE_COPY * copies(output)
    if op.type in _JOINED_TYPES | _CUT_TYPES:
        moved = len(op.inputs) if op.type in _JOINED_TYPES else len(op.outputs)
        return _MOVED_COPY * moved * copies(output)
    if op.type.startswith("RESIZE"):
        return _RESIZE_COPY * copies(output)
    if op.type == "RESHAPE":
        return _RESHAPE if max(feature_map(graph.tensors[op.inputs[0]]).pixels, output.pixels) > 1 else 0
    if op.type == "SOFTMAX":
        return _softmax(graph.tensors[op.inputs[0]])
    return _FIXED.get(op.type, _TABLE + _TABLE_COPY * copies(output))


def _is_global(window: Window) -> bool:
    """Whether hardly any pixels are left: tiles then collect partial results from each other."""
    return window.output.pixels <= 9 < window.source.pixels


def _softmax(scores: Tensor) -> int:
    classes = scores.shape[-1] if scores.shape else 1
    return _SOFTMAX + (_SOFTMAX_PER_CLASS * classes if scores.dtype == "uint8" else 0)


def _halo_records(graph: Graph, op: Op, window: Window) -> int:
    """Transfers between neighbouring tiles before the window slides; none from a model input, which is sent with its halo."""
    if op.inputs[0] in graph.inputs:
        return 0
    source, output = window.source, window.output
    dilation = int(op.options.get("dilation_h_factor", 1)) or 1
    vertical = _sides(source.height, output.height, (window.height - 1) * dilation + 1, window.stride)
    horizontal = _sides(source.width, output.width, (window.width - 1) * dilation + 1, window.stride)
    return vertical * _side_records(output.height, output.width) + horizontal * _side_records(
        output.width, output.height
    )


def _sides(source: int, output: int, kernel: int, stride: int) -> int:
    """On how many sides of its share along one axis a tile needs pixels of its neighbours.

    >>> _sides(14, 14, 3, 1), _sides(28, 14, 3, 2), _sides(33, 17, 3, 2), _sides(14, 14, 1, 1)
    (2, 1, 1, 0)
    """
    if source < 2 or output < 2:
        return 0
    if output > source:  # a transposed convolution: windows overlap where they are wider than the stride
        return 2 if kernel > stride else 0
    before = max(0, (output - 1) * stride + kernel - source) // 2
    return (before > 0) + (kernel - stride - before > 0)


def _side_records(along: int, across: int) -> int:
    """Transfers over one side: the first tile of a row, the last, and those between, for each size of share across.

    Where shares alternate along the row, as 4, 3, 4, 3 of 14, those between differ, too.
    """
    return (4 if along % TILE_SIDE == 2 else 3) * _axis_copies(across)
