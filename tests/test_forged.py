"""Files with a valid structure and absurd content: what random mutation hardly ever finds. Each is read, costed and cut,
or refused; none may take the reader by surprise, hang it, or make it allocate gigabytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated

import balancer
from balancer.errors import BalancerError, ModelError
from balancer.planning.costed_model import open_costed_model
from balancer.planning.solving import solve_costed_model
from balancer.tflite.cut import Cutter
from balancer.tflite.decoding import MOST_OPS
from balancer.tflite.flatbuffer import Table
from balancer.tflite.model import IDENTIFIER
from balancer.tflite.schema import schema
from tests import handmade

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.timeout(20)  # seconds; the slowest takes one, what it guards against half a minute or for ever

KINDS = [kind for kind in schema().enums["BuiltinOperator"] if not kind.startswith(("STABLEHLO", "CUSTOM"))]
LARGEST = (1 << 31) - 1
OPEN = np.array([-1, -1, -1, -1], np.int32)


def _use(data: bytes) -> None:
    """Read, cost and solve, and cut each op out alone."""
    cutter = Cutter(data)
    solve_costed_model(open_costed_model(data, "pcie").on(1), balancer.Options())
    for i in range(len(cutter.graph.ops)):
        if not cutter.graph.folded >> i & 1:
            cutter.cut(1 << i)


def _taken_or_refused(data: bytes) -> bool:
    try:
        _use(data)
    except BalancerError as error:
        assert "\n" not in str(error)
        return False
    return True


def _around(kind: str, inputs: Sequence[int], outputs: int) -> bytes:
    """A valid convolution, then an op that reads these (0: its output, -1: nothing) and writes so many tensors."""
    b = handmade.Builder()
    source = b.tensor("in")
    conv = b.conv(source, "conv")
    made = [b.tensor(f"out_{k}") for k in range(outputs)]
    b.op(kind, [conv if t == 0 else t for t in inputs], made)
    return b.file([source], [conv, *made])


@pytest.mark.parametrize("kind", KINDS)
def test_an_op_may_have_too_few_inputs_and_outputs(kind: str) -> None:
    for inputs in ((), (0,), (0, 0), (0, 0, 0), (-1, -1, -1)):
        for outputs in (0, 1):
            _taken_or_refused(_around(kind, inputs, outputs))


@pytest.mark.parametrize("kind", KINDS)
def test_an_op_may_work_on_scalars(kind: str) -> None:
    b = handmade.Builder()
    source = b.tensor("in")
    scalar, made = b.tensor("scalar", (), has_rank=1), b.tensor("made", (), has_rank=1)
    b.op("RELU", [source], [scalar])
    b.op(kind, [scalar] * 3, [made])
    _taken_or_refused(b.file([source], [made]))


@pytest.mark.parametrize("kind", KINDS)
def test_an_op_behind_a_free_batch_may_have_the_options_of_another_or_none(kind: str) -> None:
    for options in (None, Table("Pool2DOptions", {})):
        b = handmade.Builder()
        source = b.tensor("in", shape_signature=np.array([-1, 4, 4, 4], np.int32))
        made = b.tensor("made", (1, 1, 1, 4), shape_signature=np.array([-1, -1, -1, 4], np.int32))
        zeros = b.ints("zeros", [0, 0, 0, 0])
        b.op(kind, [source, zeros, zeros, zeros], [made], options)
        _taken_or_refused(b.file([source], [made]))


@pytest.mark.parametrize("shape", [(1, 1, 1, LARGEST), (46_000, 46_000, 1, 1), (LARGEST,) * 4, (LARGEST,) * 8])
@pytest.mark.parametrize("type_name", ["INT8", "INT2", "STRING", "FLOAT32"])
@pytest.mark.parametrize(
    "kind", ["ADD", "BATCH_MATMUL", "CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"]
)
def test_tensors_may_claim_any_size(kind: str, type_name: str, shape: tuple[int, ...]) -> None:
    b = handmade.Builder()
    given = [b.tensor(name, shape, type_name) for name in ("left", "right")]
    made = b.tensor("made", shape, type_name)
    b.op(kind, [*given, -1], [made])
    taken = _taken_or_refused(b.file(given, [made]))
    assert not taken or math.prod(shape) <= 1 << 33, "2 GiB of values of 2 bits"


def _shape_of_a_free_batch(b: handmade.Builder) -> tuple[int, int]:
    source = b.tensor("in", shape_signature=np.array([-1, 4, 4, 4], np.int32))
    shape = b.tensor("shape", (4,), "INT32", scale=None)
    b.op("SHAPE", [source], [shape], Table("ShapeOptions", {"out_type": 2}))
    return source, shape


def test_shape_computations_that_multiply_their_sizes_are_not_computed() -> None:
    """60,000 x 60,000 numbers out of a file of 500 kB."""
    b = handmade.Builder()
    source, shape = _shape_of_a_free_batch(b)
    many = 60_000
    column = b.tensor("column", (many, 1), "INT32", scale=None)
    b.op("GATHER", [shape, b.ints("indices", np.zeros((many, 1)))], [column], Table("GatherOptions", {}))
    table = b.tensor("table", (1,), "INT32", scale=None)
    b.op("ADD", [column, b.ints("row", np.zeros((1, many)))], [table], Table("AddOptions", {}))
    _use(b.file([source], [b.conv(source, "conv")]))


def test_shape_computations_that_double_their_sizes_are_not_computed() -> None:
    b = handmade.Builder()
    source, at = _shape_of_a_free_batch(b)
    for k in range(40):
        twice = b.tensor(f"twice_{k}", (1,), "INT32", scale=None, shape_signature=np.array([-1], np.int32))
        b.op("CONCATENATION", [at, at], [twice], Table("ConcatenationOptions", {"axis": 0}))
        at = twice
    _taken_or_refused(b.file([source], [b.conv(source, "conv")]))


@pytest.mark.parametrize("size", [1, 6, 7, 64])
def test_a_sparse_constant_may_have_fewer_bytes_than_its_shape(size: int) -> None:
    b = handmade.Builder()
    source = b.tensor("in", shape_signature=np.array([-1, 4, 4, 4], np.int32))
    wanted = b.tensor("wanted", (3,), "INT32", scale=None, sparsity=Table("SparsityParameters", {}))
    b.tensors[wanted] = b.tensors[wanted].changed(buffer=b.buffer(np.zeros(size, np.uint8)))
    made = b.tensor("made", shape_signature=np.array([-1, 4, 4, 4], np.int32))
    b.op("RESHAPE", [source, wanted], [made], Table("ReshapeOptions", {}))
    _use(b.file([source], [made]))


def test_a_shape_that_grows_beyond_what_a_file_can_say_is_refused() -> None:
    b = handmade.Builder()
    source = at = b.tensor("in", shape_signature=np.array([-1, 4, 4, 4], np.int32))
    for k in range(8):
        made = b.tensor(f"made_{k}", (1, 1, 1, 1), shape_signature=OPEN)
        b.op("DEPTH_TO_SPACE", [at], [made], Table("DepthToSpaceOptions", {"block_size": -LARGEST}))
        at = made
    with pytest.raises(ModelError, match="op 0 DEPTH_TO_SPACE: the shape of its output would be"):
        Cutter(b.file([source], [at]))


def test_a_model_of_too_many_ops_is_refused_with_their_number() -> None:
    """60,000 ops that share one table take 240 kB in the file, and would take 27 GiB in the solver."""
    b = handmade.Builder()
    source = b.tensor("in")
    conv = b.conv(source, "conv")
    b.op("ASSIGN_VARIABLE", [conv, b.ints("one", [1])], [])
    b.operators += [b.operators[-1]] * 60_000
    with pytest.raises(ModelError, match=f"60002 ops; give a model of at most {MOST_OPS}"):
        Cutter(b.file([source], [conv]))


def _ops_that_share_their_inputs(ops: int, inputs: int) -> bytes:
    """A file of custom ops, each of which reads tensor 0 so many times from one vector that all of them refer to.

    Our encoder writes a vector of numbers for each table that has it, so this one is made with the library alone.
    """
    builder = flatbuffers.Builder(1 << 20)
    shared = builder.CreateNumpyVector(np.zeros(inputs, np.int32))
    made = []
    for k in range(ops):
        outputs = builder.CreateNumpyVector(np.array([k + 1], np.int32))
        generated.OperatorStart(builder)
        generated.OperatorAddInputs(builder, shared)
        generated.OperatorAddOutputs(builder, outputs)
        made.append(generated.OperatorEnd(builder))
    operators = _vector(builder, made)
    generated.SubGraphStart(builder)
    generated.SubGraphAddOperators(builder, operators)
    subgraphs = _vector(builder, [generated.SubGraphEnd(builder)])
    generated.ModelStart(builder)
    generated.ModelAddSubgraphs(builder, subgraphs)
    builder.Finish(generated.ModelEnd(builder), IDENTIFIER)
    return bytes(builder.Output())


def _vector(builder: flatbuffers.Builder, tables: Sequence[int]) -> int:
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    return int(builder.EndVector())


def test_a_vector_that_a_thousand_ops_share_is_not_walked_a_thousand_times() -> None:
    data = _ops_that_share_their_inputs(1000, 200_000)
    assert len(data) < 1 << 20
    with pytest.raises(ModelError, match="more numbers than the file has room for"):
        Cutter(data)


def test_an_output_may_be_listed_any_number_of_times() -> None:
    b = handmade.Builder()
    source = at = b.tensor("in")
    for k in range(3000):
        at = b.relu(at, f"relu_{k}")
    many = 250_000
    assert len(Cutter(b.file([source], [at] * many)).graph.outputs) == many


def test_an_input_is_listed_once() -> None:
    b = handmade.Builder()
    source = b.tensor("in")
    with pytest.raises(ModelError, match="an input is listed twice"):
        Cutter(b.file([source, source], [b.relu(source, "relu")]))


def test_an_input_may_be_read_by_an_op_that_gives_nothing() -> None:
    b = handmade.Builder()
    source = b.tensor("in", type_name="FLOAT32", scale=None)
    quantised = b.tensor("quantised")
    b.op("QUANTIZE", [source], [])
    b.op("QUANTIZE", [source], [quantised])
    plan = balancer.balance(b.file([source], [quantised]), 1)
    try:
        balancer.verify(plan, 1)
    except BalancerError as error:
        assert str(error)
