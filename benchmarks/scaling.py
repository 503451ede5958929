"""How time and memory grow with the number of ops, branches and TPUs. Each case runs in a process of its own.

    python benchmarks/scaling.py [CASE ...] [--large] [--json FILE]

A case is a network of `networks.py` on a number of TPUs: `NETWORK:SIZE@TPUS` or `NETWORK:SIZE@TPUS+HARDWARE`, for
instance `transformer:12@16`. Without cases, a list of small ones runs; --large adds sizes at which a proof may take a
minute. Columns: ops; the CPU seconds to read the file, and to solve and prove; the ratio of the latter to the row above,
where that row is a smaller case of the same network; the peak memory in MiB; the objective in ns per inference; and
whether it is proven, or its gap. A tiny case is solved first in each process and is not counted.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import networks
from sampling import in_own_process, measuring_parser, peak_mib, recorded, timed

from balancer.planning.costed_model import open_costed_model
from balancer.solve import SolverOptions, check, solve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sampling import Sample

    from balancer.solve import Solution

SMALL = (
    "chain:125@8", "chain:250@8", "chain:500@8", "branches:75@8", "branches:150@8", "branches:300@8",
    "transformer:2@8", "transformer:4@8", "transformer:6@8", "transformer:4@4", "transformer:4@16",
    "chain:60@8+pcie-python", "chain:60@16+pcie-python", "convnext:18@8", "convnext:18@16",
)  # fmt: skip
LARGE = (
    "chain:1000@8", "chain:3000@8", "chain:3000@16", "branches:600@8", "branches:1000@8", "transformer:12@8",
    "transformer:12@16", "chain:60@32+pcie-python",
)  # fmt: skip
ROW = "{:26} {:>6} {:>7} {:>8} {:>6} {:>7} {:>12} {:>7}"


@dataclass(frozen=True)
class Case:
    name: str
    network: str
    size: int
    tpus: int
    hardware: str

    @classmethod
    def named(cls, name: str) -> Case:
        """Raises ValueError where the name is not that of a case."""
        what, _, hardware = name.partition("+")
        network, _, tpus = what.partition("@")
        kind, _, size = network.partition(":")
        if kind not in NETWORKS:
            raise ValueError(f"no network {kind!r}, only {', '.join(NETWORKS)}")
        return cls(name, kind, int(size), int(tpus), hardware or "pcie")

    def grown_from(self, other: Case) -> bool:
        """Whether this case differs from the other by a larger size alone, or by more TPUs alone."""
        same = (self.network, self.hardware) == (other.network, other.hardware)
        larger = (self.size > other.size) + (self.tpus > other.tpus) == 1
        return same and larger and (self.size == other.size or self.tpus == other.tpus)


def convnext(blocks: int) -> bytes:
    """ConvNeXt-Tiny has 18 blocks; other numbers are spread over its four stages in the same proportions."""
    shares = ((3, 96, 56), (3, 192, 28), (9, 384, 14), (3, 768, 7))
    return networks.convnext([(max(1, n * blocks // 18), channels, side) for n, channels, side in shares])


NETWORKS: dict[str, Callable[[int], bytes]] = {
    "chain": networks.chain, "branches": networks.branches, "transformer": networks.transformer, "convnext": convnext,
}  # fmt: skip


def measure(case: Case) -> Sample:
    """Read and solve the case in this process."""
    solve(open_costed_model(networks.chain(4), case.hardware).on(2).problem())
    data = NETWORKS[case.network](case.size)
    costed, read_s = timed(lambda: open_costed_model(data, case.hardware), time.process_time)

    def solved() -> Solution:
        problem = costed.on(case.tpus).problem()
        solution = solve(problem, SolverOptions())
        check(problem, solution)
        return solution

    solution, solve_s = timed(solved, time.process_time)
    return {
        "case": case.name, "ops": len(costed.graph.ops), "read_cpu_s": read_s, "solve_cpu_s": solve_s,
        "peak_mib": peak_mib(), "objective_ns": solution.value.objective_ns, "gap": solution.gap,
    }  # fmt: skip


def print_row(sample: Sample, ratio: float | None) -> None:
    verdict = "proven" if not sample["gap"] else f"{100 * sample['gap']:.1f} %"
    seconds = [f"{sample[name]:.2f}" for name in ("read_cpu_s", "solve_cpu_s")]
    print(
        ROW.format(
            sample["case"], sample["ops"], *seconds, f"{ratio:.1f}" if ratio is not None else "", sample["peak_mib"],
            sample["objective_ns"], verdict,
        ),
        flush=True,
    )  # fmt: skip


def measure_all(cases: Sequence[Case], samples: list[Sample]) -> None:
    """Fill in a sample for each case. Raises BalancerError where a network has no plan on the hardware."""
    for k, case in enumerate(cases):
        samples.append(in_own_process(measure, case))
        grown = k > 0 and case.grown_from(cases[k - 1])
        print_row(samples[k], samples[k]["solve_cpu_s"] / samples[k - 1]["solve_cpu_s"] if grown else None)


def main(argv: Sequence[str] | None = None) -> int:
    parser = measuring_parser(__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="for instance transformer:12@16")
    parser.add_argument("--large", action="store_true", help="add the large sizes")
    arguments = parser.parse_args(argv)
    try:
        cases = [Case.named(name) for name in arguments.cases or (*SMALL, *(LARGE if arguments.large else ()))]
    except ValueError as error:
        parser.error(str(error))
    print(ROW.format("case", "ops", "read", "solve", "ratio", "MiB", "ns", "gap"))
    with recorded("scaling", arguments) as samples:
        measure_all(cases, samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
