"""How long cutting a large model takes, and what it writes.

    python benchmarks/cut_time.py [--width 4480] [--segments 8]

The default is a dense model of 60 MiB. Reading its tables is counted, reading the file from disk is not; median of
five runs.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import TYPE_CHECKING

from balancer.graph import boundary_names
from balancer.ground.opsets import op_set
from balancer.tflite import synth
from balancer.tflite.cut import Cutter

if TYPE_CHECKING:
    from collections.abc import Sequence

RUNS = 5


def cut_all(data: bytes, segments: int) -> int:
    """Bytes of all segments."""
    cutter = Cutter(data)
    n = len(cutter.graph.ops)
    edges = [n * k // segments for k in range(segments + 1)]
    sets = [op_set(range(a, b)) for a, b in itertools.pairwise(edges)]
    names = boundary_names(cutter.graph, sets)
    return sum(len(cutter.cut(ops, names)) for ops in sets)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4480)
    parser.add_argument("--segments", type=int, default=8)
    arguments = parser.parse_args(argv)
    data = synth.fc(arguments.width)
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        written = cut_all(data, arguments.segments)
        seconds.append(time.perf_counter() - start)
        assert written >= len(data) * 0.99
    print(f"{len(data) / 2**20:.1f} MiB in {arguments.segments} segments: {statistics.median(seconds):.3f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
