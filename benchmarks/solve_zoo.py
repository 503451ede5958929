"""How fast plans are found and what they are worth, for each model and number of TPUs.

    python benchmarks/solve_zoo.py [FILES ...] [-n 2-8] [--hardware pcie]

Rows: the ways to use the TPUs of `balancer compare`, predicted, as inferences per second; then the seconds from the
graph in memory to the finished plan with its comparison (reading the file is not counted), the median of three runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.balancing.assembling import assemble
from balancer.balancing.comparing import comparison
from balancer.balancing.setting import Setting, open_setting
from balancer.errors import BalancerError
from balancer.solve import solve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.plan import Plan

ZOO = Path(__file__).resolve().parents[2] / "shared" / "models" / "zoo"
RUNS = 3
ROW = "{:26} {:>2} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8} {:>9} {:>7}"
HEADINGS = ("model", "N", "one TPU", "copies", "default", "equal ops", "one pipe", "ours", "x default", "seconds")


def timed_plan(setting: Setting, n_tpus: int) -> tuple[Plan, float]:
    """The plan, and the median seconds that it took from the graph on. Each run starts without any cached costs."""
    seconds = []
    for _ in range(RUNS):
        fresh = Setting(setting.data, setting.origin, setting.graph, setting.hardware)
        start = time.perf_counter()
        solution = solve(fresh.problem(n_tpus))
        plan = assemble(fresh, solution, n_tpus, comparison(fresh, n_tpus, solution.pipelines))
        seconds.append(time.perf_counter() - start)
    return plan, statistics.median(seconds)


def numbers(text: str) -> list[int]:
    """ "2-8,16" -> 2 to 8 and 16."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="default: the shared zoo")
    parser.add_argument("-n", type=numbers, default=numbers("2-8"), metavar="2-8")
    parser.add_argument("--hardware", default="pcie")
    arguments = parser.parse_args(argv)
    print(ROW.format(*HEADINGS))
    slowest = 0.0
    for path in arguments.files or sorted(ZOO.glob("*.tflite")):
        try:
            setting = open_setting(path, arguments.hardware)
        except BalancerError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        for n_tpus in arguments.n:
            plan, seconds = timed_plan(setting, n_tpus)
            slowest = max(slowest, seconds)
            rates = [f"{row.throughput_per_s:.1f}" if row.throughput_per_s else "-" for row in plan.comparison]
            gain = plan.comparison[-1].speedup_over_default
            cells = (path.stem[:26], str(n_tpus), *rates, f"{gain:.2f}" if gain else "-", f"{seconds:.3f}")
            print(ROW.format(*cells))
    print(f"slowest {slowest:.3f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
