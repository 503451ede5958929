"""Costs: the batch form equals the exact one, bounds are bounds, bytes are as the compiler lays them out."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.cost.batch import SegmentBatch
from balancer.cost.capacity import CapacityRule
from balancer.cost.hardware import load_hardware, load_kind, preset_names
from balancer.cost.layout import layout
from balancer.cost.profile import OpCosts, Profile
from balancer.cost.segment import SegmentCosts
from balancer.errors import HardwareError
from balancer.ground.downsets import DownSets
from balancer.ground.opsets import OpSet, op_set
from balancer.tflite import synth
from balancer.tflite.read import load_graph, read_graph
from tests import handmade
from tests.shared import MODELS, SOURCES, stem

if TYPE_CHECKING:
    from balancer.cost.hardware import AnyHardware, Hardware
    from balancer.graph import Graph

PCIE = load_hardware("pcie")
CPU = load_kind("cpu-x86")


def _orders(graph: Graph, seed: int) -> list[int]:
    """An order of the ops in which none stands before what it depends on."""
    draw, done, order = random.Random(seed), 0, []
    while done != graph.all_ops:
        ready = [i for i in range(len(graph.ops)) if not done >> i & 1 and not graph.before[i] & ~done]
        order.append(draw.choice(ready))
        done |= 1 << order[-1]
    return order


def _agree(
    graph: Graph, hardware: AnyHardware, order: list[int], pairs: list[tuple[int, int]], profile: Profile | None = None
) -> None:
    costs = SegmentCosts(graph, hardware, profile)
    prefixes = [op_set(order[:a]) for a in range(len(order) + 1)]
    pairs = sorted(pairs)
    table = SegmentBatch(costs, DownSets.of(prefixes, len(order)))(*np.transpose(pairs))
    for k, (a, b) in enumerate(pairs):
        ops = op_set(order[a:b])
        assert costs.allowed(ops) == bool(table.allowed[k]), (a, b)
        if costs.allowed(ops):
            terms = costs.terms(ops)
            assert terms.stage_ns == table.time_ns[k], (a, b)
            assert terms.streamed_bytes == table.streamed_bytes[k], (a, b)
            assert terms.overflow_bytes == table.overflow_bytes[k], (a, b)
            assert costs.lower(ops) <= terms.stage_ns


MADE = [
    handmade.shared_state(), handmade.custom_op(), handmade.free_batch("TRANSPOSE_CONV"), handmade.float_glue(),
    handmade.outputs_against_execution_order(), synth.fc(700), synth.conv(40, layers=4, size=64),
]  # fmt: skip
# So little capacity that almost everything streams, and dense ops meet the limit of a tile.
TIGHT = PCIE.changed({"wide_bytes_per_tile": 30_000, "dense_tile_bytes": 20_000})


def _learnt(graph: Graph, seed: int) -> Profile:
    """What a compiler might have taught: other bytes, scratch, ops on the CPU, capacity."""
    draw = random.Random(seed)
    pick = [None, None, 0, 1]
    ops = {
        i: OpCosts(
            ns=draw.choice([None, draw.randrange(10**7)]), parameter_bytes=draw.choice([None, draw.randrange(1 << 20)]),
            scratch_bytes=draw.choice([None, draw.randrange(300_000)]),
            mapped=None if (taken := draw.choice(pick)) is None else bool(taken),
        )
        for i in range(len(graph.ops))
        if draw.random() < 0.3
    }  # fmt: skip
    most = draw.choice([1 << 62, draw.randrange(8 << 20)])
    return Profile("learnt", ops, draw.randrange(1_300_000), draw.randrange(-(1 << 20), 1 << 20), most)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("data", MADE)
def test_the_table_equals_the_exact_cost_with_what_was_learnt(data: bytes, seed: int) -> None:
    graph = read_graph(data, name="made")
    n = len(graph.ops)
    pairs = [(a, b) for a in range(n) for b in range(a + 1, n + 1)]
    _agree(graph, PCIE, list(range(n)), pairs, _learnt(graph, seed))


@given(st.integers(0, 600_000), st.integers(0, 1_500_000), st.integers(-(1 << 22), 1 << 22), st.integers(0, 9 << 20))
def test_capacity_shrinks_with_scratch_and_scratch_can_be_found_for_it(
    scratch: int, share: int, more: int, most: int
) -> None:
    rule = CapacityRule(PCIE.chip.wide_bytes_per_tile, share, more, most)
    wanted = rule.capacity_bytes(scratch)
    assert rule.largest_bytes >= wanted >= rule.capacity_bytes(scratch + 1) >= 0
    assert rule.capacities_bytes(np.array([scratch])).tolist() == [wanted]
    if share:
        assert rule.capacity_bytes(rule.scratch_for(wanted)) <= wanted


@pytest.mark.parametrize("hardware", [PCIE, load_hardware("usb"), TIGHT, CPU], ids=["pcie", "usb", "tight", "cpu"])
@pytest.mark.parametrize("data", MADE)
def test_the_table_of_all_intervals_equals_the_exact_cost(data: bytes, hardware: AnyHardware) -> None:
    graph = read_graph(data, name="made")
    n = len(graph.ops)
    _agree(graph, hardware, list(range(n)), [(a, b) for a in range(n) for b in range(a + 1, n + 1)])


@pytest.mark.shared
@pytest.mark.parametrize("hardware", [PCIE, TIGHT], ids=["pcie", "tight"])
@pytest.mark.parametrize("path", SOURCES, ids=stem)
def test_the_table_equals_the_exact_cost_on_real_models_in_any_order(path: Path, hardware: Hardware) -> None:
    graph = load_graph(path)
    draw, n = random.Random(1), len(graph.ops)
    for order in (list(range(n)), _orders(graph, 5)):
        pairs = [tuple(sorted(draw.sample(range(n + 1), 2))) for _ in range(25)]
        _agree(graph, hardware, order, [*pairs, (0, n)])  # type: ignore[list-item]


@given(st.integers(0, 10**6))
def test_the_lower_bound_grows_with_the_segment_and_never_passes_its_cost(seed: int) -> None:
    graph = read_graph(
        handmade.dag(
            [("conv", 0, 1), ("dense", 1, 2), ("add", 2, 3), ("mul", 3, 2), ("pool", 4, 1), ("conv", 5, 0)], [1]
        ),
        name="dag",
    )
    for hardware in (PCIE, TIGHT, CPU):
        costs = SegmentCosts(graph, hardware)
        order = _orders(graph, seed)
        draw = random.Random(seed)
        a = draw.randrange(len(order))
        held: OpSet = 0
        bounds = []
        for i in order[a:]:
            held |= 1 << i
            bounds.append(costs.lower(held))
            if costs.allowed(held):
                assert max(bounds) <= costs.terms(held).stage_ns
        assert bounds == sorted(bounds)


@pytest.mark.shared
@pytest.mark.parametrize("path", SOURCES, ids=stem)
def test_terms_add_up_and_stay_within_the_capacity(path: Path) -> None:
    graph = load_graph(path)
    costs = SegmentCosts(graph, PCIE)
    draw, n = random.Random(2), len(graph.ops)
    for _ in range(10):
        a, b = sorted(draw.sample(range(n + 1), 2))
        ops = op_set(range(a, b))
        if costs.allowed(ops):
            t = costs.terms(ops)
            assert t.parameter_bytes == t.cached_bytes + t.streamed_bytes
            assert t.cached_bytes <= t.capacity_bytes
            assert 0 <= t.overflow_bytes <= t.streamed_bytes
            parts = (t.compute_ns, t.streaming_ns, t.input_ns, t.output_ns, t.scratch_ns, t.overhead_ns, t.cpu_ns)
            assert t.stage_ns == sum(parts)
            assert min(parts) >= 0


def test_bytes_of_known_shapes_are_as_in_compiled_files() -> None:
    """Dense models of the papers: ceil4(in) * ceil64(out); 3x3 convolutions: ceil64(out) * (9 * ceil4(in) + 8)."""
    for width in (100, 130, 2020):
        graph = read_graph(synth.fc(width), name="fc")
        dense = [layout(graph, op).cached for op in graph.ops if op.type == "FULLY_CONNECTED"]
        rows = -(-width // 64) * 64
        hidden = -(-width // 4) * 4 * rows
        assert dense == [64 * rows, hidden, hidden, hidden, -(-width // 4) * 4 * 64]
    graph = read_graph(synth.conv(70, size=8), name="conv")
    first, second = (layout(graph, op).cached for op in graph.ops[1:3])
    assert (first, second) == (128 * (9 * 4 + 8), 128 * (9 * 72 + 8))


def test_of_two_convolutions_the_larger_one_is_cached() -> None:
    """The first layer comes earlier and would fit, but not beside the second."""
    costs = SegmentCosts(read_graph(synth.conv(70, layers=2, size=8), name="conv"), PCIE)
    assert costs.caching.cached(0b110, costs.op_terms[2].layout.cached) == 0b100


@pytest.mark.shared
def test_dense_256_takes_what_its_compiled_file_holds() -> None:
    graph = load_graph(MODELS / "dense_256.tflite")
    assert sum(layout(graph, op).cached for op in graph.ops) == 67_584


@pytest.mark.shared
def test_parameter_bytes_agree_with_the_compiled_files() -> None:
    """Within the larger of 6 % and 16 KiB each; the LSTM's layout is not known."""
    table = (MODELS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w[\w.]*)_edgetpu\.tflite \| \d+ \| \d+ \| (\d+) \| (\d+) \|", table, re.MULTILINE)
    checked = 0
    for name, cached, streamed in rows:
        source = MODELS / f"{name}.tflite"
        if not source.exists() or "lstm" in name:
            continue
        graph = load_graph(source)
        costs = SegmentCosts(graph, PCIE)
        on_tpu = costs.mapped & ~costs.on_cpu(graph.all_ops)
        layouts = [costs.op_terms[i].layout for i in range(len(graph.ops)) if on_tpu >> i & 1]
        true = int(cached) + int(streamed)
        assert abs(sum(lay.streamed + lay.always_streamed for lay in layouts) - true) <= max(0.06 * true, 16 * 1024), (
            name
        )
        checked += 1
    assert checked >= 10


@pytest.mark.parametrize("name", [*preset_names(), *preset_names("cpu")])
def test_every_constant_of_a_preset_says_its_source_and_how_it_is_known(name: str) -> None:
    document = json.loads((Path(load_hardware.__code__.co_filename).parent / "presets" / f"{name}.json").read_text())
    assert load_kind(name).name == name
    known = set(load_kind(name).constant_names())
    for key, entry in document["constants"].items():
        assert key in known
        assert entry["known"] in ("fitted", "reported", "measured", "assumed")
        assert len(entry["source"]) > 10


def _file(tmp_path: Path, **changes: object) -> Path:
    constants = {k: {"value": v} for k, v in PCIE.constants.items()}
    document = {"format": "balancer-hardware", "version": 1, "name": "mine", "constants": constants} | changes
    path = tmp_path / "hardware.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_a_constant_that_does_not_exist_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    changed = {"invoke_nss": {"value": 7}}
    with pytest.raises(HardwareError, match="no constant 'invoke_nss'; name it invoke_ns"):
        load_hardware(_file(tmp_path, constants=changed, base="usb"))
    with pytest.raises(ValueError, match="no constant 'host_ns'"):
        PCIE.changed({"host_ns": 0})


def test_a_hardware_file_is_read_like_a_preset(tmp_path: Path) -> None:
    assert load_hardware(_file(tmp_path)) == replace(PCIE, name="mine")
    changed = {"op_ns": {"value": 7}}
    assert load_hardware(_file(tmp_path, constants=changed, base="usb")) == replace(
        load_hardware("usb").changed({"op_ns": 7}), name="mine"
    )


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"format": "other"}, "not a hardware file"),
        ({"version": 2}, "version 2 is unknown"),
        ({"constants": {}}, "constant '"),
        ({"constants": None}, "no constants"),
        ({"base": "nowhere"}, "not a preset"),
        ({"constants": {k: {"value": -1} for k in PCIE.constants}}, "constant '"),
        ({"constants": {k: {"value": True} for k in PCIE.constants}}, "constant '"),
    ],
)
def test_a_bad_hardware_file_is_refused_by_name(tmp_path: Path, changes: dict[str, object], what: str) -> None:
    path = _file(tmp_path, **changes)
    with pytest.raises(HardwareError, match=what) as caught:
        load_hardware(path)
    assert str(path) in str(caught.value)


def test_what_is_neither_preset_nor_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    for source, what in ((tmp_path / "x.json", "not JSON"), (tmp_path / "absent", "no such preset")):
        with pytest.raises(HardwareError, match=what):
            load_hardware(source)
