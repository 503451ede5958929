"""A plan remembers what it was costed with: profile, what was learnt, its own hardware. No label is read for it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import balancer
from balancer.cost.hardware import load_hardware
from balancer.cost.profile import OpCosts, Profile
from balancer.cost.segment import SegmentCosts
from balancer.errors import PlanError
from balancer.learning.correcting import Evidence, corrected, overruns
from balancer.learning.profiling import profile_document
from balancer.loops.simulating import perturbed, report_of
from balancer.loops.sources import TrueCosts
from balancer.loops.tuning import truth_of, tune
from balancer.plan import load_plan, plan_text
from balancer.planning.assembling import assemble
from balancer.planning.costed_model import CostedModel, costed_model_of, open_costed_model
from balancer.planning.predicting import partition_plan
from balancer.planning.solving import solve_costed_model
from balancer.tflite import synth

if TYPE_CHECKING:
    from pathlib import Path

    from balancer.plan import Plan

MODEL = synth.conv(96, layers=8, size=32)
DENSE = synth.fc(1500, layers=6, output_type="int8")


def _again(plan: Plan, folder: Path) -> Plan:
    """Saved and loaded."""
    saved = balancer.save(plan, folder, force=True)
    return load_plan(folder / saved.file_name)


def _remembers(plan: Plan) -> bool:
    """Whether the costs that it remembers are those that it was predicted with."""
    costs, sets = costed_model_of(plan).costs, {s.name: s.ops for s in plan.segments}
    return all(costs.terms(sets[s.name]).stage_ns == s.predicted.stage_ns for s in plan.segments)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_loaded_plan_costs_every_segment_as_it_was_costed(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plain = open_costed_model(DENSE, "pcie")
    n = len(plain.graph.ops)
    number = st.none() | st.integers(0, 10**7)
    known = st.builds(OpCosts, number, number, number, st.sampled_from([None, False]))
    profile = Profile(
        data.draw(st.sampled_from(["p.json", "a + b", "pcie"])),
        data.draw(st.dictionaries(st.integers(1, n - 1), known, max_size=n)),
        data.draw(st.integers(500_000, 1_200_000)),
        data.draw(st.integers(-100_000, 100_000)),
        constants=data.draw(st.sampled_from([{}, {"stream_ns_per_mib": 1234, "input_ns_per_mib": 77}])),
    )
    costed = replace(plain, profile=profile)
    solution = solve_costed_model(costed.on(3), balancer.Options())
    loaded = _again(assemble(costed.on(3), solution, ()), tmp_path_factory.mktemp("plan"))
    again = costed_model_of(loaded)
    assert (again.hardware, again.profile) == (costed.hardware, profile)
    for a, b in pairwise(sorted({0, n, *data.draw(st.sets(st.integers(1, n - 1), min_size=1))})):
        ops = (1 << b) - (1 << a)
        assert again.costs.terms(ops) == costed.costs.terms(ops)


def test_tuning_keeps_the_profile_of_the_plan(tmp_path: Path) -> None:
    document = profile_document(MODEL)
    for entry in document["ops"][3:6]:
        entry["measured_ns"] = 10 * entry["predicted_ns"] + 1_000_000
    path = tmp_path / "mine + compiler reports.json"
    path.write_text(json.dumps(document))
    plan = _again(balancer.balance(MODEL, 3, profile=path), tmp_path / "plan")
    assert _remembers(plan)
    found = tune(plan, TrueCosts(costed_model_of(plan)))
    assert [r.worst for r in found.rounds] == [0.0]
    assert costed_model_of(found.plan).profile.ops[4].ns == document["ops"][4]["measured_ns"]  # type: ignore[union-attr]


def test_what_tuning_has_learnt_is_known_to_the_next(tmp_path: Path) -> None:
    plan = balancer.balance(MODEL, 3)
    truth = TrueCosts(perturbed(costed_model_of(plan), 3))
    once = _again(tune(plan, truth).plan, tmp_path / "once")
    assert _remembers(once)
    assert once.hardware == plan.hardware
    again = tune(once, truth)
    assert again.rounds[0].worst <= 0.05
    assert again.plan.costs_label == "pcie + compiler reports + measured stages (simulated)"


@pytest.mark.parametrize("name", ["pcie + my card", "pcie", "usb + compiler reports"])
def test_hardware_is_known_by_its_constants_whatever_its_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    constants = {"input_ns_per_mib": {"value": 90_000_000}, "wide_bytes_per_tile": {"value": 300_000}}
    document = {"format": "balancer-hardware", "version": 1, "name": name, "base": "pcie", "constants": constants}
    path.write_text(json.dumps(document))
    plan = _again(balancer.balance(MODEL, 3, hardware=path), tmp_path / "plan")
    assert plan.hardware.name == name
    assert costed_model_of(plan).hardware == load_hardware(path)
    assert _remembers(plan)
    truth = truth_of(plan, 1).truth.hardware
    assert 0.6 * 90_000_000 < truth.link.input_ns_per_mib < 1.4 * 90_000_000
    assert tune(plan, TrueCosts(costed_model_of(plan))).rounds[0].worst == 0


def test_simulated_errors_are_the_same_with_and_without_a_profile(tmp_path: Path) -> None:
    document = profile_document(MODEL)
    document["ops"][4]["measured_ns"] = 3_000_000
    path = tmp_path / "p.json"
    path.write_text(json.dumps(document))
    plain, own = balancer.balance(MODEL, 3), balancer.balance(MODEL, 3, profile=path)
    for a, b in ((0, 4), (2, 7)):
        ops = (1 << b) - (1 << a)
        assert truth_of(plain, 2).truth.costs.terms(ops) == truth_of(own, 2).truth.costs.terms(ops)


def test_reports_are_learnt_from_twice_as_once() -> None:
    """A plan that was compiled in the loop has learnt of room; tuning learns from the same reports again."""
    costed = open_costed_model(DENSE, "pcie")
    n = len(costed.graph.ops)
    truth = SegmentCosts(costed.graph, costed.hardware, Profile("truth", {}, 700_000))
    sets = [(1 << n // 2) - 1, (1 << n) - (1 << n // 2)]
    found = [Evidence(ops, report_of(truth.terms(ops))) for ops in sets]
    once = replace(costed, profile=corrected(costed, found))
    for evidence in (found, []):
        twice = replace(costed, profile=corrected(once, evidence))
        for ops in (*sets, (1 << n) - 1):
            assert twice.costs.terms(ops).capacity_bytes == once.costs.terms(ops).capacity_bytes
        assert not any(overruns(twice.costs, each) for each in found)


def _document(**changes: Any) -> dict[str, Any]:
    plan = balancer.balance(MODEL, 3, options=balancer.Options(pipelines=1))
    return json.loads(plan_text(plan)) | changes  # type: ignore[no-any-return]


def test_a_plan_of_before_is_tuned_and_said_to_remember_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = balancer.save(balancer.balance(MODEL, 3, options=balancer.Options(pipelines=1)), tmp_path)
    path = tmp_path / saved.file_name
    document = json.loads(path.read_text())
    del document["costs"], document["held_to"]
    path.write_text(json.dumps(document))
    plan = load_plan(path)
    assert (plan.costs, plan.held_to) == (None, None)
    assert tune(plan, TrueCosts(perturbed(costed_model_of(plan), 1))).rounds
    assert "does not say which limits it was solved with" in caplog.text


COSTS = {
    "label": "p", "learnt_from": [], "constants": {}, "room_per_million": 1, "room_more_bytes": 0, "room_fewer_bytes": 0,
    "room_most_bytes": None, "ops": [],
}  # fmt: skip
OP = {"op": 0, "ns": None, "parameter_bytes": None, "scratch_bytes": None, "mapped": None}
HELD = {"pipelines": None, "replicas": None, "stages": None, "overflow": None, "limits": None}
LIMITS: dict[str, Any] = {
    "pinned": [], "kept_from": [], "together": [], "max_boundary_tensors": None, "max_boundary_bytes": None,
    "max_segment_bytes": None, "max_latency_ns": None, "max_objective_ns": None,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"costs": COSTS | {"ops": [OP | {"op": 99}]}},
        {"costs": COSTS | {"ops": [OP | {"ns": -1}]}},
        {"costs": COSTS | {"ops": [OP, OP]}},
        {"costs": COSTS | {"constants": {"input_ns_per_mib": 1 << 60}}},
        {"costs": COSTS | {"room_per_million": -1}},
        {"costs": COSTS | {"room_fewer_bytes": -1}},
        {"costs": COSTS | {"room_more_bytes": 1 << 60}},
        {"held_to": HELD | {"pipelines": 0}},
        {"held_to": HELD | {"stages": 10**15}},
        {"held_to": HELD | {"overflow": "maybe"}},
        {"held_to": HELD | {"limits": LIMITS | {"pinned": [{"op": 0, "stage": 9}]}}},
        {"held_to": HELD | {"limits": LIMITS | {"together": ["0-99999999"]}}},
        {"held_to": HELD | {"limits": LIMITS | {"max_latency_ns": -5}}},
    ],
)
def test_what_cannot_be_remembered_is_refused_in_one_line(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    smallest = OP | {"ns": 0, "parameter_bytes": 0, "scratch_bytes": 0}
    good = {"costs": COSTS | {"ops": [smallest]}, "held_to": HELD | {"limits": LIMITS}}
    path.write_text(json.dumps(_document(**good)))
    load_plan(path)
    path.write_text(json.dumps(_document(**changes)))
    with pytest.raises(PlanError, match=r"costs|held_to") as caught:
        load_plan(path)
    assert "\n" not in str(caught.value)


def test_a_given_partition_is_held_to_nothing() -> None:
    costed = open_costed_model(MODEL, "pcie")
    n = len(costed.graph.ops)
    plan = partition_plan(costed, [(1 << 3) - 1, (1 << n) - (1 << 3)])
    assert plan is not None
    assert plan.held_to is None
    assert isinstance(costed, CostedModel)
