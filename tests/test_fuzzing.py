"""A share of `benchmarks/fuzz_readers.py`, the same at every run: every reader takes or refuses what is broken."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COUNT = 60
READERS = {"models", "models-outside", "packages", "plans", "hardware", "profiles", "documents", "recordings", "calibrations",
           "measured-plans", "arrays", "archives", "pictures", "reports"}  # fmt: skip
_LINE = re.compile(r"^(\S+) +(\d+) files +(\d+) taken .* (\d+) kinds of failure$", re.M)


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "fuzz_readers.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_broken_files_give_nothing_but_our_own_errors(tmp_path: Path) -> None:
    done = _run("--count", COUNT, "--seed", 5, "--keep", tmp_path / "kept")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {name: (int(files), int(taken), int(kinds)) for name, files, taken, kinds in _LINE.findall(done.stdout)}
    assert found.keys() == READERS
    for name, (files, taken, kinds) in found.items():
        assert (files, kinds) == (COUNT, 0)
        assert taken > 0, f"{name}: all mutations are fatal, so that nothing behind the first check is tried"
        assert taken < COUNT or name == "reports", f"{name}: no mutation breaks anything"
    assert not (tmp_path / "kept").exists()


def test_a_reader_that_is_not_there_is_a_usage_error() -> None:
    done = _run("nothing")
    assert done.returncode == 2
    assert "no reader nothing" in done.stderr
