"""What an op that computes shapes computes, as TFLite's kernels do.

Every rule here either gives the kernel's result or nothing. An option, an element type or a corner on which kernels
could differ from numpy, or from each other, is *not understood*: the op is left in the file, to be run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.tflite.schema import schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from balancer.tflite.flatbuffer import Table

# The element types in which shapes are computed. In others the kernels' arithmetic is another one (quantised, say).
DTYPES: dict[str, Any] = {"INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"), "FLOAT32": np.dtype("<f4")}
# More elements than any computation of shapes has: what reads or gives more is no such computation.
MOST_ELEMENTS = 1024
_MOST_RANK = 4  # kernels take at least so many dimensions, some no more


def is_foldable(kind: str) -> bool:
    """Whether an op of this type can compute a shape from constants."""
    return kind in _RULES


def folded(kind: str, values: Sequence[Any], options: Table | None, dtype: Any) -> Any:
    """What a foldable op computes from these constants, as an array of `dtype`; None where that is not understood.

    values: its inputs in their order, in element types of DTYPES. options: as the file holds them, if it does.
    """
    table, rule = _RULES[kind]
    if options is not None and options.type != table:
        return None
    if any(value.ndim > _MOST_RANK or value.size > MOST_ELEMENTS for value in values):
        return None
    given = schema().defaults[table] if options is None else options  # absent options are zeros to a kernel
    try:
        made = rule(list(values), given)
        made = _cast(made, dtype) if kind == "CAST" else made
    except (ValueError, IndexError, TypeError, OverflowError):
        return None  # numpy refuses the values, and kernels do, too
    # Kernels treat tensors without elements unlike each other.
    if made is None or made.dtype != dtype or not 0 < made.size <= MOST_ELEMENTS:
        return None
    return made


def sliced(values: list[Any], options: Any) -> Any:
    """STRIDED_SLICE with a begin, end and stride for each axis. Its other ways to write axes are not understood."""
    data, begin, end, strides = values
    if options["new_axis_mask"] or options["ellipsis_mask"] or options["offset"]:
        return None
    if not len(begin) == len(end) == len(strides) == data.ndim:
        return None
    keys: list[Any] = []
    for axis, (first, last, step) in enumerate(zip(begin.tolist(), end.tolist(), strides.tolist(), strict=True)):
        free = [bool(options[mask] >> axis & 1) for mask in ("begin_mask", "end_mask")]
        if options["shrink_axis_mask"] >> axis & 1:
            if step != 1 or free[0]:
                return None  # versions of the kernel differ
            keys.append(first)
        else:
            keys.append(slice(None if free[0] else first, None if free[1] else last, step))
    return data[tuple(keys)]


def sized_slice(values: list[Any], options: Any) -> Any:
    """SLICE; a size of -1 goes to the end."""
    data, begin, size = values
    keys = []
    for length, first, count in zip(data.shape, begin.tolist(), size.tolist(), strict=True):
        last = length if count == -1 else first + count
        if not 0 <= first <= last <= length:
            return None
        keys.append(slice(first, last))
    return data[tuple(keys)]


def squeezed(values: list[Any], options: Any) -> Any:
    """SQUEEZE of the dimensions that are named, or of all of size 1 where none is."""
    axes = [int(a) for a in options["squeeze_dims"]]
    return np.squeeze(values[0], axis=tuple(axes)) if axes else np.squeeze(values[0])


def expanded(values: list[Any], options: Any) -> Any:
    """EXPAND_DIMS at the one axis that its second input names."""
    data, axis = values
    return np.expand_dims(data, int(axis.item())) if axis.dtype.kind == "i" else None


def target_shape(inputs: int, wanted: Any, options: Any) -> list[int] | None:
    """The shape that a RESHAPE asks for, -1 where it is to be worked out. wanted: its second input, None where that
    is not known.
    """
    if inputs == 1:
        shape = [int(d) for d in options["new_shape"]]
        return [] if shape == [0] else shape  # how old files write a scalar
    if wanted is None or wanted.ndim != 1 or wanted.dtype != DTYPES["INT32"]:
        return None
    return [int(d) for d in wanted]


def _reshaped(values: list[Any], options: Any) -> Any:
    shape = target_shape(len(values), values[-1], options)
    return None if shape is None or min(shape, default=0) < -1 else values[0].reshape(shape)


def _cast(value: Any, dtype: Any) -> Any:
    """Between numbers that both types can hold; what else becomes of them differs between machines."""
    if dtype.kind == "f":
        return value.astype(dtype)
    if not np.isfinite(value).all():
        return None
    return _fitting([int(number) for number in value.flat], dtype, value.shape)


def _packed(values: list[Any], options: Any) -> Any:
    if options["values_count"] != len(values) or len({v.dtype for v in values}) != 1:
        return None
    return np.stack(values, axis=options["axis"])


def _concatenated(values: list[Any], options: Any) -> Any:
    if options["fused_activation_function"] or len({v.dtype for v in values}) != 1:
        return None
    return np.concatenate(values, axis=options["axis"])


def _gathered(values: list[Any], options: Any) -> Any:
    data, positions = values
    axis = options["axis"]
    if options["batch_dims"] or positions.dtype.kind != "i" or not -data.ndim <= axis < data.ndim:
        return None
    if ((positions < 0) | (positions >= data.shape[axis])).any() or data.size * positions.size > MOST_ELEMENTS**2:
        return None
    return np.take(data, positions, axis=axis)


def _arithmetic(compute: Callable[[Any, Any], Any]) -> Callable[[list[Any], Any], Any]:
    """Element by element with broadcasting; numbers that leave the element type are not understood."""

    def rule(values: list[Any], options: Any) -> Any:
        left, right = values
        if options["fused_activation_function"] or left.dtype != right.dtype:
            return None
        if np.prod(np.broadcast_shapes(left.shape, right.shape)) > MOST_ELEMENTS:
            return None
        if left.dtype.kind == "f":
            with np.errstate(all="ignore"):
                made = np.asarray(compute(left, right))
            return made if np.isfinite(made).all() else None
        made = np.asarray(compute(left.astype(object), right.astype(object)), object)
        return _fitting(made.flat, left.dtype, made.shape)

    return rule


def _product(values: list[Any], options: Any) -> Any:
    data, axes = values
    if data.dtype.kind != "i" or axes.dtype.kind != "i" or not data.ndim or not axes.size:
        return None
    gone = tuple(int(a) for a in np.atleast_1d(axes))
    made = np.asarray(np.prod(data.astype(object), axis=gone, keepdims=bool(options["keep_dims"])), object)
    return _fitting(made.flat, data.dtype, made.shape)


def _fitting(numbers: Iterable[int], dtype: Any, shape: Sequence[int]) -> Any:
    """Python's integers as an array of the type, where they fit it."""
    values, limits = list(numbers), np.iinfo(dtype)
    return np.array(values, dtype).reshape(shape) if all(limits.min <= n <= limits.max for n in values) else None


# The table of the op's options, and the rule. SHAPE is no rule: it needs a shape, not values.
_RULES: dict[str, tuple[str, Callable[[list[Any], Any], Any]]] = {
    "STRIDED_SLICE": ("StridedSliceOptions", sliced),
    "SLICE": ("SliceOptions", sized_slice),
    "PACK": ("PackOptions", _packed),
    "CONCATENATION": ("ConcatenationOptions", _concatenated),
    "GATHER": ("GatherOptions", _gathered),
    "CAST": ("CastOptions", lambda values, options: values[0]),
    "RESHAPE": ("ReshapeOptions", _reshaped),
    "SQUEEZE": ("SqueezeOptions", squeezed),
    "EXPAND_DIMS": ("ExpandDimsOptions", expanded),
    "ADD": ("AddOptions", _arithmetic(lambda a, b: a + b)),
    "SUB": ("SubOptions", _arithmetic(lambda a, b: a - b)),
    "MUL": ("MulOptions", _arithmetic(lambda a, b: a * b)),
    "REDUCE_PROD": ("ReducerOptions", _product),
}
