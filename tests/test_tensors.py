"""Tensors of items in flight: who lives when, and who may share memory with whom."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import balancer
from balancer.runtime.tensors import ENDLESS, FrameTensors, Life, SharedFrames, TensorSpec, dead_after, layout, lives
from balancer.tflite import synth
from tests import handmade


@given(st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 6), st.integers(0, 5000)), min_size=1, max_size=12))
def test_tensors_that_live_at_once_share_nothing(found: list[tuple[int, int, int]]) -> None:
    made = {
        f"t{k}": Life(TensorSpec(f"t{k}", (size,), "int8", size), made, ENDLESS if read == 6 else max(made, read))
        for k, (made, read, size) in enumerate(found)
    }
    plan = layout([made])
    spans = {name: (plan.offsets[name], plan.offsets[name] + life.spec.bytes) for name, life in made.items()}
    for a, first in made.items():
        assert spans[a][1] <= plan.frame_bytes
        assert spans[a][0] % 64 == 0
        for b, second in made.items():
            together = first.made <= second.read and second.made <= first.read
            if a < b and together and first.spec.bytes and second.spec.bytes:
                assert spans[a][1] <= spans[b][0] or spans[b][1] <= spans[a][0]


def test_tensors_live_from_their_maker_to_their_last_reader(tmp_path: Path) -> None:
    """A tensor that skips a stage is carried past it; a model output stays to the end."""
    (tmp_path / "net.tflite").write_bytes(handmade.outputs_against_execution_order())
    graph = balancer.load_graph(tmp_path / "net.tflite")
    parts = [[op.index] for op in graph.ops]
    plan = balancer.predict(tmp_path / "net.tflite", parts)
    outputs = {graph.tensors[t].name for t in graph.outputs}
    found = lives([plan.segment(s.segment) for s in plan.pipelines[0].stages], outputs)
    for name, life in found.items():
        readers = [k for k, s in enumerate(plan.segments) if any(t.tensor == name for t in s.inputs)]
        makers = [k for k, s in enumerate(plan.segments) if any(t.tensor == name for t in s.outputs)]
        assert life.made == (makers[0] if makers else -1)
        assert life.read == (ENDLESS if name in outputs else max(readers, default=life.made))
    gone = [name for k in range(len(parts)) for name in dead_after(found, k)]
    assert sorted([*gone, *outputs]) == sorted(found)


def test_frames_are_shared_and_leave_nothing(tmp_path: Path) -> None:
    specs = {
        "a": TensorSpec("a", (2, 3), "int8", 6),
        "b": TensorSpec("b", (4,), "float32", 16),
        "c": TensorSpec("c", None, "int8", 0),
    }
    made = {name: Life(spec, -1, ENDLESS) for name, spec in specs.items()}
    before = set(Path("/dev/shm").iterdir())
    frames = SharedFrames(layout([made]), 3)
    other = SharedFrames(frames.layout, 3, fd=os.dup(frames.fd))
    mine, theirs = FrameTensors(1, frames.view(1)), FrameTensors(1, other.view(1))
    mine["a"] = np.arange(6, dtype=np.int8).reshape(2, 3)
    mine["c"] = beside = np.array([1, 2])
    assert theirs["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert "c" in mine
    assert "c" not in theirs
    assert other.view(0)["a"].tolist() == [[0, 0, 0]] * 0 + [[0, 0, 0], [0, 0, 0]]
    assert mine.pop("c", None) is beside
    del mine, theirs
    other.close()
    frames.close()
    assert set(Path("/dev/shm").iterdir()) == before


def test_one_pipeline_shares_bytes_between_stages(tmp_path: Path) -> None:
    (tmp_path / "net.tflite").write_bytes(synth.conv(32, layers=8, size=32))
    plan = balancer.predict(tmp_path / "net.tflite", [[0, 1], *([k] for k in range(2, 9))])
    found = lives(list(plan.segments), [])
    together = layout([found]).frame_bytes
    apart = layout([found, found]).frame_bytes
    assert together < apart / 2
