"""Plans for devices of several kinds at work: stages on the CPU really run, beside simulated TPUs and beside devices."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

import balancer
from balancer.cli.main import main
from balancer.errors import DeviceError, InfeasibleError, PlanError
from balancer.inputs import random_items
from balancer.interpreter import PROVEN, Kernels, open_interpreter
from balancer.runtime.assigning import assigned_devices, kernels_on
from balancer.runtime.devices import own_devices
from balancer.runtime.limits import cores_note
from balancer.runtime.measuring import measure
from balancer.runtime.options import RunOptions
from balancer.runtime.pipeline import Pipeline
from balancer.runtime.provenance import costed_for_others, provenance_text
from balancer.runtime.recipes import Simulation
from balancer.runtime.recording import recorded_outputs
from balancer.tflite import synth
from tests import edgetpu_compiler
from tests.plans import on_kinds
from tests.test_devices import FAKE, _pci, _usb

if TYPE_CHECKING:
    from pathlib import Path

    from balancer.plan import Plan

pytestmark = pytest.mark.timeout(120)
MODEL = synth.fc(300, layers=6, output_type="int8")
FIRMWARE = ("18d1", "9302")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Three stages; the one in the middle on the CPU."""
    return on_kinds(tmp_path_factory.mktemp("plan"), MODEL, ["pcie", "cpu-x86", "pcie"])


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Stages on three kinds, in the order usb, pcie, cpu, usb."""
    return on_kinds(tmp_path_factory.mktemp("fleet"), MODEL, ["usb", "pcie", "cpu-x86", "usb"])


def _path(plan: Plan) -> str:
    return str(plan.directory)


# Which device runs which stage


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("sim", ["sim", "sim", "cpu"]), ("usb", ["usb:0", "usb:1", "cpu"]), ("pci:3, :1", ["pci:3", ":1", "cpu"]),
        (["sim", "cpu"], ["sim", "cpu", "cpu"]), ("cpu", ["cpu", "cpu", "cpu"]),
    ],
)  # fmt: skip
def test_names_are_for_the_stages_on_edge_tpus(wanted: Any, names: list[str], plan: Plan) -> None:
    """By position: one kind after the other."""
    found = assigned_devices(plan, wanted)
    assert list(found.names) == names
    assert assigned_devices(plan, found) is found
    assert found.proven == (wanted == "cpu")


def test_each_kind_gets_devices_of_its_own(fleet: Plan, tmp_path: Path) -> None:
    for number in range(2):
        _pci(tmp_path, number)
        _usb(tmp_path, 2, number, FIRMWARE)
    assert assigned_devices(fleet, None, tmp_path).names == ("usb:0", "usb:1", "pci:0", "cpu")
    assert costed_for_others(fleet, assigned_devices(fleet, None, tmp_path).names) is None


def test_links_of_either_speed_go_to_their_kinds(tmp_path: Path) -> None:
    for number, speed in enumerate((480, 5000, 480)):
        _usb(tmp_path, 2, number, FIRMWARE)
        (tmp_path / f"sys/bus/usb/devices/2-{number}/speed").write_text(f"{speed}\n")
    assert own_devices(["usb", "usb2", "usb2"], tmp_path) == ["usb:1", "usb:0", "usb:2"]
    assert own_devices(["usb2:std", "mine", "usb-desktop"], tmp_path) == ["usb:0", "usb:2", "usb:1"]
    with pytest.raises(DeviceError, match="4 Edge TPUs are needed, 3 can be used"):
        own_devices(["usb"] * 4, tmp_path)


def test_what_is_lacking_of_a_kind_comes_from_another_and_is_said(fleet: Plan, tmp_path: Path) -> None:
    for number in range(3):
        _pci(tmp_path, number)
    found = assigned_devices(fleet, None, tmp_path).names
    assert sorted(found) == ["cpu", "pci:0", "pci:1", "pci:2"]
    said = "the plan's times are predicted for usb; it runs on pci, which takes other times"
    assert costed_for_others(fleet, found) == said


def test_a_plan_for_the_cpu_alone_needs_no_edge_tpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = on_kinds(tmp_path, MODEL, ["cpu-x86"] * 2)
    with Pipeline(plan) as pipeline:
        assert pipeline.devices == ["cpu", "cpu"]
        assert len(pipeline.run(random_items(pipeline.interface.inputs, 3))) == 3
    assert main(["compile", _path(plan), "--edgetpu_compiler_binary", str(tmp_path / "none")]) == 0
    assert "compiled: 0 of 0 segments" in capsys.readouterr().out


def test_edge_tpus_of_two_kinds_and_the_cpu_run_one_plan(
    fleet: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pretended Edge TPUs, each in its process; the stage on the CPU in this one."""
    compiler = edgetpu_compiler.in_process(tmp_path / "bin", runnable=True)
    plan = balancer.compile_plan(balancer.save(fleet, tmp_path / "copy"), compiler).plan
    (tmp_path / "truth.json").write_text(json.dumps({"devices": ["pci:0", "usb:0", "usb:1"]}))
    monkeypatch.syspath_prepend(str(FAKE))
    monkeypatch.setenv("FAKE_EDGETPU", str(tmp_path / "truth.json"))
    _pci(tmp_path, 0)
    for number in range(2):
        _usb(tmp_path, 2, number, FIRMWARE)
    with Pipeline(plan, assigned_devices(plan, None, tmp_path), RunOptions(exact=True)) as pipeline:
        assert len(psutil.Process().children()) == 3
        found = measure(pipeline, random_items(pipeline.interface.inputs, 4), seconds=0.2)
        items = random_items(pipeline.interface.inputs, 12)
        results = pipeline.run(items)
    assert [s.devices for s in found.stages] == [("usb:0",), ("pci:0",), ("cpu",), ("usb:1",)]
    assert provenance_text(found.source) == "mixed: cpu; device"
    assert [_bytes(result) for result in results] == [_bytes(result) for result in _of_the_whole(items)]


# With which kernels


def test_threads_are_those_of_the_kind(plan: Plan) -> None:
    cpu = plan.devices_of("cpu-x86")
    four = replace(cpu, constants=cpu.constants | {"threads": 4})
    assert kernels_on(four, proven=False) == Kernels(delegated=True, threads=4)
    assert kernels_on(four, proven=True) == kernels_on(plan.devices_of("pcie"), proven=False) == PROVEN
    with pytest.raises(PlanError, match="cannot have 0 threads"):
        kernels_on(replace(cpu, constants={"threads": 0}), proven=False)


def test_more_threads_than_cores_are_said() -> None:
    two = Kernels(delegated=True, threads=2)
    assert cores_note([two, two], 4) is cores_note([], 1) is None
    assert (
        cores_note([two, two], 3)
        == "stages on the CPU compute with 4 threads on 3 of its cores, and wait for each other"
    )


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_exact_results_are_those_of_the_whole_model(plan: Plan, processes: bool) -> None:
    items = random_items(Pipeline(plan, "sim").interface.inputs, 5)
    for devices, options in (
        ("sim", RunOptions(exact=True, processes=processes)),
        ("cpu", RunOptions(processes=processes)),
    ):
        with Pipeline(plan, devices, options) as pipeline:
            assert pipeline.notes == ()
            results = pipeline.run(items)
        assert [_bytes(result) for result in results] == [_bytes(result) for result in _of_the_whole(items)]


def _of_the_whole(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the whole model makes of the items, with the proven kernels."""
    whole, results = open_interpreter(MODEL), []
    for item in items:
        whole.run([item[name] for name in whole.input_names])
        results.append(dict(zip(whole.output_names, whole.outputs(), strict=True)))
    return results


def test_other_kernels_differ_by_a_step_at_most_and_that_is_said(plan: Plan) -> None:
    with Pipeline(plan, "sim") as pipeline:
        items = random_items(pipeline.interface.inputs, 5)
        found = pipeline.run(items)
        assert "may differ by a step; --exact avoids it" in pipeline.notes[0]
    with Pipeline(plan, "sim", RunOptions(exact=True)) as pipeline:
        exact = pipeline.run(items)
    for one, other in zip(found, exact, strict=True):
        for name, value in one.items():  # type: ignore[union-attr]
            # Three more layers follow the stage on the CPU, so a step may have grown a little.
            assert np.abs(value.astype(int) - other[name].astype(int)).max() <= 3  # type: ignore[index]


# What is said of numbers


def test_bench_says_which_stage_was_measured_on_what(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", _path(plan), "--devices", "sim", "--seconds", "0.3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["source"] for s in found["stages"]] == ["simulated", "cpu", "simulated"]
    assert found["source"] == "mixed: cpu; simulated"
    assert any("XNNPACK" in note for note in found["notes"])
    assert "XNNPACK" in found["versions"]["runtime"]
    assert main(["bench", _path(plan), "--devices", "sim", "--seconds", "0.2", "--exact"]) == 0
    out = capsys.readouterr().out
    assert "stages 0, 2: simulated; stage 1: measured on this CPU\n" in out
    assert "XNNPACK" not in out


def test_run_says_that_values_may_differ(plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, *Pipeline(plan, "sim").interface.inputs[0].shape[1:]), np.float32))
    arguments = ["run", _path(plan), "--inputs", str(tmp_path / "x.npy"), "--devices", "sim", "--force", "-o"]
    assert main([*arguments, str(tmp_path / "out")]) == 0
    assert "note: stages on the CPU use" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "out"), "--exact", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []


# Compiling


def test_segments_on_the_cpu_are_not_compiled_and_that_is_said(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = balancer.save(plan, tmp_path / "copy")
    binary = edgetpu_compiler.install(tmp_path / "bin")
    arguments = ["compile", _path(copy), "--edgetpu_compiler_binary", str(binary), "--cache", str(tmp_path / "cache")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "not to be compiled: net_segment_1_of_3, which the interpreter runs on cpu-x86" in out
    assert "compiled: 2 of 2 segments" in out
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["compiled"], found["on_cpu"], found["refused"]) == (2, ["net_segment_1_of_3"], [])
    compiled = balancer.load_plan(copy.directory or "")
    assert [s.reported is not None for s in compiled.segments] == [True, False, True]
    assert main(["inspect", _path(copy)]) == 0
    assert "on a CPU" in capsys.readouterr().out
    assert main(["verify", _path(copy)]) == 0


def test_refining_corrects_the_costs_of_edge_tpus_alone(tmp_path: Path) -> None:
    model = synth.fc(2048, layers=6, output_type="int8")
    plan = balancer.balance(model, {"cpu-x86": 1, "pcie": 2})
    assert not all(plan.is_compiled(segment.name) for segment in plan.segments)
    refined = balancer.refine(plan, edgetpu_compiler.in_process(tmp_path, room_per_million=700_000))
    assert refined.plan.devices == plan.devices
    assert [refined.plan.is_compiled(s.name) for s in refined.plan.segments] == [
        s.reported is not None for s in refined.plan.segments
    ]


def test_what_surely_compiles_on_no_edge_tpu_may_stand_on_the_cpu(tmp_path: Path) -> None:
    model = synth.conv(256, layers=3, size=256)
    sure = balancer.Options(compilable="sure")
    with pytest.raises(InfeasibleError):
        balancer.balance(model, 2, options=sure)
    plan = balancer.balance(model, {"pcie": 1, "cpu-x86": 1}, options=sure)
    assert {s.compiles.level for s in plan.segments if s.compiles} <= {"surely"}


@pytest.mark.parametrize("devices", [{"cpu-x86": 1}, {"cpu-x86": 1, "pcie": 1}])
def test_a_stage_that_is_meant_for_the_cpu_is_not_warned_of(
    devices: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.tflite").write_bytes(synth.fc(2048, layers=6, output_type="int8"))
    asked = ",".join(f"{kind}={count}" for kind, count in devices.items())
    assert main(["solve", str(tmp_path / "net.tflite"), "-n", asked]) == 0
    captured = capsys.readouterr()
    assert not captured.err
    assert "on the CPU, predicted" not in captured.out
    assert "all its ops run on the CPU" not in captured.out


def test_tuning_several_kinds_is_refused_in_one_line(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", _path(plan), "--devices", "sim", "-o", str(tmp_path / "tuned")]) == 1
    said = capsys.readouterr().err
    assert "is for pcie=2,cpu-x86=1, and tuning corrects the costs of Edge TPUs of one kind" in said
    assert said.count("\n") == 1


def test_pycorals_runner_says_what_it_cannot_run(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros(Pipeline(plan, "sim").interface.inputs[0].shape, np.float32))
    arguments = [
        "run",
        _path(plan),
        "--inputs",
        str(tmp_path / "x.npy"),
        "-o",
        str(tmp_path / "out"),
        "--devices",
        "sim",
    ]
    assert main([*arguments, "--runner", "pycoral"]) == 1
    assert "net_segment_1_of_3 runs on the CPU" in capsys.readouterr().err


# Misfortune


def test_a_stage_on_the_cpu_that_is_killed_recovers(tmp_path: Path) -> None:
    """Each item's result comes, in the order of the items, and none is computed from another's tensors."""
    plan = on_kinds(tmp_path, MODEL, ["pcie", "cpu-x86"])
    items = random_items(Pipeline(plan, "sim").interface.inputs, 7)
    simulation = Simulation(outputs="recorded", recordings=recorded_outputs(plan, items))
    last = [_bytes(result) for result in recorded_outputs(plan, items)[plan.segments[-1].name]]
    options = RunOptions(processes=True, exact=True, simulation=simulation)
    with Pipeline(plan, "sim", options) as pipeline:
        for k, result in enumerate(pipeline.map(items[k % 7] for k in range(200))):
            assert _bytes(result) == last[k % 7], f"item {k}"
            if k in (20, 80, 140):
                (process,) = _processes_with_interpreters()
                process.kill()
    assert k == 199


def _bytes(result: Any) -> bytes:
    return b"".join(value.tobytes() for value in result.values())


def _processes_with_interpreters() -> list[psutil.Process]:
    """The processes of stages that compute: simulated TPUs that replay load no interpreter."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if any("lite" in m.path for m in child.memory_maps())]
