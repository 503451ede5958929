"""What plans are worth and how fast they are found, for each model and number of TPUs, by every way of splitting.

    python benchmarks/solve_zoo.py [FILES ...] [-n 2-8,16] [--hardware pcie] [--seeds 5]

First the predicted rates of all ways, in inferences per second; then for the exact solver the gap and the seconds that
it took from the graph in memory on: one pipeline of single TPUs over all down-sets, and any pipelines and replicas.
Then what one pipeline of single TPUs over all down-sets gains over one over intervals of the execution order, over the
compiler's rule and over copies; with replicas; and with pipelines side by side. Last, the same splits where the hardware is not
what the model of it says: per op type a factor of 0.5 to 2 on computing, capacity down by 15 %, streaming and transfers
up or down by up to 30 %, seeded.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.errors import BalancerError, InfeasibleError
from balancer.loops.simulating import perturbed
from balancer.planning.comparing import COPIES, DEFAULT, comparison
from balancer.planning.setting import Setting, open_setting
from balancer.solve import PipelineSpec, SolverOptions, solve, steady_rate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balancer.plan import ComparisonRow
    from balancer.solve import Solution

ZOO = Path(__file__).resolve().parents[2] / "shared" / "models" / "zoo"
COLUMNS = (
    "one TPU", "copies", "compiler default", "equal op counts", "depth balanced", "profiling bisection",
    "DFS + interval DP",
)  # fmt: skip
SHORT = ("one TPU", "copies", "default", "equal", "depth", "bisect", "DFS+DP")
ROW = "{:22} {:>2}" + " {:>7}" * 11
SINGLE = SolverOptions(max_pipelines=1, max_replicas=1)
# Ways to plan that are compared with each other: the wider in what, the narrower.
CHAIN, DOWNSETS, REPLICAS, OURS = "chain", "down-sets", "replicas", "pipelines"
WAYS = {DOWNSETS: "down-sets", REPLICAS: "with replicas", OURS: "with pipelines side by side"}
BASES = {CHAIN: "intervals", DEFAULT: "the compiler's rule", COPIES: "copies"}


@dataclass
class Tally:
    """Ratios of rates, by what is compared with what."""

    ratios: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, better: float | None, base: float | None) -> None:
        if better and base:
            self.ratios.setdefault(name, []).append(better / base)

    def print(self) -> None:
        for name, ratios in self.ratios.items():
            mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
            print(f"{name:58} {mean:6.3f} x geometric mean, {max(ratios):6.3f} x at most, {len(ratios)} cases")


def numbers(text: str) -> list[int]:
    """ "2-8,16" -> 2 to 8 and 16."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


def timed(setting: Setting, n_tpus: int, options: SolverOptions) -> tuple[Solution, float]:
    """A solution, and the seconds that it took from the graph on, without any cached costs."""
    fresh = Setting(setting.model, setting.hardware)
    start = time.perf_counter()
    solution = solve(fresh.problem(n_tpus), options)
    return solution, time.perf_counter() - start


def rate(setting: Setting, n_tpus: int, plan: Sequence[PipelineSpec]) -> float | None:
    found = steady_rate(setting.problem(n_tpus), plan)
    return float(found) if found else None


def plans(setting: Setting, n_tpus: int) -> Iterator[tuple[str, Sequence[PipelineSpec]]]:
    """The plans that gains and robustness are told of, by name; those that exist."""
    wanted = {
        CHAIN: replace(SINGLE, solver="chain"), DOWNSETS: SINGLE, REPLICAS: SolverOptions(max_pipelines=1),
        OURS: SolverOptions(), "default": SolverOptions(solver="parameter-count"),
        "depth balanced": SolverOptions(solver="depth-balanced"),
    }  # fmt: skip
    for name, options in wanted.items():
        try:
            yield name, solve(setting.problem(n_tpus), options).pipelines
        except InfeasibleError:  # noqa: PERF203
            continue


class Run:
    """All models and numbers of TPUs."""

    def __init__(self, seeds: int) -> None:
        self.seeds = seeds
        self.gains, self.robust = Tally(), Tally()
        self.slowest = {"one pipeline": 0.0, "any": 0.0}
        self.open = 0

    def case(self, setting: Setting, n_tpus: int) -> None:
        """One row, and its share of the tallies."""
        single, single_seconds = timed(setting, n_tpus, SINGLE)
        best, best_seconds = timed(setting, n_tpus, SolverOptions())
        rows = {row.name: row for row in comparison(setting, n_tpus, best.pipelines)}
        self.slowest["one pipeline"] = max(self.slowest["one pipeline"], single_seconds)
        self.slowest["any"] = max(self.slowest["any"], best_seconds)
        self.open += (single.status != "optimal") + (best.status != "optimal")
        figures = [_figure(rows.get(name)) for name in COLUMNS]
        ours = [f"{1e9 / solution.value.objective_ns:.1f}" for solution in (single, best)]
        times = [_verdict(single, single_seconds), _verdict(best, best_seconds)]
        print(ROW.format(setting.graph.name[:22], n_tpus, *figures, ours[0], times[0], ours[1], times[1]), flush=True)
        self._compare(setting, n_tpus, rows)

    def _compare(self, setting: Setting, n_tpus: int, rows: dict[str, ComparisonRow]) -> None:
        made = dict(plans(setting, n_tpus))
        rates = {name: rate(setting, n_tpus, plan) for name, plan in made.items()}
        bases = {name: rows[name].throughput_per_s for name in (DEFAULT, COPIES)} | {CHAIN: rates.get(CHAIN)}
        for way, what in WAYS.items():
            for base, words in BASES.items():
                self.gains.add(f"{what} over {words}", rates.get(way), bases[base])
        for seed in range(self.seeds):
            truth = perturbed(setting, seed)
            real = {name: rate(truth, n_tpus, plan) for name, plan in made.items()}
            for ours in (DOWNSETS, OURS):
                what = "one pipeline of single TPUs" if ours == DOWNSETS else "ours"
                self.robust.add(f"{what} over the compiler's rule", real.get(ours), real.get("default"))
                self.robust.add(f"{what} over depth-balanced", real.get(ours), real.get("depth balanced"))


def _figure(row: ComparisonRow | None) -> str:
    return f"{row.throughput_per_s:.1f}" if row and row.throughput_per_s else "-"


def _verdict(solution: Solution, seconds: float) -> str:
    return f"{seconds:.2f} s" if solution.status == "optimal" else f"{100 * solution.gap:.1f} %"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="default: the shared zoo")
    parser.add_argument("-n", type=numbers, default=numbers("2-8,16"), metavar="2-8,16")
    parser.add_argument("--hardware", default="pcie")
    parser.add_argument("--seeds", type=int, default=5, help="perturbed hardwares for each case; 0 for none")
    arguments = parser.parse_args(argv)
    print("Rates per second, predicted. single: one pipeline of single TPUs; ours: any pipelines and replicas;")
    print("beside each the seconds to its proof, or its gap.")
    print(ROW.format("model", "N", *SHORT, "single", "proof", "ours", "proof"))
    run = Run(arguments.seeds)
    for path in arguments.files or sorted(ZOO.glob("*.tflite")):
        try:
            setting = open_setting(path, arguments.hardware)
            for n_tpus in arguments.n:
                run.case(setting, n_tpus)
        except BalancerError as error:  # noqa: PERF203
            print(error, file=sys.stderr)
            return error.exit_code
    print("\nGains, predicted, one pipeline of single TPUs if nothing else is said:")
    run.gains.print()
    if run.seeds:
        print(f"\nThe same plans on {run.seeds} perturbed hardwares each:")
        run.robust.print()
    slow = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in run.slowest.items())
    print(f"\nslowest: {slow}; not proven: {run.open}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
