"""The shape of what an op gives, from the shapes and constants that it reads: one rule for each type of op.

A rule gives one shape for all outputs, or a list with one for each. It may fail with what numpy and Python raise on
shapes that do not fit it: then, as where there is no rule, the shape is not known before the op runs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.tflite.constant_folding import expanded, sized_slice, sliced, squeezed, target_shape
from balancer.tflite.schema import schema

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.tflite.flatbuffer import Table

Shape = tuple[int, ...]

# Ops whose outputs have the shape of their first input.
_SAME = {
    "RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "LEAKY_RELU", "PRELU", "ELU", "HARD_SWISH", "GELU", "LOGISTIC",
    "TANH", "SOFTMAX", "LOG_SOFTMAX", "QUANTIZE", "DEQUANTIZE", "CAST", "L2_NORMALIZATION", "RSQRT", "SQRT", "EXP",
    "ABS", "NEG", "SQUARE", "LOCAL_RESPONSE_NORMALIZATION", "FLOOR", "ROUND", "CEIL", "SIN", "COS", "LOG",
    "ZEROS_LIKE", "SIGN", "LOGICAL_NOT", "CUMSUM", "REVERSE_V2", "REVERSE_SEQUENCE", "FAKE_QUANT", "ADD_N",
    "DYNAMIC_UPDATE_SLICE",
}  # fmt: skip
_BROADCAST = {
    "ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "POW", "FLOOR_DIV", "FLOOR_MOD", "EQUAL",
    "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL", "LOGICAL_AND", "LOGICAL_OR", "SELECT_V2", "ATAN2",
    "BITWISE_XOR", "RIGHT_SHIFT",
}  # fmt: skip
_REDUCE = {"MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL"}
_FULL_LSTM_INPUTS = 20


def shapes_of_outputs(
    kind: str, outputs: int, shapes: Sequence[Shape | None], constants: Sequence[Any], options: Table | None
) -> list[Shape | None]:
    """The shape of each output; None where it is not known before the op runs. shapes, constants: of its inputs, None
    where not known or absent.
    """
    unknown: list[Shape | None] = [None] * outputs
    try:
        found = _infer(kind, shapes, constants, options)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, ZeroDivisionError, OverflowError):
        return unknown  # a malformed op, or an input that is not known either
    if found is None:
        return unknown
    each = found if isinstance(found, list) else [found] * outputs
    return [*each, *unknown][:outputs]


def _infer(kind: str, shapes: Sequence[Any], constants: Sequence[Any], options: Any) -> Shape | list[Shape] | None:
    if kind in _SAME:
        return shapes[0]  # type: ignore[no-any-return]
    if kind in _BROADCAST:
        return tuple(np.broadcast_shapes(*shapes)) if None not in shapes else None
    if kind in _REDUCE:
        return _reduced(shapes[0], constants[1], options)
    rule = _RULES.get(kind)
    return rule(shapes, constants, options) if rule else None


def _reduced(shape: Any, axes: Any, options: Any) -> Shape:
    gone = {int(a) % len(shape) for a in np.atleast_1d(axes)}
    if options["keep_dims"]:
        return tuple(1 if i in gone else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in gone)


def _window(size: int, kernel: int, stride: int, dilation: int, padding: int) -> int:
    reach = (kernel - 1) * dilation + 1
    return -(-size // stride) if padding == 0 else -(-(size - reach + 1) // stride)


def _windowed(shape: Any, kernel: tuple[int, int], channels: int, options: Any) -> Shape:
    dilation = [options[n] if n in _fields(options) else 1 for n in ("dilation_h_factor", "dilation_w_factor")]
    strides = (options["stride_h"], options["stride_w"])
    size = [_window(shape[1 + i], kernel[i], strides[i], dilation[i], options["padding"]) for i in (0, 1)]
    return (shape[0], *size, channels)


def _fields(options: Table) -> dict[str, Any]:
    return schema().defaults[options.type]


def _padded(shapes: Any, constants: Any, options: Any) -> Shape:
    return tuple(d + int(p[0]) + int(p[1]) for d, p in zip(shapes[0], constants[1], strict=True))


def _concatenated(shapes: Any, constants: Any, options: Any) -> Shape:
    joined = list(shapes[0])
    joined[options["axis"]] = sum(s[options["axis"]] for s in shapes)
    return tuple(joined)


def _reshaped(shapes: Any, constants: Any, options: Any) -> Shape | None:
    dims = target_shape(len(shapes), constants[-1], options)
    if dims is None:
        return None
    if dims.count(-1) == 1:
        total = int(np.prod(shapes[0], dtype=np.int64))
        dims[dims.index(-1)] = total // max(1, -int(np.prod(dims, dtype=np.int64)))
    return tuple(dims)


def _viewed(rule: Callable[[list[Any], Any], Any]) -> Callable[[Any, Any, Any], Shape | None]:
    """The shape rule of an op that gives a part of its first input or renames its axes, from what it does to values:
    a view of a single element stands for the input.
    """

    def shape_rule(shapes: Any, constants: Any, options: Any) -> Shape | None:
        if any(constant is None for constant in constants[1:]):
            return None
        made = rule([np.broadcast_to(np.int8(0), shapes[0]), *constants[1:]], options)
        return None if made is None else made.shape

    return shape_rule


def _gathered(shapes: Any, constants: Any, options: Any) -> Shape:
    data, positions = shapes
    axis, batch = options["axis"], options["batch_dims"]
    axis, batch = axis + len(data) * (axis < 0), batch + len(positions) * (batch < 0)
    return (*data[:axis], *positions[batch:], *data[axis + 1 :])


def _gathered_nd(shapes: Any, constants: Any, options: Any) -> Shape:
    data, indices = shapes
    return (*indices[:-1], *data[indices[-1] :])


def _packed(shapes: Any, constants: Any, options: Any) -> Shape:
    axis = options["axis"] + (len(shapes[0]) + 1) * (options["axis"] < 0)
    return (*shapes[0][:axis], len(shapes), *shapes[0][axis:])


def _without(shape: Any, axis: int) -> Shape:
    axis = range(len(shape))[axis]
    return (*shape[:axis], *shape[axis + 1 :])


def _with(shape: Any, axis: int, size: int) -> Shape:
    axis = range(len(shape))[axis]
    return (*shape[:axis], size, *shape[axis + 1 :])


def _split(shapes: Any, constants: Any, options: Any) -> Shape:
    axis = int(constants[0].item())
    return _with(shapes[1], axis, shapes[1][axis] // options["num_splits"])


def _split_by_size(shapes: Any, constants: Any, options: Any) -> list[Shape]:
    axis, sizes = int(constants[2].item()), [int(s) for s in constants[1]]
    rest = shapes[0][axis] - sum(s for s in sizes if s != -1)
    return [_with(shapes[0], axis, rest if s == -1 else s) for s in sizes]


def _one_hot(shapes: Any, constants: Any, options: Any) -> Shape:
    axis = len(shapes[0]) if options["axis"] == -1 else options["axis"]
    return (*shapes[0][:axis], int(constants[1].item()), *shapes[0][axis:])


def _matrix_product(shapes: Any, constants: Any, options: Any) -> Shape:
    left, right = shapes
    rows = left[-1] if options["adj_x"] else left[-2]
    columns = right[-2] if options["adj_y"] else right[-1]
    return (*np.broadcast_shapes(left[:-2], right[:-2]), rows, columns)


def _space_to_batch(shapes: Any, constants: Any, options: Any) -> Shape:
    block, padding = constants[1].tolist(), constants[2].tolist()
    space = [(d + sum(p)) // b for d, p, b in zip(shapes[0][1:], padding, block, strict=False)]
    return (shapes[0][0] * math.prod(block), *space, *shapes[0][1 + len(block) :])


def _batch_to_space(shapes: Any, constants: Any, options: Any) -> Shape:
    block, crops = constants[1].tolist(), constants[2].tolist()
    space = [d * b - sum(c) for d, c, b in zip(shapes[0][1:], crops, block, strict=False)]
    return (shapes[0][0] // math.prod(block), *space, *shapes[0][1 + len(block) :])


def _lstm(shapes: Any, constants: Any, options: Any) -> Shape | None:
    return (*shapes[0][:-1], shapes[8][1]) if len(shapes) >= _FULL_LSTM_INPUTS else None


_RULES: dict[str, Callable[[Any, Any, Any], Shape | list[Shape] | None]] = {
    "CONV_2D": lambda s, c, o: _windowed(s[0], s[1][1:3], s[1][0], o),
    "DEPTHWISE_CONV_2D": lambda s, c, o: _windowed(s[0], s[1][1:3], s[1][3], o),
    "MAX_POOL_2D": lambda s, c, o: _windowed(s[0], (o["filter_height"], o["filter_width"]), s[0][3], o),
    "AVERAGE_POOL_2D": lambda s, c, o: _windowed(s[0], (o["filter_height"], o["filter_width"]), s[0][3], o),
    "TRANSPOSE_CONV": lambda s, c, o: tuple(int(d) for d in c[0]),
    "FULLY_CONNECTED": lambda s, c, o: (
        (*s[0][:-1], s[1][0]) if o["keep_num_dims"] else (int(np.prod(s[0], dtype=np.int64)) // s[1][1], s[1][0])
    ),
    "RESIZE_BILINEAR": lambda s, c, o: (s[0][0], *(int(d) for d in c[1]), s[0][3]),
    "RESIZE_NEAREST_NEIGHBOR": lambda s, c, o: (s[0][0], *(int(d) for d in c[1]), s[0][3]),
    "CONCATENATION": _concatenated,
    "PAD": _padded,
    "PADV2": _padded,
    "MIRROR_PAD": _padded,
    "TRANSPOSE": lambda s, c, o: tuple(s[0][int(a)] for a in c[1]),
    "RESHAPE": _reshaped,
    "DEPTH_TO_SPACE": lambda s, c, o: (
        s[0][0], s[0][1] * o["block_size"], s[0][2] * o["block_size"], s[0][3] // o["block_size"] ** 2,
    ),
    "SPACE_TO_DEPTH": lambda s, c, o: (
        s[0][0], s[0][1] // o["block_size"], s[0][2] // o["block_size"], s[0][3] * o["block_size"] ** 2,
    ),
    "STRIDED_SLICE": _viewed(sliced),
    "SLICE": _viewed(sized_slice),
    "SQUEEZE": _viewed(squeezed),
    "EXPAND_DIMS": _viewed(expanded),
    "GATHER": _gathered,
    "GATHER_ND": _gathered_nd,
    "EMBEDDING_LOOKUP": lambda s, c, o: (s[0][0], *s[1][1:]),
    "ONE_HOT": _one_hot,
    "PACK": _packed,
    "UNPACK": lambda s, c, o: _without(s[0], o["axis"]),
    "SPLIT": _split,
    "SPLIT_V": _split_by_size,
    "TILE": lambda s, c, o: tuple(d * int(m) for d, m in zip(s[0], c[1], strict=True)),
    "BROADCAST_TO": lambda s, c, o: tuple(int(d) for d in c[1]),
    "FILL": lambda s, c, o: tuple(int(d) for d in c[0]),
    "SELECT": lambda s, c, o: s[1],
    "ARG_MAX": lambda s, c, o: _without(s[0], int(c[1].item())),
    "ARG_MIN": lambda s, c, o: _without(s[0], int(c[1].item())),
    "TOPK_V2": lambda s, c, o: (*s[0][:-1], int(c[1].item())),
    "BATCH_MATMUL": _matrix_product,
    "SPACE_TO_BATCH_ND": _space_to_batch,
    "BATCH_TO_SPACE_ND": _batch_to_space,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _lstm,
    "LSTM": _lstm,
    "UNIDIRECTIONAL_SEQUENCE_RNN": lambda s, c, o: (*s[0][:-1], s[1][0]),
    "RNN": lambda s, c, o: (s[0][0], s[1][0]),
    "SVDF": lambda s, c, o: (s[0][0], s[1][0] // o["rank"]),
    "SHAPE": lambda s, c, o: (len(s[0]),),
}  # fmt: skip
