"""Parameter bytes as the compiler lays them out on the chip, op by op.

Read out of compiled files by searching for the source weights in them. Values take one byte each. Output channels go in
groups of rows, each with a header; input channels are padded to 4.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from balancer.cost.geometry import ARRAY_OUTPUTS, operand
from balancer.ground.units import ceil_to

if TYPE_CHECKING:
    from balancer.graph import Graph, Op, Tensor

_NARROW_ROWS = 16
_ELEMENTWISE = {"ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE"}
_LSTM_WEIGHTS = range(1, 9)


class ParameterLayout(NamedTuple):
    """Bytes of one op's parameters.

    cached: what they take on chip, where rows are counted in whole groups of 64. streamed: what is sent where they do
    not stay there. always_streamed: constant operands that the compiler never caches. has_headers: scales or biases
    stand before the weights.
    """

    cached: int = 0
    streamed: int = 0
    always_streamed: int = 0
    has_headers: bool = False


def layout(graph: Graph, op: Op) -> ParameterLayout:
    """Layout of one op; zeros where it has no parameters that count."""
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
    source, made = operand(graph, op, 0), graph.tensors[op.outputs[0]] if op.outputs else None
    if op.type == "PAD" and source and made:
        return _channel_pad(source, made)
    if op.type == "SOFTMAX" and source and source.dtype == "uint8" and source.shape:
        return _softmax(source.shape[-1])
    if op.type in _ELEMENTWISE and made:
        operands = (operand(graph, op, k) for k in (0, 1))
        return ParameterLayout(always_streamed=sum(_operand(t, made) for t in operands if t and t.is_parameter))
    return ParameterLayout()


def _header(weights: Tensor, bias: Tensor | None) -> int:
    """Bytes per output channel before its weights: its bias and its scale, as far as there is anything to keep."""
    biased = bias is not None and not bias.all_zero
    if len(weights.scales) > 1:
        return 12 if biased else 8
    return 4 if biased else 0


def _matrix(weights: Tensor | None, bias: Tensor | None) -> ParameterLayout:
    """Convolution or dense: [out, (kh, kw,) in] with `out` rows in groups of 64, or of 16 where 64 or fewer."""
    if weights is None or not weights.is_parameter or not weights.shape:
        return ParameterLayout()
    out, *taps, depth = weights.shape if len(weights.shape) > 1 else (weights.shape[0], 1)
    row = math.prod(taps) * ceil_to(depth, 4) + _header(weights, bias)
    wide = ceil_to(out, ARRAY_OUTPUTS)
    narrow = wide if out > ARRAY_OUTPUTS else ceil_to(out, _NARROW_ROWS)
    return ParameterLayout(ceil_to(wide * row, 64), ceil_to(narrow * row, 64), has_headers=_header(weights, bias) > 0)


def _depthwise(weights: Tensor | None, bias: Tensor | None) -> ParameterLayout:
    """Depthwise: each weight takes four bytes; channels are padded to 4, and to at least 16."""
    if weights is None or not weights.is_parameter or not weights.shape or len(weights.shape) != 4:
        return ParameterLayout()
    _, height, width, channels = weights.shape
    rows = max(ceil_to(channels, 4), _NARROW_ROWS)
    size = ceil_to(4 * height * width * rows + _header(weights, bias) * ceil_to(channels, 4), 64)
    return ParameterLayout(cached=size, streamed=size)


def _channel_pad(source: Tensor, output: Tensor) -> ParameterLayout:
    """A PAD that widens the channel axis is laid out as a 1x1 convolution; a spatial one takes nothing."""
    if not source.shape or not output.shape or source.shape[-1] == output.shape[-1]:
        return ParameterLayout()
    out = output.shape[-1]
    rows = ceil_to(out, ARRAY_OUTPUTS) if out > ARRAY_OUTPUTS else ceil_to(out, _NARROW_ROWS)
    row = ceil_to(source.shape[-1], 4) + 4
    return ParameterLayout(cached=ceil_to(ceil_to(out, ARRAY_OUTPUTS) * row, 64), streamed=ceil_to(rows * row, 64))


def _softmax(classes: int) -> ParameterLayout:
    """A table that newer compilers lay out for uint8 classes; int8 ones need none."""
    size = 3 * _NARROW_ROWS * ceil_to(classes, 4) + 64
    return ParameterLayout(cached=size, streamed=size)


def _operand(constant: Tensor, output: Tensor) -> int:
    """A constant operand of an element-wise op: a number nothing, one value a channel 16 bytes each, else its bytes."""
    if constant.bytes <= 1 or not output.shape:
        return 0
    elements = math.prod(constant.shape or ())
    if elements == 1:
        return 0
    if elements == output.shape[-1]:
        return ceil_to(16 * elements, 64)
    return ceil_to(constant.bytes, 64)
