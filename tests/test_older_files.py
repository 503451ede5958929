"""Files that an older version wrote are read, mean what they meant, and give the numbers that they gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import balancer
from balancer.cost.hardware import DEFAULTS
from balancer.inputs import random_items
from balancer.learning.recorded import read_stage_times
from balancer.loops.sources import TrueCosts
from balancer.opened import open_plan
from balancer.plan import plan_text
from balancer.planning.costed_model import costed_model_of
from balancer.planning.options import options_of

OLDER = Path(__file__).parent / "older"
PLANS = sorted(path.name for path in OLDER.iterdir() if path.is_dir())


def _document(folder: str) -> Any:
    (path,) = (OLDER / folder).glob("*_plan_*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def _missing(old: Any, new: Any, where: str = "plan") -> list[str]:
    """Where the new document lacks something of the old one, or says something else."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [m for key in old for m in _missing(old[key], new.get(key, "absent"), f"{where}.{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [m for k, (a, b) in enumerate(zip(old, new, strict=True)) for m in _missing(a, b, f"{where}[{k}]")]
    if where == "plan.version":
        return []  # a file of version 1 is written again as one of today's
    if where == "plan.solver.bound_ns" and old == 0:
        old = None  # 0 stood for no bound
    return [] if old == new else [f"{where}: {old!r} became {new!r}"]


@pytest.mark.parametrize("folder", PLANS)
def test_a_plan_says_what_it_said(folder: str) -> None:
    assert _missing(_document(folder), json.loads(plan_text(balancer.load_plan(OLDER / folder)))) == []


@pytest.mark.parametrize("folder", PLANS)
def test_a_plan_verifies_and_runs(folder: str) -> None:
    plan = balancer.load_plan(OLDER / folder)
    keep_state = plan.state == "kept"
    assert balancer.verify(plan, 2, keep_state=keep_state).bit_exact
    options = balancer.RunOptions(keep_state=keep_state)
    for devices in ("cpu", "sim"):
        with balancer.Pipeline(plan, devices, options) as pipeline:
            assert len(pipeline.run(random_items(pipeline.interface.inputs, 3))) == 3


@pytest.mark.parametrize("folder", ["constrained", "baseline", "profiled", "state"])
def test_the_same_question_has_the_same_answer(folder: str) -> None:
    """Solved anew, with what the old plan was held to: every number is the same."""
    plan, old = balancer.load_plan(OLDER / folder), _document(folder)
    assert plan.held_to is not None
    options = options_of(plan.held_to)
    if folder == "baseline":
        options = balancer.Options(solver=plan.solver.name)
    model = next((OLDER / folder).glob("*[!0-9].tflite"))
    profile = OLDER / "net_profile.json" if folder == "profiled" else None
    again = balancer.balance(
        model, plan.n_tpus, options=options, profile=profile, hardware=open_plan(plan).hardware,
        keep_state=plan.state == "kept",
    )  # fmt: skip
    new = json.loads(plan_text(again))
    for key in ("hardware", "costs", "pipelines", "predicted", "comparison", "held_to", "state"):
        assert _missing(old[key], new[key], key) == []
    assert [s["ops"] for s in new["segments"]] == [s["ops"] for s in old["segments"]]
    for one, other in zip(old["segments"], new["segments"], strict=True):
        assert _missing(one["predicted"], other["predicted"]) == []


def test_a_tuned_plan_is_tuned_on() -> None:
    plan = balancer.load_plan(OLDER / "tuned")
    assert plan.costs is not None
    assert set(plan.costs.learnt_from) == {"compiler reports", "measured stages"}
    assert balancer.tune(plan, TrueCosts(costed_model_of(plan)), rounds=2).rounds[0].worst < 0.01


def test_a_hardware_file_and_a_recording_are_read() -> None:
    hardware = balancer.load_hardware(OLDER / "mine.json")
    old = json.loads((OLDER / "mine.json").read_text())["constants"]
    assert hardware.constants == DEFAULTS | {name: entry["value"] for name, entry in old.items()}
    (time,) = read_stage_times(OLDER / "times.csv")
    assert time.ns > 0
