"""From bytes to a Graph: what is read, and what is refused with one line that names the place and the remedy."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import networkx
import numpy as np
import pytest

from balancer.cost.hardware import load_hardware
from balancer.cost.segment import SegmentCosts
from balancer.errors import ModelError
from balancer.ground.opsets import op_set
from balancer.tflite.package import load_package
from balancer.tflite.read import load_graph, read_graph
from tests import handmade
from tests.shared import COMPILED, MODELS, SOURCES, ZOO, stem

if TYPE_CHECKING:
    from pathlib import Path

    from balancer.graph import Graph


def _graph(data: bytes) -> Graph:
    return read_graph(data, name="made")


def test_a_chain_is_read_in_execution_order() -> None:
    graph = _graph(handmade.conv_chain(3))
    assert [op.type for op in graph.ops] == ["CONV_2D"] * 3
    assert graph.before == (0, 0b1, 0b10)
    conv = graph.ops[0]
    assert conv.macs == 4 * 4 * 4 * (3 * 3 * 4)  # output elements, each 3 x 3 taps of 4 channels
    assert conv.parameter_bytes == 4 * 3 * 3 * 4 + 4 * 4  # int8 kernel, int32 bias
    assert conv.mapped
    assert graph.tensors[graph.inputs[0]].shape == handmade.SHAPE


def test_an_absent_bias_stays_absent() -> None:
    b = handmade.Builder()
    source = b.tensor("in")
    graph = _graph(b.file([source], [b.dense(source, "dense")]))
    assert graph.ops[0].inputs[2] == -1


def test_ops_that_share_state_are_named_together() -> None:
    assert _graph(handmade.shared_state()).together == (0b1010,)


@pytest.mark.parametrize("kind", ["TRANSPOSE_CONV", "RESHAPE"])
def test_shapes_behind_a_free_batch_are_propagated_not_trusted(kind: str) -> None:
    graph = _graph(handmade.free_batch(kind))
    assert graph.folded == 0b111
    expected = (1, 8, 8, 4) if kind == "TRANSPOSE_CONV" else (1, 2, 8, 4)
    assert graph.tensors[graph.ops[4].outputs[0]].shape == expected
    assert graph.tensors[graph.outputs[0]].shape == expected
    assert graph.before[4] == 0b1000, "a folded op is nobody's producer"


def test_float_inputs_and_outputs_of_an_integer_model_are_fine() -> None:
    graph = _graph(handmade.float_glue())
    assert [op.mapped for op in graph.ops] == [True, True, False]
    assert graph.ops[2].unmapped


def test_outputs_of_a_custom_op_have_no_shape_and_no_bytes() -> None:
    graph = _graph(handmade.custom_op())
    for t in graph.outputs:
        assert graph.tensors[t].shape is None
        assert graph.tensors[t].bytes == 0
    assert graph.ops[1].type == "CUSTOM:Decode"


REFUSED = {
    "not a TFLite file": (b"this is no model at all", "TFL3"),
    "empty": (b"", "not a TFLite file but an empty file"),
    "float compute": (handmade.float_compute(), "tensor 'in' is float32"),
    "dynamic": (handmade.dynamic_height(), "input 'picture'"),
    "several subgraphs": (handmade.two_subgraphs(), "2 subgraphs"),
    "truncated": (handmade.conv_chain()[:-400], "truncated or corrupt|its buffer has"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_is_refused_in_one_line_with_a_remedy(name: str) -> None:
    data, what = REFUSED[name]
    with pytest.raises(ModelError, match=what) as caught:
        _graph(data)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("made")
    assert caught.value.args[2], "a remedy"


@pytest.mark.parametrize(
    ("path", "what"), [("nowhere.tflite", "cannot be read"), (".", "not a TFLite file but a folder")]
)
def test_a_path_that_cannot_be_read_is_named(path: str, what: str) -> None:
    with pytest.raises(ModelError, match=what):
        load_graph(path)


@pytest.mark.shared
def test_a_compiled_file_is_refused_as_such() -> None:
    with pytest.raises(ModelError, match="already compiled"):
        load_graph(COMPILED / "dense_256_edgetpu.tflite")


@pytest.mark.shared
@pytest.mark.parametrize("path", SOURCES, ids=stem)
def test_every_real_model_is_read_as_the_interpreter_reads_it(path: Path) -> None:
    from ai_edge_litert.schema_py_generated import ModelT

    graph = load_graph(path)
    theirs = ModelT.InitFromPackedBuf(path.read_bytes(), 0).subgraphs[0]
    assert [list(op.inputs) for op in graph.ops] == [np.asarray(o.inputs).tolist() for o in theirs.operators]
    assert [list(op.outputs) for op in graph.ops] == [np.asarray(o.outputs).tolist() for o in theirs.operators]
    assert list(graph.inputs) == np.asarray(theirs.inputs).tolist()
    names = [tensor.name.encode() for tensor in theirs.tensors] if isinstance(theirs.tensors[0].name, str) else None
    assert names is None or [tensor.name.encode() for tensor in graph.tensors] == names
    drawn = graph.to_networkx()
    assert networkx.is_directed_acyclic_graph(drawn)
    for op in graph.ops:
        assert op_set(drawn.predecessors(op.index)) == graph.before[op.index]


@pytest.mark.shared
def test_the_free_batch_model_of_the_zoo_folds_its_shape_ops() -> None:
    graph = load_graph(ZOO / "unet_free_int8.tflite")
    assert [graph.ops[i].type for i in range(len(graph.ops)) if graph.folded >> i & 1] == [
        "SHAPE",
        "STRIDED_SLICE",
        "PACK",
    ]


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        "movenet_single_pose_lightning_ptq",
        "deeplabv3_mnv2_dm05_pascal_quant",
        "posenet_mobilenet_v1_075_353_481_16_quant_decoder",
        "mobilenet_v2_1.0_224_quant",
        "keras_lstm_mnist_ptq",
        "bright_128x128",
    ],
)
def test_the_ops_on_the_cpu_are_those_that_the_compiler_left_there(name: str) -> None:
    graph = load_graph(MODELS / f"{name}.tflite")
    on_cpu = SegmentCosts(graph, load_hardware("pcie")).on_cpu(graph.all_ops)
    left = load_package(COMPILED / f"{name}_edgetpu.tflite").cpu_ops
    assert Counter(graph.ops[i].type for i in range(len(graph.ops)) if on_cpu >> i & 1) == Counter(left)
