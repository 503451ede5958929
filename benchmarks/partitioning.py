"""The solvers on the published instances of Tarnawski et al. (NeurIPS 2020), beside the published optima.

    python benchmarks/partitioning.py [FILES ...] [--solver auto] [--json FILE]

The table `optima.csv` beside the instances gives numbers of devices, a memory limit and the optimum for them. Each
instance is solved once for each of its rows, and for the devices that the instance itself names where no row has them.
Columns: the instance; accelerators; CPUs; the memory limit of an accelerator in bytes; the objective, which is computed
again from the partition in floating point, without any of the solvers' code; whether it is proven, or the gap; seconds
(reading the file is not counted); the peak memory in MiB of the process, which solves this row alone; the published
optimum, and `differs` where the objective is not equal to it. The solver first solves a problem of two ops, which is
not counted. The exit code is 1 unless each row is proven and equal to its optimum.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from models import DATA, add_files, existing
from sampling import in_own_process, measuring_parser, peak_mib, recorded, timed

from balancer.errors import BalancerError
from balancer.solve import SOLVERS, SolverOptions, Structure, Transfer, check, solve, structured_problem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sampling import Sample

    from balancer.solve import Problem, Solution

ROW = "{:27} {:>3} {:>4} {:>11} {:>14} {:>12} {:>8} {:>5} {:>14} {}"
PER_UNIT = 1e9  # solvers work on whole numbers: times in the file's unit times this, rounded up
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Instance:
    """A published graph. Nodes are numbered in a topological order; times are in the file's unit, sizes in bytes.

    sends[i]: the time to transfer node i's output. readers[i]: the nodes that read it.
    """

    name: str
    nodes: list[dict[str, Any]]
    sends: list[float]
    readers: list[list[int]]
    accelerators: int
    cpus: int
    memory: float

    @property
    def problem(self) -> Problem:
        """Accelerators and CPUs. A CPU pays for no transfer and has no memory limit."""
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
        """The largest load of any device, by the definition that stands beside the instances."""
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
    """Raises BalancerError where the file is not an instance."""
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
            f"not an instance ({error!r})", str(path), "give a JSON file in the published format"
        ) from None


def _topological(readers: dict[int, list[int]]) -> list[int]:
    """Names in a depth-first topological order, so that the ops of a branch stay together."""
    missing = dict.fromkeys(readers, 0)
    for reader_names in readers.values():
        for r in reader_names:
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
    """What to solve. optimum: the published one, None where none is known."""

    path: Path
    accelerators: int
    cpus: int
    memory: float
    optimum: float | None = None

    @property
    def instance(self) -> Instance:
        """Raises BalancerError where the file is not an instance."""
        return replace(load(self.path), accelerators=self.accelerators, cpus=self.cpus, memory=self.memory)


def rows(path: Path) -> list[Row]:
    """What to solve of one file. Raises BalancerError where it is not an instance."""
    own, table = load(path), path.parent / "optima.csv"
    published = []
    if table.exists():
        with table.open(encoding="utf-8", newline="") as file:
            published = [
                Row(path, int(r["accelerators"]), int(r["cpus"]), float(r["memory_limit"]), float(r["optimum"]))
                for r in csv.DictReader(file)
                if r["instance"] == own.name
            ]
    if (own.accelerators, own.cpus, own.memory) in [(row.accelerators, row.cpus, row.memory) for row in published]:
        return published
    return [Row(path, own.accelerators, own.cpus, own.memory), *published]


def measure(row: Row, solver: str) -> Sample:
    """Solve the row in this process. Raises BalancerError or ValueError."""
    options = SolverOptions(solver=solver, max_pipelines=1, max_replicas=1)
    structure = Structure(stage_ns=0, op_ns=(1, 1))
    solve(structured_problem([0, 1], [("accelerator", 2)], {"accelerator": structure}), options)
    instance = row.instance

    def solved() -> tuple[Solution, float]:
        problem = instance.problem
        solution = solve(problem, options)
        check(problem, solution, options)
        objective = instance.objective(solution)
        assert objective * PER_UNIT <= solution.value.objective_ns * (1 + _TOLERANCE)
        return solution, objective

    (solution, objective), seconds = timed(solved)
    return {
        "instance": instance.name, "accelerators": row.accelerators, "cpus": row.cpus, "memory_bytes": row.memory,
        "objective": objective, "optimum": row.optimum, "proven": solution.status == "optimal", "gap": solution.gap,
        "solve_s": seconds, "peak_mib": peak_mib(),
    }  # fmt: skip


def agrees(sample: Sample) -> bool:
    """Whether the objective is the published optimum, where there is one."""
    return sample["optimum"] is None or math.isclose(sample["objective"], sample["optimum"], rel_tol=_TOLERANCE)


def print_row(sample: Sample) -> None:
    proof = "optimal" if sample["proven"] else f"gap {100 * sample['gap']:.2f} %"
    optimum = "" if sample["optimum"] is None else f"{sample['optimum']:.12g}"
    print(
        ROW.format(
            sample["instance"], sample["accelerators"], sample["cpus"], f"{sample['memory_bytes']:.0f}",
            f"{sample['objective']:.12g}", proof, f"{sample['solve_s']:.2f}", sample["peak_mib"], optimum,
            "" if agrees(sample) else "differs",
        ).rstrip(),
        flush=True,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = measuring_parser(__doc__)
    add_files(parser, "all instances in shared/data/partitioning")
    parser.add_argument("--solver", choices=sorted(SOLVERS), default="auto", help="(default: auto)")
    arguments = parser.parse_args(argv)
    files = existing(parser, arguments.files, sorted((DATA / "partitioning").glob("*.json")))
    headings = ("instance", "acc", "cpus", "memory", "objective", "proof", "seconds", "MiB", "reference", "")
    print(ROW.format(*headings).rstrip())
    try:
        with recorded("partitioning", arguments) as samples:
            for row in [row for path in files for row in rows(path)]:
                samples.append(in_own_process(measure, row, arguments.solver))
                print_row(samples[-1])
    except ValueError as error:  # the solver does not take such problems
        print(error, file=sys.stderr)
        return 1
    good = sum(sample["proven"] and agrees(sample) for sample in samples)
    seconds = [sample["solve_s"] for sample in samples]
    print(f"optimal {good} of {len(samples)}, {sum(seconds):.2f} s, the slowest {max(seconds):.2f} s")
    return 0 if good == len(samples) else 1


if __name__ == "__main__":
    sys.exit(main())
