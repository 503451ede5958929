"""The values of ops that compute shapes from constants, as TFLite's kernels compute them.

A rule gives the kernel's result or None. None means *not understood*: an option, an element type or a corner case in
which kernels may differ from numpy or from each other. Such an op stays in the file, and the runtime computes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from balancer.tflite.flatbuffer import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# A constant; its element type is only known from the file.
Value: TypeAlias = NDArray[Any]

# The element types in which shapes are computed. For others, kernels use another arithmetic (a quantised one, say).
DTYPES: dict[str, np.dtype[Any]] = {"INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"), "FLOAT32": np.dtype("<f4")}
# No computation of shapes needs more elements. The limit keeps forged files from multiplying sizes without end.
MOST_ELEMENTS = 1024
_MOST_DIMENSIONS = 4  # every kernel takes this many, and some take no more


class FoldingRule(Protocol):
    """Computes an op's output. values: its inputs. options: its options, with the schema's defaults.

    May raise what numpy raises for values that do not fit each other.
    """

    def __call__(self, values: Sequence[Value], options: Table, /) -> Value | None: ...


class ElementwiseFunction(Protocol):
    """An arithmetic operation on two arrays of the same element type."""

    def __call__(self, left: Value, right: Value, /) -> Value: ...


def is_foldable(kind: str) -> bool:
    """Whether an op of this type can compute a shape from constants.

    >>> is_foldable("PACK"), is_foldable("CONV_2D")
    (True, False)
    """
    return kind in _RULES


def folded(kind: str, values: Sequence[Value], options: Table | None, dtype: np.dtype[Any]) -> Value | None:
    """What a foldable op computes from these constants, or None if that is not understood.

    values: its inputs in order, with element types from DTYPES. options: those in the file, None if there are none.
    dtype: element type of the output.

    >>> folded("PACK", [np.int32(1), np.int32(8)], Table("PackOptions", {"values_count": 2}), np.dtype("<i4"))
    array([1, 8], dtype=int32)
    """
    table, rule = _RULES[kind]
    if options is not None and options.type != table:
        return None
    if any(value.ndim > _MOST_DIMENSIONS or value.size > MOST_ELEMENTS for value in values):
        return None
    given = Table(table, {}) if options is None else options  # kernels read absent options as zeros
    try:
        made = rule(values, given)
        if made is not None and kind == "CAST":
            made = _cast(made, dtype)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None  # numpy refuses these values, and so do the kernels
    # Kernels disagree about tensors without elements.
    if made is None or made.dtype != dtype or not 0 < made.size <= MOST_ELEMENTS:
        return None
    return made


def sliced(values: Sequence[Value], options: Table) -> Value | None:
    """STRIDED_SLICE with a begin, an end and a stride for each axis; other notations are not understood.

    >>> bounds = np.array([[1], [3], [1]])
    >>> sliced([np.array([1, 28, 32, 3]), *bounds], Table("StridedSliceOptions", {}))
    array([28, 32])
    >>> int(sliced([np.array([1, 28, 32, 3]), *bounds], Table("StridedSliceOptions", {"shrink_axis_mask": 1})))
    28
    """
    data, begin, end, strides = values
    if options["new_axis_mask"] or options["ellipsis_mask"] or options["offset"]:
        return None
    if not len(begin) == len(end) == len(strides) == data.ndim:
        return None
    keys: list[int | slice] = []
    for axis, (first, last, step) in enumerate(zip(begin.tolist(), end.tolist(), strides.tolist(), strict=True)):
        # Bit `axis` of a mask: begin or end of this axis is ignored, the slice goes to the edge.
        open_begin, open_end = (bool(options[mask] >> axis & 1) for mask in ("begin_mask", "end_mask"))
        if options["shrink_axis_mask"] >> axis & 1:
            if step != 1 or open_begin:
                return None  # versions of the kernel differ
            keys.append(first)
        else:
            keys.append(slice(None if open_begin else first, None if open_end else last, step))
    # A scalar key gives numpy's scalar, which has a shape and an element type like an array.
    part: Value = data[tuple(keys)]
    return part


def sized_slice(values: Sequence[Value], options: Table) -> Value | None:
    """SLICE by begin and size; a size of -1 goes to the end.

    >>> sized_slice([np.array([1, 28, 32, 3]), np.array([1]), np.array([-1])], Table("SliceOptions", {}))
    array([28, 32,  3])
    """
    data, begin, size = values
    keys = []
    for length, first, count in zip(data.shape, begin.tolist(), size.tolist(), strict=True):
        last = length if count == -1 else first + count
        # numpy would cut a slice short that leaves the array, and count a negative begin from the end.
        if not 0 <= first <= last <= length:
            return None
        keys.append(slice(first, last))
    part: Value = data[tuple(keys)]
    return part


def squeezed(values: Sequence[Value], options: Table) -> Value | None:
    """SQUEEZE of the dimensions that are named, or of all of size 1 if none is."""
    axes = [int(a) for a in options["squeeze_dims"]]
    return np.squeeze(values[0], axis=tuple(axes)) if axes else np.squeeze(values[0])


def expanded(values: Sequence[Value], options: Table) -> Value | None:
    """EXPAND_DIMS at the one axis that its second input names."""
    data, axis = values
    return np.expand_dims(data, int(axis.item())) if axis.dtype.kind == "i" else None


def target_shape(inputs: int, wanted: Value | None, options: Table) -> list[int] | None:
    """The shape that a RESHAPE asks for, with -1 for a dimension that follows from the others; None if not understood.

    inputs: how many the op has. wanted: its second input, None if its value is not known.

    >>> target_shape(2, np.array([-1, 10], np.int32), Table("ReshapeOptions", {}))
    [-1, 10]
    >>> target_shape(1, None, Table("ReshapeOptions", {"new_shape": [0]}))
    []
    """
    if inputs == 1:
        shape = [int(d) for d in options["new_shape"]]
        return [] if shape == [0] else shape  # old converters write a scalar's shape as [0]
    # Kernels take the option only if there is no second input, and the second input only as a vector of int32.
    if wanted is None or wanted.ndim != 1 or wanted.dtype != DTYPES["INT32"]:
        return None
    return [int(d) for d in wanted]


def _reshaped(values: Sequence[Value], options: Table) -> Value | None:
    shape = target_shape(len(values), values[-1], options)
    return None if shape is None or min(shape, default=0) < -1 else values[0].reshape(shape)


def _unchanged(values: Sequence[Value], options: Table) -> Value | None:
    return values[0]


def _cast(value: Value, dtype: np.dtype[Any]) -> Value | None:
    """Conversion of numbers that the new type can hold. Machines differ in what they make of other numbers."""
    if dtype.kind == "f":
        return value.astype(dtype)
    if not np.isfinite(value).all():
        return None
    return _fitting([int(number) for number in value.flat], dtype, value.shape)


def _packed(values: Sequence[Value], options: Table) -> Value | None:
    if options["values_count"] != len(values) or len({v.dtype for v in values}) != 1:
        return None
    return np.stack(values, axis=options["axis"])


def _concatenated(values: Sequence[Value], options: Table) -> Value | None:
    if options["fused_activation_function"] or len({v.dtype for v in values}) != 1:
        return None
    return np.concatenate(values, axis=options["axis"])


def _gathered(values: Sequence[Value], options: Table) -> Value | None:
    data, positions = values
    axis = options["axis"]
    if options["batch_dims"] or positions.dtype.kind != "i" or not -data.ndim <= axis < data.ndim:
        return None
    # numpy counts negative positions from the end; the kernel refuses them.
    if ((positions < 0) | (positions >= data.shape[axis])).any():
        return None
    part: Value = np.take(data, positions, axis=axis)
    return part


def _arithmetic(compute: ElementwiseFunction) -> FoldingRule:
    """The rule of an op that works element by element. Results outside the element type are not understood."""

    def rule(values: Sequence[Value], options: Table, /) -> Value | None:
        """`compute` of the two inputs; None if it is not understood."""
        left, right = values
        if options["fused_activation_function"] or left.dtype != right.dtype:
            return None
        # Before computing: broadcasting a column with a row multiplies their sizes.
        if np.prod(np.broadcast_shapes(left.shape, right.shape)) > MOST_ELEMENTS:
            return None
        if left.dtype.kind == "f":
            with np.errstate(all="ignore"):
                made = np.asarray(compute(left, right))
            return made if np.isfinite(made).all() else None
        # Python's integers do not overflow, so that an overflow is noticed instead of wrapped.
        exact = np.asarray(compute(left.astype(object), right.astype(object)), object)
        return _fitting(exact.flat, left.dtype, exact.shape)

    return rule


def _product(values: Sequence[Value], options: Table) -> Value | None:
    data, axes = values
    if data.dtype.kind != "i" or axes.dtype.kind != "i" or not data.ndim or not axes.size:
        return None
    removed = tuple(int(a) for a in np.atleast_1d(axes))
    exact = np.asarray(np.prod(data.astype(object), axis=removed, keepdims=bool(options["keep_dims"])), object)
    return _fitting(exact.flat, data.dtype, exact.shape)


def _fitting(numbers: Iterable[int], dtype: np.dtype[Any], shape: Sequence[int]) -> Value | None:
    """Python's integers as an array of the type; None if one does not fit it.

    >>> _fitting([1, 2], np.dtype("i4"), (2, 1)).tolist(), _fitting([2**31], np.dtype("i4"), (1,))
    ([[1], [2]], None)
    """
    values, limits = list(numbers), np.iinfo(dtype)
    return np.array(values, dtype).reshape(shape) if all(limits.min <= n <= limits.max for n in values) else None


# For each op type the type of its options, and the rule. SHAPE is not here: it reads a shape, not values.
_RULES: dict[str, tuple[str, FoldingRule]] = {
    "STRIDED_SLICE": ("StridedSliceOptions", sliced),
    "SLICE": ("SliceOptions", sized_slice),
    "PACK": ("PackOptions", _packed),
    "CONCATENATION": ("ConcatenationOptions", _concatenated),
    "GATHER": ("GatherOptions", _gathered),
    "CAST": ("CastOptions", _unchanged),
    "RESHAPE": ("ReshapeOptions", _reshaped),
    "SQUEEZE": ("SqueezeOptions", squeezed),
    "EXPAND_DIMS": ("ExpandDimsOptions", expanded),
    "ADD": ("AddOptions", _arithmetic(lambda a, b: a + b)),
    "SUB": ("SubOptions", _arithmetic(lambda a, b: a - b)),
    "MUL": ("MulOptions", _arithmetic(lambda a, b: a * b)),
    "REDUCE_PROD": ("ReducerOptions", _product),
}
