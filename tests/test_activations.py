"""Activations in the chip's memory, computed a second time from the ops' own lists; whether segments compile."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.cost.batch import SegmentBatch
from balancer.cost.compilable import LEVELS, Compilable
from balancer.cost.devices import Devices
from balancer.cost.hardware import load_hardware
from balancer.cost.placing import Span, highest_address
from balancer.cost.segment import SegmentCosts
from balancer.errors import InfeasibleError
from balancer.ground.downsets import DownSets
from balancer.ground.opsets import members
from balancer.ground.units import ceil_div
from balancer.planning.costed_model import COMPILABLE, CostedModel
from balancer.planning.options import Options
from balancer.planning.solving import solve_costed_model
from balancer.tflite.flatbuffer import Table
from balancer.tflite.opened import open_model
from balancer.tflite.read import load_graph, read_graph
from tests import handmade
from tests.dags import best_value
from tests.handmade import Builder
from tests.shared import MODELS, POSENET
from tests.test_cost_terms import depends, down_sets, graphs, nested_pairs, reads

if TYPE_CHECKING:
    from balancer.graph import Graph

PCIE = load_hardware("pcie")
# So little narrow memory that some ops of small graphs fit and others don't, and little wide memory.
SMALL = PCIE.changed({"narrow_bytes": 16 * 300, "wide_bytes_per_tile": 15_000})
TIGHT = PCIE.changed({"narrow_bytes": 16 * 60, "wide_bytes_per_tile": 5})


def live_at(graph: Graph, costs: SegmentCosts, ops: set[int], op: int) -> set[int]:
    """The tensors that are live at an op of a segment, by the definition in words."""
    before = depends(graph)
    so_far = {i for i in ops if i == op or i in before[op]}
    makers = {t: o.index for o in graph.ops for t in o.outputs}
    readers = {t: [o.index for o in graph.ops if t in reads(graph, o)] for t in range(len(graph.tensors))}
    live = set()
    for i in so_far:
        touched = reads(graph, graph.ops[i]) | set(graph.ops[i].outputs)
        for t in touched:
            begun = t in graph.ops[i].outputs or makers.get(t) not in ops
            if begun and op <= max(readers[t], default=makers.get(t, 0)):
                live.add(t)
    return live


def needed(graph: Graph, costs: SegmentCosts, ops: set[int], op: int) -> int:
    activations = costs.spilling.activations
    size: dict[int, int] = dict(zip(activations.tensors, activations.tile_bytes.tolist(), strict=True))
    return sum(size[t] for t in live_at(graph, costs, ops, op)) + int(activations.beside_bytes[op])


@given(graphs(), st.sampled_from([SMALL, TIGHT]), st.booleans())
def test_live_tensors_and_levels_are_what_the_words_say(graph: Graph, hardware: Any, moving: bool) -> None:
    if moving:
        graph = replace(graph, ops=tuple(replace(op, type="RESHAPE") if op.unmapped else op for op in graph.ops))
    costs, before = SegmentCosts(graph, hardware), depends(graph)
    sets = down_sets(graph)
    pairs = nested_pairs(sets)
    enough = hardware.chip.narrow_bytes // 16 * 93 // 100
    levels = SegmentBatch(costs, DownSets.of(sets, len(graph.ops))).levels(*np.transpose(pairs))
    for k, (a, b) in enumerate(pairs):
        ops = sets[b] & ~sets[a]
        chip = ops & costs.mapped & ~costs.on_cpu(ops)
        needs = {i: needed(graph, costs, set(members(ops)), i) for i in members(chip)}
        mapped = set(members(ops & costs.mapped))
        left_out = moving and any(before[i] & mapped for i in members(ops & costs.unmapped))
        judged = costs.judgement(ops)
        assert LEVELS[levels[k]] is judged.level
        assert (judged.level is Compilable.SURELY) == (all(n <= enough for n in needs.values()) and not left_out)
        assert judged.tile_bytes == max(needs.values(), default=0)
        assert (judged.tensor is None) == (judged.level is Compilable.SURELY)
        assert costs.activation_bytes(ops) <= hardware.chip.narrow_bytes // 16


@given(graphs(), st.sampled_from([SMALL, TIGHT]), st.integers(0, 63))
def test_no_partition_compiles_more_surely_than_the_best_there_can_be(graph: Graph, hardware: Any, moving: int) -> None:
    kinds = (replace(op, type="RESHAPE") if op.unmapped and moving >> op.index & 1 else op for op in graph.ops)
    costs = SegmentCosts(replace(graph, ops=tuple(kinds)), hardware)
    sets = down_sets(graph)
    # For each down-set the level of the worst segment in the best partition of its ops.
    reached = {0: 0}
    for b, outer in enumerate(sets):
        inner = (s for s in sets[:b] if not s & ~outer)
        if outer:
            reached[outer] = min(max(reached[s], LEVELS.index(costs.judgement(outer & ~s).level)) for s in inner)
    assert LEVELS.index(costs.best_judgement.level) <= reached[graph.all_ops]


@given(graphs(), st.sampled_from([SMALL, TIGHT]))
def test_scratch_is_what_waits_and_has_no_room(graph: Graph, hardware: Any) -> None:
    costs = SegmentCosts(graph, hardware)
    sets = down_sets(graph)
    pairs = nested_pairs(sets)
    table = SegmentBatch(costs, DownSets.of(sets, len(graph.ops)))(*np.transpose(pairs))
    activations = costs.spilling.activations
    size = dict(zip(activations.tensors, activations.tile_bytes.tolist(), strict=True))
    rate = hardware.link.input_ns_per_mib + hardware.link.output_ns_per_mib
    for k, (a, b) in enumerate(pairs):
        ops = sets[b] & ~sets[a]
        if not costs.allowed(ops):
            continue
        terms, most = costs.terms(ops), 0
        assert terms.stage_ns == table.time_ns[k]
        chip = ops & costs.mapped & ~costs.on_cpu(ops)
        for op in members(chip):
            live = live_at(graph, costs, set(members(ops)), op)
            waiting = live - reads(graph, graph.ops[op]) - set(graph.ops[op].outputs)
            over, gone = needed(graph, costs, set(members(ops)), op) - hardware.chip.narrow_bytes // 16, 0
            for t in sorted(waiting, key=lambda t: (-size[t], t)):
                if over > 0:
                    over, gone = over - size[t], gone + graph.tensors[t].bytes
            most = max(most, gone)
        cached = sum(costs.op_terms[i].layout.cached for i in members(chip))
        room = max(0, terms.capacity_bytes - cached)
        assert terms.scratch_bytes == max(0, most - room)
        assert terms.scratch_ns == ceil_div(terms.scratch_bytes * rate, 1 << 20)


spans = st.builds(
    lambda size, first, more: Span(size, first, first + more), st.integers(1, 9), st.integers(0, 5), st.integers(0, 3)
)


@given(st.lists(spans, max_size=8))
def test_places_hold_what_is_live_and_no_more_than_everything(made: list[Span]) -> None:
    live = [sum(s.size_bytes for s in made if s.first <= when <= s.last) for when in range(9)]
    assert max(live) <= highest_address(made) <= sum(s.size_bytes for s in made)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("model", "narrow_bytes"),
    [
        ("mobilenet_v1_0.25_128_quant", 8_996), ("mobilenet_v1_0.5_160_quant", 20_512), ("dense_256", 832),
        ("mobilenet_v2_1.0_224_quant", 99_552), ("movenet_single_pose_lightning_ptq", 73_824),
        ("gabor_64x64_7k_4o_2s", 3_984), ("checkpoint-90_quant8All", 1_088), (POSENET.stem, 147_648),
    ],
)  # fmt: skip
def test_narrow_memory_is_what_the_package_says(model: str, narrow_bytes: int) -> None:
    graph = load_graph(MODELS / f"{model}.tflite")
    costs = SegmentCosts(graph, PCIE)
    assert costs.activation_bytes(graph.all_ops) == narrow_bytes
    assert costs.terms(graph.all_ops).scratch_bytes == 0


def ssd_head() -> bytes:
    """The head of an SSD at 300 px, of which only packages are published: boxes and 91 scores from maps of six sizes."""
    b, ends = Builder(), Table("ConcatenationOptions", {"axis": 1})
    features, tables = [], dict[int, list[int]]({4: [], 91: []})
    for k, (side, depth, anchors) in enumerate(
        [(19, 576, 3), (10, 1280, 6), (5, 512, 6), (3, 256, 6), (2, 256, 6), (1, 128, 6)]
    ):
        features.append(b.tensor(f"features_{k}", (1, side, side, depth)))
        for numbers, parts in tables.items():
            name, channels = f"level_{k}_{numbers}", anchors * numbers
            made = b.tensor(name, (1, side, side, channels))
            kernel = b.weights(f"{name}/w", (channels, 1, 1, depth))
            b.op("CONV_2D", [features[-1], kernel, b.bias(f"{name}/b", channels)], [made],
                 Table("Conv2DOptions", {"stride_w": 1, "stride_h": 1}))  # fmt: skip
            shape = (1, side * side * anchors, *((1, 4) if numbers == 4 else (91,)))
            parts.append(b.tensor(f"{name}/rows", shape))
            b.op("RESHAPE", [made, b.ints(f"{name}/shape", shape)], [parts[-1]])
    boxes, scores, chances = (
        b.tensor("boxes", (1, 1917, 1, 4)),
        *(b.tensor(n, (1, 1917, 91)) for n in ("scores", "chances")),
    )
    b.op("CONCATENATION", tables[4], [boxes], ends)
    b.op("CONCATENATION", tables[91], [scores], ends)
    b.op("LOGISTIC", [scores], [chances])
    return b.file(features, [boxes, chances])


def test_the_head_of_an_ssd_takes_what_its_packages_say() -> None:
    graph = read_graph(ssd_head(), name="ssd")
    assert SegmentCosts(graph, PCIE).activation_bytes(graph.all_ops) == pytest.approx(150_820, rel=0.01)


@pytest.mark.shared
def test_the_states_of_a_sequence_go_through_the_host() -> None:
    graph = load_graph(MODELS / "keras_lstm_mnist_ptq.tflite")
    assert SegmentCosts(graph, PCIE).terms(graph.all_ops).scratch_bytes == 672


steps = st.lists(
    st.tuples(st.sampled_from(["conv", "add", "mul", "pool"]), st.integers(0, 5), st.integers(0, 5)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40)
@given(steps, st.integers(1, 2), st.sampled_from([16 * n for n in (20, 40, 60, 90, 200)]))
def test_the_plan_compiles_as_surely_as_any_and_is_the_fastest_of_those(made: Any, n_tpus: int, narrow: int) -> None:
    hardware = PCIE.changed({"narrow_bytes": narrow})
    costed = CostedModel(open_model(handmade.dag(made, [0])), Devices(((hardware, 1),)))
    fastest = best_value(costed.on(n_tpus).problem(), n_tpus, n_tpus)
    wanted = next(v for v in (best_value(costed.on(n_tpus).problem(worst=w), n_tpus, n_tpus) for w in LEVELS) if v)
    found = solve_costed_model(costed.on(n_tpus), Options())
    assert fastest is not None
    assert found.value.objective_ns == wanted.objective_ns == found.bound_ns
    assert (found.passed_over_ns is None) == ("compile" not in found.over)
    if found.passed_over_ns is not None:
        assert found.passed_over_ns == fastest.objective_ns <= wanted.objective_ns
    for word, worst in COMPILABLE.items():
        best = best_value(costed.on(n_tpus).problem(worst=worst), n_tpus, n_tpus)
        try:
            asked = solve_costed_model(costed.on(n_tpus), Options(compilable=word))
        except InfeasibleError:
            assert best is None
        else:
            assert best is not None
            assert asked.value.objective_ns == best.objective_ns
            assert asked.passed_over_ns is None
