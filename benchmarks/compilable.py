"""Whether segments compile: the judgement beside what people published of the vendor's compiler.

    python benchmarks/compilable.py [NETWORK ...]

Each row is one report. The networks are made by the generators of `detectors`, so that sizes, classes and releases are as
in the report, and weights are not. A report contradicts a judgement if what surely compiles failed, or what surely does
not compile did. Then the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple

import detectors

from balancer.cost.compilable import Compilable
from balancer.cost.hardware import load_hardware
from balancer.cost.segment import SegmentCosts
from balancer.ground.opsets import interval_set
from balancer.tflite.read import read_graph

ROW = "{:24} {:>5} {:>7} {:>9}  {:9} {:11} {:>9}  {}"


class Report(NamedTuple):
    """What the compiler did with a network, or with a part of it.

    network: and its release. classes: of objects. part: the number of its first ops, or, if negative, of its last; None for
    all. compiled: without `--search_delegate`, or in its first attempt.
    """

    network: str
    size: int
    classes: int
    compiled: bool
    source: str
    part: int | None = None


# e: google-coral/edgetpu; u: ultralytics/ultralytics; j: jveitchmichaelis/edgetpu-yolo.
REPORTS = (
    *(Report("yolov5s 6.0", size, 80, size not in (352, 480), "e#512") for size in (224, 256, 352, 384, 480, 512)),
    *(Report("yolov5s 5.0", size, 80, size in (96, 192, 224), "j readme") for size in (96, 192, 224, 256)),
    Report("yolov5s 5.0", 320, 80, compiled=True, source="e#450"),
    *(Report("yolov5s 5.0", size, 80, compiled=False, source="e#450") for size in (416, 608, 640)),
    Report("yolov5s 5.0", 512, 1, compiled=False, source="e#449"),
    Report("yolov5s 5.0", 416, 80, compiled=True, source="e#405"),
    *(Report("yolov5s 5.0", size, 6, compiled=True, source="e#405") for size in (512, 544)),
    Report("yolov5s 5.0", 640, 6, compiled=False, source="e#405"),
    Report("yolov5s 6.2", 320, 15, compiled=True, source="u#4754"),
    *(Report("yolov5n 6.2", size, 80, compiled=True, source="j logs") for size in (128, 160)),
    *(Report("yolov5s 6.2", size, 80, compiled=True, source="j logs") for size in (128, 160)),
    *(Report("yolov8n 8.0", size, 80, compiled=True, source="j logs") for size in (128, 160, 192)),
    *(Report("yolov8s 8.0", size, 80, compiled=True, source="j logs") for size in (128, 160, 192)),
    Report("yolov8n 8.0", 224, 15, compiled=True, source="u#4754"),
    Report("yolov8n 8.0", 320, 4, compiled=True, source="StefansAI package"),
    *(Report("efficientdet-lite", lite, 90, lite < 3, "e#651") for lite in range(5)),
    Report("efficientdet-lite", 0, 9, compiled=False, source="e#490"),
    Report("efficientdet-lite", 3, 90, compiled=True, source="e#651", part=420),
    Report("efficientdet-lite", 3, 90, compiled=True, source="e#557, e#671", part=84),
    Report("efficientdet-lite", 3, 90, compiled=False, source="e#557, e#671", part=-340),
)  # fmt: skip


def network(report: Report) -> bytes:
    """The bytes of the report's network."""
    name, _, release = report.network.partition(" ")
    if name == "efficientdet-lite":
        return detectors.efficientdet_lite(report.size, classes=report.classes)
    make = detectors.yolov5 if name.startswith("yolov5") else detectors.yolov8
    return make(name[-1], report.size, classes=report.classes, release=release)


def contradicted(report: Report, level: Compilable) -> bool:
    """Whether the report contradicts this judgement."""
    return level is (Compilable.SURELY_NOT if report.compiled else Compilable.SURELY)


def _row(report: Report) -> bool:
    """Print a report with its judgement. Returns whether it is contradicted."""
    graph = read_graph(network(report), name=report.network)
    count = len(graph.ops)
    start, end = (0, count) if report.part is None else (0, report.part) if report.part > 0 else (report.part, count)
    ops = interval_set(start % count, end)
    judged = SegmentCosts(graph, load_hardware("usb")).judgement(ops)
    wrong = contradicted(report, judged.level)
    part, outcome = f"{start % count}-{end - 1}", "compiled" if report.compiled else "failed"
    print(
        ROW.format(
            report.network, report.size, report.classes, part, outcome,
            judged.level.value, judged.tile_bytes, report.source + "   CONTRADICTED" * wrong,
        )
    )  # fmt: skip
    return wrong


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="yolov5s, efficientdet-lite ...; default: all")
    asked = tuple(parser.parse_args().networks)
    print(ROW.format("network", "size", "classes", "ops", "report", "judged", "tile need", "source"))
    wrong = [_row(report) for report in REPORTS if not asked or report.network.startswith(asked)]
    print(f"{len(wrong)} reports, {sum(wrong)} contradicted")
    return 1 if any(wrong) else 0


if __name__ == "__main__":
    sys.exit(main())
