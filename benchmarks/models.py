"""Where benchmarks find the real models: a folder `shared` beside the checkout, which is not part of the repository.

`shared/models` holds source models, `shared/models/zoo` the ImageNet models, `shared/data` published measurements,
instances and compiler logs. Every script also takes files by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
ZOO = ROOT.parent / "shared" / "models" / "zoo"


def add_files(parser: argparse.ArgumentParser, default: str) -> None:
    """The positional argument FILES. default: what is taken where none is given, in words."""
    parser.add_argument("files", nargs="*", type=Path, metavar="FILES", help=f"default: {default}")


def existing(parser: argparse.ArgumentParser, given: Sequence[Path], default: Sequence[Path]) -> list[Path]:
    """The files given, or else the default ones. Ends in a usage error where a file is missing, or there is none."""
    files = list(given or default)
    missing = [path for path in files if not path.is_file()]
    if missing:
        parser.error(f"no file {missing[0]}: give files by name, or put the folder shared beside the checkout")
    if not files:
        parser.error(
            f"no files in {ROOT.parent / 'shared'}: give files by name, or put that folder beside the checkout"
        )
    return files


def zoo(*names: str) -> list[Path]:
    """The zoo's int8 models of these names, or all models of the zoo in alphabetical order."""
    return [ZOO / f"{name}_int8.tflite" for name in names] or sorted(ZOO.glob("*.tflite"))
