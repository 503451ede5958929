"""What the verbs say is true whatever they are given: rows, footnotes, targets, constraints."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import balancer
from balancer.balancing.comparing import row_of
from balancer.cli import drawing
from balancer.cli.main import main
from balancer.cli.solver_options import SOLVERS
from balancer.errors import ConstraintError
from balancer.solve.baselines import BASELINES
from balancer.tflite import synth
from tests import handmade

if TYPE_CHECKING:
    from pathlib import Path

WIDE = synth.fc(1800, layers=6)  # streams on one TPU and on two


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.tflite"
    path.write_bytes(WIDE)
    return path


def _rows(plan: Any) -> dict[str, Any]:
    return {row.name: row for row in plan.comparison}


# Rows of a comparison


@pytest.mark.parametrize("solver", sorted(BASELINES))
def test_the_row_of_a_baseline_is_named_after_it_and_claims_nothing(
    solver: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = balancer.balance(model, 2, solver=solver)
    names = [row.name for row in plan.comparison]
    assert names[-1] == row_of(solver)
    assert "ours" not in names
    assert len(set(names)) == len(names)
    assert plan.comparison[-1].throughput_per_s == plan.predicted.throughput_per_s
    assert main(["solve", str(model), "-n", "2", "--solver", solver]) == 0
    said = capsys.readouterr().out
    assert f"no proof: the cuts are those of {solver}, which claims nothing" in said
    assert "optim" not in said


@pytest.mark.parametrize("solver", sorted(set(SOLVERS) - set(BASELINES)))
def test_the_row_of_a_solver_is_ours(solver: str) -> None:
    assert row_of(solver) == "ours"


def test_rows_that_break_the_constraints_are_marked(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["solve", str(model), "-n", "3", "--keep-together", "3-8"]
    assert main([*arguments, "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["comparison"]}
    assert rows["equal op counts"]["breaks_limits"] is True
    assert rows["ours, one pipeline"]["breaks_limits"] is True
    assert rows["one TPU"]["breaks_limits"] is False
    assert rows["ours"]["breaks_limits"] is False
    # What is faster than the best plan within the constraints is not within them.
    best = rows["ours"]["throughput_per_s"]
    assert all(row["breaks_limits"] for row in rows.values() if (row["throughput_per_s"] or 0) > best * (1 + 1e-9))
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "ours, one pipeline + " in said
    assert "compiler default (*+)" in said
    assert "+   does not keep to the limits and constraints that were asked for" in said
    assert all(len(line) <= 80 for line in said.splitlines())


@pytest.mark.parametrize(
    ("limits", "breaking"),
    [
        ({}, set()),
        ({"pipelines": 1}, set()),  # copies are one stage with as many replicas
        ({"pipelines": 1, "replicas": 1}, {"copies"}),
        ({"replicas": 1}, set()),
        ({"stages": 3}, {"one TPU", "copies"}),
    ],
)  # fmt: skip
def test_rows_that_break_a_limit_are_marked(limits: dict[str, int], breaking: set[str]) -> None:
    rows = _rows(balancer.balance(WIDE, 3, **limits))  # type: ignore[arg-type]
    marked = {name for name, row in rows.items() if row.breaks_limits}
    assert marked - {"ours, one pipeline", "depth balanced"} == breaking


def test_rows_that_stream_are_marked_where_that_is_refused() -> None:
    rows = _rows(balancer.balance(WIDE, 4, overflow="error"))
    assert rows["one TPU"].breaks_limits
    assert rows["copies"].breaks_limits
    assert not rows["ours"].breaks_limits


def test_a_plan_file_without_the_mark_is_read(model: Path, tmp_path: Path) -> None:
    saved = balancer.save(balancer.balance(model, 2), tmp_path / "plan")
    path = tmp_path / "plan" / saved.file_name
    document = json.loads(path.read_text())
    for row in document["comparison"]:
        del row["breaks_limits"]
    path.write_text(json.dumps(document))
    assert balancer.load_plan(path) == saved
