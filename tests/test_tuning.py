"""Measuring in the loop: what measured stages teach, and what tuning brings."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import balancer
from balancer.cli.main import main
from balancer.cost.devices import Devices
from balancer.cost.hardware import load_hardware
from balancer.cost.profile import OpCosts, Profile
from balancer.errors import MeasurementError
from balancer.learning.calibrating import calibrate
from balancer.learning.fitting import Observed, fitted
from balancer.learning.measurements import read_measurements
from balancer.loops.simulating import perturbed
from balancer.loops.sources import PipelineTimes, RecordedTimes, TrueCosts
from balancer.loops.tuning import ROUNDS, TuneRound, bisected, truth_of, tune
from balancer.planning.costed_model import CostedModel, costed_model_of, open_costed_model
from balancer.solve import solve
from balancer.tflite import synth
from tests.shared import ZOO

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "net.tflite"
    path.write_bytes(synth.conv(96, layers=8, size=32))
    return path


@settings(max_examples=40)
@given(data=st.data())
def test_measured_stages_come_out_as_measured(data: st.DataObject, model: Path) -> None:
    """Whatever single ops really take, whatever the link does."""
    costed = open_costed_model(model, "pcie")
    n = len(costed.graph.ops)
    ops = {i: OpCosts(ns=round(costed.costs.op_terms[i].compute_ns * data.draw(st.floats(0.4, 2.5)))) for i in range(n)}
    link = data.draw(st.floats(0.6, 1.6))
    hardware = costed.hardware.changed({"input_ns_per_mib": costed.hardware.link.input_ns_per_mib * link})
    truth = CostedModel(costed.model, Devices(((hardware, 1),)), Profile("truth", ops)).costs
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1), min_size=1, max_size=3)))
    edges = [0, *cuts, n]
    seen = []
    for a, b in pairwise(edges):
        terms = truth.terms((1 << b) - (1 << a))
        seen.append(Observed((1 << b) - (1 << a), terms.stage_ns, terms.capacity_bytes))
    learnt = fitted(costed, seen).costs
    for each in seen:
        own = learnt.terms(each.ops, each.capacity_bytes)
        share = own.compute_ns / max(1, own.stage_ns)
        if share > 0.2:  # where hardly anything of a stage is computing, the rest cannot be put on its ops
            assert abs(own.stage_ns - each.stage_ns) <= 0.02 * each.stage_ns


def test_types_that_are_wrong_by_one_factor_are_found(model: Path) -> None:
    """Also for ops that stand in segments which were not measured so."""
    costed = open_costed_model(model, "pcie")
    n = len(costed.graph.ops)
    truth = perturbed(costed, 3).costs
    seen = [
        Observed((1 << b) - (1 << a), truth.terms((1 << b) - (1 << a)).stage_ns) for a, b in ((0, 3), (3, 7), (7, n))
    ]
    learnt = fitted(costed, seen).costs
    for a, b in ((0, 5), (2, 6), (5, n), (0, n)):
        ops = (1 << b) - (1 << a)
        right, before, after = (c.terms(ops).stage_ns for c in (truth, costed.costs, learnt))
        assert abs(after - right) <= 0.05 * right
        assert abs(after - right) <= abs(before - right)


def test_nothing_measured_teaches_nothing(model: Path) -> None:
    costed = open_costed_model(model, "pcie")
    assert fitted(costed, []) is costed


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("ResNet50", 0),
        *(pytest.param("ResNet50", seed, marks=pytest.mark.wide) for seed in (1, 2)),
        *(pytest.param("EfficientNetB0", seed, marks=pytest.mark.wide) for seed in (0, 1, 2)),
    ],
)
def test_tuning_closes_most_of_the_gap(name: str, seed: int) -> None:
    plan = balancer.balance(ZOO / f"{name}_int8.tflite", 4)
    truth = perturbed(costed_model_of(plan), seed)
    best = 1e9 / solve(truth.on(4).problem()).value.objective_ns
    rounds: list[TuneRound] = []
    found = tune(plan, TrueCosts(truth), on_round=rounds.append)
    assert tuple(rounds) == found.rounds
    assert len(rounds) <= ROUNDS == 5
    first, last = rounds[0].measured_per_s, max(r.measured_per_s for r in rounds)
    if best > first * 1.02:
        assert last - first >= 0.8 * (best - first)
    for segment in found.plan.segments:
        assert segment.measured is not None
        assert (segment.measured.source, segment.reported) == ("simulated", None)
        assert abs(segment.predicted.stage_ns - segment.measured.stage_ns) <= 0.05 * segment.measured.stage_ns


def test_costs_that_are_right_end_it_at_once(model: Path) -> None:
    plan = balancer.balance(model, 3)
    found = tune(plan, TrueCosts(costed_model_of(plan)))
    assert len(found.rounds) == 1
    assert found.gain == 1
    assert [s.ops for s in found.plan.segments] == [s.ops for s in plan.segments]


def test_a_simulated_pipeline_as_the_source(model: Path) -> None:
    plan = balancer.balance(model, 3)
    truth = TrueCosts(perturbed(costed_model_of(plan), 1))
    seen = PipelineTimes(devices="sim", seconds=0.6, truth=truth)(plan)
    right = truth(plan)
    for measured, true in zip(seen.plan.segments, right.plan.segments, strict=True):
        assert measured.measured is not None
        assert true.measured is not None
        assert measured.measured.stage_ns >= 0.98 * true.measured.stage_ns
        assert measured.measured.source == "simulated"
        assert measured.measured.runs > 5
    assert seen.throughput_per_s is not None


def test_a_recorded_file_as_the_source(model: Path, tmp_path: Path) -> None:
    plan = balancer.save(balancer.balance(model, 3, options=balancer.Options(stages=3)), tmp_path / "plan")
    truth = TrueCosts(perturbed(costed_model_of(plan), 2))
    times = {s.name: s.measured.stage_ns for s in truth(plan).plan.segments if s.measured}
    path = tmp_path / "plan" / "times.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["plan", "stage", "measured_ms"])
        rows.writerows([plan.file_name, name, ns / 1e6] for name, ns in times.items())
    seen = RecordedTimes(path)(plan)
    assert {s.name: s.measured.stage_ns for s in seen.plan.segments if s.measured} == times
    with pytest.raises(MeasurementError, match="holds no time of the segment with ops"):
        RecordedTimes(path)(balancer.balance(model, 2, options=balancer.Options(stages=2)))
    path.write_text("plan,stage,measured_ms\nnothing.json,x,1\n")
    with pytest.raises(balancer.BalancerError):
        RecordedTimes(path)


def test_a_source_that_fails_later_leaves_the_best_so_far_and_the_plan_that_was_not_measured() -> None:
    plan = balancer.balance(synth.fc(1800, layers=5), 3)
    truth = TrueCosts(perturbed(costed_model_of(plan), 0))
    calls = []

    def source(asked: balancer.Plan) -> object:
        calls.append(asked)
        if len(calls) > 1:
            raise MeasurementError("the device is gone", "usb:0", "plug it in")
        return truth(asked)

    found = tune(plan, source)  # type: ignore[arg-type]
    assert len(found.rounds) == 1
    assert [s.ops for s in found.plan.segments] == [s.ops for s in plan.segments]
    assert len(calls) > 1
    assert found.ended == "round 2 cannot be measured: usb:0: the device is gone; plug it in"
    assert found.unmeasured == calls[1]


def test_the_profiling_bisection_gets_the_same_times(model: Path) -> None:
    plan = balancer.balance(model, 3, options=balancer.Options(stages=3))
    truth = TrueCosts(perturbed(costed_model_of(plan), 5))
    found = bisected(plan, truth)
    assert len(found.cuts) == 2
    costed = truth.truth
    edges = [0, *found.cuts, len(costed.graph.ops)]
    slowest = max(costed.costs.terms((1 << b) - (1 << a)).stage_ns for a, b in pairwise(edges))
    assert found.slowest_ns == slowest


def test_a_measured_plan_calibrates(model: Path, tmp_path: Path) -> None:
    plan = balancer.balance(model, 4, options=balancer.Options(stages=4))
    truth = perturbed(costed_model_of(plan), 7)
    saved = balancer.save(tune(plan, TrueCosts(truth), rounds=1).plan, tmp_path / "plan")
    path = tmp_path / "plan" / saved.file_name
    rows = read_measurements(path)
    assert len(rows) == 4
    found = calibrate(rows, load_hardware("pcie"))
    assert found.error_after <= found.error_before
    plain = balancer.save(plan, tmp_path / "plain")
    with pytest.raises(MeasurementError, match="has no measured segments"):
        read_measurements(tmp_path / "plain" / plain.file_name)


def test_a_fit_starts_from_the_hardware_of_the_measured_plan(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("usb", "pcie"):
        plan = balancer.balance(model, 2, options=balancer.Options(stages=2), hardware=name)
        truth = TrueCosts(perturbed(costed_model_of(plan), 7))
        saved = balancer.save(tune(plan, truth, rounds=1).plan, tmp_path / name)
        segment = saved.segments[0]
        row = f"{name}/{saved.file_name},{segment.name},{segment.predicted.stage_ns / 1e6}\n"
        (tmp_path / f"{name}.csv").write_text("plan,stage,measured_ms\n" + row)
        for data in (tmp_path / name, tmp_path / f"{name}.csv"):
            for more, start in (([], name), (["--from", "usb-desktop"], "usb-desktop")):
                assert main(["calibrate", "--data", str(data), "--json", *more]) == 0
                document = json.loads(capsys.readouterr().out)
                simulated = "" if data.suffix == ".csv" else ", fitted to simulated times"
                assert document["name"] == f"{start}-calibrated{simulated}"
                kept = [c for c in document["constants"].values() if c["known"] == "kept"]
                assert {c["source"] for c in kept} == {start}
    (tmp_path / "both.csv").write_text((tmp_path / "usb.csv").read_text() + row)
    assert main(["calibrate", "--data", str(tmp_path / "both.csv")]) == 1
    assert "several kinds of hardware (pcie, usb); choose one with --from" in capsys.readouterr().err
    assert main(["calibrate", "--data", str(tmp_path / "both.csv"), "--from", "usb"]) == 0


def test_the_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = balancer.save(balancer.balance(model, 3), tmp_path / "plan")
    path = str(tmp_path / "plan" / plan.file_name)
    arguments = ["tune", path, "--devices", "sim", "--sim-errors", "4", "--seconds", "0.5", "--rounds", "2"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "round 1: " in out
    assert "best: round" in out
    tuned = balancer.load_plan(tmp_path / "plan_tuned" / plan.file_name)
    assert all(s.measured and s.measured.source == "simulated" for s in tuned.segments)
    assert balancer.verify(tuned, 1).bit_exact
    assert main(["predict", str(model), "--plan", str(tmp_path / "plan_tuned" / plan.file_name)]) == 0
    capsys.readouterr()
    assert main([*arguments, "-o", str(tmp_path / "other"), "--bisection", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["gain"] >= 1
    assert document["bisection"]["measured"] >= 3
    assert main(["tune", path, "--devices", "usb"]) == 1
    # Nothing is measured for an output that is in the way.
    capsys.readouterr()
    assert main([*arguments, "-o", str(tmp_path / "other")]) == 1
    captured = capsys.readouterr()
    assert "exists already" in captured.err
    assert "round 1" not in captured.out


def test_a_seed_is_the_same_hardware_for_every_plan(model: Path, tmp_path: Path) -> None:
    plan = balancer.balance(model, 3)
    truth = truth_of(plan, 4)
    tuned = balancer.save(tune(plan, truth).plan, tmp_path / "tuned")
    assert tuned.costs
    assert any(value != plan.hardware.constants[name] for name, value in tuned.costs.constants.items())
    again = truth_of(balancer.load_plan(tmp_path / "tuned" / tuned.file_name), 4)
    measured = {s.name: s.measured.stage_ns for s in tuned.segments if s.measured}
    assert {s.name: s.measured.stage_ns for s in again(tuned).plan.segments if s.measured} == measured
