"""The small rules of reading: shapes as the interpreter computes them, multiply-accumulates, and limits at their edges."""

from __future__ import annotations

import doctest
import importlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import ModelError
from balancer.graph import Tensor
from balancer.interpreter import open_interpreter
from balancer.tflite.constant_folding import folded
from balancer.tflite.cut import Cutter
from balancer.tflite.decoding import decode_model
from balancer.tflite.flatbuffer import Table
from balancer.tflite.macs import macs
from balancer.tflite.read import read_model_bytes
from balancer.tflite.shape_rules import OpInputs, shapes_of_outputs
from balancer.tflite.shapes import inferred_shapes, propagate_shapes
from balancer.tflite.support import unmapped_reason
from tests import handmade

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from balancer.tflite.shape_rules import Shape

DOCUMENTED = ("constant_folding", "cut", "macs", "model", "schema", "shape_rules")
TYPES = {"float32": "FLOAT32", "int32": "INT32"}


@pytest.mark.parametrize("module", DOCUMENTED)
def test_examples_in_docstrings_are_true(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"balancer.tflite.{module}"))
    assert result.attempted
    assert not result.failed


@dataclass(frozen=True)
class Case:
    """An op. inputs: the shape of a float32 activation, or the value of a constant. output_types: one for each output."""

    inputs: tuple[Any, ...]
    options: Table | None = None
    output_types: tuple[str, ...] = ("FLOAT32",)


def _ints(*values: Any) -> NDArray[np.int32]:
    return np.array(values[0] if len(values) == 1 and isinstance(values[0], list) else values, np.int32)


def _int(value: int) -> NDArray[np.int32]:
    return np.array(value, np.int32)


def _file(kind: str, case: Case, shapes: Sequence[Shape | None]) -> tuple[bytes, list[NDArray[Any]]]:
    """A model of the op alone, and zeros for its inputs. shapes: what the file says of the outputs."""
    b = handmade.Builder()
    read, inputs, values = [], [], []
    for k, given_ in enumerate(case.inputs):
        if isinstance(given_, tuple):
            inputs.append(b.tensor(f"in_{k}", given_, "FLOAT32", scale=None))
            values.append(np.zeros(given_, np.float32))
            read.append(inputs[-1])
        else:
            type_name = TYPES[str(given_.dtype)]
            read.append(b.tensor(f"in_{k}", given_.shape, type_name, scale=None, data=given_))
    made = [b.tensor(f"out_{k}", shapes[k] or (), name, scale=None) for k, name in enumerate(case.output_types)]
    b.op(kind, read, made, case.options)
    return b.file(inputs, made), values


def _check(kind: str, case: Case) -> None:
    """The rule gives the shapes of what the interpreter computes."""
    placeholders: list[Shape | None] = [(1,)] * len(case.output_types)
    data, values = _file(kind, case, placeholders)
    model = decode_model(data, kind)
    assert len(model.operators) == 1
    inferred = inferred_shapes(model, 0, propagate_shapes(model).shapes, {})
    # This kernel takes the file's shape, and fails where it is not the one that it computes.
    interpreter = open_interpreter(_file(kind, case, inferred)[0] if kind == "SLICE" else data)
    interpreter.run(values)
    assert inferred == [value.shape for value in interpreter.outputs()]


SIZES = st.integers(1, 9)
SMALL = st.integers(1, 3)
PICTURES = st.tuples(SMALL, st.integers(6, 12), st.integers(6, 12), SMALL)
SHAPES = st.lists(SMALL, min_size=1, max_size=4).map(tuple)


@st.composite
def _windows(draw: st.DrawFn, kind: str) -> Case:
    shape = draw(PICTURES)
    height, width, depth = draw(SMALL), draw(SMALL), shape[3]
    options = {name: draw(SMALL) for name in ("stride_h", "stride_w")} | {"padding": draw(st.integers(0, 1))}
    if "POOL" in kind:
        sizes = {"filter_height": height, "filter_width": width}
        return Case((shape,), Table("Pool2DOptions", options | sizes))
    options |= {name: draw(st.integers(1, 2)) for name in ("dilation_h_factor", "dilation_w_factor")}
    if kind == "CONV_2D":
        filters = draw(SMALL)
        weights = np.zeros((filters, height, width, depth), np.float32)
        return Case((shape, weights, np.zeros(filters, np.float32)), Table("Conv2DOptions", options))
    weights = np.zeros((1, height, width, depth), np.float32)
    made = Table("DepthwiseConv2DOptions", options | {"depth_multiplier": 1})
    return Case((shape, weights, np.zeros(depth, np.float32)), made)


@st.composite
def _dense(draw: st.DrawFn) -> Case:
    depth, units = draw(SIZES), draw(SIZES)
    shape = (*draw(st.lists(SMALL, min_size=1, max_size=3)), depth)
    options = Table("FullyConnectedOptions", {"keep_num_dims": draw(st.integers(0, 1))})
    return Case((shape, np.zeros((units, depth), np.float32), np.zeros(units, np.float32)), options)


@st.composite
def _reduced(draw: st.DrawFn) -> Case:
    shape = draw(SHAPES)
    axes = draw(st.lists(st.integers(-len(shape), len(shape) - 1), min_size=1, max_size=3))
    return Case((shape, _ints(axes)), Table("ReducerOptions", {"keep_dims": draw(st.integers(0, 1))}))


@st.composite
def _broadcast(draw: st.DrawFn) -> Case:
    shape = draw(SHAPES)
    other = tuple(draw(st.sampled_from([1, d])) for d in shape[draw(st.integers(0, len(shape) - 1)) :])
    return Case((shape, other) if draw(st.booleans()) else (other, shape), Table("AddOptions", {}))


@st.composite
def _joined(draw: st.DrawFn) -> Case:
    shape = draw(SHAPES)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    others = [list(shape) for _ in range(draw(SMALL))]
    for other in others:
        other[axis] = draw(SMALL)
    return Case((shape, *map(tuple, others)), Table("ConcatenationOptions", {"axis": axis}))


@st.composite
def _padded(draw: st.DrawFn) -> Case:
    shape = draw(st.lists(st.integers(3, 5), min_size=1, max_size=4).map(tuple))
    return Case((shape, _ints([[draw(st.integers(0, 2)) for _ in range(2)] for _ in shape])))


@st.composite
def _transposed(draw: st.DrawFn) -> Case:
    shape = draw(SHAPES)
    return Case((shape, _ints(list(draw(st.permutations(range(len(shape))))))))


@st.composite
def _reshaped(draw: st.DrawFn) -> Case:
    shape = draw(SHAPES)
    wanted = list(draw(st.permutations(shape)))
    if draw(st.booleans()):
        wanted[draw(st.integers(0, len(wanted) - 1))] = -1
    if draw(st.booleans()):
        return Case((shape,), Table("ReshapeOptions", {"new_shape": _ints(wanted)}))
    return Case((shape, _ints(wanted)), Table("ReshapeOptions", {}))


@st.composite
def _blocks(draw: st.DrawFn, kind: str) -> Case:
    batch, height, width, depth = (draw(SMALL) for _ in range(4))
    size = draw(st.integers(1, 3))
    if kind == "DEPTH_TO_SPACE":
        return Case((((batch, height, width, depth * size**2)),), Table("DepthToSpaceOptions", {"block_size": size}))
    return Case((((batch, height * size, width * size, depth)),), Table("SpaceToDepthOptions", {"block_size": size}))


@st.composite
def _batched(draw: st.DrawFn, kind: str) -> Case:
    """With one or two dimensions between batch and depth."""
    batch, depth = draw(SMALL), draw(SMALL)
    sizes = draw(st.lists(SMALL, min_size=1, max_size=2))
    block = [draw(SMALL) for _ in sizes]
    if kind == "SPACE_TO_BATCH_ND":
        # Padding makes the size a multiple of the block.
        before = [draw(st.integers(0, 2)) for _ in block]
        padding = [[b, -(size + b) % n] for size, b, n in zip(sizes, before, block, strict=True)]
        return Case(((batch, *sizes, depth), _ints(block), _ints(padding)))
    crops = [[0, draw(st.integers(0, n - 1))] for n in block]
    return Case(((batch * math.prod(block), *sizes, depth), _ints(block), _ints(crops)))


@st.composite
def _strided(draw: st.DrawFn) -> Case:
    shape = draw(st.lists(st.integers(2, 5), min_size=1, max_size=4).map(tuple))
    begin = [draw(st.integers(-d, d - 1)) for d in shape]
    end = [(b % d) + draw(st.integers(1, 3)) for b, d in zip(begin, shape, strict=True)]
    shrunk = draw(st.integers(0, (1 << len(shape)) - 1))
    steps = [1 if shrunk >> k & 1 else draw(st.integers(1, 2)) for k in range(len(shape))]
    open_ = draw(st.integers(0, (1 << len(shape)) - 1)) & ~shrunk
    masks = {"begin_mask": open_, "end_mask": draw(st.integers(0, 15)), "shrink_axis_mask": shrunk}
    return Case((shape, _ints(begin), _ints(end), _ints(steps)), Table("StridedSliceOptions", masks))


@st.composite
def _part(draw: st.DrawFn) -> Case:
    shape = draw(SHAPES)
    begin = [draw(st.integers(0, d - 1)) for d in shape]
    size = [draw(st.sampled_from([-1, *range(1, d - b + 1)])) for b, d in zip(begin, shape, strict=True)]
    return Case((shape, _ints(begin), _ints(size)))


@st.composite
def _squeezed(draw: st.DrawFn) -> Case:
    shape = draw(st.lists(st.integers(1, 2), min_size=1, max_size=4).map(tuple))
    ones = [k - len(shape) * draw(st.integers(0, 1)) for k, d in enumerate(shape) if d == 1]
    axes = draw(st.lists(st.sampled_from(ones), unique=True, max_size=3)) if ones else []
    return Case((shape,), Table("SqueezeOptions", {"squeeze_dims": _ints(axes)}))


@st.composite
def _expanded(draw: st.DrawFn) -> Case:
    shape = draw(SHAPES)
    return Case((shape, _int(draw(st.integers(-len(shape) - 1, len(shape))))))


@st.composite
def _gathered(draw: st.DrawFn) -> Case:
    shape = draw(SHAPES)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    batch = draw(st.integers(0, axis % len(shape)))
    positions = (*shape[:batch], *draw(st.lists(SMALL, max_size=2)))
    if not positions:
        positions = (draw(SMALL),)
    options = {"axis": axis, "batch_dims": batch - len(positions) * (batch > 0 and draw(st.booleans()))}
    return Case((shape, np.zeros(positions, np.int32)), Table("GatherOptions", options))


@st.composite
def _gathered_nd(draw: st.DrawFn) -> Case:
    shape = draw(SHAPES)
    indices = (*draw(st.lists(SMALL, min_size=1, max_size=2)), draw(st.integers(1, len(shape))))
    return Case((shape, np.zeros(indices, np.int32)))


@st.composite
def _one_hot(draw: st.DrawFn) -> Case:
    shape = draw(SHAPES)
    options = Table("OneHotOptions", {"axis": draw(st.integers(-1, len(shape)))})
    on, off = np.array(1, np.float32), np.array(0, np.float32)
    return Case((np.zeros(shape, np.int32), _int(draw(SIZES)), on, off), options)


@st.composite
def _packed(draw: st.DrawFn) -> Case:
    shape, count = draw(st.lists(SMALL, min_size=1, max_size=3).map(tuple)), draw(SMALL)
    options = {"values_count": count, "axis": draw(st.integers(-len(shape) - 1, len(shape)))}
    return Case((shape,) * count, Table("PackOptions", options))


@st.composite
def _unpacked(draw: st.DrawFn) -> Case:
    shape = draw(st.lists(SMALL, min_size=2, max_size=4).map(tuple))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    options = Table("UnpackOptions", {"num": shape[axis], "axis": axis})
    return Case((shape,), options, ("FLOAT32",) * shape[axis])


@st.composite
def _split(draw: st.DrawFn) -> Case:
    shape, count = list(draw(SHAPES)), draw(SMALL)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    shape[axis] *= count
    return Case((_int(axis), tuple(shape)), Table("SplitOptions", {"num_splits": count}), ("FLOAT32",) * count)


@st.composite
def _split_by_size(draw: st.DrawFn) -> Case:
    shape, sizes = list(draw(SHAPES)), draw(st.lists(SMALL, min_size=1, max_size=3))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    shape[axis] = sum(sizes)
    if draw(st.booleans()):
        sizes[draw(st.integers(0, len(sizes) - 1))] = -1
    options = Table("SplitVOptions", {"num_splits": len(sizes)})
    return Case((tuple(shape), _ints(sizes), _int(axis)), options, ("FLOAT32",) * len(sizes))


@st.composite
def _tiled(draw: st.DrawFn) -> Case:
    shape = draw(SHAPES)
    return Case((shape, _ints([draw(SMALL) for _ in shape])))


@st.composite
def _spread(draw: st.DrawFn) -> Case:
    shape = draw(SHAPES)
    return Case((tuple(draw(st.sampled_from([1, d])) for d in shape), _ints(list(shape))))


@st.composite
def _best(draw: st.DrawFn, kind: str) -> Case:
    shape = draw(st.lists(SMALL, min_size=2, max_size=4).map(tuple))
    axis = _int(draw(st.integers(-len(shape), len(shape) - 1)))
    return Case((shape, axis), Table(f"{kind.title().replace('_', '')}Options", {"output_type": 2}), ("INT32",))


@st.composite
def _top(draw: st.DrawFn) -> Case:
    shape = draw(SHAPES)
    return Case((shape, _int(draw(st.integers(1, shape[-1])))), None, ("FLOAT32", "INT32"))


@st.composite
def _product(draw: st.DrawFn) -> Case:
    rows, depth, columns = (draw(SIZES) for _ in range(3))
    outer = draw(st.lists(SMALL, max_size=2))
    swap_left, swap_right = draw(st.integers(0, 1)), draw(st.integers(0, 1))
    left = (*(outer if draw(st.booleans()) else [1] * len(outer)), *((depth, rows) if swap_left else (rows, depth)))
    right = (*outer, *((columns, depth) if swap_right else (depth, columns)))
    return Case((left, right), Table("BatchMatMulOptions", {"adj_x": swap_left, "adj_y": swap_right}))


@st.composite
def _resized(draw: st.DrawFn, kind: str) -> Case:
    options = Table(f"{kind.title().replace('_', '')}Options", {})
    return Case((draw(PICTURES), _ints(draw(SIZES), draw(SIZES))), options)


@st.composite
def _same(draw: st.DrawFn) -> Case:
    return Case((draw(SHAPES),))


@st.composite
def _filled(draw: st.DrawFn) -> Case:
    return Case((_ints(list(draw(SHAPES))), ()))


@st.composite
def _shape(draw: st.DrawFn) -> Case:
    return Case((draw(SHAPES),), Table("ShapeOptions", {"out_type": 2}), ("INT32",))


@st.composite
def _looked_up(draw: st.DrawFn) -> Case:
    return Case((np.zeros(draw(SIZES), np.int32), draw(st.lists(SMALL, min_size=2, max_size=4).map(tuple))))


@st.composite
def _deconvolved(draw: st.DrawFn) -> Case:
    """With 'same' padding: the wanted size is the stride times that of the input."""
    (batch, height, width, depth), filters, stride = draw(PICTURES), draw(SMALL), draw(st.integers(1, 2))
    wanted = _ints(batch, height * stride, width * stride, filters)
    options = {"padding": 0, "stride_h": stride, "stride_w": stride}
    weights = np.zeros((filters, 3, 3, depth), np.float32)
    bias = np.zeros(filters, np.float32)
    return Case((wanted, weights, (batch, height, width, depth), bias), Table("TransposeConvOptions", options))


CASES: dict[str, Callable[[], st.SearchStrategy[Case]]] = {
    "CONV_2D": lambda: _windows("CONV_2D"),
    "DEPTHWISE_CONV_2D": lambda: _windows("DEPTHWISE_CONV_2D"),
    "MAX_POOL_2D": lambda: _windows("MAX_POOL_2D"),
    "AVERAGE_POOL_2D": lambda: _windows("AVERAGE_POOL_2D"),
    "TRANSPOSE_CONV": _deconvolved,
    "FULLY_CONNECTED": _dense,
    "MEAN": _reduced,
    "SUM": _reduced,
    "ADD": _broadcast,
    "CONCATENATION": _joined,
    "PAD": _padded,
    "MIRROR_PAD": lambda: _padded().map(lambda case: replace(case, options=Table("MirrorPadOptions", {}))),
    "TRANSPOSE": _transposed,
    "RESHAPE": _reshaped,
    "DEPTH_TO_SPACE": lambda: _blocks("DEPTH_TO_SPACE"),
    "SPACE_TO_DEPTH": lambda: _blocks("SPACE_TO_DEPTH"),
    "SPACE_TO_BATCH_ND": lambda: _batched("SPACE_TO_BATCH_ND"),
    "BATCH_TO_SPACE_ND": lambda: _batched("BATCH_TO_SPACE_ND"),
    "STRIDED_SLICE": _strided,
    "SLICE": _part,
    "SQUEEZE": _squeezed,
    "EXPAND_DIMS": _expanded,
    "GATHER": _gathered,
    "GATHER_ND": _gathered_nd,
    "EMBEDDING_LOOKUP": _looked_up,
    "ONE_HOT": _one_hot,
    "PACK": _packed,
    "UNPACK": _unpacked,
    "SPLIT": _split,
    "SPLIT_V": _split_by_size,
    "TILE": _tiled,
    "BROADCAST_TO": _spread,
    "FILL": _filled,
    "ARG_MAX": lambda: _best("ARG_MAX"),
    "ARG_MIN": lambda: _best("ARG_MIN"),
    "TOPK_V2": _top,
    "BATCH_MATMUL": _product,
    "RESIZE_BILINEAR": lambda: _resized("RESIZE_BILINEAR"),
    "RESIZE_NEAREST_NEIGHBOR": lambda: _resized("RESIZE_NEAREST_NEIGHBOR"),
    "LOGISTIC": _same,
    "RELU": _same,
    "SHAPE": _shape,
}


@pytest.mark.parametrize("kind", CASES)
def test_a_shape_rule_gives_the_shapes_that_the_interpreter_computes(kind: str) -> None:
    @given(CASES[kind]())
    def check(case: Case) -> None:
        _check(kind, case)

    check()


def test_shapes_that_the_interpreter_takes_from_the_file_follow_from_their_inputs() -> None:
    assert shapes_of_outputs("SELECT", 1, OpInputs([(2, 3), (2, 3), (2, 3)])) == [(2, 3)]
    state = [None] * 20
    lstm = OpInputs([(1, 9, 5), *state[:7], (7, 6), *state[:11]])
    assert shapes_of_outputs("UNIDIRECTIONAL_SEQUENCE_LSTM", 1, lstm) == [(1, 9, 6)]
    assert shapes_of_outputs("LSTM", 1, OpInputs(lstm.shapes[:19])) == [None], "the oldest form, with other inputs"
    rank = Table("SVDFOptions", {"rank": 2})
    assert shapes_of_outputs("SVDF", 1, OpInputs([(1, 5), (8, 5)], options=rank)) == [(1, 4)]
    assert shapes_of_outputs("RNN", 1, OpInputs([(1, 5), (8, 5)])) == [(1, 8)]
    assert shapes_of_outputs("UNIDIRECTIONAL_SEQUENCE_RNN", 1, OpInputs([(1, 9, 5), (8, 5)])) == [(1, 9, 8)]


@pytest.mark.parametrize(
    ("kind", "op"),
    [
        ("CUSTOM:Any", OpInputs([(1, 2)])),
        ("ADD", OpInputs([(1, 2), None])),
        ("ADD", OpInputs([(1, 2), (1, 3)])),
        ("RELU", OpInputs([])),
        ("PAD", OpInputs([(1, 2)], [None])),
        ("PACK", OpInputs([(1, 2)])),
        ("SPLIT", OpInputs([(), (1, 2)], [_int(5), None], Table("SplitOptions", {"num_splits": 2}))),
        ("SPLIT", OpInputs([(), (1, 2)], [_int(1), None], Table("SplitOptions", {}))),
        ("CONCATENATION", OpInputs([(1, 2), (1,)], options=Table("ConcatenationOptions", {"axis": 1}))),
    ],
)
def test_a_shape_that_does_not_follow_is_unknown_for_each_output(kind: str, op: OpInputs) -> None:
    assert shapes_of_outputs(kind, 2, op) == [None, None]


def test_outputs_beyond_those_of_the_rule_are_unknown() -> None:
    by_size = OpInputs([(1, 5), (2,), ()], [None, _ints(2, 3), _int(1)])
    assert shapes_of_outputs("SPLIT_V", 3, by_size) == [(1, 2), (1, 3), None]
    assert shapes_of_outputs("SPLIT_V", 1, by_size) == [(1, 2)]


@pytest.mark.parametrize(
    ("kind", "inputs", "output", "expected"),
    [
        ("CONV_2D", [(1, 9, 9, 3), (5, 2, 4, 3), (5,)], (1, 7, 6, 5), 7 * 6 * 5 * 2 * 4 * 3),
        ("DEPTHWISE_CONV_2D", [(1, 9, 9, 3), (1, 2, 4, 3), (3,)], (1, 7, 6, 3), 7 * 6 * 3 * 2 * 4),
        ("FULLY_CONNECTED", [(2, 7), (5, 7), None], (2, 5), 2 * 5 * 7),
        ("TRANSPOSE_CONV", [(4,), (5, 2, 4, 3), (1, 7, 6, 3)], (1, 14, 12, 5), 7 * 6 * 5 * 2 * 4 * 3),
        ("BATCH_MATMUL", [(2, 3, 5), (2, 5, 7)], (2, 3, 7), 2 * 3 * 7 * 5),
        ("CONV_3D", [(1, 9, 9, 9, 3), (2, 3, 4, 3, 5), (5,)], (1, 7, 6, 8, 5), 7 * 6 * 8 * 5 * 2 * 3 * 4 * 3),
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", [(1, 9, 5), None, *[(7, 5)] * 3, *[(7, 6)] * 4, (9, 9)], (1, 9, 6),
         9 * (3 * 7 * 5 + 4 * 7 * 6)),
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", [(1, 5), (7, 5)], (1, 6), 7 * 5),
        ("MUL", [(1, 5), (1, 5)], (1, 5), 0),
    ],
)  # fmt: skip
def test_multiply_accumulates_are_counted_by_hand(
    kind: str, inputs: list[Shape | None], output: Shape, expected: int
) -> None:
    assert macs(kind, inputs, [output]) == expected


# What the Edge TPU takes, at the edge of each limit.


def _tensor(shape: Shape | None, dtype: str = "int8", **fields: Any) -> Tensor:
    return Tensor(0, "t", shape, dtype, 1, **fields)


WEIGHTS = _tensor((4, 3, 3, 4), is_parameter=True)
ACTIVATION = _tensor((1, 8, 8, 4))
NOT_CONSTANT = "its weights are not constant"
TYPE, RANK = "Operation is working on an unsupported data type", "Tensor has unsupported rank"


@pytest.mark.parametrize(
    ("kind", "options", "read", "made", "reason"),
    [
        ("CUSTOM:Any", {}, [ACTIVATION], [ACTIVATION], "Operation not supported"),
        ("GELU", {}, [ACTIVATION], [ACTIVATION], "Operation not supported"),
        ("RELU", {}, [], [ACTIVATION], "it has no inputs"),
        ("RELU", {}, [ACTIVATION], [], "it has no inputs"),
        ("RELU", {}, [_tensor((1, 2), "uint8")], [_tensor((1, 2), "uint8")], ""),
        ("RELU", {}, [_tensor((1, 2), "int16")], [ACTIVATION], TYPE),
        ("RELU", {}, [ACTIVATION], [_tensor((1, 2), "float32")], TYPE),
        ("ADD", {}, [ACTIVATION, _tensor((1,), "int32", is_parameter=True)], [ACTIVATION], ""),
        ("ADD", {}, [ACTIVATION, _tensor((1,), "int16", is_variable=True)], [ACTIVATION], ""),
        ("RELU", {}, [ACTIVATION], [_tensor(None)], "its output has no static shape"),
        ("RELU", {}, [_tensor((1, 1, 5, 6, 7))], [ACTIVATION], ""),
        ("RELU", {}, [_tensor((2, 5, 6))], [ACTIVATION], ""),
        ("RELU", {}, [_tensor((2, 5, 6, 7))], [ACTIVATION], RANK),
        ("RELU", {}, [ACTIVATION], [_tensor((2, 1, 1, 1, 1))], RANK),
        ("CONV_2D", {}, [ACTIVATION, WEIGHTS], [ACTIVATION], ""),
        ("CONV_2D", {}, [ACTIVATION, ACTIVATION], [ACTIVATION], NOT_CONSTANT),
        ("CONV_2D", {"dilation_w_factor": 2, "dilation_h_factor": 2}, [ACTIVATION, WEIGHTS], [ACTIVATION], ""),
        ("CONV_2D", {"dilation_w_factor": 2}, [ACTIVATION, WEIGHTS], [ACTIVATION], "dilation differs"),
        ("DEPTHWISE_CONV_2D", {"dilation_h_factor": 2}, [ACTIVATION, WEIGHTS], [ACTIVATION], "dilation differs"),
        ("TRANSPOSE_CONV", {}, [ACTIVATION, ACTIVATION], [ACTIVATION], NOT_CONSTANT),
        ("FULLY_CONNECTED", {"weights_format": 0}, [ACTIVATION, WEIGHTS], [ACTIVATION], ""),
        ("FULLY_CONNECTED", {"weights_format": 1}, [ACTIVATION, WEIGHTS], [ACTIVATION], "weight format"),
        ("FULLY_CONNECTED", {}, [ACTIVATION, ACTIVATION], [ACTIVATION], NOT_CONSTANT),
        ("MAX_POOL_2D", {"fused_activation_function": 0}, [ACTIVATION], [ACTIVATION], ""),
        ("MAX_POOL_2D", {"fused_activation_function": 1}, [ACTIVATION], [ACTIVATION], "fused activation"),
        ("AVERAGE_POOL_2D", {"fused_activation_function": 1}, [ACTIVATION], [ACTIVATION], "fused activation"),
        ("CONCATENATION", {"fused_activation_function": 1}, [ACTIVATION], [ACTIVATION], "fused activation"),
        ("ADD", {"fused_activation_function": 1}, [ACTIVATION, ACTIVATION], [ACTIVATION], ""),
        ("RESIZE_BILINEAR", {}, [_tensor((1, 2, 2, 4))], [_tensor((1, 16, 16, 4))], ""),
        ("RESIZE_BILINEAR", {}, [_tensor((1, 2, 2, 4))], [_tensor((1, 16, 17, 4))], "more than 8 times"),
        ("RESIZE_NEAREST_NEIGHBOR", {}, [_tensor((1, 2, 2, 4))], [_tensor((1, 17, 2, 4))], "more than 8 times"),
        ("RESIZE_BILINEAR", {}, [_tensor((1, 0, 2, 4))], [_tensor((1, 8, 2, 4))], ""),
        ("RESIZE_BILINEAR", {}, [_tensor((1, 0, 2, 4))], [_tensor((1, 9, 2, 4))], "more than 8 times"),
        ("RESIZE_BILINEAR", {}, [_tensor((2, 2, 4))], [_tensor((1, 2, 2, 4))], "other than a picture"),
        ("RESIZE_BILINEAR", {}, [_tensor((1, 2, 2, 4))], [_tensor((2, 2, 4))], "other than a picture"),
        ("RESIZE_BILINEAR", {}, [_tensor((1, 256, 256, 48))], [_tensor((1, 256, 256, 48))], ""),
        ("RESIZE_BILINEAR", {}, [_tensor((1, 256, 256, 48))], [_tensor((1, 256, 257, 48))], "more than 3,145,728"),
        # Boxes of a detector split their channels, whatever their size; what merges pixels goes through one tile.
        ("RESHAPE", {}, [_tensor((1, 40, 40, 810))], [_tensor((1, 14_400, 90))], ""),
        ("RESHAPE", {}, [_tensor((1, 144, 24, 24))], [_tensor((1, 144, 576))], ""),
        ("RESHAPE", {}, [_tensor((1, 68, 40, 40))], [_tensor((1, 68, 1_600))], "217,600 bytes, more than 196,608"),
        ("RESHAPE", {}, [_tensor((1, 128, 128, 1))], [_tensor((1, 16_384))], ""),
        ("RESHAPE", {}, [_tensor((1, 400, 3, 85))], [_tensor((1, 1_200, 85))], ""),
        ("RESHAPE", {}, [_tensor((1, 3, 784, 85))], [_tensor((1, 2_352, 85))], "206,976 bytes, more than 196,608"),
        ("TRANSPOSE", {}, [_tensor((1, 40, 40, 68))], [_tensor((1, 68, 40, 40))], ""),
        ("TRANSPOSE", {}, [_tensor((1, 784, 3, 85))], [_tensor((1, 3, 784, 85))], "206,976 bytes, more than 196,608"),
        ("SOFTMAX", {}, [_tensor((1, 16_384))], [_tensor((1, 16_384))], ""),
        ("SOFTMAX", {}, [_tensor((1, 16_385))], [_tensor((1, 16_385))], "more than 16384 elements"),
        ("STRIDED_SLICE", {"begin_mask": 1, "shrink_axis_mask": 1}, [ACTIVATION], [ACTIVATION], ""),
        ("STRIDED_SLICE", {"ellipsis_mask": 1}, [ACTIVATION], [ACTIVATION], "ellipsis or new axis"),
        ("STRIDED_SLICE", {"new_axis_mask": 1}, [ACTIVATION], [ACTIVATION], "ellipsis or new axis"),
    ],
)  # fmt: skip
def test_each_limit_of_the_edge_tpu_holds_at_its_edge(
    kind: str, options: dict[str, int | float], read: list[Tensor], made: list[Tensor], reason: str
) -> None:
    said = unmapped_reason(kind, options, read, made, reads_model_input=False)
    assert reason in said
    assert bool(said) == bool(reason)


@pytest.mark.parametrize(
    ("kind", "dtype", "first", "taken"),
    [
        ("QUANTIZE", "float32", True, True),
        ("QUANTIZE", "float32", False, False),
        ("QUANTIZE", "float16", True, False),
        ("RELU", "float32", True, False),
    ],
)
def test_float_is_taken_by_a_quantize_of_a_model_input_alone(kind: str, dtype: str, first: bool, taken: bool) -> None:
    said = unmapped_reason(kind, {}, [_tensor((1, 2), dtype)], [_tensor((1, 2))], reads_model_input=first)
    assert bool(said) != taken


# Limits of what is folded and inferred.


def _folded(kind: str, options: str, *values: NDArray[Any], **fields: int) -> NDArray[Any] | None:
    return folded(kind, values, Table(options, fields), values[0].dtype)


@pytest.mark.parametrize(("size", "understood"), [(1023, True), (1024, True), (1025, False)])
def test_computations_of_shapes_have_few_elements(size: int, understood: bool) -> None:
    one = np.zeros(size, np.int32)
    assert (_folded("CAST", "CastOptions", one) is not None) == understood
    parts = (one[:500], one[500:])
    joined = _folded("CONCATENATION", "ConcatenationOptions", *parts, axis=0)
    assert (joined is not None) == understood


@pytest.mark.parametrize(("rank", "understood"), [(4, True), (5, False)])
def test_values_have_as_many_dimensions_as_every_kernel_takes(rank: int, understood: bool) -> None:
    assert (_folded("CAST", "CastOptions", np.zeros((1,) * rank, np.int32)) is not None) == understood


def test_values_without_elements_or_with_the_options_of_another_op_are_not_understood() -> None:
    assert _folded("CAST", "CastOptions", np.zeros(0, np.int32)) is None
    assert _folded("CAST", "PackOptions", np.zeros(1, np.int32)) is None


@pytest.mark.parametrize(("left", "right"), [(2**31 - 2, 1), (-(2**31) + 1, -1)])
def test_sums_that_just_fit_are_folded_and_others_are_not(left: int, right: int) -> None:
    made = _folded("ADD", "AddOptions", _ints(left), _ints(right))
    assert made is not None
    assert made.tolist() == [left + right]
    assert _folded("ADD", "AddOptions", made, _ints(right)) is None


@pytest.mark.parametrize(("more", "expected"), [(508, 0b11), (509, 0b1)])
def test_inputs_of_a_folded_op_take_few_bytes(more: int, expected: int) -> None:
    """4 dimensions and so many constants, each of 8 bytes, are 4096 bytes."""
    b = handmade.Builder()
    source = b.tensor("in", shape_signature=_ints(-1, 4, 4, 4))
    shape, joined = b.tensor("shape", (4,), "INT64", scale=None), b.tensor("joined", (), "INT64", scale=None)
    b.op("SHAPE", [source], [shape], Table("ShapeOptions", {"out_type": 4}))
    constant = b.tensor("constant", (more,), "INT64", scale=None, data=np.zeros(more, np.int64))
    b.op("CONCATENATION", [shape, constant], [joined], Table("ConcatenationOptions", {"axis": 0}))
    assert Cutter(b.file([source], [b.conv(source, "conv")])).graph.folded == expected


def test_only_what_starts_at_a_shape_and_has_a_rule_is_folded() -> None:
    b = handmade.Builder()
    source = b.tensor("in", shape_signature=_ints(-1, 4, 4, 4))
    total = b.tensor("total", (4,), "INT32", scale=None)
    b.op("ADD", [b.ints("one", [1] * 4), b.ints("two", [2] * 4)], [total], Table("AddOptions", {}))
    shape, negative = b.tensor("shape", (4,), "INT32", scale=None), b.tensor("negative", (4,), "INT32", scale=None)
    b.op("SHAPE", [source], [shape], Table("ShapeOptions", {"out_type": 2}))
    b.op("NEG", [shape], [negative])
    # Outputs of the model are never folded, so another op reads what could be.
    joined = b.tensor("joined", (4,), "INT32", scale=None)
    b.op("ADD", [total, negative], [joined], Table("AddOptions", {}))
    assert Cutter(b.file([source], [b.conv(source, "conv"), joined])).graph.folded == 0b10


def _behind_a_free_batch(kind: str, shape: Shape, constant: NDArray[Any], rank: int) -> bytes:
    b = handmade.Builder()
    source = b.tensor("in", shape, shape_signature=_ints(-1, *shape[1:]))
    made = b.tensor("made", (1,) * rank, shape_signature=_ints([-1] * rank))
    b.op(kind, [source, b.ints("constant", constant)], [made], Table("ExpandDimsOptions", {}))
    return b.file([source], [made])


def test_a_dimension_beyond_31_bits_is_refused() -> None:
    fits = _behind_a_free_batch("TILE", (1, 1 << 16), _ints(1, (1 << 15) - 1), 2)
    assert Cutter(fits).graph.tensors[1].shape == (1, (1 << 31) - (1 << 16))
    with pytest.raises(ModelError, match=r"the shape of its output would be \[1, 2147483648\]"):
        Cutter(_behind_a_free_batch("TILE", (1, 1 << 16), _ints(1, 1 << 15), 2))


def test_more_than_eight_dimensions_are_refused() -> None:
    assert Cutter(_behind_a_free_batch("EXPAND_DIMS", (1,) * 7, _int(0), 8)).graph.tensors[1].shape == (1,) * 8
    b = handmade.Builder()
    source = b.tensor("in", (1,) * 8, shape_signature=_ints([-1] + [1] * 7))
    made = b.tensor("made", (1,), shape_signature=_ints([-1]))
    b.op("EXPAND_DIMS", [source, b.ints("axis", 0)], [made], Table("ExpandDimsOptions", {}))
    with pytest.raises(ModelError, match="the shape of its output would be"):
        Cutter(b.file([source], [made]))


# Limits of what is read.


def test_a_file_that_no_flatbuffer_can_be_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "large.tflite").open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(ModelError, match="larger than 2 GiB"):
        read_model_bytes(tmp_path / "large.tflite")


def _with_tensor(**fields: Any) -> bytes:
    """A convolution of which the output's table is changed."""
    b = handmade.Builder()
    source = b.tensor("in")
    made = b.conv(source, "conv")
    b.tensors[made] = b.tensors[made].changed(**fields)
    return b.file([source], [made])


def _of_claimed_shape(shape: tuple[int, ...], type_name: str = "INT8") -> bytes:
    b = handmade.Builder()
    source = b.tensor("in")
    made = b.tensor("made", shape, type_name)
    b.op("ABS", [source], [made])
    return b.file([source], [made])


@pytest.mark.parametrize(
    ("taken", "refused", "what"),
    [
        (_of_claimed_shape((1,) * 8), _of_claimed_shape((1,) * 9), "impossible shape"),
        (_of_claimed_shape((-1, 4)), _of_claimed_shape((-2, 4)), "impossible shape"),
        (_of_claimed_shape((1 << 15, 1 << 16)), _of_claimed_shape((1 << 15, (1 << 16) + 1)), "takes 2147516416 bytes"),
        (_of_claimed_shape((1 << 13, 1 << 16), "INT32"), _of_claimed_shape((1 << 14, 1 << 16), "INT32"), "takes"),
        (_with_tensor(type=9), _with_tensor(type=100), "unknown element type 100"),
        (_with_tensor(buffer=0), _with_tensor(buffer=3), "buffer 3 does not exist"),
        (_with_tensor(external_buffer=0), _with_tensor(external_buffer=1), "in another file"),
    ],
)
def test_a_tensor_is_refused_just_beyond_the_limit(taken: bytes, refused: bytes, what: str) -> None:
    decode_model(taken, "made")
    with pytest.raises(ModelError, match=what):
        decode_model(refused, "made")


@pytest.mark.parametrize("what", ["an input", "a constant"])
def test_an_output_that_no_op_computes_is_named(what: str) -> None:
    b = handmade.Builder()
    source, constant = b.tensor("in"), b.ints("fixed", [1])
    made = b.conv(source, "conv")
    given_through = source if what == "an input" else constant
    with pytest.raises(ModelError, match=f"is {what} handed straight through"):
        decode_model(b.file([source], [made, given_through]), "made")
    with pytest.raises(ModelError, match="output 'unmade' is computed by no op"):
        decode_model(b.file([source], [made, b.tensor("unmade")]), "made")


def _with_operator(**fields: Any) -> bytes:
    b = handmade.Builder()
    source = b.tensor("in")
    made = b.conv(source, "conv")
    b.operators[0] = b.operators[0].changed(**fields)
    return b.file([source], [made])


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"inputs": _ints(0, 1, 3)}, ""),
        ({"inputs": _ints(0, 1, -1)}, ""),
        ({"inputs": _ints(0, 1, -2)}, "tensor -2 does not exist"),
        ({"inputs": _ints(0, 1, 4)}, "tensor 4 does not exist"),
        ({"outputs": _ints(2, -1)}, "tensor -1 does not exist"),
        ({"intermediates": _ints(-1)}, ""),
        ({"intermediates": _ints(4)}, "tensor 4 does not exist"),
        ({"opcode_index": 1}, "operator code 1 does not exist"),
        ({"large_custom_options_offset": 1, "large_custom_options_size": 1}, ""),
        ({"large_custom_options_offset": 2}, "outside the flatbuffer"),
        ({"large_custom_options_size": 2}, "outside the flatbuffer"),
    ],
)
def test_an_op_refers_to_what_the_file_has(fields: dict[str, Any], what: str) -> None:
    if not what:
        decode_model(_with_operator(**fields), "made")
        return
    with pytest.raises(ModelError, match=f"made: op 0.*{what}"):
        decode_model(_with_operator(**fields), "made")


@pytest.mark.parametrize(
    ("field_name", "value", "what"),
    [
        ("offset", 1, ""),
        ("offset", 2, "outside the flatbuffer"),
        ("size", 1, ""),
        ("size", 2, "outside the flatbuffer"),
    ],
)
def test_a_buffer_lies_in_the_file(field_name: str, value: int, what: str) -> None:
    b = handmade.Builder()
    source = b.tensor("in")
    made = b.relu(source, "relu")
    b.buffers.append(Table("Buffer", {field_name: value}))
    data = b.file([source], [made])
    if not what:
        decode_model(data, "made")
        return
    with pytest.raises(ModelError, match=f"buffer 1: .*{what}"):
        decode_model(data, "made")


def test_the_largest_number_of_ops_is_taken() -> None:
    for count, taken in ((4096, True), (4097, False)):
        b = handmade.Builder()
        source = b.tensor("in")
        made = b.conv(source, "conv")
        b.op("ASSIGN_VARIABLE", [made, made], [])
        b.operators += [b.operators[-1]] * (count - 2)
        data = b.file([source], [made])
        if taken:
            assert len(decode_model(data, "made").operators) == count
        else:
            with pytest.raises(ModelError, match=f"{count} ops"):
                decode_model(data, "made")


def test_an_op_of_the_most_multiply_accumulates_is_taken() -> None:
    for columns, taken in ((1 << 15, True), ((1 << 15) + 1, False)):
        b = handmade.Builder()
        left, right = b.tensor("left", (1 << 15, 1 << 16)), b.tensor("right", (1, 1))
        made = b.tensor("made", (1 << 15, columns))
        b.op("BATCH_MATMUL", [left, right], [made])
        data = b.file([left, right], [made])
        if taken:
            assert Cutter(data).graph.macs == 1 << 46
        else:
            with pytest.raises(ModelError, match=f"takes {(1 << 46) + (1 << 31)} multiply-accumulates"):
                Cutter(data)


def test_ops_that_share_state_with_one_op_stay_together() -> None:
    b = handmade.Builder()
    source = at = b.tensor("in")
    states = [b.tensor(f"state_{k}", is_variable=1) for k in range(3)]
    used: tuple[list[int], ...] = ([0], [0, 1], [1], [2], [])
    for k, tensors in enumerate(used):
        made = b.tensor(f"made_{k}")
        b.op("CUSTOM:Any", [at, *(states[n] for n in tensors)], [made])
        at = made
    assert Cutter(b.file([source], [at])).graph.together == (0b111,), "op 3 alone has state 2"


def test_all_resources_count_as_one() -> None:
    b = handmade.Builder()
    source = at = b.tensor("in")
    for k in range(3):
        resource = b.tensor(f"resource_{k}", (), "RESOURCE", scale=None)
        b.op("VAR_HANDLE", [], [resource])
        made = b.tensor(f"made_{k}")
        b.op("CUSTOM:Any", [at, resource], [made])
        at = made
    assert Cutter(b.file([source], [b.relu(at, "last")])).graph.together == (0b111111,)


@pytest.mark.parametrize(("is_variable", "taken"), [(1, True), (0, False)])
def test_float_tensors_of_an_op_with_weights_are_only_its_state(is_variable: int, taken: bool) -> None:
    b = handmade.Builder()
    source, made = b.tensor("in"), b.tensor("made")
    extra = b.tensor("extra", (4,), "FLOAT32", scale=None, is_variable=is_variable)
    b.op("SVDF", [source, b.weights("w", (4, 4)), extra], [made])
    data = b.file([source] if is_variable else [source, extra], [made])
    if taken:
        assert Cutter(data).graph.ops[0].type == "SVDF"
    else:
        with pytest.raises(ModelError, match="computes in float: tensor 'extra' is float32"):
            Cutter(data)


# What a segment's file holds.


def test_obsolete_numbers_of_metadata_buffers_go_with_the_whole_model_alone() -> None:
    b = handmade.Builder()
    source = b.tensor("in")
    made = b.conv(b.conv(source, "first"), "second")
    note = b.buffer(np.frombuffer(b"a note", np.uint8))
    cutter = Cutter(b.file([source], [made], metadata_buffer=_ints(0, note, -1, note + 1)))
    whole = decode_model(cutter.cut(0b11), "whole")
    assert [bytes(whole.buffers[k]["data"]) for k in whole.root["metadata_buffer"]] == [b"", b"a note"]
    part = decode_model(cutter.cut(0b1), "part")
    assert "metadata_buffer" not in part.root.fields
    assert all(bytes(buffer["data"]) != b"a note" for buffer in part.buffers)


def test_a_segment_has_an_empty_first_buffer_even_if_the_model_has_none() -> None:
    b = handmade.Builder()
    source = b.tensor("in", buffer=1)
    weights = b.weights("w", (4, 3, 3, 4))
    b.buffers[0], b.buffers[1] = b.buffers[1], Table("Buffer", {})
    b.tensors[weights] = b.tensors[weights].changed(buffer=0)
    made = b.tensor("made", buffer=1)
    options = Table("Conv2DOptions", {"stride_w": 1, "stride_h": 1})
    b.op("CONV_2D", [source, weights, b.bias("b", 4)], [made], options)
    data = b.file([source], [made])
    segment = decode_model(Cutter(data).cut(0b1), "segment")
    assert not len(segment.buffers[0]["data"])
    assert handmade.constant_input(Cutter(data).cut(0b1), op=0, position=1) == bytes(b.buffers[0]["data"])


def test_a_segment_has_only_its_own_operator_codes() -> None:
    cutter = Cutter(handmade.float_glue())
    for k, kind in enumerate(("QUANTIZE", "CONV_2D", "DEQUANTIZE")):
        segment = decode_model(cutter.cut(1 << k), kind)
        assert len(segment.codes) == 1
        assert [segment.type_name(operator) for operator in segment.operators] == [kind]
