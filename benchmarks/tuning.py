"""How much of what is to be had `tune` gets, on hardware that the cost model is wrong about.

    python benchmarks/tuning.py [FILES ...] [-n 4,8] [--seeds 10] [--rounds 5]

Each seed is another hardware: factors of 0.5 to 2 by op type, 15 % less room for parameters, streaming and transfers up
or down by up to 30 %. The gap is that between the untuned plan and the best partition for that hardware, both at their
true rates; closed: the share of it that tuning brings. The profiling bisection gets the same times; it cuts one order
for as many single TPUs, without replicas.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import balancer
from balancer.loops.simulating import perturbed
from balancer.loops.sources import TrueCosts
from balancer.loops.tuning import ROUNDS, bisected, tune
from balancer.planning.setting import setting_of
from balancer.solve import solve

if TYPE_CHECKING:
    from collections.abc import Sequence

ZOO = Path(__file__).resolve().parents[2] / "shared" / "models" / "zoo"
MODELS = ("ResNet50", "InceptionV3", "EfficientNetB0")
LEAST_GAP = 0.02
HEADINGS = (
    "model",
    "N",
    "seed",
    "untuned",
    "tuned",
    "best",
    "gap %",
    "closed",
    "rounds",
    "s",
    "bisect",
    "rounds",
    "runs",
)
ROW = "{:22} {:>2} {:>4} {:>8} {:>8} {:>8} {:>6} {:>7} {:>6} {:>5} {:>8} {:>6} {:>5}"


def case(path: Path, n_tpus: int, seed: int, rounds: int) -> tuple[float, float]:
    """Prints a row; the gap, and the share of it that was closed."""
    plan = balancer.balance(path, n_tpus)
    setting = setting_of(plan)
    truth = perturbed(setting, seed)
    best = 1e9 / solve(truth.problem(n_tpus)).value.objective_ns
    start = time.perf_counter()
    found = tune(plan, TrueCosts(truth), rounds=rounds)
    seconds = time.perf_counter() - start
    first, last = found.rounds[0].measured_per_s, max(r.measured_per_s for r in found.rounds)
    gap = best / first - 1
    closed = min(1.0, (last - first) / (best - first)) if best > first else 1.0
    beside = bisected(plan, TrueCosts(truth))
    print(
        ROW.format(
            path.stem[:22], n_tpus, seed, f"{first:.1f}", f"{last:.1f}", f"{best:.1f}", f"{100 * gap:.1f}", f"{closed:.3f}",
            len(found.rounds), f"{seconds:.1f}", f"{1e9 / beside.slowest_ns:.1f}", beside.rounds, beside.measured,
        ),
        flush=True,
    )  # fmt: skip
    return gap, closed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="default: three of the shared zoo")
    parser.add_argument("-n", default="4,8", help="numbers of TPUs")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of compiling and measuring, at most")
    arguments = parser.parse_args(argv)
    files = arguments.files or [ZOO / f"{name}_int8.tflite" for name in MODELS]
    print(ROW.format(*HEADINGS))
    for path in files:
        found = [
            case(path, int(n), seed, arguments.rounds)
            for n in arguments.n.split(",")
            for seed in range(arguments.seeds)
        ]
        closed = [share for gap, share in found if gap > LEAST_GAP]
        if closed:
            print(
                f"{path.stem}: {100 * median(closed):.1f} % of the gap closed (median of {len(closed)} cases with a gap "
                f"above 2 %), {100 * min(closed):.1f} % at worst"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
