"""The table of converters: what it says of files, of converters that fail, and that the page shows all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import handmade
from tests.outside import moved_out

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = 8
NAME = "litert-torch 0.10, ai-edge-quantizer 0.10"


@pytest.fixture
def converters(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import converters

    return converters


def _cells(text: str) -> list[list[str]]:
    """The rows of a table behind its two lines of heading."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def _run(folder: Path, program: str, code: int) -> list[list[str]]:
    """The table where the converter's Python is this shell script."""
    python = folder / "litert" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{program}\n", encoding="utf-8")
    python.chmod(0o755)
    script = ROOT / "benchmarks" / "converters.py"
    words = ["--small", "--only", NAME, "--environments", str(folder)]
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == code, done.stderr
    return _cells(done.stdout)


def test_a_converted_file_is_cut_and_compared(tmp_path: Path) -> None:
    made = tmp_path / "made.tflite"
    made.write_bytes(moved_out(handmade.conv_chain()))
    (row,) = _run(tmp_path / "environments", f'cp {made} "$5"', 0)
    assert row == [NAME, "small, 32 px", "3", "0", "0", "6", "int8 1x4x4x4 to int8 1x4x4x4", "bit-exact"]


@pytest.mark.parametrize(
    ("program", "what"),
    [
        ("echo first >&2; echo last >&2; exit 3", "last"),
        ("exit 3", "exit code 3"),
        ('echo "no model" > "$5"', "not a TFLite"),
    ],
)
def test_what_went_wrong_stands_in_the_row(tmp_path: Path, program: str, what: str) -> None:
    (row,) = _run(tmp_path, program, 1)
    assert what in row[-1]


def test_an_environment_that_could_not_be_made_is_taken_away(tmp_path: Path, converters: Any) -> None:
    broken = converters.Environment("broken", ("no such requirement",))
    with pytest.raises(converters.ConversionError, match=r"(?i)invalid requirement"):
        converters.interpreter_of(broken, tmp_path)
    assert not (tmp_path / "broken").exists()


def test_a_python_that_is_not_there_is_named(tmp_path: Path, converters: Any) -> None:
    with pytest.raises(converters.ConversionError, match=r"needs python3\.99 on the PATH"):
        converters.interpreter_of(converters.Environment("later", (), python=(3, 99)), tmp_path)


def test_the_page_shows_every_converter_with_every_network(converters: Any) -> None:
    rows = _cells((ROOT / "docs" / "converters.md").read_text(encoding="utf-8"))
    tried = [[c.name, f"{n.name}, {n.pixels} px"] for c in converters.CONVERTERS for n in c.networks]
    assert [row[:2] for row in rows if len(row) == COLUMNS] == tried
    assert all(script.is_file() for script in {converters.SCRIPTS / c.script for c in converters.CONVERTERS})
