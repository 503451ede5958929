"""The cutter: each promise of `balancer/tflite/cut.py`, on models made for it; and random pieces that compute the
whole.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from ai_edge_litert.schema_py_generated import ModelT
from hypothesis import given
from hypothesis import strategies as st

from balancer.graph import Graph, boundary_names
from balancer.ground.opsets import OpSet, op_set
from balancer.inputs import model_interface, random_items
from balancer.tflite.cut import Cutter
from balancer.tflite.flatbuffer import Table
from balancer.tflite.opened import open_model
from balancer.tflite.read import load_graph
from balancer.verification import SegmentFile, verify_partition
from tests import handmade
from tests.shared import SOURCES, many_ops_wide, stem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _cut(data: bytes, *segments: OpSet) -> list[ModelT]:
    cutter = Cutter(data)
    names = boundary_names(cutter.graph, segments)
    return [ModelT.InitFromPackedBuf(cutter.cut(ops, names), 0) for ops in segments]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _names(model: ModelT, side: str) -> list[str]:
    graph = model.subgraphs[0]
    return [_text(graph.tensors[t].name) for t in getattr(graph, side)]


def test_a_tensor_may_skip_segments() -> None:
    parts = _cut(handmade.branch_and_add(), 0b1, 0b10, 0b100)
    assert [_names(p, "inputs") for p in parts] == [["in"], ["conv_0"], ["conv_0", "conv_1"]]
    assert [_names(p, "outputs") for p in parts] == [["conv_0"], ["conv_1"], ["sum"]]


def test_outputs_keep_the_models_order_and_inputs_of_the_model_come_first() -> None:
    data = handmade.outputs_against_execution_order()
    (whole,) = _cut(data, 0b111)
    assert (_names(whole, "inputs"), _names(whole, "outputs")) == (["one", "two"], ["third", "first", "second"])
    first, rest = _cut(data, 0b1, 0b110)
    assert _names(first, "outputs") == ["first"]
    assert _names(rest, "inputs") == ["one", "first"]
    assert _names(rest, "outputs") == ["third", "second"]


def test_outputs_of_the_model_come_before_boundary_tensors_that_are_computed_earlier() -> None:
    b = handmade.Builder()
    source = b.tensor("in")
    first = b.conv(source, "first")
    second = b.conv(first, "second")
    part, _ = _cut(b.file([source], [second, b.conv(first, "third")]), 0b11, 0b100)
    assert _names(part, "outputs") == ["second", "first"]


@pytest.mark.parametrize(
    ("names", "middle"),
    [(("in", "a", "b"), "a"), (("in", "same", "same"), "same_t"), (("in", "", "b"), "_t"), (("in", "a", ""), "a")],
)
def test_a_boundary_tensor_gets_a_suffix_only_where_its_name_is_empty_or_not_unique(
    names: tuple[str, ...], middle: str
) -> None:
    first, second = _cut(handmade.named(*names), 0b1, 0b10)
    (given_name,), (taken,) = _names(first, "outputs"), _names(second, "inputs")
    assert given_name == taken
    graph = Cutter(handmade.named(*names)).graph
    expected = middle if not middle.endswith("_t") else f"{middle}{graph.ops[0].outputs[0]}"
    assert given_name == expected


def test_a_suffix_that_is_taken_itself_is_made_unique() -> None:
    graph = Cutter(handmade.named("in", "same", "same")).graph
    clash = f"same_t{graph.ops[0].outputs[0]}"
    data = handmade.named("in", "same", "same", clash)
    names = boundary_names(Cutter(data).graph, [0b1, 0b10, 0b100])
    assert len(set(names.values())) == len(names)
    assert "same" not in names.values()


def test_custom_options_intermediates_and_absent_inputs_are_kept() -> None:
    _, part = _cut(handmade.custom_op(), 0b1, 0b10)
    operator = part.subgraphs[0].operators[0]
    assert list(operator.customOptions) == list(range(7))
    assert operator.inputs[1] == -1
    assert _text(part.subgraphs[0].tensors[operator.intermediates[0]].name) == "scratch"
    assert _text(part.operatorCodes[operator.opcodeIndex].customCode) == "Decode"


def test_tensors_that_share_a_buffer_go_on_sharing_it_and_the_empty_buffer_stays_first() -> None:
    data = handmade.shared_buffer()
    (part,) = _cut(data, 0b11)
    kernels = [part.subgraphs[0].tensors[o.inputs[1]].buffer for o in part.subgraphs[0].operators]
    assert kernels[0] == kernels[1]
    assert part.buffers[0].data is None
    (alone,) = _cut(data, 0b100)
    assert len(alone.buffers) == 3, "the empty one, a kernel and a bias"


def test_a_variable_tensor_stays_variable_without_a_constant() -> None:
    part = _cut(handmade.shared_state(), 0b1, 0b1110)[1]
    (state,) = [t for t in part.subgraphs[0].tensors if t.isVariable]
    assert part.buffers[state.buffer].data is None
    assert "state" not in _names(part, "inputs")


def test_signatures_and_metadata_stay_with_the_whole_interface_alone() -> None:
    data = handmade.with_signature_and_metadata()
    (whole,) = _cut(data, 0b11)
    assert [_text(s.signatureKey) for s in whole.signatureDefs] == ["serving_default"]
    (entry,) = whole.signatureDefs[0].outputs
    assert entry.tensorIndex == whole.subgraphs[0].outputs[0]
    assert [_text(m.name) for m in whole.metadata] == ["min_runtime_version", "TFLITE_METADATA"]
    for part in _cut(data, 0b1, 0b10):
        assert not part.signatureDefs
        assert [_text(m.name) for m in part.metadata] == ["min_runtime_version"]
        assert bytes(part.buffers[part.metadata[0].buffer].data).startswith(b"1.14.0")


def test_a_signature_goes_also_where_a_segment_has_all_tensors_that_it_names() -> None:
    b = handmade.Builder()
    source = b.tensor("in")
    first = b.conv(source, "first")
    sides = {
        side: [Table("TensorMap", {"name": side, "tensor_index": t})]
        for side, t in (("inputs", source), ("outputs", first))
    }
    data = b.file([source], [first, b.conv(first, "second")], signature_defs=[Table("SignatureDef", sides)])
    whole, part, _ = _cut(data, 0b11, 0b1, 0b10)
    assert whole.signatureDefs
    assert not part.signatureDefs


@pytest.mark.parametrize("kind", ["TRANSPOSE_CONV", "RESHAPE"])
def test_folded_ops_enter_as_constants_and_segments_are_static(kind: str) -> None:
    first, second = _cut(handmade.free_batch(kind), 0b1111, 0b110000)
    assert len(first.subgraphs[0].operators) == 1
    for part in (first, second):
        for tensor in part.subgraphs[0].tensors:
            assert tensor.shapeSignature is None or -1 not in tensor.shapeSignature
    packed = next(t for t in second.subgraphs[0].tensors if _text(t.name) == "packed")
    values = np.frombuffer(bytes(second.buffers[packed.buffer].data), np.int32)
    assert values[0] == 1


def test_a_segment_needs_an_op_that_computes() -> None:
    cutter = Cutter(handmade.free_batch("RESHAPE"))
    for ops in (0, 0b111):
        with pytest.raises(ValueError, match="at least one op"):
            cutter.cut(ops)


def _described(model: ModelT, t: int) -> tuple[Any, ...]:
    tensor = model.subgraphs[0].tensors[t]
    q = tensor.quantization
    scales = None if q is None or q.scale is None else np.asarray(q.scale).tolist()
    zeros = None if q is None or q.zeroPoint is None else np.asarray(q.zeroPoint).tolist()
    data = model.buffers[tensor.buffer].data
    shape = None if tensor.shape is None else np.asarray(tensor.shape).tolist()
    return _text(tensor.name), tensor.type, shape, scales, zeros, None if data is None else bytes(data)


def _described_op(model: ModelT, operator: Any) -> tuple[Any, ...]:
    code = model.operatorCodes[operator.opcodeIndex]
    options = operator.builtinOptions
    fields = None if options is None else {k: np.asarray(v).tolist() for k, v in vars(options).items()}
    tensors = [None if t < 0 else _described(model, t) for t in [*operator.inputs, *operator.outputs]]
    return code.builtinCode, code.deprecatedBuiltinCode, code.version, fields, tensors


@pytest.mark.shared
@pytest.mark.parametrize("path", many_ops_wide(p for p in SOURCES if "unet_free" not in p.stem), ids=stem)
def test_every_op_and_tensor_of_a_real_model_is_in_a_segment_unchanged(path: Path) -> None:
    """Names of boundary tensors apart, where they are not unique; none are in these models."""
    data = path.read_bytes()
    graph = load_graph(path)
    n = len(graph.ops)
    edges = [0, n // 3, 2 * n // 3, n] if n >= 3 else [0, n]
    segments = [op_set(range(a, b)) for a, b in itertools.pairwise(edges)]
    whole = ModelT.InitFromPackedBuf(data, 0)
    expected = [_described_op(whole, o) for o in whole.subgraphs[0].operators]
    found = [_described_op(part, o) for part in _cut(data, *segments) for o in part.subgraphs[0].operators]
    assert found == expected
    assert data == path.read_bytes()


@st.composite
def _dags(draw: Callable[[Any], Any]) -> bytes:
    steps = draw(
        st.lists(
            st.tuples(st.sampled_from(handmade.DAG_KINDS), st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=7
        )
    )
    return handmade.dag(steps, draw(st.lists(st.integers(0, 9), max_size=2)))


def _down_set_chain(graph: Graph, choose: Callable[[int], int]) -> list[OpSet]:
    """A random partition: ops are taken one by one from those that are ready, with a new segment now and then."""
    segments, done = [0], 0
    while done != graph.all_ops:
        ready = [i for i in range(len(graph.ops)) if not done >> i & 1 and not graph.before[i] & ~done]
        op = ready[choose(len(ready))]
        if segments[-1] and choose(3) == 0:
            segments.append(0)
        segments[-1] |= 1 << op
        done |= 1 << op
    return segments


@given(_dags(), st.data())
def test_random_pieces_compute_what_the_whole_computes(data: bytes, draw: st.DataObject) -> None:
    cutter = Cutter(data)
    graph = cutter.graph
    segments = _down_set_chain(graph, lambda n: draw.draw(st.integers(0, n - 1)))
    names = boundary_names(graph, segments)
    files = [SegmentFile(f"s{k}", ops, cutter.cut(ops, names)) for k, ops in enumerate(segments)]
    result = verify_partition(open_model(data), files, random_items(model_interface(graph).inputs, 2))
    assert result.bit_exact
    assert result.compared_tensors
