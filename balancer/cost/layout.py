"""Parameter bytes as the compiler lays them out on the chip, op by op.

Source: the weights of known models, searched for in the compiled files. A value takes one byte. Output channels come in
groups of 64 rows; before a row's weights stands a header with the row's bias and scale; input channels are padded to 4:

    [header | weights of one output channel, input channels padded to 4]   x output channels, padded to 64

Where at most 64 output channels are streamed, they are padded to 16 only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from balancer.cost.geometry import ARRAY_INPUTS, ARRAY_OUTPUTS, operand
from balancer.ground.units import ceil_to

if TYPE_CHECKING:
    from balancer.graph import Graph, Op, Tensor

_NARROW_ROWS = 16  # what few output channels are padded to
_LINE_BYTES = 64  # everything is laid out in whole lines of memory
_ELEMENTWISE = {"ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE"}
_LSTM_WEIGHTS = range(1, 9)


class ParameterLayout(NamedTuple):
    """Bytes of one op's parameters.

    cached: what they take on the chip. streamed: what is sent with each inference where they are not cached; at most
    `cached`. always_streamed: bytes of constant operands that the compiler never caches. has_headers: whether scales or
    biases stand before the weights.
    """

    cached: int = 0
    streamed: int = 0
    always_streamed: int = 0
    has_headers: bool = False


def layout(graph: Graph, op: Op) -> ParameterLayout:
    """The layout of one op's parameters; zeros for an op without parameters that the chip holds."""
    if op.folded:
        return ParameterLayout()
    weights = operand(graph, op, 1)
    if op.type in ("CONV_2D", "FULLY_CONNECTED"):
        return _matrix(weights, operand(graph, op, 2))
    if op.type == "TRANSPOSE_CONV":
        return _matrix(weights, operand(graph, op, 3))
    if op.type == "DEPTHWISE_CONV_2D":
        return _depthwise(weights, operand(graph, op, 2))
    if op.type == "UNIDIRECTIONAL_SEQUENCE_LSTM":
        gates = [_matrix(operand(graph, op, k), None) for k in _LSTM_WEIGHTS]
        return ParameterLayout(sum(gate.cached for gate in gates), sum(gate.streamed for gate in gates))
    source, output = operand(graph, op, 0), graph.tensors[op.outputs[0]] if op.outputs else None
    if op.type == "PAD" and source and output:
        return _channel_pad(source, output)
    if op.type == "SOFTMAX" and source and source.dtype == "uint8" and source.shape:
        return _softmax(source.shape[-1])
    if op.type in _ELEMENTWISE and output:
        operands = (operand(graph, op, k) for k in (0, 1))
        return ParameterLayout(always_streamed=sum(_operand(t, output) for t in operands if t and t.is_parameter))
    return ParameterLayout()


def _header(weights: Tensor, bias: Tensor | None) -> int:
    """Bytes before the weights of one output channel.

    A bias that is not zero everywhere takes 4; a scale for each channel takes 8; without both there is no header.
    """
    biased = bias is not None and not bias.all_zero
    if len(weights.scales) > 1:
        return 12 if biased else 8
    return 4 if biased else 0


def _matrix(weights: Tensor | None, bias: Tensor | None) -> ParameterLayout:
    """The layout of a convolution or dense op with weights of shape [out, (height, width,) in].

    >>> from balancer.graph import Tensor
    >>> _matrix(Tensor(0, "kernel", (70, 3, 3, 3), "int8", 1890, is_parameter=True), None).cached == 128 * (9 * 4)
    True
    >>> ten = _matrix(Tensor(0, "matrix", (10, 100), "int8", 1000, is_parameter=True), None)
    >>> ten.cached == 64 * 100, ten.streamed == 16 * 100
    (True, True)
    """
    if weights is None or not weights.is_parameter or not weights.shape:
        return ParameterLayout()
    out, *taps, depth = weights.shape if len(weights.shape) > 1 else (weights.shape[0], 1)
    row_bytes = math.prod(taps) * ceil_to(depth, ARRAY_INPUTS) + _header(weights, bias)
    return _rows(out, row_bytes, has_headers=_header(weights, bias) > 0)


def _rows(out: int, row_bytes: int, *, has_headers: bool = False) -> ParameterLayout:
    """The layout of `out` rows, padded to whole groups of 64, or of 16 where 64 or fewer are streamed."""
    wide = ceil_to(out, ARRAY_OUTPUTS)
    narrow = wide if out > ARRAY_OUTPUTS else ceil_to(out, _NARROW_ROWS)
    return ParameterLayout(
        ceil_to(wide * row_bytes, _LINE_BYTES), ceil_to(narrow * row_bytes, _LINE_BYTES), has_headers=has_headers
    )


def _depthwise(weights: Tensor | None, bias: Tensor | None) -> ParameterLayout:
    """The layout of a depthwise convolution: a weight takes four bytes; channels are padded to 4, and to at least 16."""
    if weights is None or not weights.is_parameter or not weights.shape or len(weights.shape) != 4:
        return ParameterLayout()
    _, height, width, channels = weights.shape
    padded = ceil_to(channels, 4)
    size = ceil_to(4 * height * width * max(padded, _NARROW_ROWS) + _header(weights, bias) * padded, _LINE_BYTES)
    return ParameterLayout(cached=size, streamed=size)


def _channel_pad(source: Tensor, output: Tensor) -> ParameterLayout:
    """The layout of a PAD: as of a 1x1 convolution with biases if it widens the channel axis, else nothing."""
    if not source.shape or not output.shape or source.shape[-1] == output.shape[-1]:
        return ParameterLayout()
    return _rows(output.shape[-1], ceil_to(source.shape[-1], ARRAY_INPUTS) + 4)


def _softmax(classes: int) -> ParameterLayout:
    """The layout of the table that newer compilers make for a SOFTMAX of uint8; an int8 SOFTMAX has none."""
    size = 3 * _NARROW_ROWS * ceil_to(classes, 4) + _LINE_BYTES
    return ParameterLayout(cached=size, streamed=size)


def _operand(constant: Tensor, output: Tensor) -> int:
    """Bytes that are streamed for a constant operand of an element-wise op.

    A single number takes nothing, one value for each channel 16 bytes a value, any other operand its bytes.

    >>> from balancer.graph import Tensor
    >>> picture = Tensor(0, "picture", (1, 8, 8, 20), "int8", 1280)
    >>> [_operand(Tensor(1, "constant", shape, "int8", n), picture) for shape, n in (((1,), 1), ((20,), 20), ((8, 20), 160))]
    [0, 320, 192]
    """
    if constant.bytes <= 1 or not output.shape:
        return 0
    elements = math.prod(constant.shape or ())
    if elements == 1:
        return 0
    if elements == output.shape[-1]:
        return ceil_to(16 * elements, _LINE_BYTES)
    return ceil_to(constant.bytes, _LINE_BYTES)
