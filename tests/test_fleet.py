"""Plans for devices of several kinds: how users name them, what a CPU costs, and what a plan's file says of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import balancer
from balancer.cli.main import main
from balancer.cost.devices import Devices
from balancer.cost.hardware import load_hardware, load_kind, preset_names
from balancer.cost.segment import SegmentCosts
from balancer.errors import BalancerError, DeviceError, HardwareError, PlanError
from balancer.planning import asked_devices, machine
from balancer.planning.asked_devices import devices_asked
from balancer.planning.costed_model import open_costed_model
from balancer.planning.machine import calibrated_cpu_path, this_cpu
from balancer.solve import solve
from balancer.tflite import synth
from balancer.tflite.read import read_graph
from tests import handmade
from tests.plans import WIDE

if TYPE_CHECKING:
    from pathlib import Path

CPU = load_kind("cpu-x86")


@given(st.dictionaries(st.sampled_from(preset_names()), st.integers(1, 5), min_size=1))
def test_devices_are_what_was_asked_for_in_its_order(counts: dict[str, int]) -> None:
    asked = devices_asked(counts)
    assert dict(asked.counts) == counts
    assert [name for name, _ in asked.counts] == list(counts)
    assert devices_asked(asked.text) == asked == devices_asked(asked)
    assert asked.total == sum(counts.values())


def test_a_number_stands_for_devices_of_the_default_kind() -> None:
    assert devices_asked(3).counts == devices_asked(" 3 ").counts == (("pcie", 3),)
    assert devices_asked(3, "usb").counts == (("usb", 3),)
    assert devices_asked(1, CPU).kinds == ((CPU, 1),)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("pcie", "names no devices"), ("pcie=", "names no devices"), ("=2", "names no devices"), ("", "names no devices"),
        ("pcie=x", "names no devices"), ("pcie=0", "from 1"), ({"pcie": 0}, "from 1"), ({"pcie": True}, "from 1"),
        ({}, "no devices"), ("pcie=20,usb=20", "1 to 32"), ("pcie=1,pcie=2", "named twice"), ("nothing=1", "no such preset"),
        ({"usb": 1, "cpu-a53": 5}, "more than its 4 cores"),
    ],
)  # fmt: skip
def test_devices_that_cannot_be_are_one_clear_line(asked: Any, said: str) -> None:
    with pytest.raises((ValueError, BalancerError), match=said):
        devices_asked(asked)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("pcie=2,usb=0", 2, "at least one device"), ("two", 2, "neither a number"), ("cpu-a53=5", 1, "give at most"),
        ("nothing=2", 1, "no such preset"), ("pcie=40", 1, "1 to 32"), ("0", 2, "from 1 to 32"),
    ],
)  # fmt: skip
def test_the_command_names_what_is_wrong(
    text: str, code: int, said: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", str(model), "-n", text]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_kinds_and_hardware_are_not_named_at_once(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", str(model), "-n", "pcie=2", "--hardware", "usb"]) == 1
    assert "leave it out" in capsys.readouterr().err


def test_two_hardware_files_of_one_name_are_refused(tmp_path: Path) -> None:
    document = {"format": "balancer-hardware", "version": 1, "name": "mine", "base": "usb", "constants": {}}
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(document))
    with pytest.raises(HardwareError, match="named twice"):
        devices_asked({str(tmp_path / "a.json"): 1, str(tmp_path / "b.json"): 1})


def test_cpu_is_this_machines_calibration_else_the_preset_of_its_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "usable_cores", lambda: 3)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert this_cpu().name == "cpu-x86"
    assert this_cpu().rough
    assert this_cpu().running.cores == 3
    document = {
        "format": "balancer-hardware", "version": 1, "device": "cpu", "name": "cpu", "base": "cpu-x86",
        "constants": {"invoke_ns": {"value": 7}},
    }  # fmt: skip
    calibrated_cpu_path().parent.mkdir(parents=True)
    calibrated_cpu_path().write_text(json.dumps(document))
    assert (this_cpu().name, this_cpu().rough, this_cpu().running.invoke_ns) == ("cpu", False, 7)
    assert devices_asked("cpu=3").kinds == ((this_cpu(), 3),)
    with pytest.raises(HardwareError, match="give at most cpu=3"):
        devices_asked("cpu=4")
    calibrated_cpu_path().write_text(json.dumps(document | {"device": "edgetpu", "base": "usb", "constants": {}}))
    with pytest.raises(HardwareError, match="calibrate anew"):
        this_cpu()


def test_arm_cores_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    for part, name in (("0xd03", "cpu-a53"), ("0xd08", "cpu-a72"), ("", "cpu-a72")):
        monkeypatch.setattr(machine, "_arm_part", lambda _, part=part: part)
        assert this_cpu().name == name


def test_without_an_edge_tpu_auto_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked_devices, "list_devices", list)
    with pytest.raises(DeviceError, match="balancer devices"):
        devices_asked("auto")


def test_a_cpu_file_is_no_edge_tpu() -> None:
    with pytest.raises(HardwareError, match="is a CPU"):
        load_hardware("cpu-x86")
    with pytest.raises(HardwareError, match="leave out :std"):
        load_kind("cpu-a72:std")


@given(st.integers(0, 1 << 30))
def test_the_cost_on_a_cpu_is_a_sum_over_ops_and_boundary_tensors(ops: int) -> None:
    graph = read_graph(
        handmade.dag(
            [("conv", 0, 1), ("dense", 1, 2), ("add", 2, 3), ("mul", 3, 2), ("pool", 4, 1), ("conv", 5, 0)], [1]
        ),
        name="dag",
    )
    costs, ops = SegmentCosts(graph, CPU), ops & graph.all_ops
    if not costs.allowed(ops):
        return
    terms, (inputs, outputs) = costs.terms(ops), graph.interface(ops)
    singles = sum(costs.op_terms[i].cpu_ns for i in range(len(graph.ops)) if ops >> i & 1)
    crossing = sum(costs.transfers[t].input_ns for t in inputs) + sum(costs.transfers[t].output_ns for t in outputs)
    assert terms.stage_ns == singles + crossing + CPU.link.invoke_ns
    assert terms.streamed_bytes == terms.overflow_bytes == 0
    assert costs.judgement(ops).level.value == "surely"


def test_a_plan_says_which_stage_stands_on_which_kind(tmp_path: Path) -> None:
    plan = balancer.save(balancer.balance(WIDE, {"pcie": 2, "cpu-x86": 1}), tmp_path / "plan")
    again = balancer.load_plan(tmp_path / "plan")
    assert again == plan
    document = json.loads((tmp_path / "plan" / plan.file_name).read_text())
    assert [(d["kind"], d["device"], d["count"], d["rough"]) for d in document["devices"]] == [
        ("pcie", "edgetpu", 2, False), ("cpu-x86", "cpu", 1, True),
    ]  # fmt: skip
    assert document["n_tpus"] == 3
    assert {stage["kind"] for p in document["pipelines"] for stage in p["stages"]} <= {"pcie", "cpu-x86"}
    used = [(s.kind, t) for p in plan.pipelines for s in p.stages for t in s.tpus]
    assert len(set(used)) == len(used) == plan.predicted.tpus_used
    positions = [n for p in plan.pipelines for s in p.stages for n in plan.positions(s)]
    assert sorted(positions) == list(range(len(used)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"device": "gpu"}, "no device 'gpu'"), ({"count": 9}, "contradict"), ({"kind": "other"}, "contradict"),
        ({"constants": {"op_ns": 10**12}}, "more than"),
    ],
)  # fmt: skip
def test_devices_that_contradict_the_plan_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    plan = balancer.balance(WIDE, 2)
    document = plan.to_json()
    document["devices"][0] |= change
    (tmp_path / "net_plan_2.json").write_text(json.dumps(document))
    with pytest.raises(PlanError, match=said):
        balancer.load_plan(tmp_path)


def test_a_stage_on_devices_that_are_not_there_is_refused(tmp_path: Path) -> None:
    document = balancer.balance(WIDE, 2).to_json()
    document["pipelines"][0]["stages"][0]["kind"] = "usb"
    (tmp_path / "net_plan_2.json").write_text(json.dumps(document))
    with pytest.raises(PlanError, match="no devices of kind 'usb'"):
        balancer.load_plan(tmp_path)


def test_where_the_edge_tpu_streams_a_cpu_takes_the_dense_end() -> None:
    """Dense layers that do not fit: a CPU computes them faster than the link carries their parameters."""
    model = synth.fc(2048, layers=6, output_type="int8")
    alone, beside = balancer.balance(model, 1), balancer.balance(model, {"pcie": 1, "cpu-x86": 1})
    assert beside.predicted.throughput_per_s > 2 * alone.predicted.throughput_per_s
    assert beside.solver.status == "optimal"


def test_costs_are_kept_where_only_the_number_of_devices_changes() -> None:
    costed = open_costed_model(WIDE, "pcie")
    assert costed.on(4).costs is costed.costs
    other = costed.on(Devices(((replace(load_hardware("usb"), name="pcie"), 2),)))
    assert other.costs is not costed.costs
    assert solve(other.problem()).value != solve(costed.on(2).problem()).value
