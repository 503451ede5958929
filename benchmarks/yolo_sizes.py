"""Which sizes of pictures suit YOLO on one and on two Edge TPUs: whether it compiles, what the CPU does, and the rate.

    python benchmarks/yolo_sizes.py [NETWORK ...] [--sizes 192 256 320 416 640] [--tpus 1 2] [--hardware usb]

Each row is the best plan of one network at one size of pictures, in pixels. Nothing runs: the networks are made by the
generators of `detectors`, with the ops and shapes of Ultralytics' `format=edgetpu` and pseudo-random weights. For each
number of Edge TPUs stand the judgement of the segment that compiles least surely; how many ops run on the CPU; and the
predicted rate in inferences per second. Printed is a table in Markdown, which docs/yolo.md shows.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import detectors

from balancer.cost.compilable import LEVELS
from balancer.ground.units import NS_PER_S
from balancer.planning.costed_model import open_costed_model
from balancer.planning.options import Options
from balancer.planning.solving import solve_costed_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.planning.costed_model import CostedModel

NETWORKS: dict[str, Callable[..., bytes]] = {"YOLOv8": detectors.yolov8, "YOLO11": detectors.yolo11}
SIZES = (192, 256, 320, 416, 640)


@dataclass(frozen=True)
class Outcome:
    """The best plan on a number of Edge TPUs. level: of its least sure segment. cpu_ops: of the segments of one pipeline, at
    most.
    """

    level: str
    cpu_ops: int
    rate_per_s: float

    @property
    def cells(self) -> tuple[str, str, str]:
        return self.level, str(self.cpu_ops), f"{self.rate_per_s:.1f}"


def outcome(costed: CostedModel, n_tpus: int) -> Outcome:
    """The best plan, as `balancer solve` finds it without limits."""
    solution = solve_costed_model(costed.on(n_tpus), Options())
    partitions = [[stage.ops for stage in pipeline.stages] for pipeline in solution.pipelines]
    judged = [costed.costs.judgement(ops).level for partition in partitions for ops in partition]
    return Outcome(
        level=max(judged, key=LEVELS.index).value,
        cpu_ops=max(sum(costed.costs.on_cpu(ops).bit_count() for ops in partition) for partition in partitions),
        rate_per_s=NS_PER_S / solution.value.objective_ns,
    )


def line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["YOLOv8n", "YOLO11n"]
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"with its variant; default: {' '.join(names)}")
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=SIZES, metavar="PX", help="sizes of the square pictures"
    )
    parser.add_argument("--tpus", nargs="+", type=int, default=[1, 2], metavar="N", help="numbers of Edge TPUs")
    parser.add_argument("--hardware", default="usb", help="a preset, or a hardware file (default: usb)")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.networks if name[:-1] not in NETWORKS]
    if unknown:
        parser.error(f"no network {unknown[0]}; there are {', '.join(names)}, and other variants of both")
    count = len(arguments.tpus)
    tpus = [f"{n} TPU{'s' * (n > 1)}: compiles | ops on the CPU | per s" for n in arguments.tpus]
    print(line(["network", "imgsz", *tpus]))
    print(line(["---", "---:", *["--- | ---: | ---:"] * count]))
    for name in arguments.networks or names:
        for size in arguments.sizes:
            costed = open_costed_model(NETWORKS[name[:-1]](name[-1], size), arguments.hardware)
            cells = [cell for n in arguments.tpus for cell in outcome(costed, n).cells]
            print(line([name, size, *cells]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
