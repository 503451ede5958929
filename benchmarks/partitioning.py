"""The solvers on the published instances of Tarnawski et al. (NeurIPS 2020), with their cost and their optima.

    python benchmarks/partitioning.py [FILES ...] [--solver downset]

For each instance: the objective, recomputed in floating point from the partition; whether it is proven, or the gap;
seconds (reading the file is not counted); the peak of memory, in MiB, of a process that solves this instance and
nothing else; and the reference from `optima.csv` beside the file, where its devices and memory limit are listed.
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balancer.errors import BalancerError
from balancer.solve import Options, Structure, Transfer, solve, structured_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.solve import Problem, Solution

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "partitioning"
ROW = "{:30} {:>3} {:>4} {:>18} {:>10} {:>8} {:>7} {:>18} {}"
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


def reference(instance: Instance, path: Path) -> float | None:
    """The published optimum for the file's own devices and memory limit, if there is one."""
    table = path.parent / "optima.csv"
    if not table.exists():
        return None
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            same = row["instance"] == instance.name and int(row["accelerators"]) == instance.accelerators
            if same and int(row["cpus"]) == instance.cpus and float(row["memory_limit"]) == instance.memory:
                return float(row["optimum"])
    return None


def solved(path: Path, solver: str) -> tuple[Instance, Solution, float, float]:
    """The instance, its solution, seconds and the process's peak in MiB. Raises BalancerError or ValueError."""
    instance = load(path)
    start = time.perf_counter()
    solution = solve(instance.problem, Options(solver=solver, max_pipelines=1, max_replicas=1))
    seconds = time.perf_counter() - start
    return instance, solution, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="default: the shared instances")
    parser.add_argument("--solver", default="downset")
    arguments = parser.parse_args(argv)
    files = arguments.files or sorted(FOLDER.glob("*.json"))
    print(ROW.format("instance", "acc", "cpus", "objective", "proof", "seconds", "MiB", "reference", ""))
    optimal, total = 0, 0.0
    for path in files:
        try:
            with multiprocessing.get_context("spawn").Pool(1) as alone:
                instance, solution, seconds, peak = alone.apply(solved, (path, arguments.solver))
        except (BalancerError, ValueError) as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            return 1
        objective, known = instance.objective(solution), reference(instance, path)
        proven = solution.status == "optimal"
        agrees = known is None or math.isclose(objective, known, rel_tol=_TOLERANCE)
        optimal, total = optimal + (proven and agrees), total + seconds
        print(
            ROW.format(
                instance.name, instance.accelerators, instance.cpus, f"{objective:.12g}",
                "optimal" if proven else f"gap {100 * solution.gap:.2f} %", f"{seconds:.3f}", f"{peak:.0f}",
                "" if known is None else f"{known:.12g}", "" if agrees else "differs",
            ).rstrip()
        )  # fmt: skip
    print(f"optimal {optimal} of {len(files)}, {total:.2f} s")
    return 0 if optimal == len(files) else 1


if __name__ == "__main__":
    raise SystemExit(main())
