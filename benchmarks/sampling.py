"""Timing, and the file of raw samples that a benchmark leaves behind.

A *sample* is one row of numbers as they were measured, before any median. `--json FILE` writes all samples of a run
beside the versions and the machine that they come from, so that two runs can be compared later. It names no host and
no path.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from balancer.errors import BalancerError
from balancer.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Sample = dict[str, Any]

Answer = TypeVar("Answer")
FORMAT, FORMAT_VERSION = "balancer-benchmark", 1
LIBRARIES = ("numpy", "ortools", "ai-edge-litert")


@dataclass(frozen=True)
class Pairs:
    """Seconds of two bodies that ran in turn. first_s[k] and second_s[k] were measured one after the other."""

    first_s: tuple[float, ...]
    second_s: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """How many times as fast the second body was as the first, in each pair."""
        return [first / second for first, second in zip(self.first_s, self.second_s, strict=True)]


def benchmark_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring as it stands. description: that docstring."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def measuring_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of a benchmark that measures: with `--json FILE`, which `recorded` reads."""
    parser = benchmark_parser(description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw samples to this file")
    return parser


def timed(body: Callable[[], Answer], clock: Callable[[], float] = time.perf_counter) -> tuple[Answer, float]:
    """What the body returns, and the seconds that it took by this clock."""
    start = clock()
    answer = body()
    return answer, clock() - start


def repeated(body: Callable[[], object], runs: int) -> list[float]:
    """Seconds of each of these runs, after one that is not counted. The body asserts its own answer."""
    body()
    return [timed(body)[1] for _ in range(runs)]


def paired(first: Callable[[], object], second: Callable[[], object], pairs: int) -> Pairs:
    """Both bodies in turn, so that a slow spell of the machine meets both.

    Both run once without being counted. Every other pair runs the second body first.
    """
    first(), second()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for k in range(pairs):
        for is_first in (k % 2 == 0, k % 2 == 1):
            seconds[is_first].append(timed(first if is_first else second)[1])
    return Pairs(tuple(seconds[True]), tuple(seconds[False]))


def spread(values: Sequence[float], digits: int) -> str:
    """The median of the values with the lowest and the highest, as "1.52 (1.48 to 1.60)"."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def in_own_process(body: Callable[..., Answer], *arguments: object) -> Answer:
    """What the body returns in a fresh process, which ends then. Body and arguments are picklable."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(body, arguments)


def peak_mib() -> int:
    """The most memory that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


@contextmanager
def recorded(benchmark: str, arguments: argparse.Namespace) -> Iterator[list[Sample]]:
    """A list for the samples of this run, which is written where `--json` says at the end.

    The file is written after an error or Ctrl-C too; `complete` is false then. An error of balancer's is printed, and
    the process ends with the error's exit code.
    """
    samples: list[Sample] = []
    complete = False
    try:
        yield samples
        complete = True
    except BalancerError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    finally:
        if arguments.json:
            document = {
                "format": FORMAT, "version": FORMAT_VERSION, "benchmark": benchmark, "complete": complete,
                "arguments": _without_folders(vars(arguments)), "machine": machine(), "samples": samples,
            }  # fmt: skip
            arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, str | int | None]:
    """What the figures depend on besides the code: versions, the number of CPUs, and the machine's architecture."""
    facts: dict[str, str | int | None] = {
        "balancer": VERSION, "python": platform.python_version(), "architecture": platform.machine(),
        "system": platform.system(), "cpus": os.cpu_count(), "usable_cpus": len(os.sched_getaffinity(0)),
    }  # fmt: skip
    return facts | {name: _library_version(name) for name in LIBRARIES}


def _library_version(name: str) -> str | None:
    """None where the library is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _without_folders(arguments: Mapping[str, object]) -> dict[str, object]:
    """The arguments as JSON, with the bare names of files; where the samples go is left out."""
    return {name: _bare(value) for name, value in arguments.items() if name != "json"}


def _bare(value: object) -> object:
    if isinstance(value, Path) or (isinstance(value, str) and os.sep in value):
        return Path(value).name
    return [_bare(item) for item in value] if isinstance(value, list) else value
