"""The examples, run as their own help says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from balancer.interpreter import open_interpreter
from balancer.tflite import synth
from tests.shared import MODELS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.shared
def test_a_cat_is_the_same_cat_in_four_segments() -> None:
    command = [
        EXAMPLES / "classify.py", MODELS / "mobilenet_v2_1.0_224_quant.tflite", MODELS / "cat.bmp",
        MODELS / "imagenet_labels.txt", "--segments", "4",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert lines[0].count("Egyptian cat") == 2


def _run(example: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / example), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.shared
def test_pictures_through_simulated_tpus(tmp_path: Path) -> None:
    """Every picture's class is what the whole model says, in the pictures' order."""
    sizes = [(40, 30), (300, 200), (224, 224), (10, 500), (64, 64)]
    dice = np.random.default_rng(3)
    for k, (width, height) in enumerate(sizes):
        pixels = dice.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    model = MODELS / "mobilenet_v2_1.0_224_quant.tflite"
    out = _run("pictures.py", model, tmp_path, "--tpus", 4)
    whole = open_interpreter(model.read_bytes())
    expected = []
    for k in range(len(sizes)):
        with Image.open(tmp_path / f"{k}.png") as image:
            whole.run([np.asarray(image.resize((224, 224)), np.uint8)[None]])
        expected.append(f"{k}.png: class {int(whole.outputs()[0].argmax())}")
    assert out.splitlines()[: len(sizes)] == expected


def test_a_camera_with_back_pressure(tmp_path: Path) -> None:
    """Faster than the pipeline: frames are dropped, and what was taken comes out."""
    (tmp_path / "net.tflite").write_bytes(synth.conv(200, layers=6, size=64))
    words = _run("camera.py", tmp_path / "net.tflite", "--tpus", 3, "--fps", 2000, "--seconds", 1).split()
    taken, dropped, results = int(words[0]), int(words[3]), int(words[5])
    assert taken == results > 0
    assert dropped > 0
