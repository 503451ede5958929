"""A minute of misfortune: simulated TPUs that fail, hang and die at random, while items go through."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from typing import TYPE_CHECKING

import psutil
import pytest

import balancer
from balancer.inputs import random_items
from balancer.runtime.options import RunOptions
from balancer.runtime.pipeline import Pipeline
from balancer.runtime.recipes import Simulation
from balancer.runtime.recording import recorded_outputs
from balancer.runtime.simulated import Behaviour
from balancer.tflite import synth
from balancer.workers import Failure
from tests.replicas import with_replicas

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 62
KINDS = 7  # different inputs, so that a result out of order is seen
WARM_SECONDS = 15


@pytest.mark.timeout(240)
def test_a_minute_of_failing_hanging_and_dying(tmp_path: Path) -> None:
    """No input is lost without being reported, no result is out of order, nothing is left, memory stays flat."""
    model = tmp_path / "net.tflite"
    model.write_bytes(synth.fc(200, layers=8))
    plan = balancer.save(balancer.balance(model, 3, stages=3), tmp_path / "plan")
    plan = with_replicas(plan, [[2, 1, 2], [1, 1, 1]])
    items = random_items(Pipeline(plan, "sim").interface.inputs, KINDS)
    expected = [next(iter(r.values())).tobytes() for r in recorded_outputs(plan, items)[plan.segments[-1].name]]
    behaviours = {
        s.name: Behaviour(stage_ns=2_000_000, jitter=0.3, failing=4000, hanging=600, dying=1500) for s in plan.segments
    }
    options = RunOptions(
        simulation=Simulation(behaviours=behaviours, outputs="live"), processes=True, on_error="continue", seconds=0.5,
        restarts=1_000_000,
    )  # fmt: skip
    threads, me = set(threading.enumerate()), psutil.Process()
    pushed = itertools.count()
    start = time.monotonic()

    def source() -> object:
        while time.monotonic() - start < SECONDS:
            yield items[next(pushed) % KINDS]

    taken = failed = 0
    memory: list[int] = []
    with Pipeline(plan, "sim", options) as pipeline:
        for k, result in enumerate(pipeline.map(source())):  # type: ignore[arg-type]
            taken += 1
            if isinstance(result, Failure):
                failed += 1
                assert f"item {k}" in str(result.error)
            else:
                assert next(iter(result.values())).tobytes() == expected[k % KINDS], f"item {k}"
            if k % 200 == 0 and time.monotonic() - start > WARM_SECONDS:
                memory.append(me.memory_info().rss)
    assert taken == next(pushed)
    assert taken > 500
    assert 0 < failed < taken / 10
    gc.collect()
    assert set(threading.enumerate()) == threads
    assert not me.children(recursive=True)
    half = len(memory) // 2
    assert max(memory[half:]) < max(memory[:half]) + (8 << 20)
