"""What plans are worth and how fast they are proven, for each model and number of TPUs, by every way of splitting.

    python benchmarks/solve_zoo.py [FILES ...] [-n 2-8,16] [--hardware pcie] [--seeds 5] [--json FILE]

The table shows predicted rates, in inferences per second, of the baselines and of two exact searches: `single` is one
pipeline of single TPUs over all down-sets, `ours` is any number of pipelines and replicas. Beside each stand the seconds
from the decoded graph to its proof, or its gap where it is not proven. The costs of segments are computed anew for each
search; one search on the smallest number of TPUs comes first and is not counted.

Below the table stand geometric means over all cases: what one pipeline over all down-sets gains over intervals of the
execution order, over the compiler's rule and over copies; then the same with replicas, and with several pipelines.
Last, the same plans on hardware that differs from the cost model: compute times of an op type are multiplied by 0.5 to
2, the capacity is 15 % smaller, streaming and transfers are up to 30 % faster or slower, by a seed.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from models import add_files, existing, zoo
from sampling import measuring_parser, recorded, timed

from balancer.errors import InfeasibleError
from balancer.loops.simulating import perturbed
from balancer.planning.comparing import COPIES, comparison
from balancer.planning.costed_model import CostedModel, open_costed_model
from balancer.planning.ways import DEFAULT
from balancer.solve import PipelineSpec, SolverOptions, check, solve, steady_rate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sampling import Sample

    from balancer.plan import ComparisonRow
    from balancer.solve import Solution

COLUMNS = (
    "one TPU", "copies", "compiler default", "equal op counts", "depth balanced", "profiling bisection",
    "DFS + interval DP",
)  # fmt: skip
SHORT = ("one TPU", "copies", "default", "equal", "depth", "bisect", "DFS+DP")
ROW = "{:22} {:>2}" + " {:>7}" * 11
SINGLE = SolverOptions(max_pipelines=1, max_replicas=1)
# Ways to plan that are compared: each of WAYS with each of BASES.
CHAIN, DOWNSETS, REPLICAS, OURS = "chain", "down-sets", "replicas", "pipelines"
WAYS = {DOWNSETS: "down-sets", REPLICAS: "with replicas", OURS: "with pipelines side by side"}
BASES = {CHAIN: "intervals", DEFAULT: "the compiler's rule", COPIES: "copies"}


@dataclass
class Tally:
    """Ratios of rates, by what is compared with what."""

    ratios: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, better: float | None, base: float | None) -> None:
        """Does nothing where one of the rates is missing."""
        if better and base:
            self.ratios.setdefault(name, []).append(better / base)

    def print(self) -> None:
        for name, ratios in self.ratios.items():
            mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
            print(f"{name:58} {mean:6.3f} x geometric mean, {max(ratios):6.3f} x at most, {len(ratios)} cases")


def numbers(text: str) -> list[int]:
    """The numbers of ranges joined by commas: "2-8,16" is 2 to 8 and 16."""
    values: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        values.extend(range(int(first), int(last or first) + 1))
    return values


def search(costed: CostedModel, n_tpus: int, options: SolverOptions) -> tuple[Solution, float]:
    """A solution and the seconds that it took from the graph on, without any cached costs."""
    fresh = CostedModel(costed.model, costed.devices)

    def solved() -> Solution:
        problem = fresh.on(n_tpus).problem()
        solution = solve(problem, options)
        check(problem, solution, options)
        return solution

    return timed(solved)


def rate(costed: CostedModel, n_tpus: int, plan: Sequence[PipelineSpec]) -> float | None:
    exact = steady_rate(costed.on(n_tpus).problem(), plan)
    return float(exact) if exact else None


def plans(costed: CostedModel, n_tpus: int) -> Iterator[tuple[str, Sequence[PipelineSpec]]]:
    """The plans whose gains and robustness are reported, by name. Ways that have no plan are left out."""
    wanted = {
        CHAIN: replace(SINGLE, solver="chain"), DOWNSETS: SINGLE, REPLICAS: SolverOptions(max_pipelines=1),
        OURS: SolverOptions(), "default": SolverOptions(solver="parameter-count"),
        "depth balanced": SolverOptions(solver="depth-balanced"),
    }  # fmt: skip
    for name, options in wanted.items():
        try:
            yield name, solve(costed.on(n_tpus).problem(), options).pipelines
        except InfeasibleError:  # noqa: PERF203
            continue


class Run:
    """All models and numbers of TPUs. seeds: how many perturbed hardwares each case is tried on."""

    def __init__(self, seeds: int, samples: list[Sample]) -> None:
        self.seeds = seeds
        self.samples = samples
        self.gains, self.robust = Tally(), Tally()
        self.slowest = {"one pipeline": 0.0, "any": 0.0}
        self.unproven = 0

    def case(self, costed: CostedModel, n_tpus: int) -> None:
        """Print one row, and add its share to the tallies."""
        single, single_s = search(costed, n_tpus, SINGLE)
        best, best_s = search(costed, n_tpus, SolverOptions())
        rows = {row.name: row for row in comparison(costed.on(n_tpus), best.pipelines)}
        self.slowest["one pipeline"] = max(self.slowest["one pipeline"], single_s)
        self.slowest["any"] = max(self.slowest["any"], best_s)
        self.unproven += (single.status != "optimal") + (best.status != "optimal")
        figures = [_figure(rows.get(name)) for name in COLUMNS]
        ours = [f"{1e9 / solution.value.objective_ns:.1f}" for solution in (single, best)]
        times = [_verdict(single, single_s), _verdict(best, best_s)]
        print(ROW.format(costed.graph.name[:22], n_tpus, *figures, ours[0], times[0], ours[1], times[1]), flush=True)
        self.samples.append({
            "model": costed.graph.name, "tpus": n_tpus,
            "rates_per_s": {name: row.throughput_per_s for name, row in rows.items()},
            "single": _searched(single, single_s), "ours": _searched(best, best_s),
        })  # fmt: skip
        self._compare(costed, n_tpus, rows)

    def _compare(self, costed: CostedModel, n_tpus: int, rows: dict[str, ComparisonRow]) -> None:
        made = dict(plans(costed, n_tpus))
        rates = {name: rate(costed, n_tpus, plan) for name, plan in made.items()}
        bases = {name: rows[name].throughput_per_s for name in (DEFAULT, COPIES)} | {CHAIN: rates.get(CHAIN)}
        for way, what in WAYS.items():
            for base, words in BASES.items():
                self.gains.add(f"{what} over {words}", rates.get(way), bases[base])
        for seed in range(self.seeds):
            truth = perturbed(costed, seed)
            real = {name: rate(truth, n_tpus, plan) for name, plan in made.items()}
            for ours in (DOWNSETS, OURS):
                what = "one pipeline of single TPUs" if ours == DOWNSETS else "ours"
                self.robust.add(f"{what} over the compiler's rule", real.get(ours), real.get("default"))
                self.robust.add(f"{what} over depth-balanced", real.get(ours), real.get("depth balanced"))

    def print_summary(self) -> None:
        print("\nGains, predicted, one pipeline of single TPUs if nothing else is said:")
        self.gains.print()
        if self.seeds:
            print(f"\nThe same plans on {self.seeds} perturbed hardwares each:")
            self.robust.print()
        slow = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.slowest.items())
        print(f"\nslowest: {slow}; not proven: {self.unproven}")


def _figure(row: ComparisonRow | None) -> str:
    return f"{row.throughput_per_s:.1f}" if row and row.throughput_per_s else "-"


def _verdict(solution: Solution, seconds: float) -> str:
    return f"{seconds:.2f} s" if solution.status == "optimal" else f"{100 * solution.gap:.1f} %"


def _searched(solution: Solution, seconds: float) -> Sample:
    return {
        "objective_ns": solution.value.objective_ns, "bound_ns": solution.bound_ns, "status": solution.status,
        "solve_s": seconds,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = measuring_parser(__doc__)
    add_files(parser, "all models of the zoo")
    parser.add_argument(
        "-n", type=numbers, default=numbers("2-8,16"), metavar="2-8,16", help="numbers of TPUs (default: 2-8,16)"
    )
    parser.add_argument("--hardware", default="pcie", help="a preset, or a hardware file (default: pcie)")
    parser.add_argument(
        "--seeds", type=int, default=5, help="perturbed hardwares for each case; 0 for none (default: 5)"
    )
    arguments = parser.parse_args(argv)
    files = existing(parser, arguments.files, zoo())
    print("Rates per second, predicted. single: one pipeline of single TPUs; ours: any pipelines and replicas;")
    print("beside each the seconds to its proof, or its gap.")
    print(ROW.format("model", "N", *SHORT, "single", "proof", "ours", "proof"))
    with recorded("solve_zoo", arguments) as samples:
        run = Run(arguments.seeds, samples)
        search(open_costed_model(files[0], arguments.hardware), min(arguments.n), SolverOptions())
        for path in files:
            costed = open_costed_model(path, arguments.hardware)
            for n_tpus in arguments.n:
                run.case(costed, n_tpus)
        run.print_summary()
    return 0


if __name__ == "__main__":
    sys.exit(main())
