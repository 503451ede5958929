"""How little time the ops before and after a cut can take, in whatever way they are cut further.

With the structure of a cost (see `structure`), all stages before a down-set I together take at least the time of I's
ops, the sending of each tensor that I hands on, one start a stage, and, where their parameters exceed what so many
stages keep, the cheapest way to spill the rest (whole parameters relaxed to parts of them). Likewise after I. A plan
whose stages i take t_i on r_i devices has a period of at least sum t_i / sum r_i.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.solve.kinds_bound import mixed_bound_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.ground.downsets import DownSets
    from balancer.solve.problem import Problem
    from balancer.solve.structure import Structure


class Least:
    """Lower bounds for one kind of device, for each of the down-sets.

    work_ns: of the ops alone. before_ns, after_ns: of the ops in the set, and of all others, with what must cross.
    """

    def __init__(self, structure: Structure, sets: DownSets) -> None:
        self.structure = structure
        self.work_ns = sets.total([ns or 0 for ns in structure.op_ns])
        everything = int(sum(ns or 0 for ns in structure.op_ns))
        self.before_ns, self.after_ns = self.work_ns.copy(), everything - self.work_ns
        self._add_transfers(sets)
        sizes = [0] * len(structure.op_ns)
        for kept in structure.kept:
            sizes[kept.op] = kept.size_bytes
        self.kept_bytes = sets.total(sizes)
        self.all_kept_bytes = sum(sizes)
        streaming = [int(i in structure.streaming) for i in range(len(sizes))]
        self.streaming, self.all_streaming = sets.total(streaming), sum(streaming)

    def _add_transfers(self, sets: DownSets) -> None:
        for transfer in self.structure.transfers:
            readers = sum(1 << r for r in transfer.readers)
            made = None if transfer.producer is None else sets.holds_any(1 << transfer.producer)
            unread = ~sets.holds_all(readers)
            if made is None:
                self.before_ns += sets.holds_any(readers) * transfer.receive_ns
                self.after_ns += unread * transfer.receive_ns
            else:
                crosses = made & unread
                self.before_ns += (made if transfer.leaves else crosses) * transfer.send_ns
                self.after_ns += crosses * transfer.receive_ns
                if transfer.leaves:
                    self.after_ns += ~made * transfer.send_ns

    def before(self, stages: int, rows: Any = slice(None)) -> Any:
        """ns that the sets' ops take at least, in so many stages."""
        return self.before_ns[rows] + self._rest(self.kept_bytes[rows], self.streaming[rows], stages)

    def after(self, stages: int, rows: Any = slice(None)) -> Any:
        """ns that all other ops take at least, in so many stages."""
        kept_bytes, streaming = self.all_kept_bytes - self.kept_bytes[rows], self.all_streaming - self.streaming[rows]
        return self.after_ns[rows] + self._rest(kept_bytes, streaming, stages)

    def _rest(self, kept_bytes: Any, streaming: Any, stages: int) -> Any:
        return stages * self.structure.stage_ns + spilled_ns(self.structure, kept_bytes, streaming, stages)


def spilled_ns(structure: Structure, kept_bytes: Any, streaming: Any, stages: int) -> Any:
    """ns that spilling costs at least where so many bytes ask for room in so many stages, with so many ops that stream
    anyway. Arrays in, array out.
    """
    excess = np.asarray(kept_bytes) - stages * structure.capacity_bytes
    ns = np.floor(np.interp(excess, *structure.cheapest_spills) * (1 - 1e-12)).astype(np.int64)
    return ns + ((excess > 0) | (np.asarray(streaming) > 0)) * structure.spill_start_ns


def pipeline_bound_ns(problem: Problem, stages: int, devices: int, most_replicas: int) -> int:
    """No pipeline of so many stages on so many devices has fewer ns per inference.

    Its work is shared among the devices at best; whichever op takes longest alone has few replicas.
    """
    host = problem.host_ns * stages
    kind = problem.devices[0][0]
    if len(problem.devices) > 1:
        return max(1, host, mixed_bound_ns(problem, stages, devices, most_replicas))
    replicas = min(most_replicas, devices - stages + 1)
    structure = problem.structures.get(kind)
    if structure is None:
        return max(1, host, max(-(-problem.lower(1 << i, kind) // replicas) for i in range(problem.n_ops)))
    largest = max(structure.alone_ns)
    return max(1, host, -(-least_total_ns(structure, stages) // devices), -(-largest // replicas))


def least_total_ns(structure: Structure, stages: int) -> int:
    """ns that so many stages take together at least: ops, what comes in and goes out, and what does not stay."""
    kept_bytes = sum(kept.size_bytes for kept in structure.kept)
    outside = sum(t.receive_ns for t in structure.transfers if t.producer is None and t.readers)
    leaving = sum(t.send_ns for t in structure.transfers if t.producer is not None and t.leaves)
    spilled = int(spilled_ns(structure, kept_bytes, len(structure.streaming), stages))
    return stages * structure.stage_ns + sum(ns or 0 for ns in structure.op_ns) + outside + leaving + spilled


class Reach:
    """Which cuts so many devices can get to, and get on from, with no stage above a period.

    Without a structure nothing is ruled out. With several kinds of devices, what the others can do at most is counted
    in the first kind's ns of work, transfers left out.
    """

    def __init__(self, structures: Sequence[Structure | None], sets: DownSets) -> None:
        first = structures[0] if structures else None
        self.least = Least(first, sets) if first and None not in structures else None
        self.count = len(sets)
        self.worth = [1.0, *(_worth(first, other) for other in structures[1:] if first and other)]

    def window_ns(self, most_ns: Sequence[int]) -> float:
        """The most work, in ns of the first kind, that a stage can hold which takes at most so many ns on each kind."""
        return max(ns * worth for ns, worth in zip(most_ns, self.worth, strict=False)) * (1 + 1e-9)

    def before(self, devices: Sequence[int], period_ns: float, most_stages: int) -> Any:
        """Which sets so many devices of each kind can hold."""
        if self.least is None:
            return np.ones(self.count, bool)
        return self._fits(self.least.before, self.least.work_ns, devices, period_ns, most_stages)

    def after(self, devices: Sequence[int], period_ns: float, most_stages: int) -> Any:
        """Of which sets so many devices of each kind can hold all other ops."""
        if self.least is None:
            return np.ones(self.count, bool)
        rest = int(self.least.work_ns[-1]) - self.least.work_ns
        return self._fits(self.least.after, rest, devices, period_ns, most_stages)

    def _fits(
        self, least: Callable[[int], Any], work_ns: Any, devices: Sequence[int], period_ns: float, most_stages: int
    ) -> Any:
        if any(devices[1:]):
            worth = sum(count * worth for count, worth in zip(devices, self.worth, strict=True) if count)
            return work_ns <= period_ns * worth * (1 + 1e-9)
        stages = range(1, min(devices[0], most_stages) + 1)
        found = np.zeros(self.count, bool)
        for s in stages:
            found |= least(s) <= period_ns * devices[0]
        return found


def _worth(first: Structure, other: Structure) -> float:
    """The most ns of work on the first kind that a ns on the other does."""
    most = 0.0
    for a, b in zip(first.op_ns, other.op_ns, strict=True):
        if a and b is not None:
            most = max(most, a / b if b else float("inf"))
    return most
