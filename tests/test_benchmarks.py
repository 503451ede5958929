"""Each benchmark starts; samples say what they were taken on; the mutation runner's tables fit the package."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


def _run(script: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check, cwd=ROOT)


def _samples(folder: Path, script: str, *arguments: object) -> dict[str, Any]:
    """The document that a benchmark writes."""
    file = folder / "samples.json"
    _run(script, *arguments, "--json", file)
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return document


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_each_script_explains_itself_and_stands_on_the_page(script: Path) -> None:
    assert "usage:" in _run(script.name, "--help").stdout
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert f"`benchmarks/{script.name}`" in page


def test_samples_are_raw_and_name_versions_and_machine_but_no_host_or_folder(tmp_path: Path) -> None:
    document = _samples(tmp_path, "cut_time.py", "--width", 64, "--segments", 2, "--runs", 3)
    assert (document["format"], document["benchmark"], document["complete"]) == ("balancer-benchmark", "cut_time", True)
    assert document["arguments"] == {"width": 64, "segments": 2, "runs": 3}
    (sample,) = document["samples"]
    assert len(sample["cut_s"]) == 3
    facts = document["machine"]
    assert facts["python"] == platform.python_version()
    assert facts["cpus"] >= facts["usable_cpus"] >= 1
    assert {"balancer", "numpy", "ortools", "architecture"} <= facts.keys()
    text = json.dumps(document)
    for private in (platform.node(), str(ROOT), str(tmp_path)):
        assert private not in text


def test_a_case_with_an_error_of_ours_ends_with_its_exit_code_and_leaves_an_incomplete_file(tmp_path: Path) -> None:
    file = tmp_path / "samples.json"
    table = tmp_path / "empty.csv"
    table.write_bytes(b"")
    done = _run("fidelity.py", "--data", table, "--json", file, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    document = json.loads(file.read_text(encoding="utf-8"))
    assert (document["complete"], document["arguments"]["data"]) == (False, "empty.csv")


def _drawn(modules: Sequence[str], count: int) -> str:
    return _run("mutants.py", "--modules", *modules, "--count", count, "--list").stdout


def test_mutants_are_the_same_at_every_draw_and_change_one_line_each() -> None:
    drawn = _drawn(["ground"], 20)
    assert drawn == _drawn(["ground"], 20)
    before, after = ([line for line in drawn.splitlines() if line.startswith(f"    {sign} ")] for sign in "-+")
    assert len(before) == len(after) == 20
    assert all(a[6:] != b[6:] for a, b in zip(after, before, strict=True))


def test_each_module_has_tests_that_exist_and_no_row_is_left_of_modules_that_are_gone() -> None:
    assert "any more" not in _run("mutants.py", "--count", 1, "--list").stdout
