"""A plan's directory stands for the plan file in it, wherever a plan is named; `inspect` shows a plan."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import balancer
from balancer.cli.main import main
from balancer.errors import PlanError
from balancer.tflite import synth
from tests import edgetpu_compiler

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan's directory; not to be changed."""
    folder = tmp_path_factory.mktemp("solved")
    (folder / "net.tflite").write_bytes(synth.fc(600, layers=4))
    balancer.save(balancer.balance(folder / "net.tflite", 2, options=balancer.Options(stages=2)), folder / "plan")
    return folder / "plan"


@pytest.fixture
def folder(solved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(solved, tmp_path / "plan")
    return tmp_path / "plan"


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_every_verb_that_takes_a_plan_takes_its_directory(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 64), np.float32))
    program = edgetpu_compiler.install(tmp_path / "bin")
    tools = ["--edgetpu_compiler_binary", str(program), "--cache", str(tmp_path / "cache")]
    at = str(folder)
    assert _json(capsys, "verify", at, "--random", "1")["bit_exact"] is True
    inputs = ["--inputs", str(tmp_path / "x.npy"), "--outputs", str(tmp_path / "out")]
    assert _json(capsys, "run", at, "--devices", "cpu", *inputs)["items"] == 2
    assert _json(capsys, "bench", at, "--devices", "sim", "--seconds", "0.2")["plan"] == "net_plan_2.json"
    assert _json(capsys, "predict", str(folder / "net.tflite"), "--plan", at)["segments"]
    _json(capsys, "tune", at, "--devices", "sim", "--seconds", "0.2", "--rounds", "1")
    assert (tmp_path / "plan_tuned" / "net_plan_2.json").is_file()
    assert _json(capsys, "calibrate", "--data", str(tmp_path / "plan_tuned"))["format"] == "balancer-hardware"
    assert _json(capsys, "compile", at, *tools)["compiled"] == 2
    assert _json(capsys, "inspect", at) == json.loads((folder / "net_plan_2.json").read_text())


def test_the_python_api_takes_a_directory(folder: Path) -> None:
    assert balancer.load_plan(folder) == balancer.load_plan(folder / "net_plan_2.json")
    assert balancer.load_plan(str(folder)).directory == folder
    assert balancer.Pipeline(folder, "cpu").plan == balancer.load_plan(folder)


def test_other_json_files_beside_a_plan_are_no_plans(folder: Path) -> None:
    (folder / "net_profile.json").write_text("{}")
    (folder / "notes.json").write_text("not JSON")
    (folder / "old_plan_3.json").mkdir()
    assert balancer.load_plan(folder).n_tpus == 2


@pytest.mark.parametrize("verb", ["verify", "inspect", "bench", "compile"])
def test_a_directory_without_one_plan_is_one_line_that_says_what_is_there(
    verb: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "net_plan_2.json", folder / "net_plan_3.json")
    assert main([verb, str(folder)]) == 1
    several = capsys.readouterr().err
    assert several.count("\n") == 1
    assert str(folder) in several
    assert "net_plan_2.json, net_plan_3.json" in several
    empty = folder / "empty"
    empty.mkdir()
    assert main([verb, str(empty)]) == 1
    none = capsys.readouterr().err
    assert none.count("\n") == 1
    assert "holds no plan file" in none
    with pytest.raises(PlanError, match="holds no plan file"):
        balancer.load_plan(empty)


@pytest.mark.parametrize("compiled", [False, True], ids=["predicted", "compiled"])
def test_inspect_shows_a_plan_as_solve_printed_it(
    compiled: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "net.tflite"
    model.write_bytes(synth.fc(1800, layers=6))
    program = edgetpu_compiler.install(tmp_path / "bin")
    tools = ["--compile", "--edgetpu_compiler_binary", str(program), "--cache", str(tmp_path / "cache")]
    assert main(["solve", str(model), "-n", "3", "-q", "-o", str(tmp_path / "plan"), *(tools if compiled else ())]) == 0
    printed = capsys.readouterr().out
    for path in (tmp_path / "plan", tmp_path / "plan" / "net_plan_3.json"):
        assert main(["inspect", str(path)]) == 0
        shown = capsys.readouterr().out
        assert shown == printed[: printed.index("written to")]
        assert ("reported by edgetpu_compiler" in shown) == compiled
