"""A measured, recorded or simulated time belongs to ops of a model; other plans give the same names to other ops."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import pytest

import balancer
from balancer.cli import tune_verb
from balancer.cli.main import build_parser, main
from balancer.errors import DeviceError, MeasurementError
from balancer.loops.simulating import perturbed
from balancer.loops.sources import PipelineTimes, RecordedTimes, TrueCosts, behaviours
from balancer.planning.costed_model import costed_model_of
from balancer.planning.predicting import partition_plan
from balancer.runtime.options import RunOptions
from balancer.runtime.pipeline import Pipeline
from balancer.runtime.recipes import Simulation
from balancer.tflite import synth

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from balancer.plan import Plan

MODEL = synth.conv(96, layers=8, size=32)
ERRORS = 3


@pytest.fixture
def plans(tmp_path: Path) -> tuple[Plan, Plan]:
    """Two plans of one model: segments of the same names hold other ops; the first is the shorter one in the second."""
    path = tmp_path / "net.tflite"
    path.write_bytes(MODEL)
    found = []
    for name, cut in (("one", 7), ("two", 2)):
        n = len(balancer.load_graph(path).ops)
        plan = balancer.predict(path, [range(cut), range(cut, n)])
        found.append(balancer.save(plan, tmp_path / name))
    one, two = found
    assert [s.name for s in one.segments] == [s.name for s in two.segments]
    assert two.segments[1].predicted.stage_ns > 1.3 * one.segments[1].predicted.stage_ns
    return one, two


def _path(plan: Plan) -> str:
    return str(plan.directory / plan.file_name)  # type: ignore[operator]


def _source(plan: Plan, *more: str) -> Any:
    """As the command has it."""
    arguments = build_parser().parse_args(["tune", _path(plan), "--devices", "sim", "--seconds", "0.3", *more])
    return tune_verb._source(arguments, balancer.open_plan(plan))


class _Caught(Exception):
    """Instead of running."""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, Plan], tuple[Plan, Simulation]]:
    """What a source tells simulated TPUs of a plan, and the plan that it opened for them; they do not run."""
    from balancer.loops import sources

    caught: list[tuple[Plan, Simulation]] = []

    def pipeline(opened: balancer.OpenedPlan, _: object, options: RunOptions) -> None:
        caught.append((opened.plan, options.simulation))
        raise _Caught

    def telling(source: Any, plan: Plan) -> tuple[Plan, Simulation]:
        with monkeypatch.context() as patched:
            patched.setattr(sources, "Pipeline", pipeline)
            with pytest.raises(_Caught):
                source(plan)
        return caught[-1]

    return telling


def _by_ops(found: tuple[Plan, Simulation]) -> dict[int, int]:
    plan, simulation = found
    assert simulation.behaviours
    return {s.ops: simulation.behaviours[s.name].stage_ns for s in plan.segments}


def _recorded(folder: Path, *plans: Plan) -> tuple[Path, dict[int, int]]:
    """A file with a time of its own for each segment of these plans; times by ops."""
    path, known = folder / "times.csv", dict[int, int]()
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["plan", "stage", "measured_ms"])
        for plan in plans:
            for s in plan.segments:
                known[s.ops] = (5 + 3 * len(known)) * 1_000_000
                rows.writerow([f"{plan.directory.name}/{plan.file_name}", s.name, known[s.ops] / 1e6])  # type: ignore[union-attr]
    return path, known


def test_plain_simulated_times_are_those_of_the_first_plan_for_any_ops(plans: tuple[Plan, Plan], told: Any) -> None:
    one, two = plans
    source, costs = _source(one), costed_model_of(one).costs
    for plan in (two, one):
        found = _by_ops(told(source, plan))
        assert found == {ops: costs.terms(ops).stage_ns for ops in [s.ops for s in plan.segments]}


def test_recorded_times_on_simulated_tpus_go_by_ops(plans: tuple[Plan, Plan], tmp_path: Path, told: Any) -> None:
    one, two = plans
    path, known = _recorded(tmp_path, one, two)
    source = _source(one, "--sim-times", str(path))
    for plan in (one, two):
        assert _by_ops(told(source, plan)) == {ops: known[ops] for ops in [s.ops for s in plan.segments]}
    # A file that knows nothing of the second plan's ops gives none of the first one's times for their names.
    path, _ = _recorded(tmp_path, one)
    source = _source(one, "--sim-times", str(path))
    told(source, one)
    with pytest.raises(MeasurementError, match="holds no time of the segment with ops"):
        source(two)


def test_ops_of_another_model_are_others(plans: tuple[Plan, Plan], tmp_path: Path) -> None:
    one, _ = plans
    path, _ = _recorded(tmp_path, one)
    costed = costed_model_of(balancer.balance(synth.conv(100, layers=8, size=32), 2))
    other = partition_plan(costed, [s.ops for s in one.segments])
    assert other is not None
    assert [s.ops for s in other.segments] == [s.ops for s in one.segments]
    with pytest.raises(MeasurementError, match="holds no time"):
        RecordedTimes(path)(other)


def test_behaviours_are_named_as_in_the_plan_that_is_run(plans: tuple[Plan, Plan]) -> None:
    truth = TrueCosts(perturbed(costed_model_of(plans[0]), ERRORS))
    for plan in plans:
        found = behaviours(plan, truth, 0.25)
        right = {s.name: s.measured.stage_ns for s in truth(plan).plan.segments if s.measured}
        assert {name: b.stage_ns for name, b in found.items()} == right
        assert {b.jitter for b in found.values()} == {0.25}


@pytest.mark.parametrize("truth", [["--sim-errors", str(ERRORS)], ["--sim-times"], []], ids=lambda t: "".join(t[:1]))
def test_jitter_and_outputs_are_kept_whatever_is_simulated(
    truth: list[str], plans: tuple[Plan, Plan], tmp_path: Path, told: Any
) -> None:
    more = [*truth, str(_recorded(tmp_path, *plans)[0])] if truth == ["--sim-times"] else truth
    source = _source(plans[0], *more, "--sim-jitter", "0.2", "--sim-outputs", "recorded")
    for plan in plans:
        saved, simulation = told(source, plan)
        assert {b.jitter for b in simulation.behaviours.values()} == {0.2}
        for segment in saved.segments:  # of this plan's segments, not of the first one's
            for outputs in simulation.recordings[segment.name]:
                assert set(outputs) == {t.tensor for t in segment.outputs}


def test_what_a_simulated_tpu_would_compute_live_is_no_source(
    plans: tuple[Plan, Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DeviceError, match="time of this CPU"):
        _source(plans[0], "--sim-outputs", "live")
    assert main(["tune", _path(plans[0]), "--devices", "sim", "--sim-outputs", "live"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "round" not in captured.out


@pytest.mark.parametrize("outputs", ["none", "live"])
def test_simulated_tpus_never_compute_while_they_are_measured(
    outputs: str, plans: tuple[Plan, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside devices that need true inputs they replay."""
    from balancer.loops import sources

    seen: list[str] = []

    def pipeline(plan: balancer.OpenedPlan, devices: Any, options: RunOptions) -> Any:
        seen.append(options.simulation.outputs)
        return Pipeline(plan, devices, options)

    monkeypatch.setattr(sources, "Pipeline", pipeline)
    options = RunOptions(simulation=Simulation(outputs=outputs))
    for devices in ("sim", ["sim", "cpu"]):
        found = PipelineTimes(devices=devices, seconds=0.3, options=options)(plans[0])
        assert all(s.measured for s in found.plan.segments)
    assert seen == ["none", "recorded"]
    with pytest.raises(ValueError, match="not 'live'"):
        PipelineTimes(devices="sim", outputs="live")
