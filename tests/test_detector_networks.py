"""The generated detectors are the published networks: op by op where a file is here, by counts and parameters elsewhere."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import detectors
import numpy as np
import pytest

from balancer import load_graph
from balancer.interpreter import open_interpreter
from tests.shared import MODELS, ZOO

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from balancer.graph import Graph

SMALL = {
    "yolov8n": lambda: detectors.yolov8("n", 64), "yolov8n of 2023": lambda: detectors.yolov8("n", 64, release="8.0"),
    "yolo11n": lambda: detectors.yolo11("n", 64), "yolov5n": lambda: detectors.yolov5("n", 64),
    "yolov5n 6.0": lambda: detectors.yolov5("n", 64, release="6.0"),
    "yolov5n 5.0": lambda: detectors.yolov5("n", 64, release="5.0"),
    "efficientdet": lambda: detectors.efficientdet_lite(0, 64, classes=3),
    "efficientnet": lambda: detectors.efficientnet_lite(0, 64), "mobilenet": lambda: detectors.mobilenet_v1(0.25, 64),
}  # fmt: skip


def _read(data: bytes | Path) -> list[tuple[object, ...]]:
    """Each op: type, what it reads (by its producer) and writes, with shapes and, for the activations, types; options."""
    graph = load_graph(data)
    made = {t: (op.index, k) for op in graph.ops for k, t in enumerate(op.outputs)}

    def tensor(t: int) -> tuple[object, ...]:
        known = graph.tensors[t]
        return made.get(t, known.is_parameter), known.shape

    return [
        (op.type, [tensor(t) for t in op.inputs], [tensor(t) for t in op.outputs], dict(op.options)) for op in graph.ops
    ]


def _parameters(graph: Graph) -> int:
    """Weights and biases of all layers."""
    layers = (op for op in graph.ops if op.type in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"))
    return sum(math.prod(graph.tensors[t].shape or ()) for op in layers for t in op.inputs[1:3])


@pytest.mark.shared
def test_yolov8_has_the_ops_of_the_file_that_its_authors_exported() -> None:
    assert _read(detectors.yolov8("n", 320)) == _read(ZOO / "YOLOv8n_320_int8.tflite")


@pytest.mark.shared
@pytest.mark.parametrize(("width", "size"), [(0.25, 128), (0.5, 160)])
def test_mobilenet_has_the_ops_of_the_published_files(width: float, size: int) -> None:
    published = MODELS / f"mobilenet_v1_{width}_{size}_quant.tflite"
    assert _read(detectors.mobilenet_v1(width, size)) == _read(published)


# As Ultralytics prints them for fused networks. The converter adds one bias of zero to YOLOv8 and YOLO11.
@pytest.mark.parametrize(
    ("make", "published"),
    [
        pytest.param(lambda: detectors.yolov8("n", 32), 3_151_904 + 1, id="yolov8n"),
        pytest.param(lambda: detectors.yolov8("s", 32), 11_156_544 + 1, id="yolov8s"),
        pytest.param(lambda: detectors.yolo11("n", 32), 2_616_248 + 1, id="yolo11n"),
        pytest.param(lambda: detectors.yolo11("s", 32), 9_443_760 + 1, id="yolo11s"),
        pytest.param(lambda: detectors.yolo11("m", 32), 20_091_712 + 1, id="yolo11m"),
        pytest.param(lambda: detectors.yolov5("n", 32), 1_867_405, id="yolov5n"),
        pytest.param(lambda: detectors.yolov5("s", 32), 7_225_885, id="yolov5s"),
        pytest.param(lambda: detectors.yolov5("s", 32, release="5.0"), 7_266_973, id="yolov5s 5.0"),
    ],
)
def test_detectors_have_the_published_number_of_parameters(make: Callable[[], bytes], published: int) -> None:
    assert _parameters(load_graph(make())) == published


@pytest.mark.parametrize(("lite", "published"), [(0, 4_652_008), (2, 6_092_072)])
def test_efficientnets_have_the_published_number_of_parameters(lite: int, published: int) -> None:
    """The published numbers count scale and offset of each normalisation. Of both only the bias is left."""
    graph = load_graph(detectors.efficientnet_lite(lite, 32))
    normalised = [op for op in graph.ops if "CONV" in op.type]
    scales = sum(math.prod(graph.tensors[op.inputs[2]].shape or ()) for op in normalised)
    assert _parameters(graph) + scales == published


# The tables of published logs: tetutaro/yolo_various_framework (release 5.0), jveitchmichaelis/edgetpu-yolo (6.2),
# google-coral/edgetpu issues 490 and 560 (EfficientDet).
@pytest.mark.parametrize(
    ("make", "published"),
    [
        pytest.param(
            lambda: detectors.yolov5("s", 32, release="5.0"),
            {
                "QUANTIZE": 26, "LOGISTIC": 62, "TRANSPOSE": 3, "SUB": 3, "CONCATENATION": 18, "MAX_POOL_2D": 3,
                "STRIDED_SLICE": 13, "CONV_2D": 62, "MUL": 80, "RESIZE_NEAREST_NEIGHBOR": 2, "RESHAPE": 6, "PAD": 6,
                "ADD": 10,
            },
            id="yolov5s 5.0",
        ),
        pytest.param(
            lambda: detectors.yolov5("n", 32),
            {
                "QUANTIZE": 7, "LOGISTIC": 66, "CONCATENATION": 17, "MAX_POOL_2D": 3, "STRIDED_SLICE": 9, "CONV_2D": 60,
                "MUL": 75, "RESIZE_NEAREST_NEIGHBOR": 2, "RESHAPE": 6, "PAD": 7, "ADD": 10,
            },
            id="yolov5n 6.2",
        ),
        pytest.param(
            lambda: detectors.efficientdet_lite(0),
            {
                "QUANTIZE": 1, "LOGISTIC": 1, "CONCATENATION": 2, "MAX_POOL_2D": 14, "CONV_2D": 102, "DEPTHWISE_CONV_2D": 80,
                "RESIZE_NEAREST_NEIGHBOR": 12, "RESHAPE": 10, "ADD": 42, "DEQUANTIZE": 2,
                "CUSTOM:TFLite_Detection_PostProcess": 1,
            },
            id="efficientdet-lite0",
        ),
    ],
)  # fmt: skip
def test_ops_by_type_are_those_of_published_logs(make: Callable[[], bytes], published: dict[str, int]) -> None:
    assert Counter(op.type for op in load_graph(make()).ops) == published


def test_efficientdet_lite3_has_the_ops_of_its_two_published_segments() -> None:
    assert (
        len(load_graph(detectors.efficientdet_lite(3, 128)).ops) >= 84 + 340 - 8
    )  # levels of one pixel need no resizing


def test_the_edge_tpu_supports_all_of_yolo11_but_its_attention() -> None:
    graph = load_graph(detectors.yolo11("n", 64))
    assert [op.type for op in graph.ops if op.unmapped] == ["BATCH_MATMUL"] * 2


@pytest.mark.parametrize("name", SMALL)
def test_a_network_runs_and_its_outputs_depend_on_its_input(name: str) -> None:
    data = SMALL[name]()
    assert data == SMALL[name]()
    graph = load_graph(data)
    (entry,) = (graph.tensors[t] for t in graph.inputs)
    numbers = np.random.default_rng(0).integers(0, 256, (2, *(entry.shape or ())), np.uint8)
    made = []
    for picture in numbers:
        interpreter = open_interpreter(data)
        interpreter.run([picture.view(np.dtype(entry.dtype))])
        made.append(interpreter.outputs()[0].copy())
    assert len(np.unique(made[0])) > 1
    assert (made[0] != made[1]).any()


@pytest.mark.parametrize("make", [detectors.yolov5, detectors.yolov8, detectors.yolo11])
def test_a_size_that_the_strides_do_not_divide_is_refused(make: Callable[[str, int], bytes]) -> None:
    with pytest.raises(ValueError, match="multiples of 32, not 100"):
        make("n", 100)
