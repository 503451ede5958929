"""Shapes when the file leaves them open: a free batch is read as 1, and what follows from that is worked out op by op.

A converter that does not know the batch leaves a chain of small int32 ops (SHAPE, STRIDED_SLICE, PACK ...) in the
file that computes shapes as the model runs, and writes placeholders into the static shapes behind them. With the
batch fixed at 1 these ops are constants (*folded*), and the shapes behind them can be computed instead of trusted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.errors import ModelError
from balancer.tflite.schema import schema

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.tflite.flatbuffer import Table
    from balancer.tflite.model import Model

Shape = tuple[int, ...]

_FOLDABLE = {
    "SHAPE", "STRIDED_SLICE", "PACK", "CONCATENATION", "GATHER", "CAST", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "SLICE",
    "ADD", "SUB", "MUL", "REDUCE_PROD",
}  # fmt: skip
_NUMPY = {"INT32": "<i4", "INT64": "<i8", "UINT32": "<u4", "FLOAT32": "<f4", "INT8": "i1", "UINT8": "u1", "BOOL": "u1"}
# Ops whose output has the shape of their first input.
_SAME = {
    "RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "LEAKY_RELU", "PRELU", "ELU", "HARD_SWISH", "GELU", "LOGISTIC",
    "TANH", "SOFTMAX", "LOG_SOFTMAX", "QUANTIZE", "DEQUANTIZE", "CAST", "L2_NORMALIZATION", "RSQRT", "SQRT", "EXP",
    "ABS", "NEG", "SQUARE", "LOCAL_RESPONSE_NORMALIZATION", "FLOOR", "ROUND", "CEIL", "SIN", "COS", "LOG",
    "ZEROS_LIKE",
}  # fmt: skip
_BROADCAST = {"ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "POW", "FLOOR_DIV"}
# More elements than any computation of shapes has: what reads more is no such computation, and is not folded.
_MOST_FOLDED = 1024
_MAX_RANK, _MAX_DIMENSION = 8, (1 << 31) - 1
_REDUCE = {"MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"}


class Shapes:
    """Static shapes of all tensors, and the values of what folded ops compute.

    shape[t]: None where the file gives no static shape. folded: indices of folded ops. value[t]: the constant that a
    folded op computes. Raises ModelError where a dimension other than the batch is open, or where an op follows an
    open one whose shape rule is not known here.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.shape: dict[int, Shape | None] = {t: self._static(t) for t in range(len(model.tensors))}
        self.value: dict[int, Any] = {}
        self.folded: set[int] = set()
        self.final = {int(t) for t in model.subgraph["outputs"]}
        self.open = {t for t in range(len(model.tensors)) if -1 in _signature(model.tensors[t])}
        for t in model.subgraph["inputs"]:
            self._check_input(int(t))
        for i, operator in enumerate(model.operators):
            self._visit(i, operator)

    def _static(self, t: int) -> Shape | None:
        tensor = self.model.tensors[t]
        if "shape" in tensor.fields and (len(tensor["shape"]) or self.model.is_constant(t)):
            return tuple(abs(int(d)) for d in tensor["shape"])
        # The file writes a scalar and "no shape" alike; `has_rank`, or any producer but a custom op, tells a scalar.
        return () if tensor["has_rank"] else None

    def _check_input(self, t: int) -> None:
        tensor = self.model.tensors[t]
        signature = _signature(tensor)
        if -1 in signature[1:]:
            raise ModelError(
                f"its shape {list(signature)} is really dynamic", f"{self.model.where}: input '{tensor['name']}'",
                "convert the model with fixed input sizes; only the batch may be left free",
            )  # fmt: skip
        if self.shape[t] is None:
            self.shape[t] = ()

    def _visit(self, i: int, operator: Table) -> None:
        kind = self.model.type_name(operator)
        self._fold(i, operator, kind)
        if i in self.folded:
            return
        outputs = [int(t) for t in operator["outputs"]]
        is_open = any(t in self.open for t in outputs)
        if not kind.startswith("CUSTOM"):
            for t in outputs:
                self.shape[t] = () if self.shape[t] is None else self.shape[t]
        inferred = self._infer(operator, kind) if is_open else None
        if inferred is not None:
            if len(inferred) > _MAX_RANK or not all(0 <= d <= _MAX_DIMENSION for d in inferred):
                raise ModelError(
                    f"the shape of its output would be {list(inferred)}", f"{self.model.where}: op {i} {kind}",
                    "convert the model again",
                )  # fmt: skip
            self.shape[outputs[0]] = inferred
        for t in outputs if is_open and inferred is None else ():
            if -1 in _signature(self.model.tensors[t])[1:]:
                raise ModelError(
                    f"the shape of its output '{self.model.tensors[t]['name']}' is dynamic",
                    f"{self.model.where}: op {i} {kind}", "convert the model with fixed input sizes, batch included",
                )  # fmt: skip

    def _fold(self, i: int, operator: Table, kind: str) -> None:
        """Fold an op that computes from shapes and constants alone, starting at a SHAPE."""
        outputs = [int(t) for t in operator["outputs"]]
        read = [int(t) for t in operator["inputs"] if t >= 0]
        if kind not in _FOLDABLE or len(outputs) != 1 or not read or outputs[0] in self.final:
            return
        if kind != "SHAPE" and not (any(t in self.value for t in read) and all(self._known(t) for t in read)):
            return
        if kind != "SHAPE" and sum(self._known_bytes(t) for t in read) > 4 * _MOST_FOLDED:
            return
        dtype = _NUMPY.get(self.model.type_of(self.model.tensors[outputs[0]]))
        if dtype is None or (kind == "SHAPE" and self.shape[read[0]] is None):
            return
        try:
            folded = self._compute(operator, kind, read)
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            raise ModelError(
                f"cannot compute the shape that it stands for ({error})", f"{self.model.where}: op {i} {kind}",
                "convert the model with a fixed batch",
            ) from error  # fmt: skip
        self.value[outputs[0]] = np.asarray(folded).astype(dtype)
        self.shape[outputs[0]] = tuple(self.value[outputs[0]].shape)
        self.folded.add(i)

    def _known(self, t: int) -> bool:
        return t in self.value or self.model.is_constant(t)

    def _known_bytes(self, t: int) -> int:
        return self.value[t].nbytes if t in self.value else len(self.model.constant(t))

    def constant(self, t: int) -> Any:
        """Value of a known tensor as an array of its shape; None for an activation, an element type without numpy's,
        or a sparse constant.
        """
        if t in self.value:
            return self.value[t]
        data = self.model.constant(t)
        dtype = _NUMPY.get(self.model.type_of(self.model.tensors[t]))
        if data is None or dtype is None or self.model.tensors[t]["sparsity"]:
            return None
        return data.view(dtype).reshape([abs(int(d)) for d in self.model.tensors[t]["shape"]])

    def _compute(self, operator: Table, kind: str, read: list[int]) -> Any:
        if kind == "SHAPE":
            return np.array(self.shape[read[0]])
        values = [self.constant(t) for t in read]
        options = operator["builtin_options"]
        return _COMPUTE[kind](values, options)

    def _infer(self, operator: Table, kind: str) -> Shape | None:
        """Shape of the first output, or None where no rule is known (then the file's is kept)."""
        shapes = [self.shape[int(t)] if t >= 0 else None for t in operator["inputs"]]
        constants = [self.constant(int(t)) if t >= 0 else None for t in operator["inputs"]]
        try:
            return _infer(kind, shapes, constants, operator["builtin_options"])
        except (TypeError, ValueError, IndexError, KeyError, AttributeError, ZeroDivisionError):
            return None  # a malformed op: the file's own shape stands, or _visit refuses


def _signature(tensor: Table) -> Shape:
    signed = tensor["shape_signature"]
    return tuple(int(d) for d in (signed if len(signed) else tensor["shape"]))


def _slice(values: list[Any], options: Table) -> Any:
    data, begin, end, strides = values
    keys: list[Any] = []
    for axis in range(len(begin)):
        first = None if options["begin_mask"] >> axis & 1 else int(begin[axis])
        last = None if options["end_mask"] >> axis & 1 else int(end[axis])
        keys.append(
            int(begin[axis]) if options["shrink_axis_mask"] >> axis & 1 else slice(first, last, int(strides[axis]))
        )
    return data[tuple(keys)]


_COMPUTE: dict[str, Callable[[list[Any], Table], Any]] = {
    "STRIDED_SLICE": _slice,
    "PACK": lambda v, o: np.stack(v, axis=o["axis"]),
    "CONCATENATION": lambda v, o: np.concatenate(v, axis=o["axis"]),
    "GATHER": lambda v, o: np.take(v[0], v[1], axis=o["axis"] if o else 0),
    "CAST": lambda v, o: v[0],
    "RESHAPE": lambda v, o: v[0].reshape(v[1] if len(v) > 1 else o["new_shape"]),
    "SQUEEZE": lambda v, o: np.squeeze(v[0]),
    "EXPAND_DIMS": lambda v, o: np.expand_dims(v[0], int(v[1])),
    "SLICE": lambda v, o: v[0][
        tuple(slice(int(b), None if s < 0 else int(b + s)) for b, s in zip(*v[1:], strict=True))
    ],
    "ADD": lambda v, o: v[0] + v[1],
    "SUB": lambda v, o: v[0] - v[1],
    "MUL": lambda v, o: v[0] * v[1],
    "REDUCE_PROD": lambda v, o: np.prod(v[0], axis=tuple(np.atleast_1d(v[1])), keepdims=bool(o["keep_dims"])),
}


def _infer(kind: str, shapes: Sequence[Shape | None], constants: Sequence[Any], options: Table | None) -> Shape | None:
    first = shapes[0]
    if kind in _SAME:
        return first
    if kind in _BROADCAST:
        return tuple(np.broadcast_shapes(first, shapes[1])) if first is not None and shapes[1] is not None else None
    if kind in _REDUCE:
        return _reduced(first, constants[1], options)
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


def _concatenated(shapes: Any, constants: Any, options: Any) -> Shape:
    joined = list(shapes[0])
    joined[options["axis"]] = sum(s[options["axis"]] for s in shapes)
    return tuple(joined)


def _reshaped(shapes: Any, constants: Any, options: Any) -> Shape:
    wanted = constants[1] if len(constants) > 1 and constants[1] is not None else options["new_shape"]
    dims = [int(d) for d in wanted]
    if dims.count(-1) == 1:
        total = int(np.prod(shapes[0], dtype=np.int64))
        dims[dims.index(-1)] = total // max(1, -int(np.prod(dims, dtype=np.int64)))
    return tuple(dims)


_RULES: dict[str, Callable[[Any, Any, Any], Shape]] = {
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
    "PAD": lambda s, c, o: tuple(d + int(p[0]) + int(p[1]) for d, p in zip(s[0], c[1], strict=True)),
    "PADV2": lambda s, c, o: tuple(d + int(p[0]) + int(p[1]) for d, p in zip(s[0], c[1], strict=True)),
    "MIRROR_PAD": lambda s, c, o: tuple(d + int(p[0]) + int(p[1]) for d, p in zip(s[0], c[1], strict=True)),
    "TRANSPOSE": lambda s, c, o: tuple(s[0][int(a)] for a in c[1]),
    "RESHAPE": _reshaped,
    "DEPTH_TO_SPACE": lambda s, c, o: (
        s[0][0], s[0][1] * o["block_size"], s[0][2] * o["block_size"], s[0][3] // o["block_size"] ** 2,
    ),
    "SPACE_TO_DEPTH": lambda s, c, o: (
        s[0][0], s[0][1] // o["block_size"], s[0][2] // o["block_size"], s[0][3] * o["block_size"] ** 2,
    ),
}  # fmt: skip
