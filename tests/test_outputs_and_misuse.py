"""Outputs that cannot be written, files that never end, Ctrl-C after solving, misuse of the API."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

import balancer
from balancer.cli.main import main
from balancer.errors import InputError, ModelError
from balancer.planning import balancing
from balancer.solve import Constraints
from balancer.tflite import synth

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.tflite"
    path.write_bytes(synth.fc(200, layers=4))
    return path


def _run(arguments: Sequence[str], stdout: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "balancer", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, check=False)


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_an_output_that_is_full_is_one_line(model: Path, more: list[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = _run(["solve", str(model), "-n", "2", *more], full)
        missing = _run(["solve", "nope.tflite", "-n", "2", *more], full)
    finally:
        os.close(full)
    assert done.returncode == missing.returncode == 1
    assert done.stderr.splitlines() == [
        "balancer: standard output: cannot be written (No space left on device); free some disk space, or write elsewhere"
    ]
    assert missing.stderr.count("\n") == 1
    assert "nope.tflite" in missing.stderr


@pytest.mark.parametrize("where", ["/proc/plan", ""])
def test_a_folder_that_takes_no_files_is_refused_before_solving(
    model: Path, where: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also for root, whom permissions do not stop; an empty name is this folder, in which the model is in the way of none."""
    monkeypatch.chdir(tmp_path)
    if where:
        monkeypatch.setattr(balancing, "solve_costed_model", lambda *_: pytest.fail("it was solved"))
        assert main(["solve", str(model), "-n", "2", "-o", where]) == 1
        assert "cannot be written" in capsys.readouterr().err
    else:
        assert main(["solve", str(model), "-n", "2", "-o", where]) == 0
        assert "written to" in capsys.readouterr().out


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.tflite")
    with pytest.raises(ModelError, match="is not a file"):
        balancer.load_graph(tmp_path / "m.tflite")


def test_ctrl_c_while_others_are_compared_keeps_the_plan(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(balancing, "comparison", interrupted)
    plan = balancer.balance(model, 2)
    assert plan.solver.status == "optimal"
    assert plan.comparison == ()


@pytest.mark.parametrize("inputs", [[{}], [{"a": 1}], np.zeros(3), 2.5, [1]])
def test_inputs_that_are_none_of_the_models_are_refused(model: Path, inputs: object) -> None:
    with pytest.raises(InputError):
        balancer.verify(balancer.balance(model, 2), inputs)  # type: ignore[arg-type]


def test_what_the_latency_alone_allows_bounds_what_other_constraints_do(model: Path) -> None:
    alone = Constraints(max_objective_ns=10**9)
    free = balancer.balance(model, 2, options=balancer.Options(constraints=alone))
    at = next(k for k, stage in enumerate(free.pipelines[0].stages) if "0" in _ops(free, stage.segment).split("-")[0])
    pinned = balancer.balance(
        model, 2, options=balancer.Options(constraints=Constraints(pinned={0: at}, max_objective_ns=10**9))
    )
    assert pinned.predicted.latency_ns == free.predicted.latency_ns == pinned.solver.latency_bound_ns


def _ops(plan: balancer.Plan, segment: str) -> str:
    return next(s.op_ranges for s in plan.segments if s.name == segment)
