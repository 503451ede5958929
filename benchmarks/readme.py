"""Compare the output blocks of README.md and docs/yolo.md with what their commands print now, or rewrite them.

    python benchmarks/readme.py [--update]

A block is fenced as `console`, or as `console measured` where its numbers differ from run to run and are not compared. A
line that begins with `$ ` is a command; the lines below it are its output. Commands
run in a temporary folder, one for each page, that holds links to the zoo's models and to the examples, and the tests'
stand-in for the vendor's compiler. Versions of the interpreter differ between machines and are not compared. The exit
code is 1 where a page differs and is not rewritten. This measures nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from models import ROOT, zoo
from sampling import benchmark_parser

sys.path.insert(0, str(ROOT))  # the compiler's stand-in is the tests'
from tests import edgetpu_compiler

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGES = (ROOT / "README.md", ROOT / "docs" / "yolo.md")
_PROGRAMS = {"balancer": f"{sys.executable} -m balancer", "python": sys.executable}
_BLOCK = re.compile(r"^```console( measured)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_VERSION = re.compile(r"(ai-edge-litert|tflite-runtime) [0-9.]+")


def run_block(block: str, folder: Path) -> str:
    """The block with the output that its commands give now."""
    lines = []
    for command in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
        name, _, arguments = command.partition(" ")
        program = f"{_PROGRAMS.get(name, name)} {arguments}"
        # Unbuffered, so that both streams come in the order in which a terminal shows them.
        environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
        done = subprocess.run(
            program, shell=True, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        text = "\n".join(line.rstrip() for line in done.stdout.splitlines())
        lines.append(f"$ {command}\n{text.strip()}\n" if text.strip() else f"$ {command}\n")
    return "".join(lines)


def refreshed(text: str, folder: Path) -> str:
    """A page with the output of every console block as its commands print it in this folder."""
    for model in zoo():
        (folder / model.name).symlink_to(model)
    (folder / "examples").symlink_to(ROOT / "examples")
    edgetpu_compiler.install(folder / "stand-in")
    return _BLOCK.sub(lambda match: f"```console{match[1] or ''}\n{run_block(match[2], folder)}```", text)


def comparable(text: str) -> str:
    """The text without the versions of the interpreter, and without what is measured and the widths that follow from it."""
    text = _BLOCK.sub(lambda match: re.sub(r"[-─ ]+|[0-9.]+", " ", match[0]) if match[1] else match[0], text)
    return _VERSION.sub(r"\1", text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--update", action="store_true", help="rewrite the pages instead of reporting the difference")
    arguments = parser.parse_args(argv)
    return max([checked(page, update=arguments.update) for page in PAGES])


def checked(page: Path, *, update: bool) -> int:
    """Say whether the page is as its commands print it, or rewrite it. Returns the exit code."""
    written = page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        now = refreshed(written, Path(folder))
    if comparable(now) == comparable(written):
        print(f"{page.name} is as the commands print it")
        return 0
    if not update:
        print(f"{page.name} differs from what its commands print; run with --update and read the difference")
        return 1
    page.write_text(now, encoding="utf-8")
    print(f"{page.name} rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
