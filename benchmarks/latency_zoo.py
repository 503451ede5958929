"""How often the lowest latency at a given rate is proven for real models, and how long that takes.

    python benchmarks/latency_zoo.py [FILES ...] [--tpus 2 3 4 5 6 7 8] [--rates 10] [--json FILE]

For each model and number of TPUs, a plan with the lowest latency is sought for each of several rates. The rates are
spaced evenly on a logarithmic scale, from a tenth of the rate of one TPU to 5 % more than the rate of the best plan, so
that the highest ones are impossible. Columns: the model; TPUs; the number of rates for which the lowest latency is
proven, for which it is not, and which are impossible; then the longest search, in seconds of this process's CPU and of
wall time. Reading the file is not counted. The exit code is 1 where a latency is not proven.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from models import add_files, existing, zoo
from sampling import measuring_parser, recorded

from balancer.errors import InfeasibleError
from balancer.ground.units import NS_PER_S
from balancer.planning.costed_model import open_costed_model
from balancer.solve import Constraints, SolverOptions, solve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sampling import Sample

    from balancer.planning.costed_model import CostedModel

ROW = "{:28} {:>4} {:>7} {:>9} {:>11} {:>8} {:>8}"
PROVEN, UNPROVEN, IMPOSSIBLE = "optimal", "feasible", "infeasible"
_LEAST, _MOST = 0.1, 1.05  # of one TPU's rate, and of the best plan's


def periods(costed: CostedModel, n_tpus: int, count: int) -> list[int]:
    """The ns per inference to allow, the slowest rate first. The search for the best plan also warms up the solvers."""
    alone = costed.on(1).problem().exact(costed.graph.all_ops, costed.hardware.name)
    slow = (alone.time_ns if alone else NS_PER_S) / _LEAST
    fast = solve(costed.on(n_tpus).problem()).value.objective_ns / _MOST
    return [int(slow * (fast / slow) ** (k / max(1, count - 1))) for k in range(count)]


def search(costed: CostedModel, n_tpus: int, most_ns: int) -> Sample:
    """Seek the lowest latency among plans that take at most `most_ns` per inference."""
    begun = time.process_time(), time.perf_counter()
    status = IMPOSSIBLE
    latency_ns = None
    try:
        problem = costed.on(n_tpus).problem()
        solution = solve(problem, SolverOptions(constraints=Constraints(max_objective_ns=most_ns)))
        assert solution.value.objective_ns <= most_ns
        status, latency_ns = solution.status, solution.value.latency_ns
    except InfeasibleError:
        pass
    cpu_s, wall_s = time.process_time() - begun[0], time.perf_counter() - begun[1]
    return {
        "model": costed.graph.name, "tpus": n_tpus, "max_objective_ns": most_ns, "status": status,
        "latency_ns": latency_ns, "cpu_s": cpu_s, "wall_s": wall_s,
    }  # fmt: skip


def print_row(model: str, n_tpus: int, searches: Sequence[Sample]) -> None:
    statuses = [sample["status"] for sample in searches]
    counts = [statuses.count(status) for status in (PROVEN, UNPROVEN, IMPOSSIBLE)]
    longest = [f"{max(sample[clock] for sample in searches):.2f}" for clock in ("cpu_s", "wall_s")]
    print(ROW.format(model, n_tpus, *counts, *longest), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = measuring_parser(__doc__)
    add_files(parser, "all models of the zoo")
    parser.add_argument(
        "--tpus", nargs="+", type=int, default=list(range(2, 9)), help="numbers of TPUs (default: 2 to 8)"
    )
    parser.add_argument("--rates", type=int, default=10, help="rates for each model and number of TPUs (default: 10)")
    arguments = parser.parse_args(argv)
    files = existing(parser, arguments.files, zoo())
    print(ROW.format("model", "TPUs", "proven", "unproven", "impossible", "cpu s", "wall s"))
    with recorded("latency_zoo", arguments) as samples:
        for path in files:
            costed = open_costed_model(path, "pcie")
            for n_tpus in arguments.tpus:
                searches = [search(costed, n_tpus, ns) for ns in periods(costed, n_tpus, arguments.rates)]
                print_row(path.stem, n_tpus, searches)
                samples += searches
    return 1 if any(sample["status"] == UNPROVEN for sample in samples) else 0


if __name__ == "__main__":
    sys.exit(main())
