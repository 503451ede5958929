"""The plan file: a round trip, the same bytes, and refusals; saving whole or not at all."""

from __future__ import annotations

import copy
import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import balancer
from balancer.errors import BalancerError, OutputError, PlanError
from balancer.ground.opsets import op_ranges, parse_op_ranges
from balancer.plan import load_plan, plan_text
from balancer.tflite import synth
from balancer.tflite.cut import Cutter
from tests import handmade

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODEL = synth.fc(1800)
KEYS = [
    "format",
    "version",
    "model",
    "hardware",
    "costs",
    "refusals",
    "n_tpus",
    "devices",
    "held_to",
    "segments",
    "pipelines",
    "predicted",
    "solver",
    "comparison",
    "versions",
    "state",
]


@pytest.fixture(scope="module")
def plan() -> balancer.Plan:
    return balancer.balance(MODEL, 4)


def test_a_saved_plan_is_loaded_as_it_was(plan: balancer.Plan, tmp_path: Path) -> None:
    saved = balancer.save(plan, tmp_path / "new" / "folder")
    assert load_plan(tmp_path / "new" / "folder" / "model_plan_4.json") == saved
    assert saved.directory == tmp_path / "new" / "folder"
    names = {p.name for p in saved.directory.iterdir()}
    assert names == {"model.tflite", "model_plan_4.json", *(str(s.file) for s in saved.segments)}
    assert (saved.directory / "model.tflite").read_bytes() == MODEL
    assert balancer.verify(load_plan(saved.directory / "model_plan_4.json"), 1).bit_exact


def test_the_same_input_gives_the_same_bytes(plan: balancer.Plan, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        balancer.save(balancer.balance(MODEL, 4), folder)
    one, two = ({p.name: p.read_bytes() for p in f.iterdir()} for f in folders)
    assert one == two


def test_the_file_has_the_keys_of_the_design_in_their_order(plan: balancer.Plan) -> None:
    document = json.loads(plan_text(plan))
    assert list(document) == KEYS
    assert list(document["segments"][0]) == [
        "name",
        "ops",
        "file",
        "sha256",
        "inputs",
        "outputs",
        "predicted",
        "compiles",
        "reported",
        "measured",
    ]
    assert document["segments"][0]["inputs"][0]["from"] is None
    assert document["segments"][0]["file"] is None
    assert plan_text(plan).startswith('{\n  "format": "balancer-plan",\n')
    for row in document["comparison"]:
        assert row["stand_in"] == (row["name"] == "compiler default")


def test_unknown_keys_are_ignored(plan: balancer.Plan, tmp_path: Path) -> None:
    document = plan.to_json() | {"future": 1}
    document["segments"][0]["future"] = {"x": []}
    (tmp_path / "p.json").write_text(json.dumps(document))
    assert load_plan(tmp_path / "p.json").segments == plan.segments


def _places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(document)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return changed


def test_a_changed_plan_file_is_a_plan_or_refused_in_one_line(plan: balancer.Plan, tmp_path: Path) -> None:
    document = json.loads(plan_text(plan))
    draw = random.Random(4)
    values: list[Any] = [..., None, -1, 10**30, "x", "../x", "0-99999999999", [], {}, [[]], True, 1.5, float("inf")]
    path, refused = tmp_path / "p.json", 0
    for place in draw.sample(list(_places(document)), 150):
        for value in draw.sample(values, 4):
            path.write_text(json.dumps(_changed(document, place, value)))
            try:
                load_plan(path)
            except PlanError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 100


def test_a_truncated_plan_file_is_refused(plan: balancer.Plan, tmp_path: Path) -> None:
    text = plan_text(plan)
    for size in range(0, len(text) - 2, 97):
        (tmp_path / "p.json").write_text(text[:size])
        with pytest.raises(PlanError):
            load_plan(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("place", "value", "what"),
    [
        (("version",), 3, "version 3 is unknown"),
        (("segments", 0, "file"), "../evil.tflite", "not a bare file name"),
        (("segments", 0, "file"), "a\0b.tflite", "not a bare file name"),
        (("model", "file"), "\ud800.tflite", "is not a valid value here"),
        (("model", "file"), "..", "not a bare file name"),
        (("predicted", "throughput_per_s"), 10**400, "too large a number"),
        (("pipelines", 0, "stages", 0, "tpus"), [99], "its number is above 3"),
        (("pipelines", 0, "stages", 0, "tpus"), [3], "a TPU is used twice"),
        (("pipelines", 0, "stages", 0, "replicas"), 2, "one TPU for each replica"),
        (("segments", 0, "ops"), "0-1", "each op once"),
        (("segments", 0, "ops"), "0-x", "neither an op index nor a range"),
        (("pipelines", 0, "stages", 0, "segment"), "nobody", "names a segment that does not exist"),
        (("model", "ops"), ..., "'ops' is missing"),
    ],
)
def test_a_plan_that_contradicts_itself_says_where(
    plan: balancer.Plan, tmp_path: Path, place: tuple[Any, ...], value: Any, what: str
) -> None:
    (tmp_path / "p.json").write_text(json.dumps(_changed(json.loads(plan_text(plan)), place, value)))
    with pytest.raises(PlanError, match=what):
        load_plan(tmp_path / "p.json")


@given(st.sets(st.integers(0, 300), min_size=1))
def test_ranges_of_ops_are_read_as_they_were_written(ops: set[int]) -> None:
    assert parse_op_ranges(op_ranges(sorted(ops)), 301) == sorted(ops)


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "5-3", "0-10", "1,,2", "٣", "1 2", "99999999999999999999"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_op_ranges(text, 10)


def test_a_changed_file_of_the_directory_is_noticed(plan: balancer.Plan, tmp_path: Path) -> None:
    saved = balancer.save(plan, tmp_path)
    file = tmp_path / str(saved.segments[0].file)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(PlanError, match="hash differs"):
        balancer.verify(load_plan(tmp_path / "model_plan_4.json"), 1)
    file.unlink()
    with pytest.raises(PlanError, match="cannot be read"):
        balancer.verify(load_plan(tmp_path / "model_plan_4.json"), 1)


def test_existing_files_are_replaced_only_with_force(plan: balancer.Plan, tmp_path: Path) -> None:
    taken = tmp_path / "model_plan_4.json"
    taken.write_text("mine")
    with pytest.raises(OutputError, match=r"exists already.*--force"):
        balancer.save(plan, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [taken.name]
    assert taken.read_text() == "mine"
    balancer.save(plan, tmp_path, force=True)
    assert load_plan(taken).segments[0].file
    balancer.save(plan, tmp_path, force=True)


def test_the_model_itself_may_lie_in_the_directory(tmp_path: Path) -> None:
    model = tmp_path / "net.tflite"
    model.write_bytes(MODEL)
    stamp = model.stat().st_mtime_ns
    balancer.save(balancer.balance(model, 2), tmp_path)
    assert model.read_bytes() == MODEL
    assert model.stat().st_mtime_ns == stamp


def test_nothing_is_left_when_writing_fails_half_way(
    plan: balancer.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Cutter.cut, []

    def failing(self: Cutter, *arguments: Any) -> bytes:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(self, *arguments)

    monkeypatch.setattr(Cutter, "cut", failing)
    with pytest.raises(OutputError, match="No space left"):
        balancer.save(plan, tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_either(
    plan: balancer.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Cutter, *arguments: Any) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(Cutter, "cut", interrupted)
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there", tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            balancer.save(plan, folder)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("name", ["model.tflite", "model_plan_4.json"])
def test_a_directory_in_the_way_is_named(plan: balancer.Plan, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match="is a directory"):
        balancer.save(plan, tmp_path, force=True)


def test_a_file_in_place_of_the_directory_is_named(plan: balancer.Plan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be created"):
        balancer.save(plan, tmp_path / "file")


def test_a_model_whose_name_no_plan_file_can_hold_is_refused(tmp_path: Path) -> None:
    """A file name of bytes that are no UTF-8, as Python hands it on."""
    model = tmp_path / "\udcff.tflite"
    model.write_bytes(handmade.conv_chain(3))
    with pytest.raises(OutputError, match="UTF-8"):
        balancer.save(balancer.balance(model, 2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_plan_is_saved_with_the_model_that_it_was_made_from(tmp_path: Path) -> None:
    """Also where the file has changed since. A model that changed in the plan's directory is refused."""
    model = tmp_path / "m.tflite"
    model.write_bytes(handmade.conv_chain(3))
    plan = balancer.balance(model, 2)
    model.write_bytes(handmade.conv_chain(4))
    saved = balancer.save(plan, tmp_path / "out")
    assert (tmp_path / "out" / "m.tflite").read_bytes() == handmade.conv_chain(3)
    (tmp_path / "out" / "m.tflite").write_bytes(handmade.conv_chain(4))
    for use in (balancer.open_plan, balancer.verify, lambda p: balancer.save(p, tmp_path / "other")):
        with pytest.raises(BalancerError, match="hash differs"):
            use(saved)


def test_pipelines_that_cut_differently_into_as_many_segments_have_names_of_their_own() -> None:
    from balancer.ground.opsets import interval_set
    from balancer.planning.assembling import assemble
    from balancer.planning.costed_model import open_costed_model
    from balancer.solve import PipelineSpec, Solution, StageSpec, Value

    costed = open_costed_model(handmade.conv_chain(3), "pcie")
    pipelines = tuple(
        PipelineSpec((StageSpec(interval_set(0, cut), "pcie"), StageSpec(interval_set(cut, 3), "pcie")))
        for cut in (1, 2, 1)
    )
    solution = Solution(solver="given", pipelines=pipelines, value=Value(1, 6, 0, 0, 1), bound_ns=None, over="nothing")
    found = assemble(costed.on(6), solution, ())
    assert [s.name for s in found.segments] == [f"model{b}_segment_{k}_of_2" for b in ("", "-b") for k in (0, 1)]
    assert [p.stages[0].segment for p in found.pipelines] == [
        "model_segment_0_of_2",
        "model-b_segment_0_of_2",
        "model_segment_0_of_2",
    ]
    assert [t for p in found.pipelines for s in p.stages for t in s.tpus] == list(range(6))
