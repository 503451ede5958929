"""What is folded of a computation of shapes is what the interpreter computes there; what is not understood is left to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import balancer
from balancer.errors import InterpreterError, ModelError
from balancer.inputs import model_interface, random_items
from balancer.interpreter import open_keeping_all
from balancer.tflite.cut import Cutter
from balancer.tflite.decoding import decode_model
from balancer.tflite.flatbuffer import Table
from balancer.tflite.opened import open_model
from balancer.tflite.shapes import inferred_shapes, propagate_shapes
from balancer.verification import SegmentFile, verify_partition
from tests import handmade
from tests.shared import RUNNABLE, stem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


SHAPE = (1, 4, 4, 4)
OPEN = np.array([-1, 4, 4, 4], np.int32)
NUMBERS = {"INT32": np.int32, "INT64": np.int64, "FLOAT32": np.float32}


class Chain:
    """A model with a free batch: a convolution, the SHAPE of its input, and what is built on that."""

    def __init__(self, out_type: str = "INT32") -> None:
        self.b = handmade.Builder()
        self.source = self.b.tensor("in", SHAPE, shape_signature=OPEN)
        self.conv = self.b.conv(self.source, "conv")
        self.b.tensors[self.conv] = self.b.tensors[self.conv].changed(shape_signature=OPEN)
        number = 2 if out_type == "INT32" else 4
        self.shape = self.value("shape", out_type)
        self.b.op("SHAPE", [self.source], [self.shape], Table("ShapeOptions", {"out_type": number}))

    def value(self, name: str, type_name: str = "INT32") -> int:
        """A tensor without quantisation of which the file gives no shape."""
        return self.b.tensor(name, (), type_name, scale=None)

    def op(self, kind: str, inputs: list[int], options: Table | None = None, type_name: str = "INT32") -> int:
        made = self.value(f"{kind.lower()}_{len(self.b.operators)}", type_name)
        self.b.op(kind, inputs, [made], options)
        return made

    def constant(self, values: Any, type_name: str = "INT32") -> int:
        array = np.array(values, NUMBERS[type_name])
        return self.b.tensor(f"constant_{len(self.b.tensors)}", array.shape, type_name, scale=None, data=array)

    def file(self, *more: int) -> bytes:
        """more: given out beside the convolution; the op that gives it is not folded, what it reads may be."""
        return self.b.file([self.source], [self.conv, *more])

    def seen(self, made: int, type_name: str = "INT32") -> bytes:
        """With `made` plus zero given out, so that it can be folded and a wrong value would be seen."""
        zero = self.constant(0, type_name)
        return self.file(self.op("ADD", [made, zero], Table("AddOptions", {}), type_name))


def _gather(c: Chain) -> int:
    table = c.op("RESHAPE", [c.shape, c.constant([2, 2])], Table("ReshapeOptions", {}))
    return c.op("GATHER", [table, c.constant([[0], [1]])], Table("GatherOptions", {"axis": 1, "batch_dims": 1}))


def _slice(c: Chain, rows: int, begin: Any, end: Any, **options: int) -> int:
    table = c.op("RESHAPE", [c.shape, c.constant([rows, 4 // rows] if rows > 1 else [4])], Table("ReshapeOptions", {}))
    bounds = [c.constant(begin), c.constant(end), c.constant([1] * len(begin))]
    return c.op("STRIDED_SLICE", [table, *bounds], Table("StridedSliceOptions", options))


def _cast_to_bool(c: Chain) -> int:
    truth = c.op("CAST", [c.shape], Table("CastOptions", {}), "BOOL")
    return c.op("CAST", [truth], Table("CastOptions", {}))


def _squeeze(c: Chain) -> int:
    table = c.op("RESHAPE", [c.shape, c.constant([1, 4, 1])], Table("ReshapeOptions", {}))
    made = c.op("SQUEEZE", [table], Table("SqueezeOptions", {"squeeze_dims": np.array([2], np.int32)}))
    return c.op("SHAPE", [made], Table("ShapeOptions", {"out_type": 2}))


def _fused(kind: str, activation: int) -> Callable[[Chain], int]:
    options = {"fused_activation_function": activation}
    return lambda c: c.op(kind, [c.shape, c.constant([3, 1, 9, 2])], Table(f"{kind.title()}Options", options))


# Options that change what a folded op computes, or that the kernels of folded ops do not support.
OPTIONS: dict[str, Callable[[Chain], int]] = {
    "ADD, fused RELU6": _fused("ADD", 3),
    "SUB, fused RELU": _fused("SUB", 1),
    "MUL, fused RELU_N1_TO_1": _fused("MUL", 2),
    "GATHER, batch_dims": _gather,
    "STRIDED_SLICE, offset": lambda c: _slice(c, 1, [1], [2], offset=1),
    "STRIDED_SLICE, new_axis_mask": lambda c: _slice(c, 1, [0, 1], [0, 3], new_axis_mask=1),
    "STRIDED_SLICE, ellipsis_mask": lambda c: _slice(c, 2, [0, 1], [0, 2], ellipsis_mask=1),
    "STRIDED_SLICE, begin_mask and shrink_axis_mask": lambda c: _slice(
        c, 1, [2], [3], begin_mask=1, shrink_axis_mask=1
    ),
    "STRIDED_SLICE, fewer axes than dimensions": lambda c: _slice(c, 2, [1], [2]),
    "CAST to BOOL": _cast_to_bool,
    "SQUEEZE, squeeze_dims": _squeeze,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_segment_computes_the_same_whatever_the_options_of_a_shape_computation(name: str) -> None:
    c = Chain()
    data = c.seen(OPTIONS[name](c))
    found = balancer.verify(balancer.balance(data, 1), 2)
    assert found.bit_exact, found.mismatch
    cutter = Cutter(data)
    rest = cutter.graph.all_ops & ~1
    files = [SegmentFile(f"s{k}", ops, cutter.cut(ops)) for k, ops in enumerate((1, rest))]
    assert verify_partition(open_model(data), files, random_items(model_interface(cutter.graph).inputs, 2)).bit_exact


def _step(c: Chain, draw: st.DrawFn, at: int, type_name: str) -> tuple[int, str]:
    """One more op on `at` with random options; the tensor that it gives, and its type."""
    kind = draw(st.sampled_from(["arithmetic", "CAST", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "PACK", "CONCATENATION",
                                 "GATHER", "STRIDED_SLICE", "SLICE", "REDUCE_PROD"]))  # fmt: skip
    if kind == "arithmetic":
        name = draw(st.sampled_from(["ADD", "SUB", "MUL"]))
        options = {"fused_activation_function": draw(st.sampled_from([0, 0, 0, 1, 2, 3]))}
        other = c.constant(draw(st.sampled_from([2, -1, [3], [1, 0, 2, 5], [[1], [2]]])), type_name)
        return c.op(name, [at, other], Table(f"{name.title()}Options", options), type_name), type_name
    if kind == "CAST":
        wanted = draw(st.sampled_from(["INT32", "INT64", "FLOAT32", "BOOL", "INT8"]))
        made = c.op("CAST", [at], draw(st.sampled_from([None, Table("CastOptions", {})])), wanted)
        return (made, wanted) if wanted in NUMBERS else (c.op("CAST", [made], None, type_name), type_name)
    if kind == "RESHAPE":
        wanted_shape = draw(st.sampled_from([[4], [2, 2], [-1], [1, -1], [2, -1, 1], [1], []]))
        if draw(st.booleans()):
            return c.op("RESHAPE", [at, c.constant(wanted_shape)], Table("ReshapeOptions", {}), type_name), type_name
        given_shape = {"new_shape": np.array(wanted_shape or [0], np.int32)}
        return c.op("RESHAPE", [at], Table("ReshapeOptions", given_shape), type_name), type_name
    if kind == "SQUEEZE":
        # Of at least one dimension: the interpreter takes a dimension that is not there for memory.
        at = c.op("EXPAND_DIMS", [at, c.constant(0)], Table("ExpandDimsOptions", {}), type_name)
        axes = np.array(draw(st.sampled_from([[], [0], [-1], [0, -1]])), np.int32)
        return c.op("SQUEEZE", [at], Table("SqueezeOptions", {"squeeze_dims": axes}), type_name), type_name
    if kind == "EXPAND_DIMS":
        axis = c.constant(draw(st.sampled_from([0, 1, -1, -2, [0], [1]])))
        return c.op("EXPAND_DIMS", [at, axis], Table("ExpandDimsOptions", {}), type_name), type_name
    if kind in ("PACK", "CONCATENATION"):
        options = {"axis": draw(st.integers(-2, 1))} | ({"values_count": 2} if kind == "PACK" else {})
        return c.op(kind, [at, at], Table(f"{kind.title()}Options", options), type_name), type_name
    if kind == "GATHER":
        positions = c.constant(draw(st.sampled_from([0, 1, [0], [1, 0, 1], [[0], [1]], [[0, 1]], [3, -1]])))
        options = {"axis": draw(st.integers(-1, 1)), "batch_dims": draw(st.sampled_from([0, 0, 0, 1, -1]))}
        return c.op("GATHER", [at, positions], Table("GatherOptions", options), type_name), type_name
    if kind == "REDUCE_PROD":
        axes_ = c.constant(draw(st.sampled_from([0, [0], [-1], [0, 1], [1], []])))
        keep = Table("ReducerOptions", {"keep_dims": draw(st.integers(0, 1))})
        return c.op("REDUCE_PROD", [at, axes_], keep, type_name), type_name
    return _random_slice(c, draw, at, type_name, kind), type_name


def _random_slice(c: Chain, draw: st.DrawFn, at: int, type_name: str, kind: str) -> int:
    """Of a vector: the interpreter crashes on slices that make no sense, and on results without elements."""
    lengths = (4,) if at == c.shape else (1, 2, 3, 4, 8)
    if at != c.shape:
        at = c.op("RESHAPE", [at, c.constant([-1])], Table("ReshapeOptions", {}), type_name)
    if kind == "SLICE":
        begin = 0 if 1 in lengths else draw(st.integers(0, 3))
        size = draw(st.sampled_from([1, -1]))
        return c.op("SLICE", [at, c.constant([begin]), c.constant([size])], Table("SliceOptions", {}), type_name)
    masks = {f"{name}_mask": draw(st.integers(0, 1)) for name in ("begin", "end", "shrink_axis")}
    begin, end, step = draw(
        st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([1, 1, 2, -1])).filter(
            lambda b: all(_takes(n, *b, masks=masks) for n in lengths)
        )
    )
    inputs = [at, c.constant([begin]), c.constant([end]), c.constant([step])]
    return c.op("STRIDED_SLICE", inputs, Table("StridedSliceOptions", masks), type_name)


def _takes(length: int, begin: int, end: int, step: int, *, masks: dict[str, int]) -> bool:
    """Whether there is something in the slice."""
    if masks["shrink_axis_mask"]:
        return step > 0 and -length <= begin < length
    bounds = slice(None if masks["begin_mask"] else begin, None if masks["end_mask"] else end, step)
    return len(range(length)[bounds]) > 0


@st.composite
def chains(draw: st.DrawFn) -> bytes:
    type_name = draw(st.sampled_from(["INT32", "INT64"]))
    c = Chain(type_name)
    at = c.shape
    for _ in range(draw(st.integers(1, 4))):
        at, type_name = _step(c, draw, at, type_name)
    return c.seen(at, type_name)


@given(chains())
def test_segments_compute_what_the_whole_does_whatever_is_folded(data: bytes) -> None:
    try:
        open_keeping_all(data).run([np.zeros(SHAPE, np.int8)])
    except InterpreterError:
        assume(False)
    cutter = Cutter(data)
    files = [SegmentFile(f"s{k}", ops, cutter.cut(ops)) for k, ops in enumerate((1, cutter.graph.all_ops & ~1))]
    assert verify_partition(open_model(data), files, random_items(model_interface(cutter.graph).inputs, 1)).bit_exact


@given(chains())
def test_what_is_folded_is_what_the_interpreter_computes(data: bytes) -> None:
    try:
        interpreter = open_keeping_all(data)
        interpreter.run([np.zeros(SHAPE, np.int8)])
    except InterpreterError:
        assume(False)
    shapes = propagate_shapes(decode_model(data, "made"))
    for t, value in shapes.values.items():
        found = interpreter.tensor(t)
        assert found.shape == value.shape
        assert found.dtype == value.dtype
        assert found.tobytes() == value.tobytes()


def test_a_folded_shape_that_contradicts_the_file_is_refused() -> None:
    c = Chain()
    c.b.tensors[c.shape] = c.b.tensors[c.shape].changed(shape=np.array([3], np.int32))
    with pytest.raises(ModelError, match=r"op 1 SHAPE: its output 'shape' has shape \[4\], the file says \[3\]"):
        Cutter(c.file())


def test_a_shape_worked_out_from_a_folded_one_that_contradicts_the_file_is_refused() -> None:
    c = Chain()
    made = c.b.tensor("reshaped", (1, 16, 4))
    c.b.op("RESHAPE", [c.conv, c.shape], [made], Table("ReshapeOptions", {}))
    with pytest.raises(ModelError, match=r"op 2 RESHAPE: its output 'reshaped' has shape \[1, 4, 4, 4\]"):
        Cutter(c.file(made))


def _where(c: Chain) -> int:
    found = c.b.tensor("found", (1, 4), "INT64", scale=None, shape_signature=np.array([-1, 4], np.int32))
    truth = c.b.tensor("truth", SHAPE, "BOOL", scale=None, shape_signature=OPEN)
    limit = c.b.tensor("limit", (1,), data=np.array([9], np.int8))
    c.b.op("GREATER", [c.conv, limit], [truth], Table("GreaterOptions", {}))
    c.b.op("WHERE", [truth], [found], Table("WhereOptions", {}))
    return found


def _unique(c: Chain) -> int:
    flat, wide = c.value("flat", "INT8"), c.value("wide")
    for t, made in ((flat, wide),):
        c.b.op("RESHAPE", [c.conv, c.constant([-1])], [t], Table("ReshapeOptions", {}))
        c.b.op("CAST", [t], [made], Table("CastOptions", {}))
    c.b.tensors[flat] = c.b.tensors[flat].changed(shape=np.array([64], np.int32))
    c.b.tensors[wide] = c.b.tensors[wide].changed(shape=np.array([64], np.int32))
    found = c.b.tensor("found", (1,), "INT32", scale=None, shape_signature=np.array([-1], np.int32))
    where = c.b.tensor("where", (64,), "INT32", scale=None)
    c.b.op("UNIQUE", [wide], [found, where], Table("UniqueOptions", {"idx_out_type": 2}))
    return found


@pytest.mark.parametrize("make", [_where, _unique])
def test_a_shape_that_depends_on_values_is_unknown_and_nothing_is_folded_from_it(make: Callable[[Chain], int]) -> None:
    c = Chain()
    found = make(c)
    count = c.op("SHAPE", [found], Table("ShapeOptions", {"out_type": 2}))
    data = c.file(c.op("ADD", [count, c.constant([1])], Table("AddOptions", {})))
    graph = Cutter(data).graph
    assert graph.tensors[found].shape is None
    assert not graph.ops[graph.readers[found][0]].folded
    plan = balancer.balance(data, 3)
    assert balancer.verify(plan, 3).bit_exact
    crossing = {t.tensor for segment in plan.segments for t in segment.inputs}
    assert "found" not in crossing


def test_no_cut_crosses_a_custom_op_s_output_of_open_shape() -> None:
    c = Chain()
    made = c.b.tensor("custom", SHAPE, shape_signature=OPEN)
    c.b.op("CUSTOM:Any", [c.conv], [made])
    last = c.b.relu(made, "last", shape_signature=OPEN)
    graph = Cutter(c.file(last)).graph
    assert graph.tensors[made].shape is None
    plan = balancer.balance(c.file(last), 3)
    assert all(t.tensor != "custom" for segment in plan.segments for t in segment.inputs)


@pytest.mark.parametrize("present", [True, False], ids=["present", "absent"])
def test_a_constant_without_elements_is_one(*, present: bool) -> None:
    """A RESHAPE to a scalar, as TensorFlow 2.21 writes it: the buffer is there, with data of no bytes."""
    b = handmade.Builder()
    source = b.tensor("in")
    conv = b.conv(source, "conv")
    total, mean = b.tensor("mean", (1, 1, 1, 1)), b.tensor("scalar", (), has_rank=1)
    b.op("MEAN", [conv, b.ints("axes", [0, 1, 2, 3])], [total], Table("ReducerOptions", {"keep_dims": 1}))
    empty = b.tensor("empty", (0,), "INT32", scale=None)
    if present:
        b.tensors[empty] = b.tensors[empty].changed(buffer=b.buffer(np.zeros(0, np.int32)))
    b.op("RESHAPE", [total, empty], [mean], Table("ReshapeOptions", {}))
    data = b.file([source], [mean])
    assert Cutter(data).graph.tensors[empty].is_parameter
    assert balancer.verify(balancer.balance(data, 2), 2).bit_exact


def test_a_model_without_outputs_is_refused_as_such() -> None:
    b = handmade.Builder()
    source = b.tensor("in")
    b.conv(source, "conv")
    with pytest.raises(ModelError, match="the model gives no outputs"):
        balancer.balance(b.file([source], []), 1)


def test_an_input_handed_straight_through_is_named_as_the_limit_that_it_is() -> None:
    b = handmade.Builder()
    source = b.tensor("in")
    with pytest.raises(ModelError, match="output 'in' is an input handed straight through, which is not supported"):
        balancer.balance(b.file([source], [b.conv(source, "conv"), source]), 1)


@pytest.mark.shared
@pytest.mark.parametrize("path", RUNNABLE, ids=stem)
def test_shape_rules_give_what_real_models_say(path: Path) -> None:
    model = decode_model(path.read_bytes(), path.stem)
    known = propagate_shapes(model)
    for i, operator in enumerate(model.operators):
        inferred = inferred_shapes(model, i, known.shapes, known.values)
        for t, shape in zip(operator["outputs"], inferred, strict=True):
            assert shape in (None, known.shapes[int(t)]), model.op_types[i]
