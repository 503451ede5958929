"""How time and memory grow with ops, branches and TPUs: one table, each case in a process of its own.

    python benchmarks/scaling.py [CASE ...] [--large]

Cases are networks of `networks.py` on a number of TPUs, as `NETWORK:SIZE@TPUS` or `NETWORK:SIZE@TPUS+HARDWARE`; the
default is a small run, and --large adds the sizes at which a proof may take a minute. Columns: ops; seconds of this
process's CPU to read the file, and to solve and prove from the graph on; the same as a ratio to the row above, where
that is a smaller case of the same kind; MiB at most; the objective in ns per inference, and its gap.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import networks

from balancer.errors import BalancerError
from balancer.planning.setting import open_setting
from balancer.solve import SolverOptions, check, solve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
        """Raises ValueError where it is no case."""
        what, _, hardware = name.partition("+")
        network, _, tpus = what.partition("@")
        kind, _, size = network.partition(":")
        if kind not in NETWORKS:
            raise ValueError(f"no network {kind!r}, only {', '.join(NETWORKS)}")
        return cls(name, kind, int(size), int(tpus), hardware or "pcie")

    def grown_from(self, other: Case) -> bool:
        """Whether the other differs by its smaller size or its fewer TPUs alone."""
        same = (self.network, self.hardware) == (other.network, other.hardware)
        larger = (self.size > other.size) + (self.tpus > other.tpus) == 1
        return same and larger and (self.size == other.size or self.tpus == other.tpus)


def convnext(blocks: int) -> bytes:
    """ConvNeXt-Tiny has 18 blocks; others share them out alike."""
    shares = ((3, 96, 56), (3, 192, 28), (9, 384, 14), (3, 768, 7))
    return networks.convnext([(max(1, n * blocks // 18), channels, side) for n, channels, side in shares])


NETWORKS: dict[str, Callable[[int], bytes]] = {
    "chain": networks.chain, "branches": networks.branches, "transformer": networks.transformer, "convnext": convnext,
}  # fmt: skip


def run(case: Case) -> tuple[int, float, float, int, int, float]:
    """ops, seconds to read and to solve, MiB, objective in ns, gap."""
    data = NETWORKS[case.network](case.size)
    start = time.process_time()
    setting = open_setting(data, case.hardware)
    read = time.process_time()
    problem, options = setting.problem(case.tpus), SolverOptions()
    solution = solve(problem, options)
    solved = time.process_time()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    check(problem, solution, options)
    objective, gap = solution.value.objective_ns, solution.gap
    return len(setting.graph.ops), read - start, solved - read, most, objective, gap


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="for instance transformer:12@16")
    parser.add_argument("--large", action="store_true", help="add the large sizes")
    arguments = parser.parse_args(argv)
    try:
        cases = [Case.named(name) for name in arguments.cases or (*SMALL, *(LARGE if arguments.large else ()))]
    except ValueError as error:
        parser.error(str(error))
    print(ROW.format("case", "ops", "read", "solve", "ratio", "MiB", "ns", "gap"))
    before: tuple[Case, float] | None = None
    for case in cases:
        try:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                ops, read, solved, most, objective, gap = pool.apply(run, (case,))
        except BalancerError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        grown = before is not None and case.grown_from(before[0])
        ratio = f"{solved / before[1]:.1f}" if grown and before else ""
        verdict = "proven" if not gap else f"{100 * gap:.1f} %"
        print(ROW.format(case.name, ops, f"{read:.2f}", f"{solved:.2f}", ratio, most, objective, verdict), flush=True)
        before = case, solved
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
