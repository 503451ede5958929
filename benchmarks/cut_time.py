"""How long it takes to cut a large model into segment files held in memory.

    python benchmarks/cut_time.py [--width 4480] [--segments 8] [--runs 5] [--json FILE]

The model is a synthetic dense one; the default width makes 60 MiB. A run decodes the model and encodes each segment; it
reads and writes no file. One run comes first and is not counted. Printed are the median, the shortest and the longest
run in seconds.
"""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING

from sampling import measuring_parser, recorded, repeated, spread

from balancer.graph import boundary_names
from balancer.ground.opsets import op_set
from balancer.tflite import synth
from balancer.tflite.cut import Cutter

if TYPE_CHECKING:
    from collections.abc import Sequence


def cut_all(data: bytes, segments: int) -> int:
    """Cut the model into segments of equal op counts, and return the bytes of all of them together."""
    cutter = Cutter(data)
    n = len(cutter.graph.ops)
    edges = [n * k // segments for k in range(segments + 1)]
    sets = [op_set(range(a, b)) for a, b in itertools.pairwise(edges)]
    names = boundary_names(cutter.graph, sets)
    return sum(len(cutter.cut(ops, names)) for ops in sets)


def main(argv: Sequence[str] | None = None) -> int:
    parser = measuring_parser(__doc__)
    parser.add_argument("--width", type=int, default=4480, help="neurons of each layer (default: 4480)")
    parser.add_argument("--segments", type=int, default=8, help="number of segments (default: 8)")
    parser.add_argument("--runs", type=int, default=5, help="counted runs (default: 5)")
    arguments = parser.parse_args(argv)
    data = synth.fc(arguments.width)

    def run() -> None:
        assert cut_all(data, arguments.segments) >= len(data) * 0.99, "the segments hold all parameters"

    with recorded("cut_time", arguments) as samples:
        seconds = repeated(run, arguments.runs)
        samples.append({"model_bytes": len(data), "segments": arguments.segments, "cut_s": seconds})
        print(f"{len(data) / 2**20:.1f} MiB in {arguments.segments} segments: {spread(seconds, 3)} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
