"""Numbers say what they were measured on, and nothing is measured that was not done."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import balancer
from balancer.cli.main import main
from balancer.errors import StageError
from balancer.inputs import random_items
from balancer.interpreter import open_interpreter
from balancer.loops.sources import PipelineTimes, behaviours
from balancer.loops.tuning import truth_of, tune
from balancer.runtime.measuring import measure, segment_measurements
from balancer.runtime.options import RunOptions
from balancer.runtime.pipeline import Pipeline
from balancer.runtime.provenance import costed_for_others, joined, parse_provenance, provenance_of, provenance_text
from balancer.runtime.recipes import Simulation
from balancer.runtime.simulated import Behaviour
from balancer.tflite import synth
from tests.plans import on_kind, three_stages, with_replicas

if TYPE_CHECKING:
    from pathlib import Path

    from balancer.plan import Plan

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Three stages, costed for pcie."""
    return three_stages(tmp_path_factory.mktemp("plan"), synth.fc(300, layers=6))


def _path(plan: Plan) -> str:
    return str((plan.directory or "") / plan.file_name)  # type: ignore[operator]


def _bench(plan: Plan, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert main(["bench", _path(plan), "--seconds", "0.3", "--json", *more]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def _measured(plan: Plan, simulation: Simulation, devices: Any = "sim") -> Any:
    options = RunOptions(simulation=simulation, on_error="continue")
    with Pipeline(plan, devices, options) as pipeline:
        return measure(pipeline, random_items(pipeline.interface.inputs, 2), seconds=0.3)


# On what (point 8)


def test_a_source_is_per_stage_and_a_mixture_says_so(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    found = _bench(plan, capsys, "--devices", "sim,sim,cpu")
    assert [s["source"] for s in found["stages"]] == ["simulated", "simulated", "cpu"]
    assert found["source"] == "mixed: cpu; simulated"
    assert main(["bench", _path(plan), "--devices", "sim,sim,cpu", "--seconds", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "measured (mixed: cpu; simulated)" in out
    assert "stages 0, 1: simulated; stage 2: measured on this CPU\n" in out
    assert "(device)" not in out


def test_replicas_on_different_devices_are_a_mixture(plan: Plan) -> None:
    wanted = with_replicas(plan, [[2, 1, 1]])
    found = _measured(wanted, Simulation(), ["sim", "cpu", "cpu", "sim"])
    sources = [m.source for m in segment_measurements(found).values()]
    assert sources == ["mixed: cpu; simulated, computed live", "cpu", "simulated, computed live"]
    assert joined(map(parse_provenance, sources)) == found.source
    assert provenance_text(found.source) == "mixed: cpu; simulated, computed live"


def test_sources_by_name() -> None:
    assert provenance_text(provenance_of(["usb:0", ":1", "pci:3"])) == "device"
    assert provenance_text(provenance_of(["cpu", "usb:0"])) == "mixed: cpu; device"
    assert provenance_text(provenance_of(["none"])) == "nothing"
    assert provenance_text(joined([])) == ""


@pytest.mark.parametrize("text", ["", "cpu", "simulated, computed live", "mixed: a bench of mine; cpu; device"])
def test_a_provenance_keeps_its_text(text: str) -> None:
    """Names that this version does not know included."""
    assert provenance_text(parse_provenance(text)) == text


def test_simulated_tpus_compute_unless_told_not_to(plan: Plan) -> None:
    items = random_items(Pipeline(plan, "sim").interface.inputs, 3)
    whole = open_interpreter((plan.directory / str(plan.model.file)).read_bytes())  # type: ignore[operator]
    with Pipeline(plan, "sim") as pipeline:
        results = pipeline.run(items)
    for item, result in zip(items, results, strict=True):
        whole.run([item[name] for name in whole.input_names])
        assert [v.tobytes() for v in result.values()] == [v.tobytes() for v in whole.outputs()]  # type: ignore[union-attr]


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_what_is_not_computed_is_no_result(plan: Plan, processes: bool) -> None:
    """Nor is what lies in shared memory by chance."""
    options = RunOptions(simulation=Simulation(outputs="none"), processes=processes)
    with Pipeline(plan, "sim", options) as pipeline:
        assert pipeline.run(random_items(pipeline.interface.inputs, 3)) == [{}, {}, {}]


def test_a_preset_with_another_clock_is_on_the_same_bus(plan: Plan) -> None:
    count = plan.n_tpus
    for name in ("usb:std", "usb2:max", "usb-pi5"):
        usb = on_kind(plan, name)
        assert costed_for_others(usb, [f"usb:{k}" for k in range(count)]) is None
        said = costed_for_others(usb, [f"pci:{k}" for k in range(count)])
        assert said == f"the plan's times are predicted for {name}; it runs on pci, which takes other times"


@pytest.mark.parametrize("wrong", [{"outputs": "lvie"}, {"outputs": "recorded"}])
def test_outputs_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="output"):
        Simulation(**wrong)


def test_a_plan_on_other_devices_than_it_was_costed_for_says_so(
    plan: Plan, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    said = "the plan's times are predicted for pcie; it runs on cpu, which takes other times"
    assert said in _bench(plan, capsys, "--devices", "cpu")["notes"]
    assert said in caplog.text
    caplog.clear()
    assert main(["bench", _path(plan), "--devices", "cpu", "--seconds", "0.2"]) == 0
    assert f"note: {said}" in " ".join(capsys.readouterr().out.split())
    caplog.clear()
    _bench(plan, capsys, "--devices", "sim")
    assert not caplog.records


@pytest.mark.parametrize(
    ("hardware", "devices", "others"),
    [
        ("pcie", ["pci:0", "pci:1", "sim"], None), ("pcie", [":0", ":1", ":2"], None), ("usb", ["usb:0"] * 3, None),
        ("pcie", ["pci:0", "usb:0", "cpu"], "cpu, usb"), ("usb", ["pci:0"] * 3, "pci"),
        ("a card of mine", ["usb:0", "pci:0", "sim"], None), ("a card of mine", ["usb:0", "cpu", "sim"], "cpu"),
    ],
)  # fmt: skip
def test_kinds_that_are_others(plan: Plan, hardware: str, devices: list[str], others: str | None) -> None:
    made = on_kind(plan, hardware)
    said = costed_for_others(made, devices)
    assert said is None if others is None else f"runs on {others}," in str(said)


# Nothing is invented (point 16)


@pytest.mark.parametrize("devices", ["none", "none,none,none", "sim,none,sim"])
def test_none_is_no_device(plan: Plan, devices: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["bench", _path(plan), "--devices", devices]) == 1
    assert "is not the name of a device" in capsys.readouterr().err
    arguments = ["run", _path(plan), "--inputs", "x.npy", "--outputs", str(out), "--devices", devices]
    assert main(arguments) == 1
    assert "is not the name of a device" in capsys.readouterr().err
    assert not out.exists()


def test_what_is_computed_live_says_that_this_cpu_bounds_it(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    found = _bench(plan, capsys, "--devices", "sim", "--sim-outputs", "live")
    assert found["source"] == "simulated, computed live"
    assert any("on this CPU" in note for note in found["notes"])
    for how in ("none", "recorded"):
        found = _bench(plan, capsys, "--devices", "sim", "--sim-outputs", how)
        assert found["source"] == "simulated"
        assert not any("on this CPU" in note for note in found["notes"])


def test_the_hand_over_that_is_not_simulated_is_named(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    found = _bench(plan, capsys, "--devices", "sim")
    assert found["predicted_handover_ns"] == 3 * plan.hardware.constants["handover_ns"]
    stages = sum(s["predicted_ns"] for s in found["stages"])
    assert found["predicted_latency_ns"] == stages + found["predicted_handover_ns"]
    assert any(f"{found['predicted_handover_ns'] / 1e6:.3f} ms" in note for note in found["notes"])
    assert not any("hand-over" in note for note in _bench(plan, capsys, "--devices", "cpu")["notes"])


def test_simulated_errors_are_those_of_the_model_whatever_its_file_is_called(plan: Plan, tmp_path: Path) -> None:
    model = plan.directory / str(plan.model.file)  # type: ignore[operator]
    found = []
    for name in ("a.tflite", "b.tflite"):
        shutil.copy(model, tmp_path / name)
        made = balancer.balance(tmp_path / name, 3, options=balancer.Options(stages=3))
        found.append([b.stage_ns for b in behaviours(made, truth_of(made, 5), 0.0).values()])
    assert found[0] == found[1]
    other = tmp_path / "other" / "a.tflite"
    other.parent.mkdir()
    other.write_bytes(synth.fc(301, layers=6))
    made = balancer.balance(other, 3, options=balancer.Options(stages=3))
    assert [b.stage_ns for b in behaviours(made, truth_of(made, 5), 0.0).values()] != found[0]


def test_tuning_on_simulated_tpus_computes_nothing(plan: Plan) -> None:
    source = PipelineTimes(devices="sim", seconds=0.2, truth=truth_of(plan, 1))
    assert tune(plan, source, rounds=1).rounds[0].source == "simulated"


# What is measured (point 10)


def test_failed_items_are_no_latency_and_no_rate(plan: Plan) -> None:
    """What fails comes back at once, and would make both look good."""
    behaviours = {s.name: Behaviour(stage_ns=1_000_000, seed=4) for s in plan.segments}
    slow = plan.segments[2].name
    behaviours[plan.segments[0].name] = Behaviour(stage_ns=1_000_000, failing=600_000, seed=4)
    behaviours[slow] = Behaviour(stage_ns=30_000_000)
    found = _measured(plan, Simulation(behaviours=behaviours, outputs="none"))
    assert found.failures > 0
    assert found.failures_alone > 0
    assert found.latency.min >= 20_000_000  # late wake-ups are taken off the next one, no more than that
    assert found.throughput_per_s == pytest.approx((found.items - found.failures) / found.seconds, rel=0.01)
    assert next(s for s in found.stages if s.segment == slow).stage_ns >= 20_000_000


def test_where_nothing_comes_through_there_is_no_measurement(plan: Plan) -> None:
    behaviours = {s.name: Behaviour(stage_ns=1000, failing=1_000_000) for s in plan.segments}
    with pytest.raises(StageError, match="the simulated inference failed"):
        _measured(plan, Simulation(behaviours=behaviours))


def test_the_predicted_bottleneck_is_that_of_all_pipelines(plan: Plan) -> None:
    slowest = max(plan.segments, key=lambda s: s.predicted.stage_ns).name
    # In the first pipeline there are enough replicas of it, in the second there is one.
    many = [[4 if s.name == slowest else 1 for s in plan.segments], [1] * len(plan.segments)]
    wanted = with_replicas(plan, many)
    first = wanted.pipelines[0]
    other = next(s.name for s in plan.segments if s.name != slowest)
    wanted = replace(
        wanted,
        pipelines=(replace(first, predicted=replace(first.predicted, bottleneck=other)), *wanted.pipelines[1:]),
    )
    assert _measured(wanted, Simulation(outputs="none")).predicted_bottleneck == slowest
