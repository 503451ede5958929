"""How much of the possible gain `tune` reaches on hardware that differs from the cost model.

    python benchmarks/tuning.py [FILES ...] [-n 4,8] [--seeds 10] [--rounds 5] [--json FILE]

Each seed is another simulated hardware: compute times of an op type are multiplied by 0.5 to 2, the capacity is 15 %
smaller, streaming and transfers are up to 30 % faster or slower. Columns: the model; TPUs; the seed; rates in inferences
per second of the plan before tuning, of the best plan that tuning measured, and of the best partition for that hardware;
the gap between the first and the last of these; the share of the gap that tuning closed; its rounds and seconds; then
the rate of the vendor's profiling bisection on the same times, its rounds, and the segments that it measured. The
bisection splits one execution order over single TPUs, without replicas.
"""

from __future__ import annotations

import sys
from statistics import median
from typing import TYPE_CHECKING

from models import add_files, existing, zoo
from sampling import measuring_parser, recorded, timed

import balancer
from balancer.loops.simulating import perturbed
from balancer.loops.sources import TrueCosts
from balancer.loops.tuning import ROUNDS, bisected, tune
from balancer.planning.costed_model import costed_model_of
from balancer.solve import solve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sampling import Sample

    from balancer.loops.tuning import Tuned
    from balancer.plan import Plan
    from balancer.planning.costed_model import CostedModel

MODELS = ("ResNet50", "InceptionV3", "EfficientNetB0")
LEAST_GAP = 0.02
ROW = "{:22} {:>2} {:>4} {:>8} {:>8} {:>8} {:>6} {:>7} {:>6} {:>5} {:>8} {:>6} {:>5}"
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


def case(costed: CostedModel, plan: Plan, n_tpus: int, seed: int, rounds: int) -> Sample:
    """Tune the plan on the hardware of this seed."""
    truth = perturbed(costed, seed)
    best_per_s = 1e9 / solve(truth.on(n_tpus).problem()).value.objective_ns

    def tuned() -> Tuned:
        result = tune(plan, TrueCosts(truth), rounds=rounds)
        assert all(r.measured_per_s <= best_per_s * 1.000_001 for r in result.rounds), "no plan beats the best one"
        return result

    result, seconds = timed(tuned)
    first, last = result.rounds[0].measured_per_s, max(r.measured_per_s for r in result.rounds)
    bisection = bisected(plan, TrueCosts(truth))
    return {
        "model": costed.graph.name, "tpus": n_tpus, "seed": seed, "untuned_per_s": first, "tuned_per_s": last,
        "best_per_s": best_per_s, "gap": best_per_s / first - 1,
        "closed": min(1.0, (last - first) / (best_per_s - first)) if best_per_s > first else 1.0,
        "rounds": len(result.rounds), "tune_s": seconds, "bisection_per_s": 1e9 / bisection.slowest_ns,
        "bisection_rounds": bisection.rounds, "bisection_measured": bisection.measured,
    }  # fmt: skip


def print_row(model: str, sample: Sample) -> None:
    rates = [f"{sample[name]:.1f}" for name in ("untuned_per_s", "tuned_per_s", "best_per_s")]
    print(
        ROW.format(
            model[:22], sample["tpus"], sample["seed"], *rates, f"{100 * sample['gap']:.1f}", f"{sample['closed']:.3f}",
            sample["rounds"], f"{sample['tune_s']:.1f}", f"{sample['bisection_per_s']:.1f}", sample["bisection_rounds"],
            sample["bisection_measured"],
        ),
        flush=True,
    )  # fmt: skip


def print_summary(model: str, samples: Sequence[Sample]) -> None:
    closed = [sample["closed"] for sample in samples if sample["gap"] > LEAST_GAP]
    if closed:
        print(
            f"{model}: {100 * median(closed):.1f} % of the gap closed (median of {len(closed)} cases with a gap "
            f"above 2 %), {100 * min(closed):.1f} % at worst"
        )


def cases(path: Path, counts: Sequence[int], seeds: int, rounds: int) -> list[Sample]:
    """All cases of one model, each printed as a row."""
    samples = []
    for n_tpus in counts:
        plan = balancer.balance(path, n_tpus)
        costed = costed_model_of(plan)
        for seed in range(seeds):
            samples.append(case(costed, plan, n_tpus, seed, rounds))
            print_row(path.stem, samples[-1])
    print_summary(path.stem, samples)
    return samples


def main(argv: Sequence[str] | None = None) -> int:
    parser = measuring_parser(__doc__)
    add_files(parser, "three models of the zoo")
    parser.add_argument("-n", default="4,8", help="numbers of TPUs (default: 4,8)")
    parser.add_argument("--seeds", type=int, default=10, help="simulated hardwares for each case (default: 10)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"most rounds of a case (default: {ROUNDS})")
    arguments = parser.parse_args(argv)
    files = existing(parser, arguments.files, zoo(*MODELS))
    print(ROW.format(*HEADINGS))
    counts = [int(n) for n in arguments.n.split(",")]
    with recorded("tuning", arguments) as samples:
        for path in files:
            samples += cases(path, counts, arguments.seeds, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
