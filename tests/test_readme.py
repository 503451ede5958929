"""README.md and the page on YOLO show what their commands print, and what README tells a newcomer to run is what CI runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.shared
def test_the_output_on_the_pages_is_what_the_commands_print() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "readme.py"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_calls_the_readmes_own_test_command() -> None:
    commands = re.findall(
        r"^```sh\n(.*?)\n```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(commands) == 2, "two commands for a fresh machine, each one line"
    assert all("\n" not in command for command in commands)
    demo, test = commands
    assert demo.endswith("balancer demo")
    install, _, run = test.rpartition(" && .venv/bin/")
    assert install in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert f"{run} --cov" in (ROOT / ".ci" / "checks").read_text(encoding="utf-8")


def test_relative_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
