"""Which ops of published detectors stay on the CPU, as compiled files and published operation logs say."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from detectors import efficientdet_lite, yolov5, yolov8

from balancer.cli.main import main
from balancer.ground.opsets import members
from balancer.tflite.read import read_graph
from tests.shared import ZOO

if TYPE_CHECKING:
    from collections.abc import Callable

    from balancer.graph import Graph


def left_on_cpu(graph: Graph) -> Counter[str]:
    return Counter(graph.ops[i].type for i in members(graph.on_cpu(graph.all_ops, graph.mapped)))


def graph_of(data: bytes) -> Graph:
    return read_graph(data, name="model", where="model")


def test_yolov8n_of_four_classes_at_320_px_leaves_on_the_cpu_what_its_compiled_file_lists() -> None:
    listed = "TRANSPOSE:2 RESHAPE:3 CONCATENATION:3 STRIDED_SLICE:4 SOFTMAX:1 CONV_2D:1 SUB:2 ADD:2 MUL:3 LOGISTIC:1 QUANTIZE:1"
    counts = {kind: int(count) for kind, count in (entry.split(":") for entry in listed.split())}
    assert left_on_cpu(graph_of(yolov8("n", 320, classes=4, release="8.0"))) == Counter(counts)


# Sources: the operation logs of jveitchmichaelis/edgetpu-yolo; ultralytics/ultralytics issue 4754.
FULLY_MAPPED: dict[str, Callable[[], bytes]] = {
    "YOLOv8n 160": lambda: yolov8("n", 160, release="8.0"),
    "YOLOv8n 192": lambda: yolov8("n", 192, release="8.0"),
    "YOLOv8s 192": lambda: yolov8("s", 192, release="8.0"),
    "YOLOv8n 224, 15 classes": lambda: yolov8("n", 224, classes=15, release="8.0"),
    "YOLOv5n 160": lambda: yolov5("n", 160, release="6.2"),
    "YOLOv5s 160": lambda: yolov5("s", 160, release="6.2"),
    "YOLOv5s 320, 15 classes": lambda: yolov5("s", 320, classes=15, release="6.2"),
}


@pytest.mark.parametrize("name", FULLY_MAPPED)
def test_nothing_stays_on_the_cpu_where_published_logs_say_so(name: str) -> None:
    assert not left_on_cpu(graph_of(FULLY_MAPPED[name]()))


def test_yolov5s_at_224_px_loses_the_two_ops_that_its_log_names_as_limited() -> None:
    graph = graph_of(yolov5("s", 224, release="5.0"))
    assert Counter(op.type for op in graph.ops if not op.mapped) == {"TRANSPOSE": 1, "RESHAPE": 1}


def test_efficientdet_keeps_its_boxes_on_the_chip_and_its_last_three_ops_on_the_cpu() -> None:
    assert left_on_cpu(graph_of(efficientdet_lite(0))).total() == 3


@pytest.mark.shared
def test_inspect_says_which_ops_stay_on_the_cpu_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(ZOO / "YOLOv8n_320_int8.tflite")]) == 0
    said = capsys.readouterr().out
    assert "on the CPU, if the model is one segment: 21 of 257 ops" in said
    assert "228 RESHAPE: source and result in one tile: 204,800 bytes, more than 196,608" in said
