"""The examples, run as their own help says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.shared import MODELS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.shared
def test_a_cat_is_the_same_cat_in_four_segments() -> None:
    command = [
        sys.executable, EXAMPLES / "classify.py", MODELS / "mobilenet_v2_1.0_224_quant.tflite", MODELS / "cat.bmp",
        MODELS / "imagenet_labels.txt", "--segments", "4",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert lines[0].count("Egyptian cat") == 2
