"""The energy of an inference: the formula, what it gives for plans, rows and sizes, and what is said where there is no data."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import balancer
from balancer.cli.main import main
from balancer.cost.devices import Devices
from balancer.cost.hardware import Hardware, load_hardware, load_kind, preset_names
from balancer.errors import HardwareError
from balancer.ground.energy import Drawn, energy
from balancer.planning.estimating import PipelineLoad, energy_of, without_power_data
from tests.plans import WIDE

if TYPE_CHECKING:
    from pathlib import Path

PCIE, A53 = load_hardware("pcie"), load_kind("cpu-a53")
MILLIWATTS = st.integers(0, 10_000)


@st.composite
def drawn(draw: st.DrawFn) -> Drawn:
    powered = draw(st.integers(1, 8))
    working = draw(st.fractions(0, powered, max_denominator=100))
    idle_mw, more_mw = draw(MILLIWATTS), draw(MILLIWATTS)
    return Drawn(powered, working, idle_mw, draw(MILLIWATTS), idle_mw + more_mw, draw(MILLIWATTS))


rates = st.fractions(Fraction(1, 10), 10_000)


@given(st.lists(drawn(), min_size=1, max_size=3), rates)
def test_energy_is_what_all_devices_draw_between_two_results(kinds: list[Drawn], rate: Fraction) -> None:
    waiting = sum((k.powered - k.working) * k.idle_mw for k in kinds)
    working = sum(k.working * k.busy_mw for k in kinds)
    estimate = energy(kinds, rate)
    assert estimate.mj == (waiting + working) / rate
    assert 0 <= estimate.least_mj <= estimate.mj <= estimate.most_mj


@given(drawn(), rates, st.fractions(0, 1))
def test_energy_never_falls_with_the_time_that_devices_wait(kind: Drawn, rate: Fraction, share: Fraction) -> None:
    """Inputs that come more slowly leave the same work for one inference, and more waiting."""
    if not share:
        return
    slower = energy([kind._replace(working=kind.working * share)], rate * share)
    assert slower.mj >= energy([kind], rate).mj
    assert energy([kind._replace(powered=kind.powered + 1)], rate).mj >= energy([kind], rate).mj


@given(drawn(), rates, st.integers(1, 5))
def test_larger_errors_never_narrow_the_range(kind: Drawn, rate: Fraction, more: int) -> None:
    narrow = energy([kind], rate)
    wide = energy(
        [kind._replace(idle_error_mw=kind.idle_error_mw + more, busy_error_mw=kind.busy_error_mw + more)], rate
    )
    assert wide.mj == narrow.mj
    assert wide.least_mj <= narrow.least_mj
    assert wide.most_mj >= narrow.most_mj


def test_a_dev_board_draws_what_was_measured() -> None:
    """4.21 ms for each picture, one at a time: 18.46 mJ, of which 5.49 above idle; on its CPU 216 ms and 847 mJ."""
    board = Devices(((PCIE, 1), (A53, 1)))
    found = energy_of(board, [PipelineLoad(Fraction(10**9, 4_210_000), (("pcie", 4_210_000),))])
    assert found is not None
    assert found.mj == pytest.approx(18.46, rel=0.01)
    assert found.least_mj <= 18.46 <= found.most_mj
    alone = energy_of(Devices(((PCIE, 1),)), [PipelineLoad(Fraction(10**9, 4_210_000), (("pcie", 4_210_000),))])
    assert alone is not None
    assert alone.mj == pytest.approx(5.49, rel=0.01)
    on_cpu = energy_of(board, [PipelineLoad(Fraction(10**9, 216_031_000), (("cpu-a53", 216_031_000),))])
    assert on_cpu is not None
    assert on_cpu.mj == pytest.approx(847.0, rel=0.01)


def with_power(kind: Hardware, **constants: int) -> Hardware:
    return kind.changed(constants)


def test_a_plan_estimates_what_its_stages_and_its_waiting_take() -> None:
    kind = with_power(PCIE, idle_mw=500, busy_mw=2000, idle_error_mw=0, busy_error_mw=0)
    plan = balancer.balance(WIDE, Devices(((kind, 4),)))
    busy_ns = sum(plan.segment(s.segment).predicted.stage_ns for s in plan.pipelines[0].stages)
    assert len({tuple(s.segment for s in p.stages) for p in plan.pipelines}) == 1  # so that each input takes this
    found = plan.predicted.energy
    assert found is not None
    by_hand = 4 * 500 / plan.predicted.throughput_per_s + 1500 * busy_ns / 1e9
    assert found.mj == pytest.approx(by_hand, rel=1e-6)
    assert found.least_mj == found.most_mj == found.mj
    assert found.without_idle == ()
    assert plan.comparison[-1].energy == found


def test_stages_on_one_cpu_share_what_it_draws_idle() -> None:
    load = [PipelineLoad(Fraction(10), (("cpu-a53", 10_000_000),))]
    one, four = (energy_of(Devices(((A53, count),)), load) for count in (1, 4))
    assert one == four


def test_kinds_without_data_give_no_estimate_and_are_named(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = {name for name in (*preset_names(), *preset_names("cpu")) if not load_kind(name).power.busy_mw}
    assert {"usb", "usb2", "usb-pi5", "usb-desktop", "cpu-x86"} == silent
    assert without_power_data(Devices(((PCIE, 1), (load_kind("usb"), 1)))) == ("usb",)
    assert main(["predict", str(model), "--cuts", "1", "--on", "pcie,usb"]) == 0
    said = capsys.readouterr().out
    assert said.count("no power data of usb") == said.count("energy") == 1
    assert "mJ" not in said


@pytest.mark.parametrize("verb", ["solve", "compare", "size", "predict"])
def test_energy_is_printed_as_an_estimate_with_its_range(
    verb: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"size": ["--max-tpus", "2", "--by", "energy"], "predict": ["--cuts", "1"]}.get(verb, ["-n", "2"])
    assert main([verb, str(model), *options]) == 0
    said = capsys.readouterr().out
    assert "mJ" in said
    assert "an estimate (" in said
    assert "what pcie draws while it waits: no data" in said


def test_a_meters_readings_come_from_a_hardware_file(tmp_path: Path, model: Path) -> None:
    def written(**constants: int) -> str:
        document = {
            "format": "balancer-hardware", "version": 1, "name": "mine", "base": "usb",
            "constants": {name: {"value": mw, "known": "measured", "source": "a meter"} for name, mw in constants.items()},
        }  # fmt: skip
        (tmp_path / "mine.json").write_text(json.dumps(document))
        return str(tmp_path / "mine.json")

    plan = balancer.balance(model, {written(idle_mw=300, busy_mw=1500): 1})
    assert plan.predicted.energy is not None
    period_s = 1 / plan.predicted.throughput_per_s
    busy_s = plan.segments[0].predicted.stage_ns / 1e9
    assert plan.predicted.energy.mj == pytest.approx(300 * (period_s - busy_s) + 1500 * busy_s, rel=1e-5)
    with pytest.raises(HardwareError, match="less while it works"):
        load_kind(written(idle_mw=300, busy_mw=200))


def test_files_of_older_versions_have_no_power_data() -> None:
    older = {
        name: value for name, value in PCIE.constants.items() if name not in ("idle_mw", "busy_mw", "bus_ns_per_mib")
    }
    assert Hardware.with_constants("older", older).power.busy_mw == 0
    plan = balancer.balance(WIDE, Devices(((replace(PCIE, power=replace(PCIE.power, busy_mw=0)), 1),)))
    assert plan.predicted.energy is None


# Sizing by energy


def test_the_number_with_the_least_energy_meets_the_target() -> None:
    board = with_power(PCIE, idle_mw=1000, busy_mw=2000)
    found = balancer.size(WIDE, hardware=board, max_tpus=5, target_per_s=100.0)
    rows = {row.n_tpus: row for row in found.rows}
    ranked = [rows[n] for n in found.by_energy]
    assert {row.n_tpus for row in ranked} == {n for n, row in rows.items() if (row.throughput_per_s or 0) >= 100.0}
    assert found.target_n == min(found.by_energy)
    millijoules = [row.energy.mj for row in ranked if row.energy]
    assert millijoules == sorted(millijoules)
    # At a given rate, another device that waits adds its idle power: with equal work, the fewest take the least.
    unhurried = balancer.size(WIDE, hardware=board, max_tpus=5, target_per_s=1.0)
    assert unhurried.by_energy[0] == 1


def test_ranking_by_energy_needs_data(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", str(model), "-n", "usb=1-2", "--by", "energy"]) == 1
    assert "busy_mw" in capsys.readouterr().err
