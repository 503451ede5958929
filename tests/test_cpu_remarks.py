"""What is said of ops on the CPU: a warning where they take most of the time, and TPUs that multiply nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from converted import Converted, Window
from detectors import yolo11

from balancer.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

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
    """YOLO11's attention multiplies two activations."""
    solved(yolo11("n", 96), tmp_path, capsys, "-n", "1")
    (warning,) = caplog.messages
    assert "BATCH_MATMUL on: allow more TPUs" in warning
