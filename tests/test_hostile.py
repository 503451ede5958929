"""Broken and forged files: each gives a value or one of our errors; never another exception, a hang, or partial
output.
"""

from __future__ import annotations

import json
import os
import random
import resource
import time
from typing import TYPE_CHECKING

import pytest

from balancer.cli.main import main
from balancer.errors import BalancerError
from balancer.tflite.package import read_package
from tests import handmade
from tests.broken import mutate_bytes, use_model
from tests.outside import moved_out
from tests.shared import COMPILED, MODELS, ZOO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MUTATIONS = int(os.environ.get("BALANCER_MUTATIONS", "1200"))
SECONDS_A_FILE = 5.0  # a hundred times what the slowest took when this was written: a hang, not a slow machine


def _sources() -> list[bytes]:
    made = [
        handmade.conv_chain(),
        handmade.custom_op(),
        handmade.free_batch("RESHAPE"),
        handmade.free_batch("TRANSPOSE_CONV"),
        handmade.shared_state(),
        handmade.with_signature_and_metadata(),
        moved_out(handmade.custom_op()),
        moved_out(handmade.with_signature_and_metadata(), merged=True),
    ]
    names = ["bright_16x16", "keras_lstm_mnist_ptq", "split_concat", "looming_64x64_3x3", "gabor_64x64_7k_4o_2s"]
    real = [MODELS / f"{name}.tflite" for name in names] + [ZOO / "unet_free_int8.tflite"]
    return made + [path.read_bytes() for path in real if path.exists()]


def _mutations(count: int, seed: int) -> Iterator[bytes]:
    draw = random.Random(seed)
    sources = _sources()
    for k in range(count):
        yield mutate_bytes(sources[k % len(sources)], draw)


def test_mutated_files_give_a_value_or_one_of_our_errors() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, slowest = 0, 0.0
    for data in _mutations(MUTATIONS, seed=7):
        start = time.monotonic()
        try:
            use_model(data)
            read += 1
        except BalancerError as error:
            assert "\n" not in str(error)
        slowest = max(slowest, time.monotonic() - start)
    assert slowest < SECONDS_A_FILE
    assert 0 < read < MUTATIONS, "mutations must be neither harmless nor all fatal"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024, "KiB"


@pytest.mark.shared
def test_mutated_packages_give_a_value_or_one_of_our_errors() -> None:
    draw = random.Random(3)
    names = ["dense_256_edgetpu", "split_concat_edgetpu", "bright_16x16_edgetpu", "gabor_64x64_7k_4o_2s_edgetpu"]
    sources = [(COMPILED / f"{name}.tflite").read_bytes() for name in names]
    failed = 0
    for k in range(600):
        start = time.monotonic()
        try:
            read_package(mutate_bytes(sources[k % len(sources)], draw), name="mutated", where="mutated")
        except BalancerError:
            failed += 1
        assert time.monotonic() - start < SECONDS_A_FILE
    assert 0 < failed < 600


def test_the_command_survives_broken_files_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an error, `main` says one line and returns the exit code. Any other exception would end this test."""
    for k, data in enumerate(_mutations(50, seed=11)):
        model, output = tmp_path / f"broken_{k}.tflite", tmp_path / f"out_{k}"
        model.write_bytes(data)
        code = main(["solve", str(model), "-n", "2", "-o", str(output), "--json"])
        assert code in (0, 1, 3)
        document = json.loads(capsys.readouterr().out)
        assert output.exists() == (code == 0)
        assert ("error" in document) == (code != 0)
    assert not list(tmp_path.glob(".balancer-*"))
