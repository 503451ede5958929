"""What is said of ops on the CPU: a warning where they take most of the time, and TPUs that multiply nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import yolo_sizes
from converted import Converted, Window

from balancer.cli.main import main

if TYPE_CHECKING:
    import pytest

SIDE = 320


def from_pytorch(*, quantised_inside: bool) -> bytes:
    """Convolutions on a picture whose channels come first. quantised_inside: the input is float32, as LiteRT's tools write
    it.
    """
    net = Converted()
    x = net.input((1, 3, SIDE, SIDE), "FLOAT32" if quantised_inside else "INT8")
    x = net.transposed(net.requantised(x) if quantised_inside else x, (0, 2, 3, 1))
    for channels in (16, 32, 32):
        x = net.conv2d(x, channels, Window(3, 2))
    return net.file(x)


def solved(model: bytes, folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `solve` prints."""
    path = folder / "model.tflite"
    path.write_bytes(model)
    assert main(["solve", str(path), "--hardware", "usb", *words]) == 0
    return capsys.readouterr().out


def test_solve_warns_where_the_cpu_takes_most_of_the_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    said = solved(from_pytorch(quantised_inside=True), tmp_path, capsys, "-n", "1", "--json")
    assert json.loads(said)["format"] == "balancer-plan"
    (warning,) = caplog.messages
    assert "% of the predicted time of an inference, from op 1 TRANSPOSE on" in warning
    assert "1xHxWx3" in warning


def test_a_stage_that_only_keeps_ops_apart_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    said = solved(from_pytorch(quantised_inside=True), tmp_path, capsys, "-n", "2")
    assert "stage 0 multiplies nothing: its TPU only keeps op 1 TRANSPOSE from" in said
    assert not caplog.messages


def test_nothing_is_said_where_the_cpu_works_before_the_chip_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    said = solved(from_pytorch(quantised_inside=False), tmp_path, capsys, "-n", "2")
    assert "multiplies nothing" not in said
    assert not caplog.messages


def test_an_op_in_the_middle_that_the_chip_does_not_take_asks_for_another_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    net = Converted()
    x = net.conv2d(net.input((1, 32, 32, 16)), 16)
    x = net.op("ABS", [x], net.shape(x))
    for _ in range(6):
        x = net.conv2d(x, 64, Window(3))
    solved(net.file(x), tmp_path, capsys, "-n", "1")
    (warning,) = caplog.messages
    assert "from op 1 ABS on: allow more TPUs" in warning


def test_ops_that_are_the_work_of_the_cpu_themselves_ask_for_a_model_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    net = Converted()
    x = net.conv2d(net.input((1, 64, 64, 16)), 16)
    for _ in range(20):
        x = net.op("ABS", [x], net.shape(x))
    solved(net.file(x), tmp_path, capsys, "-n", "1")
    (warning,) = caplog.messages
    assert "from op 1 ABS on: convert the model without it" in warning


def test_the_page_on_yolo_shows_what_the_table_of_sizes_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "yolo.md").read_text(encoding="utf-8")
    assert yolo_sizes.main(["YOLOv8n", "--sizes", "192"]) == 0
    assert capsys.readouterr().out in page
    assert all(f"| {name} | {size} |" in page for name in ("YOLOv8n", "YOLO11n") for size in yolo_sizes.SIZES)
