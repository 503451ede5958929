"""The solvers on the published instances of Tarnawski et al. (NeurIPS 2020), with their cost and their optima.

    python benchmarks/partitioning.py [FILES ...] [--solver auto]

Each file is solved once for each of its rows in `optima.csv` beside it, with the row's devices and memory limit, and,
where there is no row for them, with its own. Printed are the objective, recomputed in floating point from the
partition; whether it is proven, or the gap; seconds (reading the file is not counted); the peak of memory, in MiB, of a
process that solves this one problem and nothing else; and the optimum that the row names.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import multiprocessing
import resource
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balancer.errors import BalancerError
from balancer.solve import SolverOptions, Structure, Transfer, check, solve, structured_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.solve import Problem, Solution

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "partitioning"
ROW = "{:27} {:>3} {:>4} {:>11} {:>14} {:>12} {:>8} {:>5} {:>14} {}"
PER_UNIT = 1e9  # solvers work on whole numbers: times in the file's unit times this, rounded up
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Instance:
    """A published graph: nodes by number in a topological order, times in the file's unit, sizes in bytes."""

    name: str
    nodes: list[dict[str, Any]]
    sends: list[float]
    readers: list[list[int]]
    accelerators: int
    cpus: int
    memory: float

    @property
    def problem(self) -> Problem:
        """Both kinds of devices; CPUs pay for no transfer and have no memory limit."""
        before = [0] * len(self.nodes)
        for i, readers in enumerate(self.readers):
            for r in readers:
                before[r] |= 1 << i
        colours: dict[Any, int] = defaultdict(int)
        for i, node in enumerate(self.nodes):
            if node.get("colorClass") is not None:
                colours[node["colorClass"]] |= 1 << i
        sends = [_whole(ns) for ns in self.sends]
        structures = {
            "accelerator": Structure(
                stage_ns=0,
                op_ns=tuple(_whole(n["fpgaLatency"]) if n.get("supportedOnFpga", 1) else None for n in self.nodes),
                transfers=tuple(
                    Transfer(i, tuple(r), leaves=False, receive_ns=sends[i], send_ns=sends[i])
                    for i, r in enumerate(self.readers)
                    if r
                ),
                op_bytes=tuple(math.ceil(node.get("size", 0)) for node in self.nodes),
                limit_bytes=math.floor(self.memory),
            ),
            "cpu": Structure(stage_ns=0, op_ns=tuple(_whole(node["cpuLatency"]) for node in self.nodes)),
        }
        counts = [("accelerator", self.accelerators), ("cpu", self.cpus)]
        devices = [(kind, count) for kind, count in counts if count]
        groups = [group for group in colours.values() if group.bit_count() > 1]
        return structured_problem(before, devices, structures, together=groups)

    def objective(self, solution: Solution) -> float:
        """The largest load of a device, by the definition beside the instances and nothing of ours."""
        loads = []
        for pipeline in solution.pipelines:
            for stage in pipeline.stages:
                inside = {i for i in range(len(self.nodes)) if stage.ops >> i & 1}
                if stage.kind == "cpu":
                    loads.append(math.fsum(self.nodes[i]["cpuLatency"] for i in inside))
                    continue
                terms = [self.nodes[i]["fpgaLatency"] for i in inside]
                for i, readers in enumerate(self.readers):
                    elsewhere = any(r not in inside for r in readers)
                    if (i in inside and elsewhere) or (i not in inside and any(r in inside for r in readers)):
                        terms.append(self.sends[i])
                loads.append(math.fsum(terms))
        return max(loads)


def _whole(time_units: float) -> int:
    return math.ceil(time_units * PER_UNIT)


def load(path: Path) -> Instance:
    """Raises BalancerError where the file is no instance."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        nodes = {node["id"]: node for node in data["nodes"]}
        if any(node.get("isBackwardNode") for node in nodes.values()):
            raise ValueError("nodes of a backward pass: only graphs of inference can be split here")
        readers: dict[int, list[int]] = {name: [] for name in nodes}
        costs: dict[int, float] = dict.fromkeys(nodes, 0.0)
        for edge in data["edges"]:
            if edge["destId"] not in readers[edge["sourceId"]]:
                readers[edge["sourceId"]].append(edge["destId"])
            costs[edge["sourceId"]] = edge["cost"]
        order = _topological(readers)
        at = {name: k for k, name in enumerate(order)}
        return Instance(
            name=path.stem,
            nodes=[nodes[name] for name in order],
            sends=[costs[name] for name in order],
            readers=[sorted(at[r] for r in readers[name]) for name in order],
            accelerators=data["maxFPGAs"],
            cpus=data["maxCPUs"],
            memory=data["maxSizePerFPGA"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BalancerError(
            f"is no instance ({error!r})", str(path), "give a JSON file in the published format"
        ) from None


def _topological(readers: dict[int, list[int]]) -> list[int]:
    """Depth first, so that branches stay together."""
    missing = dict.fromkeys(readers, 0)
    for r in (r for found in readers.values() for r in found):
        missing[r] += 1
    ready, order = sorted((name for name, count in missing.items() if not count), reverse=True), []
    while ready:
        order.append(name := ready.pop())
        for r in sorted(readers[name], reverse=True):
            missing[r] -= 1
            if not missing[r]:
                ready.append(r)
    if len(order) != len(readers):
        raise ValueError("the graph has a cycle")
    return order


@dataclass(frozen=True)
class Row:
    """What to solve, and the optimum of it, None where none is known."""

    path: Path
    accelerators: int
    cpus: int
    memory: float
    optimum: float | None = None

    @property
    def instance(self) -> Instance:
        """Raises BalancerError where the file is no instance."""
        return replace(load(self.path), accelerators=self.accelerators, cpus=self.cpus, memory=self.memory)


def rows(path: Path) -> list[Row]:
    """What to solve of one file. Raises BalancerError where it is no instance."""
    own, table, found = load(path), path.parent / "optima.csv", []
    if table.exists():
        with table.open(encoding="utf-8", newline="") as file:
            found = [
                Row(path, int(r["accelerators"]), int(r["cpus"]), float(r["memory_limit"]), float(r["optimum"]))
                for r in csv.DictReader(file)
                if r["instance"] == own.name
            ]
    if (own.accelerators, own.cpus, own.memory) in [(row.accelerators, row.cpus, row.memory) for row in found]:
        return found
    return [Row(path, own.accelerators, own.cpus, own.memory), *found]


def solved(row: Row, solver: str) -> tuple[Instance, Solution, float, float]:
    """The instance, its solution, seconds and the process's peak in MiB. Raises BalancerError or ValueError."""
    instance, options = row.instance, SolverOptions(solver=solver, max_pipelines=1, max_replicas=1)
    start = time.perf_counter()
    problem = instance.problem
    solution = solve(problem, options)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    check(problem, solution, options)
    return instance, solution, seconds, peak


def report(row: Row, solver: str) -> tuple[bool, float]:
    """Print a row of the table: whether it is proven and as referenced, and seconds. Raises BalancerError or ValueError."""
    with multiprocessing.get_context("spawn").Pool(1) as alone:
        instance, solution, seconds, peak = alone.apply(solved, (row, solver))
    objective, known = instance.objective(solution), row.optimum
    proven = solution.status == "optimal"
    agrees = known is None or math.isclose(objective, known, rel_tol=_TOLERANCE)
    print(
        ROW.format(
            instance.name, row.accelerators, row.cpus, f"{row.memory:.0f}", f"{objective:.12g}",
            "optimal" if proven else f"gap {100 * solution.gap:.2f} %", f"{seconds:.2f}", f"{peak:.0f}",
            "" if known is None else f"{known:.12g}", "" if agrees else "differs",
        ).rstrip(),
        flush=True,
    )  # fmt: skip
    return proven and agrees, seconds


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="default: the shared instances")
    parser.add_argument("--solver", default="auto")
    arguments = parser.parse_args(argv)
    print(
        ROW.format(
            "instance", "acc", "cpus", "memory", "objective", "proof", "seconds", "MiB", "reference", ""
        ).rstrip()
    )
    try:
        wanted = [row for path in arguments.files or sorted(FOLDER.glob("*.json")) for row in rows(path)]
        found = [report(row, arguments.solver) for row in wanted]
    except (BalancerError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    good, seconds = sum(fine for fine, _ in found), [taken for _, taken in found]
    print(f"optimal {good} of {len(found)}, {sum(seconds):.2f} s, the slowest {max(seconds, default=0):.2f} s")
    return 0 if good == len(found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
