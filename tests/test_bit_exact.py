"""The chained segments of every real model compute the whole model, bit for bit."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest

import balancer
from balancer.graph import boundary_names
from balancer.inputs import model_interface, random_items
from balancer.tflite.cut import Cutter
from balancer.tflite.opened import open_model
from balancer.verification import SegmentFile, verify_partition
from tests.shared import RUNNABLE, ZOO, many_ops_wide, stem

if TYPE_CHECKING:
    from pathlib import Path

    from balancer.graph import Graph
    from balancer.ground.opsets import OpSet

pytestmark = pytest.mark.shared


@pytest.mark.parametrize(
    "stages", [pytest.param(2, marks=pytest.mark.wide), 3, pytest.param(4, marks=pytest.mark.wide), 8]
)
@pytest.mark.parametrize("path", many_ops_wide(RUNNABLE), ids=stem)
def test_one_pipeline_of_n_segments_is_bit_exact(path: Path, stages: int) -> None:
    graph = balancer.load_graph(path)
    most = len(graph.ops) - graph.folded.bit_count()
    n = min(stages, most)
    plan = balancer.balance(path, n, options=balancer.Options(stages=n, solver="chain"))
    assert len(plan.segments) == n
    result = balancer.verify(plan, 1)
    assert result.bit_exact, result
    assert len(result.verified_segments) == n


def _chain_of_down_sets(graph: Graph, segments: int, seed: int) -> list[OpSet]:
    """Ops taken at random from those that are ready, so that branches interleave; cut into equal counts."""
    draw = random.Random(seed)
    done, order = 0, []
    while done != graph.all_ops:
        ready = [i for i in range(len(graph.ops)) if not done >> i & 1 and not graph.before[i] & ~done]
        order.append(draw.choice(ready))
        done |= 1 << order[-1]
    edges = [len(order) * k // segments for k in range(segments + 1)]
    return [sum(1 << i for i in order[a:b]) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["InceptionV3", "DenseNet121", "EfficientNetB0", "NASNetMobile"])
def test_random_chains_of_down_sets_are_bit_exact(name: str, seed: int) -> None:
    data = (ZOO / f"{name}_int8.tflite").read_bytes()
    cutter = Cutter(data)
    partition = _chain_of_down_sets(cutter.graph, 5, seed)
    names = boundary_names(cutter.graph, partition)
    files = [SegmentFile(f"s{k}", ops, cutter.cut(ops, names)) for k, ops in enumerate(partition)]
    result = verify_partition(open_model(data), files, random_items(model_interface(cutter.graph).inputs, 1))
    assert result.bit_exact, result
