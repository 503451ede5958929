"""`size` over the number of devices of one kind, with others beside it; `predict` with a kind for each segment."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import balancer
from balancer.cli.main import main
from balancer.cost.hardware import load_kind
from balancer.errors import BalancerError, HardwareError, PlanError
from balancer.planning.sweeping import sweep_asked
from balancer.tflite.read import read_graph
from tests.plans import WIDE

if TYPE_CHECKING:
    from pathlib import Path


def test_a_sweep_is_what_was_asked_for() -> None:
    sweep = sweep_asked("cpu-a53=2,usb=2-4")
    assert (sweep.kind.name, list(sweep.counts), sweep.others) == ("usb", [2, 3, 4], "cpu-a53=2")
    assert sweep.devices(3).counts == (("cpu-a53", 2), ("usb", 3))
    assert sweep == sweep_asked({"cpu-a53": 2, "usb": range(2, 5)})


@pytest.mark.parametrize(
    "asked",
    [
        "usb=3",
        "usb=1-2,cpu-a53=1-2",
        "usb=0-2",
        "usb=4-2",
        "usb",
        "usb=1-40",
        "usb=x-3",
        "usb=1-2,cpu-a53=9",
        "",
        "usb=1-2,usb=1",
    ],
)
def test_what_is_no_sweep_is_one_clear_line(asked: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((ValueError, BalancerError)):
        sweep_asked(asked)
    assert main(["size", str(model), "-n", asked]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_range_beside_other_ways_to_name_devices_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for other in (["--max-tpus", "3"], ["--hardware", "usb"]):
        assert main(["size", str(model), "-n", "usb=1-2", *other]) == 1
        assert f"{other[0]}: is named beside -n" in capsys.readouterr().err
    with pytest.raises(ValueError, match="leave out hardware"):
        balancer.size(model, n_tpus="usb=1-2", max_tpus=3)


def test_each_row_is_the_best_plan_on_its_devices() -> None:
    found = balancer.size(WIDE, n_tpus={"pcie": range(1, 4), "cpu-x86": 1})
    assert (found.kind, found.others) == ("pcie", "cpu-x86=1")
    for row in found.rows:
        plan = balancer.balance(WIDE, {"pcie": row.n_tpus, "cpu-x86": 1}, options=balancer.Options(compilable="any"))
        assert row.throughput_per_s == pytest.approx(plan.predicted.throughput_per_s, rel=1e-4)
    alone = balancer.size(WIDE, max_tpus=3)
    assert all(
        (a.throughput_per_s or 0) <= (b.throughput_per_s or 0) for a, b in zip(alone.rows, found.rows, strict=True)
    )


def test_one_more_device_never_lowers_the_rate_within_a_latency() -> None:
    free = balancer.size(WIDE, n_tpus="pcie=1-3,cpu-x86=1")
    latency_ns = min(row.latency_ns for row in free.rows if row.latency_ns) + 200_000
    rows = balancer.size(WIDE, n_tpus="pcie=1-3,cpu-x86=1", max_latency_ns=latency_ns).rows
    rates = [row.throughput_per_s or 0.0 for row in rows]
    assert rates == sorted(rates)
    assert all(row.latency_ns is None or row.latency_ns <= latency_ns for row in rows)


def test_a_plan_of_several_kinds_is_sized_by_its_first_kind(tmp_path: Path) -> None:
    balancer.save(balancer.balance(WIDE, {"pcie": 1, "cpu-x86": 1}), tmp_path / "plan")
    found = balancer.size(tmp_path / "plan", max_tpus=2)
    assert (found.kind, found.others) == ("pcie", "cpu-x86=1")
    assert found.rows == balancer.size(WIDE, n_tpus="pcie=1-2,cpu-x86=1").rows


def test_predict_takes_a_kind_for_each_segment() -> None:
    halves = [range(3), range(3, len(read_graph(WIDE, name="model").ops))]
    plan = balancer.predict(WIDE, halves, on=["cpu-a53", "pcie"])
    assert [stage.kind for stage in plan.pipelines[0].stages] == ["cpu-a53", "pcie"]
    assert plan.devices[0].count == plan.devices[1].count == 1
    alone = balancer.predict(WIDE, halves)
    assert plan.segments[1].predicted == alone.segments[1].predicted
    assert balancer.predict(WIDE, halves, on=[load_kind("pcie")] * 2) == alone
    with pytest.raises(PlanError, match="1 kind for 2 segments"):
        balancer.predict(WIDE, halves, on=["pcie"])
    with pytest.raises(HardwareError, match="no such preset"):
        balancer.predict(WIDE, halves, on=["pcie", "nothing"])


def test_predict_keeps_the_kinds_of_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(WIDE)
    plan = balancer.save(balancer.balance(path, {"usb": 1, "cpu-x86": 1}), tmp_path / "plan")
    assert main(["predict", str(path), "--plan", str(tmp_path / "plan"), "--json"]) == 0
    said: Any = json.loads(capsys.readouterr().out)
    assert said["pipelines"][0]["stages"] == [
        {"segment": s.segment, "replicas": 1, "tpus": list(s.tpus), "kind": s.kind} for s in plan.pipelines[0].stages
    ]
    assert said["segments"][0]["predicted"]["stage_ns"] == plan.segments[0].predicted.stage_ns
    assert main(["predict", str(path), "--plan", str(tmp_path / "plan"), "--hardware", "pcie", "--json"]) == 0
    assert {s["kind"] for s in json.loads(capsys.readouterr().out)["pipelines"][0]["stages"]} == {"pcie"}
    assert main(["predict", str(path), "--cuts", "3", "--on", "pcie,usb", "--hardware", "usb"]) == 1
    assert "--hardware usb: is named beside --on" in capsys.readouterr().err
