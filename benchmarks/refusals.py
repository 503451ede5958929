"""Whether the loop of solving and compiling ends with all segments compiled, where the compiler refuses large activations.

    python benchmarks/refusals.py [FILES ...] [--pixels 320,640] [-n 2,3,4] [--limits 3] [--rounds 4] [--json FILE]

The compiler is the stand-in of the tests (`tests/edgetpu_compiler.py`). It refuses models whose activations are larger than
a limit, by one of two measures: what is live in a tile at once, or all bytes. Limits lie between the least that cuts of the
execution order allow, found by brute force over all cuts, and what the whole model needs; and one lies just below the
least. Columns: the model; TPUs; the measure; the limit as bytes; whether cuts exist that keep it; rounds of the loop, and in
how many of them a segment was refused; how it ended; the rate of the plan in inferences per second; seconds. A case in
which cuts exist and the loop ends without a plan is a failure: the exit code is then 1.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from detectors import yolov8
from models import ROOT, add_files, existing
from sampling import measuring_parser, recorded, timed

import balancer
from balancer.cost.activation_sizes import ActivationSizes, Measure
from balancer.errors import CompilerError, InfeasibleError
from balancer.ground.downsets import NestedSets
from balancer.ground.opsets import interval_set
from balancer.loops.refining import ROUNDS
from balancer.planning.costed_model import open_costed_model

sys.path.insert(0, str(ROOT))  # the compiler is that of the tests

from tests import edgetpu_compiler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sampling import Sample

    from balancer.loops.refining import Refined, RefineRound
    from balancer.plan import Plan
    from balancer.planning.costed_model import CostedModel

OPTION = {Measure.MOST_LIVE: "most_live_bytes", Measure.IN_TOTAL: "most_bytes"}
ROW = "{:16} {:>2} {:>9} {:>9} {:>6} {:>6} {:>7} {:>13} {:>8} {:>6}"
HEADINGS = ("model", "N", "measure", "limit", "exists", "rounds", "refused", "ends", "per s", "s")


def sizes_between_cuts(costed: CostedModel, measure: Measure) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """[start, end]: the size of the segment from one cut of the execution order to another; -1 where there is none."""
    n = len(costed.graph.ops)
    cuts = NestedSets.of([interval_set(0, k) for k in range(n + 1)], n)
    table = np.full((n + 1, n + 1), -1, np.int64)
    starts, ends = np.triu_indices(n + 1, 1)
    table[starts, ends] = ActivationSizes(costed.costs, cuts)(measure, starts, ends)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if not costed.costs.allowed(interval_set(start, end)):
            table[start, end] = -1
    return table


def least_over_cuts(costed: CostedModel, n_tpus: int, measure: Measure) -> tuple[int, int]:
    """The size of the largest segment in the cuts in which it is smallest, and the size of the whole model."""
    sizes = sizes_between_cuts(costed, measure)
    whole = int(sizes[0, -1])
    sizes[sizes < 0] = np.iinfo(np.int64).max
    reached = sizes[0]  # by end: the least with one segment
    least = int(reached[-1])
    for _ in range(1, n_tpus):
        reached = np.maximum(reached[:, None], sizes).min(axis=0)
        least = min(least, int(reached[-1]))
    return least, whole


def case(plan: Plan, measure: Measure, limit: int, least: int, rounds: int) -> Sample:
    """Run the loop with a compiler that refuses what is larger than the limit."""
    done: list[RefineRound] = []
    with tempfile.TemporaryDirectory() as folder:
        compiler = edgetpu_compiler.in_process(Path(folder), **{OPTION[measure]: limit})

        def refined() -> Refined | None:
            try:
                return balancer.refine(plan, compiler, rounds=rounds, on_round=done.append)
            except (CompilerError, InfeasibleError):
                return None

        result, seconds = timed(refined)
    compiled = result is not None and all(segment.reported for segment in result.plan.segments)
    return {
        "model": plan.stem, "tpus": plan.n_tpus, "measure": measure.name, "limit": limit, "least": least,
        "exists": limit >= least, "rounds": len(done), "refused": sum(bool(each.refused) for each in done),
        "compiled": compiled, "per_s": result.plan.predicted.throughput_per_s if result else None, "loop_s": seconds,
    }  # fmt: skip


def print_row(model: str, sample: Sample) -> None:
    ends = "compiled" if sample["compiled"] else "FAILED" if sample["exists"] else "not compiled"
    rate = f"{sample['per_s']:.1f}" if sample["per_s"] else ""
    print(
        ROW.format(
            model[:16], sample["tpus"], sample["measure"].lower(), sample["limit"], "yes" if sample["exists"] else "no",
            sample["rounds"], sample["refused"], ends, rate, f"{sample['loop_s']:.1f}",
        ),
        flush=True,
    )  # fmt: skip


def limits_to_try(least: int, whole: int, count: int) -> list[int]:
    """Just below the least, the least, and further ones in equal steps to below the whole."""
    steps = (least + (whole - least) * k // count for k in range(count))
    return sorted({least - 1, *steps})


def main(argv: Sequence[str] | None = None) -> int:
    parser = measuring_parser(__doc__)
    add_files(parser, "YOLOv8n")
    parser.add_argument("--pixels", default="320,640", help="sides of YOLOv8n's input (default: 320,640)")
    parser.add_argument("-n", default="2,3,4", help="numbers of TPUs (default: 2,3,4)")
    parser.add_argument("--limits", type=int, default=3, help="limits that can be kept, for each case (default: 3)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"most rounds of a case (default: {ROUNDS})")
    arguments = parser.parse_args(argv)
    files = existing(parser, arguments.files, []) if arguments.files else []
    sides = [int(side) for side in arguments.pixels.split(",")]
    named = {path.stem: path.read_bytes() for path in files} or {f"yolov8n_{px}": yolov8("n", px) for px in sides}
    print(ROW.format(*HEADINGS))
    counts = [int(n) for n in arguments.n.split(",")]
    with recorded("refusals", arguments) as samples:
        for (name, data), n_tpus in product(named.items(), counts):
            costed, plan = open_costed_model(data, "pcie"), balancer.balance(data, n_tpus)
            for measure in Measure:
                least, whole = least_over_cuts(costed, n_tpus, measure)
                for limit in limits_to_try(least, whole, arguments.limits):
                    samples.append(case(plan, measure, limit, least, arguments.rounds))
                    print_row(name, samples[-1])
    return int(any(sample["exists"] and not sample["compiled"] for sample in samples))


if __name__ == "__main__":
    sys.exit(main())
