"""The lowest latency at a rate, for real models: proven or impossible, and in what time.

    python benchmarks/latency_zoo.py [MODELS ...] [--tpus 2 3 4 5 6 7 8] [--rates 10]

The rates asked for are spread evenly, on a logarithmic scale, from a tenth of what one TPU makes to a little more than the
best plan makes. A row: the model, TPUs, rates with a proven lowest latency, rates with none proven, impossible rates, and
the longest time of any, in seconds of this process's CPU and of wall time (reading the file is not counted).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.errors import InfeasibleError
from balancer.planning.setting import open_setting
from balancer.solve import Constraints, SolverOptions, solve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.planning.setting import Setting

ZOO = Path(__file__).resolve().parents[2] / "shared" / "models" / "zoo"
ROW = "{:28} {:>4} {:>7} {:>9} {:>11} {:>8} {:>8}"
NS_PER_S = 1_000_000_000
_LEAST, _MOST = 0.1, 1.05  # of one TPU's rate, and of the best plan's


def periods(setting: Setting, n_tpus: int, count: int) -> list[int]:
    """ns per inference to ask for, the slowest first."""
    alone = setting.problem(1).exact(setting.graph.all_ops, setting.hardware.name)
    slow = (alone.time_ns if alone else NS_PER_S) / _LEAST
    fast = solve(setting.problem(n_tpus)).value.objective_ns / _MOST
    return [int(slow * (fast / slow) ** (k / max(1, count - 1))) for k in range(count)]


def row(setting: Setting, n_tpus: int, count: int) -> tuple[int, int, int, float, float]:
    """Proven, unproven, impossible, and the longest of CPU and wall seconds."""
    proven = unproven = impossible = 0
    cpu = wall = 0.0
    for most_ns in periods(setting, n_tpus, count):
        begun = time.process_time(), time.perf_counter()
        try:
            held = Constraints(max_objective_ns=most_ns)
            solution = solve(setting.problem(n_tpus), SolverOptions(constraints=held))
            proven, unproven = proven + (solution.status == "optimal"), unproven + (solution.status != "optimal")
        except InfeasibleError:
            impossible += 1
        cpu, wall = max(cpu, time.process_time() - begun[0]), max(wall, time.perf_counter() - begun[1])
    return proven, unproven, impossible, cpu, wall


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="default: the zoo beside the checkout")
    parser.add_argument("--tpus", nargs="+", type=int, default=list(range(2, 9)))
    parser.add_argument("--rates", type=int, default=10)
    arguments = parser.parse_args(argv)
    print(ROW.format("model", "TPUs", "proven", "unproven", "impossible", "cpu s", "wall s"))
    left = 0
    for path in arguments.models or sorted(ZOO.glob("*.tflite")):
        setting = open_setting(path, "pcie")
        for n_tpus in arguments.tpus:
            proven, unproven, impossible, cpu, wall = row(setting, n_tpus, arguments.rates)
            left += unproven
            print(ROW.format(path.stem, n_tpus, proven, unproven, impossible, f"{cpu:.2f}", f"{wall:.2f}"), flush=True)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
