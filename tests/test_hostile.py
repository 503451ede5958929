"""Broken and forged files: each gives a value or one of our errors; never another exception, a hang, or partial
output.
"""

from __future__ import annotations

import json
import random
import resource
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from balancer.cost.batch import SegmentBatch
from balancer.cost.hardware import load_hardware
from balancer.cost.segment import SegmentCosts
from balancer.errors import BalancerError
from balancer.ground.downsets import DownSets
from balancer.tflite.cut import Cutter
from balancer.tflite.package import read_package
from tests import handmade
from tests.shared import COMPILED, MODELS, ZOO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MUTATIONS = 2400
SECONDS_A_FILE = 5.0  # a hundred times what the slowest took when this was written: a hang, not a slow machine
_EXTREMES = [0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE, 0x10000000, 0x00FFFFFF]


def _sources() -> list[bytes]:
    made = [
        handmade.conv_chain(),
        handmade.custom_op(),
        handmade.free_batch("RESHAPE"),
        handmade.free_batch("TRANSPOSE_CONV"),
        handmade.shared_state(),
        handmade.with_signature_and_metadata(),
    ]
    names = ["bright_16x16", "keras_lstm_mnist_ptq", "split_concat", "looming_64x64_3x3", "gabor_64x64_7k_4o_2s"]
    real = [MODELS / f"{name}.tflite" for name in names] + [ZOO / "unet_free_int8.tflite"]
    return made + [path.read_bytes() for path in real if path.exists()]


def _structure(data: bytes) -> int:
    """Where the tables lie: at the front of what our encoder and TensorFlow's write, small next to the constants."""
    return min(len(data), 20_000)


def _mutated(data: bytes, draw: random.Random) -> bytes:
    kind = draw.randrange(5)
    if kind == 0:
        return data[: draw.randrange(len(data))]
    changed = bytearray(data)
    reach = _structure(data) if draw.random() < 0.7 else len(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(max(1, reach - 8))
        if kind == 1:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            struct.pack_into("<I", changed, at & ~3, draw.choice(_EXTREMES))
        elif kind == 3:
            struct.pack_into("<H", changed, at & ~1, draw.randrange(1 << 16))
        else:
            size = draw.randrange(1, 64)
            source = draw.randrange(max(1, reach - size))
            changed[at : at + size] = data[source : source + size]
    return bytes(changed)


def _mutations(count: int, seed: int) -> Iterator[bytes]:
    draw = random.Random(seed)
    sources = _sources()
    for k in range(count):
        yield _mutated(sources[k % len(sources)], draw)


def _use(data: bytes) -> None:
    """Everything that reads a model without running it."""
    cutter = Cutter(data)
    graph = cutter.graph
    costs = SegmentCosts(graph, load_hardware("pcie"))
    half = (1 << (len(graph.ops) + 1) // 2) - 1
    SegmentBatch(costs, DownSets.of([0, half, graph.all_ops], len(graph.ops)))([0, 0, 1], [1, 2, 2])
    for ops in (half, graph.all_ops & ~half):
        if ops & ~graph.folded:
            cutter.cut(ops)


def test_mutated_files_give_a_value_or_one_of_our_errors() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, slowest = 0, 0.0
    for data in _mutations(MUTATIONS, seed=7):
        start = time.monotonic()
        try:
            _use(data)
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
            read_package(_mutated(sources[k % len(sources)], draw), name="mutated", where="mutated")
        except BalancerError:
            failed += 1
        assert time.monotonic() - start < SECONDS_A_FILE
    assert 0 < failed < 600


def test_the_command_survives_broken_files_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """50 files through the command, a few at a time."""
    running = []
    for k, data in enumerate(_mutations(50, seed=11)):
        model, output = tmp_path / f"broken_{k}.tflite", tmp_path / f"out_{k}"
        model.write_bytes(data)
        command = [sys.executable, "-m", "balancer", "solve", str(model), "-n", "2", "-o", str(output), "--json"]
        running.append((subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True), output))
        if len(running) == 4 or k == 49:
            for process, folder in running:
                stdout, stderr = process.communicate(timeout=60)
                assert process.returncode in (0, 1, 3), stderr
                assert "Traceback" not in stderr
                document = json.loads(stdout)
                assert folder.exists() == (process.returncode == 0)
                assert ("error" in document) == (process.returncode != 0)
            running.clear()
    assert not list(tmp_path.glob(".balancer-*"))
