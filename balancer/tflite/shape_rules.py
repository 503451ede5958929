"""The shape of each output of an op, from the shapes and constants that the op reads: one rule for each op type.

A rule gives one shape for all outputs, or a list with one for each. It may raise what Python and numpy raise for
shapes that do not fit the op, and `UnknownInputError` for an input that is not known. In all these cases, and if there
is no rule, the shape is not known before the op runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from balancer.tflite.constant_folding import expanded, sized_slice, sliced, squeezed, target_shape
from balancer.tflite.flatbuffer import Table
from balancer.tflite.schema import schema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from balancer.tflite.constant_folding import FoldingRule, Value

Shape: TypeAlias = tuple[int, ...]

# Ops whose outputs have the shape of their first input.
_SAME = {
    "RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "LEAKY_RELU", "PRELU", "ELU", "HARD_SWISH", "GELU", "LOGISTIC",
    "TANH", "SOFTMAX", "LOG_SOFTMAX", "QUANTIZE", "DEQUANTIZE", "CAST", "L2_NORMALIZATION", "RSQRT", "SQRT", "EXP",
    "ABS", "NEG", "SQUARE", "LOCAL_RESPONSE_NORMALIZATION", "FLOOR", "ROUND", "CEIL", "SIN", "COS", "LOG",
    "ZEROS_LIKE", "SIGN", "LOGICAL_NOT", "CUMSUM", "REVERSE_V2", "REVERSE_SEQUENCE", "FAKE_QUANT", "ADD_N",
    "DYNAMIC_UPDATE_SLICE",
}  # fmt: skip
# Ops that work element by element on all inputs, broadcast to one shape.
_BROADCAST = {
    "ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "POW", "FLOOR_DIV", "FLOOR_MOD", "EQUAL",
    "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL", "LOGICAL_AND", "LOGICAL_OR", "SELECT_V2", "ATAN2",
    "BITWISE_XOR", "RIGHT_SHIFT",
}  # fmt: skip
_REDUCE = {"MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL"}
_SAME_PADDING = 0
# An LSTM in its oldest form has 5 inputs, of another meaning.
_FULL_LSTM_INPUTS = 20


class UnknownInputError(LookupError):
    """The op has no such input, or its shape or value is not known before the model runs."""


@dataclass(frozen=True, slots=True)
class OpInputs:
    """What is known of an op before it runs.

    shapes, constants: of each input, None if absent or not known. options: those in the file; if there are none, a
    table in which no name can be looked up.
    """

    shapes: Sequence[Shape | None]
    constants: Sequence[Value | None] = ()
    options: Table = field(default_factory=lambda: Table("NONE", {}))

    def shape(self, k: int) -> Shape:
        """Shape of input k. Raises UnknownInputError."""
        shape = self.shapes[k] if k < len(self.shapes) else None
        if shape is None:
            raise UnknownInputError(f"shape of input {k}")
        return shape

    def constant(self, k: int) -> Value:
        """Value of input k. Raises UnknownInputError."""
        value = self.constants[k] if k < len(self.constants) else None
        if value is None:
            raise UnknownInputError(f"value of input {k}")
        return value

    def number(self, k: int) -> int:
        """Value of input k, which must have one element. Raises UnknownInputError, or ValueError for more elements."""
        return int(self.constant(k).item())

    def numbers(self, k: int) -> tuple[int, ...]:
        """Value of input k, which must be a vector. Raises UnknownInputError, or TypeError for other than a vector."""
        return tuple(int(n) for n in self.constant(k))


def shapes_of_outputs(kind: str, outputs: int, op: OpInputs) -> list[Shape | None]:
    """The shape of each output, None where it is not known before the op runs. outputs: how many the op has.

    >>> halves = OpInputs([(), (1, 8, 8, 6)], [np.int32(3), None], Table("SplitOptions", {"num_splits": 2}))
    >>> shapes_of_outputs("SPLIT", 2, halves)
    [(1, 8, 8, 3), (1, 8, 8, 3)]
    >>> shapes_of_outputs("WHERE", 1, OpInputs([(1, 4)]))
    [None]
    """
    unknown: list[Shape | None] = [None] * outputs
    try:
        made = _infer(kind, op)
    except (TypeError, ValueError, LookupError, AttributeError, ZeroDivisionError, OverflowError):
        return unknown  # a malformed op, or an input that is not known either
    if made is None:
        return unknown
    each = made if isinstance(made, list) else [made] * outputs
    return [*each, *unknown][:outputs]


def _infer(kind: str, op: OpInputs) -> Shape | list[Shape] | None:
    if kind in _SAME:
        return op.shape(0)
    if kind in _BROADCAST:
        return np.broadcast_shapes(*(op.shape(k) for k in range(len(op.shapes))))
    if kind in _REDUCE:
        return _reduced(op.shape(0), [int(a) for a in np.atleast_1d(op.constant(1))], keep=op.options["keep_dims"])
    rule = _RULES.get(kind)
    return rule(op) if rule else None


def _reduced(shape: Shape, axes: Sequence[int], *, keep: bool) -> Shape:
    """
    >>> _reduced((1, 7, 7, 64), [1, -2], keep=False), _reduced((1, 7, 7, 64), [1, -2], keep=True)
    ((1, 64), (1, 1, 1, 64))
    """
    removed = {a % len(shape) for a in axes}
    if keep:
        return tuple(1 if i in removed else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in removed)


def _window_positions(size: int, kernel: int, stride: int, dilation: int, *, same: bool) -> int:
    """At how many positions a window stands along one dimension. same: padded so that only the stride shrinks it.

    >>> _window_positions(7, 3, 2, 1, same=True), _window_positions(7, 3, 2, 1, same=False)
    (4, 3)
    >>> _window_positions(7, 3, 1, 2, same=False)
    3
    """
    reach = (kernel - 1) * dilation + 1
    return -(-size // stride) if same else -(-(size - reach + 1) // stride)


def _windowed(shape: Shape, kernel: Shape, channels: int, options: Table) -> Shape:
    """Of convolutions and poolings. kernel: height and width."""
    known = schema().defaults[options.type]  # poolings have no dilation
    dilation = [options[name] if name in known else 1 for name in ("dilation_h_factor", "dilation_w_factor")]
    strides = (options["stride_h"], options["stride_w"])
    same = options["padding"] == _SAME_PADDING
    size = [_window_positions(shape[1 + i], kernel[i], strides[i], dilation[i], same=same) for i in (0, 1)]
    return (shape[0], *size, channels)


def _pooled(op: OpInputs) -> Shape:
    kernel = (op.options["filter_height"], op.options["filter_width"])
    return _windowed(op.shape(0), kernel, op.shape(0)[3], op.options)


def _dense(op: OpInputs) -> Shape:
    shape, weights = op.shape(0), op.shape(1)  # weights: (units, depth)
    if op.options["keep_num_dims"]:
        return (*shape[:-1], weights[0])
    return (math.prod(shape) // weights[1], weights[0])  # the input is read as rows of `depth` elements


def _resized(op: OpInputs) -> Shape:
    return (op.shape(0)[0], *op.numbers(1), op.shape(0)[3])


def _padded(op: OpInputs) -> Shape:
    return tuple(d + int(p[0]) + int(p[1]) for d, p in zip(op.shape(0), op.constant(1), strict=True))


def _concatenated(op: OpInputs) -> Shape:
    axis, joined = op.options["axis"], list(op.shape(0))
    joined[axis] = sum(op.shape(k)[axis] for k in range(len(op.shapes)))
    return tuple(joined)


def _reshaped(op: OpInputs) -> Shape | None:
    wanted = op.constants[-1] if op.constants else None
    dims = target_shape(len(op.shapes), wanted, op.options)
    if dims is None:
        return None
    if dims.count(-1) == 1:
        others = -math.prod(dims)  # the -1 itself makes the product negative
        dims[dims.index(-1)] = math.prod(op.shape(0)) // max(1, others)
    return tuple(dims)


def _depth_to_space(op: OpInputs) -> Shape:
    (batch, height, width, depth), block = op.shape(0), op.options["block_size"]
    return (batch, height * block, width * block, depth // block**2)


def _space_to_depth(op: OpInputs) -> Shape:
    (batch, height, width, depth), block = op.shape(0), op.options["block_size"]
    return (batch, height // block, width // block, depth * block**2)


def _viewed(rule: FoldingRule) -> Callable[[OpInputs], Shape | None]:
    """The shape rule of an op that gives a part of its first input or renames its axes.

    The rule for values works on a view of one element, broadcast to the input's shape: no memory is allocated.
    """

    def shape_rule(op: OpInputs) -> Shape | None:
        stand_in = np.broadcast_to(np.int8(0), op.shape(0))
        made = rule([stand_in, *(op.constant(k) for k in range(1, len(op.constants)))], op.options)
        return None if made is None else made.shape

    return shape_rule


def _gathered(op: OpInputs) -> Shape:
    data, positions = op.shape(0), op.shape(1)
    axis, batch = op.options["axis"], op.options["batch_dims"]
    axis, batch = axis + len(data) * (axis < 0), batch + len(positions) * (batch < 0)
    return (*data[:axis], *positions[batch:], *data[axis + 1 :])


def _gathered_nd(op: OpInputs) -> Shape:
    data, indices = op.shape(0), op.shape(1)
    return (*indices[:-1], *data[indices[-1] :])


def _packed(op: OpInputs) -> Shape:
    shape, axis = op.shape(0), op.options["axis"]
    axis += (len(shape) + 1) * (axis < 0)  # counted in the output, which has one dimension more
    return (*shape[:axis], len(op.shapes), *shape[axis:])


def _without(shape: Shape, axis: int) -> Shape:
    """
    >>> _without((1, 2, 3), -1), _without((1, 2, 3), 0)
    ((1, 2), (2, 3))
    """
    axis = range(len(shape))[axis]  # raises IndexError, and counts negative axes from the end
    return (*shape[:axis], *shape[axis + 1 :])


def _with(shape: Shape, axis: int, size: int) -> Shape:
    """
    >>> _with((1, 2, 3), -1, 9)
    (1, 2, 9)
    """
    axis = range(len(shape))[axis]
    return (*shape[:axis], size, *shape[axis + 1 :])


def _split(op: OpInputs) -> Shape:
    axis, shape = op.number(0), op.shape(1)
    return _with(shape, axis, shape[axis] // op.options["num_splits"])


def _split_by_size(op: OpInputs) -> list[Shape]:
    shape, sizes, axis = op.shape(0), op.numbers(1), op.number(2)
    rest = shape[axis] - sum(s for s in sizes if s != -1)
    return [_with(shape, axis, rest if s == -1 else s) for s in sizes]


def _one_hot(op: OpInputs) -> Shape:
    shape, axis = op.shape(0), op.options["axis"]
    axis = len(shape) if axis == -1 else axis
    return (*shape[:axis], op.number(1), *shape[axis:])


def _tiled(op: OpInputs) -> Shape:
    return tuple(d * m for d, m in zip(op.shape(0), op.numbers(1), strict=True))


def _matrix_product(op: OpInputs) -> Shape:
    left, right = (op.shape(k) for k in range(len(op.shapes)))
    rows = left[-1] if op.options["adj_x"] else left[-2]
    columns = right[-2] if op.options["adj_y"] else right[-1]
    return (*np.broadcast_shapes(left[:-2], right[:-2]), rows, columns)


def _space_to_batch(op: OpInputs) -> Shape:
    shape, block, padding = op.shape(0), op.constant(1).tolist(), op.constant(2).tolist()
    space = [(d + sum(p)) // b for d, p, b in zip(shape[1:], padding, block, strict=False)]
    return (shape[0] * math.prod(block), *space, *shape[1 + len(block) :])


def _batch_to_space(op: OpInputs) -> Shape:
    shape, block, crops = op.shape(0), op.constant(1).tolist(), op.constant(2).tolist()
    space = [d * b - sum(c) for d, c, b in zip(shape[1:], crops, block, strict=False)]
    return (shape[0] // math.prod(block), *space, *shape[1 + len(block) :])


def _lstm(op: OpInputs) -> Shape | None:
    # Input 8 holds the weights from the output back to the output gate: cells x outputs.
    return (*op.shape(0)[:-1], op.shape(8)[1]) if len(op.shapes) >= _FULL_LSTM_INPUTS else None


_RULES: Mapping[str, Callable[[OpInputs], Shape | list[Shape] | None]] = {
    # A kernel has the shape (filters, height, width, channels); a depthwise one (1, height, width, channels).
    "CONV_2D": lambda op: _windowed(op.shape(0), op.shape(1)[1:3], op.shape(1)[0], op.options),
    "DEPTHWISE_CONV_2D": lambda op: _windowed(op.shape(0), op.shape(1)[1:3], op.shape(1)[3], op.options),
    "MAX_POOL_2D": _pooled,
    "AVERAGE_POOL_2D": _pooled,
    "TRANSPOSE_CONV": lambda op: op.numbers(0),
    "FULLY_CONNECTED": _dense,
    "RESIZE_BILINEAR": _resized,
    "RESIZE_NEAREST_NEIGHBOR": _resized,
    "CONCATENATION": _concatenated,
    "PAD": _padded,
    "PADV2": _padded,
    "MIRROR_PAD": _padded,
    "TRANSPOSE": lambda op: tuple(op.shape(0)[axis] for axis in op.numbers(1)),
    "RESHAPE": _reshaped,
    "DEPTH_TO_SPACE": _depth_to_space,
    "SPACE_TO_DEPTH": _space_to_depth,
    "STRIDED_SLICE": _viewed(sliced),
    "SLICE": _viewed(sized_slice),
    "SQUEEZE": _viewed(squeezed),
    "EXPAND_DIMS": _viewed(expanded),
    "GATHER": _gathered,
    "GATHER_ND": _gathered_nd,
    "EMBEDDING_LOOKUP": lambda op: (op.shape(0)[0], *op.shape(1)[1:]),
    "ONE_HOT": _one_hot,
    "PACK": _packed,
    "UNPACK": lambda op: _without(op.shape(0), op.options["axis"]),
    "SPLIT": _split,
    "SPLIT_V": _split_by_size,
    "TILE": _tiled,
    "BROADCAST_TO": lambda op: op.numbers(1),
    "FILL": lambda op: op.numbers(0),
    "SELECT": lambda op: op.shape(1),
    "ARG_MAX": lambda op: _without(op.shape(0), op.number(1)),
    "ARG_MIN": lambda op: _without(op.shape(0), op.number(1)),
    "TOPK_V2": lambda op: (*op.shape(0)[:-1], op.number(1)),
    "BATCH_MATMUL": _matrix_product,
    "SPACE_TO_BATCH_ND": _space_to_batch,
    "BATCH_TO_SPACE_ND": _batch_to_space,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _lstm,
    "LSTM": _lstm,
    "UNIDIRECTIONAL_SEQUENCE_RNN": lambda op: (*op.shape(0)[:-1], op.shape(1)[0]),
    "RNN": lambda op: (op.shape(0)[0], op.shape(1)[0]),
    "SVDF": lambda op: (op.shape(0)[0], op.shape(1)[0] // op.options["rank"]),
    "SHAPE": lambda op: (len(op.shape(0)),),
}
