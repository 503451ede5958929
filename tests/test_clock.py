"""The chip's clock, and what crosses the link whatever the clock: instructions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import balancer
from balancer.cost.hardware import CLOCKS_MHZ, DEFAULTS, load_hardware, preset_names
from balancer.cost.instructions import BASE_BYTES
from balancer.cost.profile import OpCosts, Profile
from balancer.cost.segment import SegmentCosts
from balancer.errors import HardwareError
from balancer.ground.units import MIB, ceil_div
from balancer.tflite import synth
from balancer.tflite.read import read_graph

if TYPE_CHECKING:
    from pathlib import Path

CONV = read_graph(synth.conv(70), name="conv")


@pytest.mark.parametrize("name", preset_names())
def test_std_halves_the_clock_and_nothing_else(name: str) -> None:
    full, half = load_hardware(f"{name}:max"), load_hardware(f"{name}:std")
    assert (full.chip.clock_mhz, half.chip.clock_mhz) == (500, 250)
    assert (full.name, half.name) == (f"{name}:max", f"{name}:std")
    assert full.constants == load_hardware(name).constants
    assert half.constants == full.constants | {"clock_mhz": CLOCKS_MHZ["std"]}
    whole, slow = (SegmentCosts(CONV, h).terms(CONV.all_ops) for h in (full, half))
    assert slow.compute_ns == 2 * whole.compute_ns
    assert (slow.input_ns, slow.output_ns, slow.cpu_ns) == (whole.input_ns, whole.output_ns, whole.cpu_ns)
    starts = whole.overhead_ns - SegmentCosts(CONV, full).invoke_ns
    link_ns = sum(
        ceil_div(t.instruction_bytes * full.link.instruction_ns_per_mib, MIB) for t in SegmentCosts(CONV, full).op_terms
    )
    assert slow.overhead_ns - whole.overhead_ns == starts - link_ns


@given(st.integers(100, 2_000))
def test_a_slower_clock_never_saves_time(mhz: int) -> None:
    base = load_hardware("pcie")
    slow, fast = (SegmentCosts(CONV, base.changed({"clock_mhz": m})).terms(CONV.all_ops) for m in (mhz, mhz + 7))
    assert slow.stage_ns >= fast.stage_ns
    assert slow.stage_ns - slow.compute_ns >= fast.stage_ns - fast.compute_ns - fast.streaming_ns


def test_a_clock_is_named_behind_a_preset_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    constants = {
        name: {"value": value} for name, value in load_hardware("usb").constants.items() if name not in DEFAULTS
    }
    path.write_text(json.dumps({"format": "balancer-hardware", "version": 1, "name": "mine", "constants": constants}))
    mine = load_hardware(f"{path}:std")
    assert (mine.name, mine.chip.clock_mhz) == ("mine:std", 250)
    odd = tmp_path / "mine:std"
    odd.write_text(path.read_text())
    assert load_hardware(odd).constants == load_hardware(path).constants
    assert load_hardware(f"{odd}:std").constants == mine.constants
    # A file of an older version: no clock, no instructions, and channels as they are.
    assert {name: load_hardware(path).constants[name] for name in DEFAULTS} == DEFAULTS
    with pytest.raises(HardwareError, match=r"no build 'fast'.*name it std or max"):
        load_hardware("usb:fast")
    with pytest.raises(HardwareError, match="no such preset"):
        load_hardware("nothing:std")
    with pytest.raises(ValueError, match="clock_mhz must be a whole number from 100"):
        mine.changed({"clock_mhz": 0})


def test_instructions_cross_the_link_with_each_inference() -> None:
    """They are in a plan's prediction, in its latency and so in its first inference."""
    data = synth.conv(70)
    free = load_hardware("usb2").changed({"instruction_ns_per_mib": 0})
    priced = load_hardware("usb2")
    without, plan = (balancer.balance(data, 2, hardware=h) for h in (free, priced))
    for segment in plan.segments:
        terms = segment.predicted
        assert terms.instruction_bytes > BASE_BYTES
        assert terms.overhead_ns * MIB >= terms.instruction_bytes * priced.link.instruction_ns_per_mib
    whole, cheap = (SegmentCosts(CONV, h).terms(CONV.all_ops) for h in (priced, free))
    sent_ns = whole.instruction_bytes * priced.link.instruction_ns_per_mib / MIB
    assert 0 <= whole.stage_ns - cheap.stage_ns - sent_ns <= len(CONV.ops) + 1
    assert plan.predicted.first_inference_ns > plan.predicted.latency_ns > without.predicted.latency_ns


def test_a_segment_on_the_cpu_has_no_instructions() -> None:
    nothing_mapped = Profile("", {op.index: OpCosts(mapped=False) for op in CONV.ops})
    terms = SegmentCosts(CONV, load_hardware("pcie"), nothing_mapped).terms(CONV.all_ops)
    assert terms.instruction_bytes == terms.compute_ns == 0 < terms.cpu_ns
