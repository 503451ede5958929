"""The comparison for devices of several kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import balancer
from balancer.cli.main import main
from balancer.cost.devices import Devices
from balancer.cost.hardware import load_kind
from balancer.tflite import synth
from tests.plans import WIDE

if TYPE_CHECKING:
    from pathlib import Path

TINY = synth.fc(64, layers=2)


@pytest.mark.parametrize("devices", ["pcie=2,cpu-x86=2", "pcie=1,usb=2,cpu-a72=1", "cpu-a53=2,usb=1", "pcie=1,usb=1"])
def test_no_row_beats_the_best_plan(devices: str) -> None:
    plan = balancer.balance(WIDE, devices)
    assert plan.solver.status == "optimal"
    rows = {row.name: row for row in plan.comparison}
    assert list(rows)[-1] == "ours"
    best = rows["ours"].throughput_per_s
    assert best == pytest.approx(plan.predicted.throughput_per_s)
    assert all(
        row.throughput_per_s is not None and row.throughput_per_s <= (best or 0) * (1 + 1e-6) for row in rows.values()
    )
    assert rows["ours"].energy == plan.predicted.energy


def test_each_kind_has_its_rows_and_copies_add_up() -> None:
    rows = {row.name: row for row in balancer.compare(WIDE, {"pcie": 2, "cpu-x86": 1})}
    assert list(rows) == [
        "one pcie", "cpu-x86 alone", "copies on everything", "compiler default", "pcie=2 alone", "ours",
    ]  # fmt: skip
    rates = {name: row.throughput_per_s or 0.0 for name, row in rows.items()}
    assert rates["copies on everything"] == pytest.approx(2 * rates["one pcie"] + rates["cpu-x86 alone"])
    alone = balancer.balance(WIDE, 2)
    assert rates["pcie=2 alone"] == pytest.approx(alone.predicted.throughput_per_s)
    default = next(row for row in alone.comparison if row.name == "compiler default")
    assert rates["compiler default"] == default.throughput_per_s
    assert rows["compiler default"].stand_in
    fastest = max(rates["one pcie"], rates["cpu-x86 alone"])
    for name, row in rows.items():
        assert row.speedup_over_one_tpu == pytest.approx(rates[name] / fastest, rel=1e-5)


def test_one_kind_has_the_rows_that_it_had() -> None:
    names = [row.name for row in balancer.compare(WIDE, 2)]
    assert names == [row.name for row in balancer.compare(WIDE, {"pcie": 2})]
    assert names[:4] == ["one TPU", "copies", "compiler default", "equal op counts"]
    on_cpu = [row.name for row in balancer.compare(WIDE, {"cpu-x86": 2})]
    assert on_cpu == ["one cpu-x86", *names[1:]]


def test_where_the_cpu_alone_is_fastest_one_line_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Host work limits both kinds, and the CPU's takes less of it: Edge TPUs beside it add nothing."""
    pcie, cpu = (
        load_kind(name).changed({"host_ns_per_stage": ns}) for name, ns in (("pcie", 10**8), ("cpu-x86", 10**7))
    )
    rows = {row.name: row for row in balancer.compare(TINY, Devices(((pcie, 2), (cpu, 1))))}
    assert rows["ours"].throughput_per_s == rows["cpu-x86 alone"].throughput_per_s
    assert rows["ours"].note == "nothing is faster than the CPU alone"
    path = tmp_path / "net.tflite"
    path.write_bytes(WIDE)
    assert main(["compare", str(path), "-n", "usb2=1,cpu-x86=1"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "the CPU alone" in line]
    assert len(said) == 1
    assert said[0].endswith("times the CPU alone, which is faster than the Edge TPUs alone")
    assert main(["compare", str(path), "-n", "pcie=4,cpu-a53=1"]) == 0
    assert "the CPU alone" not in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["compare", "size"])
def test_rough_kinds_are_named(verb: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rough, fitted = (
        ("pcie=1,cpu-a53=1", "pcie=1,usb=1") if verb == "compare" else ("pcie=1-2,cpu-a53=1", "pcie=1-2,usb=1")
    )
    assert main([verb, str(model), "-n", rough]) == 0
    assert "rough: what is predicted on cpu-a53 comes from rough guesses" in capsys.readouterr().out
    assert main([verb, str(model), "-n", fitted]) == 0
    assert "rough" not in capsys.readouterr().out


@pytest.mark.parametrize("devices", ["pcie=1,cpu-a72=1", "pcie=2,usb=1", "pcie=2,usb2=2,cpu-x86=1"])
def test_the_table_fits_80_columns(devices: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(model), "-n", devices]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
