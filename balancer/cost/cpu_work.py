"""What an op gives the kernels of the host's CPU to do, so that a few constants for each class of ops tell its time.

    time = op_ns + parameters + multiply-accumulates + bytes + rows, each times a constant of the op's class

A *row* is what a kernel's innermost loop does in one go: to start a row takes time, however short it is. Therefore narrow
tensors and many-tapped windows are slower than their arithmetic says.

class             multiply-accumulates            bytes                     rows
convolution       channels rounded up to lanes    written, rounded up       taps of each pixel and block of lanes, for windows
depthwise         channels rounded up to lanes    written, rounded up       pixels
wide_depthwise    as they are                     -                         -
dense             both sides rounded up           -                         -
elementwise       -                               read and written          -
broadcast         -                               read and written          runs in which both operands are read alike
scalar            -                               written                   -
softmax           -                               written                   -
max_pooling       -                               written, for each tap     taps of each pixel
average_pooling   -                               written                   taps of each pixel
reduction         -                               read                      -
resize            -                               written                   -
padding           -                               read and written          pixels
copying           -                               read and written          runs that lie together in memory

Source of the forms: TFLite with XNNPACK (ai-edge-litert 2.3) on one x86-64 core with AVX2, each op of six networks alone.
Convolutions are matrix products of blocks of 8 channels, with a constant part for each result (rounding it to int8). Kernels
for depthwise windows exist up to 25 taps; larger ones take a plain loop that is 40 times slower. AVERAGE_POOL_2D, RELU and
SOFTMAX in int8 are not in the delegate: TFLite's own kernels go value by value.
Not told apart: uint8, whose kernels were seen to take half as long again (MobileNet v2 of TensorFlow 1).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from balancer.cost.geometry import feature_map, operand, sliding_window
from balancer.ground.units import ceil_div, ceil_to

if TYPE_CHECKING:
    from balancer.cost.geometry import Window
    from balancer.graph import Graph, Op

OP_CLASSES = (
    "convolution", "depthwise", "wide_depthwise", "dense", "elementwise", "broadcast", "scalar", "softmax", "max_pooling",
    "average_pooling", "reduction", "resize", "padding", "copying",
)  # fmt: skip
MOST_DEPTHWISE_TAPS = 25  # of XNNPACK's fast kernels
_TWO_OPERANDS = {"ADD", "SUB", "MUL"}
_CLASS_OF = {
    "CONV_2D": "convolution", "TRANSPOSE_CONV": "convolution", "DEPTHWISE_CONV_2D": "depthwise",
    **dict.fromkeys(("FULLY_CONNECTED", "BATCH_MATMUL", "UNIDIRECTIONAL_SEQUENCE_LSTM", "SVDF"), "dense"),
    **dict.fromkeys(
        ("ADD", "SUB", "MUL", "LOGISTIC", "TANH", "HARD_SWISH", "LEAKY_RELU", "ELU", "QUANTIZE", "DEQUANTIZE"), "elementwise"
    ),
    "SOFTMAX": "softmax", "MAX_POOL_2D": "max_pooling", "AVERAGE_POOL_2D": "average_pooling",
    **dict.fromkeys(("MEAN", "SUM"), "reduction"),
    **dict.fromkeys(("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), "resize"),
    **dict.fromkeys(("PAD", "PADV2", "MIRROR_PAD"), "padding"),
    **dict.fromkeys(
        (
            "CONCATENATION", "STRIDED_SLICE", "SLICE", "SPLIT", "SPLIT_V", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE",
            "PACK", "UNPACK", "DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "GATHER", "TILE",
        ),
        "copying",
    ),
}  # fmt: skip
_MOVES_BLOCKS = {"CONCATENATION", "STRIDED_SLICE", "SLICE", "SPLIT", "SPLIT_V", "PACK", "UNPACK"}
_TAKES_PADDING = {"CONV_2D", "DEPTHWISE_CONV_2D"}


class Work(NamedTuple):
    """What an op gives the kernels of its class to do."""

    macs: int
    bytes: int
    rows: int


NOTHING = Work(0, 0, 0)


def op_class(graph: Graph, op: Op) -> str:
    """The op's class, one of `OP_CLASSES`. Types of ops that are not known are `scalar`."""
    name = _CLASS_OF.get(op.type, "scalar")
    if name == "depthwise":
        window = sliding_window(graph, op)
        return "wide_depthwise" if window is None or window.taps > MOST_DEPTHWISE_TAPS else name
    return "broadcast" if op.type in _TWO_OPERANDS and _run_length(graph, op) else name


def joined_to(graph: Graph, op: Op) -> int | None:
    """The op with which the delegate makes one op of this one, so that it takes no time of its own; None for most.

    A PAD is joined to the convolution that alone reads it, and the product x * LOGISTIC(x) to the LOGISTIC: one look-up.
    Source: networks of three kinds, pairs of ops in one segment against each op alone. Cutting between both is not told apart.
    """
    if op.folded:
        return None
    if op.type == "PAD":
        readers = graph.readers.get(op.outputs[0], ())
        alone = (
            len(readers) == 1 and graph.ops[readers[0]].type in _TAKES_PADDING and op.outputs[0] not in graph.outputs
        )
        return readers[0] if alone else None
    if op.type != "MUL":
        return None
    looked_up = (t for t in graph.activations[op.index] if _is_logistic_of(graph, t, op))
    return next((graph.producer[t] for t in looked_up), None)


def _is_logistic_of(graph: Graph, t: int, product: Op) -> bool:
    """Whether the tensor is LOGISTIC(x), read by the product alone, where x is the product's other operand."""
    maker = graph.ops[graph.producer[t]] if t in graph.producer else None
    if maker is None or maker.type != "LOGISTIC" or graph.readers[t] != (product.index,) or t in graph.outputs:
        return False
    return set(product.inputs) == {t, maker.inputs[0]}


def work(graph: Graph, op: Op, lanes: int) -> Work:
    """The op's work. lanes: so many channels a kernel computes at a time."""
    name = op_class(graph, op)
    window = sliding_window(graph, op)
    if name == "wide_depthwise" or (window is None and name in {"convolution", "depthwise"}):
        return Work(op.macs, 0, 0)
    if window is not None:
        return _window_work(graph, op, window, lanes)
    if name == "dense":
        return _dense_work(graph, op, lanes)
    read, written = _read_bytes(graph, op), sum(graph.tensors[t].bytes for t in op.outputs)
    if name in {"scalar", "softmax", "resize"}:
        return Work(op.macs, written, 0)
    if name == "reduction":
        return Work(0, read, 0)
    return Work(0, read + written, _rows(graph, op, name))


def _read_bytes(graph: Graph, op: Op) -> int:
    return sum(graph.tensors[t].bytes for t in graph.activations[op.index])


def _window_work(graph: Graph, op: Op, window: Window, lanes: int) -> Work:
    """Of convolutions, depthwise convolutions and pooling."""
    written = sum(graph.tensors[t].bytes for t in op.outputs)
    pixels = ceil_div(_values(graph, op.outputs[0]), window.output.channels)
    if window.kind == "pool":
        taps = pixels * window.taps
        return Work(0, written * window.taps if op.type == "MAX_POOL_2D" else written, taps)
    weights = operand(graph, op, 1)
    assert weights is not None and weights.shape is not None  # else there is no window
    padded = ceil_to(window.output.channels, lanes)
    if window.kind == "depthwise":
        return Work(pixels * window.taps * padded, pixels * padded, pixels)
    depth = weights.shape[3]
    # A transposed convolution goes over the pixels that it reads, any other over those that it writes.
    steps = ceil_div(op.macs, max(1, window.taps * depth * window.output.channels))
    macs = steps * window.taps * ceil_to(depth, lanes) * padded
    rows = steps * window.taps * (padded // lanes) if window.taps > 1 else 0
    return Work(macs, pixels * padded, rows)


def _dense_work(graph: Graph, op: Op, lanes: int) -> Work:
    weights = operand(graph, op, 1)
    if op.type != "FULLY_CONNECTED" or weights is None or not weights.shape or len(weights.shape) != 2:
        return Work(op.macs, 0, 0)
    size, depth = weights.shape
    items = ceil_div(op.macs, max(1, size * depth))
    return Work(items * ceil_to(size, lanes) * ceil_to(depth, lanes), 0, 0)


def _rows(graph: Graph, op: Op, name: str) -> int:
    if name == "broadcast":
        return ceil_div(_values(graph, op.outputs[0]), _run_length(graph, op) or 1)
    if name == "padding":
        return feature_pixels(graph, op.outputs[0])
    if name == "copying" and op.type in _MOVES_BLOCKS:
        return sum(_blocks(graph, op, t) for t in (*op.outputs, *(graph.activations[op.index])))
    return 0


def feature_pixels(graph: Graph, t: int) -> int:
    """Rows of channels of an activation: its pixels."""
    return ceil_div(_values(graph, t), max(1, feature_map(graph.tensors[t]).channels))


def _blocks(graph: Graph, op: Op, t: int) -> int:
    """Runs of a tensor that lie together on both sides; 0 for the side that is contiguous as a whole."""
    whole = op.outputs if len(op.outputs) == 1 and op.type in {"CONCATENATION", "PACK"} else graph.activations[op.index]
    return 0 if t in whole else feature_pixels(graph, t)


def _run_length(graph: Graph, op: Op) -> int:
    """The values in which both operands of an op are read alike, each value by value or one value again and again; 0 where
    that holds for the whole tensor.
    """
    made = graph.tensors[op.outputs[0]].shape or ()
    runs = [_run(made, graph.tensors[t].shape or ()) for t in op.inputs[:2] if t >= 0]
    return min((run for run in runs if run < math.prod(made)), default=0)


def _run(made: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The trailing values over which an operand of this shape is read in one way.

    >>> _run((1, 8, 8, 16), (16,)), _run((1, 8, 8, 16), (1, 8, 8, 1)), _run((1, 8, 8, 16), ()), _run((1, 8), (1, 8))
    (16, 16, 1024, 8)
    """
    padded = (1,) * (len(made) - len(shape)) + shape
    if math.prod(padded) in {1, math.prod(made)}:
        return math.prod(made)
    length, alike = 1, None
    for whole, own in zip(reversed(made), reversed(padded), strict=False):  # an operand may claim more dimensions
        if whole == 1:
            continue
        if alike is not None and alike != (own == whole):
            break
        alike = own == whole
        length *= whole
    return length


def _values(graph: Graph, t: int) -> int:
    return math.prod(graph.tensors[t].shape or ())
