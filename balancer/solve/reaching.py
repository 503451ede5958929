"""The part of the lattice of down-sets that pipelines within limits can use, found from cut to cut.

A graph with parallel branches has far more down-sets than can be listed: those of a detector's head alone are the product
of its branches. Few of them are of use to a pipeline that must be fast. From the empty set, stages are grown to every cut
where lower bounds leave hope (`growing`), and costed exactly; from these cuts in turn, and so on:

    {} ----> cuts with 1 device behind them ----> cuts with 2 devices behind them ----> ... ----> all ops

A cut counts with the fewest devices that get to it in time. Since every stage takes a device, the cuts with u devices are
all known once those with fewer have been extended. At last, cuts from which no stages lead to all ops within the devices
are dropped.

No pipeline within the limits is lost. Each of its stages starts at a cut that was found, with no more devices behind it
than the pipeline has there, and bounds and costs never rule out a stage that keeps the period.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from balancer.ground.downsets import DownSets, word_count
from balancer.solve.block_terms import BlockTable
from balancer.solve.bounds import cut_bounds, cut_reachability
from balancer.solve.costed_segments import KnownSegments, SegmentColumns
from balancer.solve.downset_dp import CutLattice
from balancer.solve.growing import GrowthLimits, StageGrowth
from balancer.solve.periods import MOST_REPLICAS

if TYPE_CHECKING:
    from balancer.ground.arrays import BoolArray, IndexArray, IntArray, WordArray
    from balancer.solve.budget import Budget
    from balancer.solve.downset_dp import PipelineLimits
    from balancer.solve.problem import Problem

_UNREACHED = 1 << 30  # devices


class _Stages(NamedTuple):
    """Stages between numbered cuts, as columns. replicas: the fewest that keep the period."""

    start: IndexArray
    end: IndexArray
    time_ns: IntArray
    streamed_bytes: IntArray
    replicas: IntArray

    def take(self, chosen: IndexArray | BoolArray) -> _Stages:
        return _Stages(*(column[chosen] for column in self))


class CutFinder:
    """Finds the cuts that pipelines within limits may use, for devices of one kind whose structure is known.

    most_replicas: of a stage. may_replicate_whole: whether a stage that holds all ops may have several.
    """

    def __init__(self, problem: Problem, *, most_replicas: int, may_replicate_whole: bool) -> None:
        self.problem = problem
        self.most_replicas, self.may_replicate_whole = min(most_replicas, MOST_REPLICAS), may_replicate_whole
        ((kind, _),) = problem.devices
        self._table = BlockTable(problem, problem.structures[kind])

    def lattice(self, limits: PipelineLimits, budget: Budget) -> CutLattice:
        """The cuts that some pipeline within the limits may use, with all segments between them that it may use.

        Raises BudgetSpent.
        """
        (devices,) = limits.devices
        within = GrowthLimits(most_ns=limits.most_ns, devices=devices, most_replicas=self.most_replicas)
        found, growth = _FoundCuts(self.problem.n_ops), StageGrowth(self._table, within)
        parts = [_extended(self.problem, growth, found, used, budget) for used in range(devices)]
        stages = _Stages(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
        sets, stages = _numbered(found, _without_dead_ends(found, stages, devices))
        reachability = cut_reachability([self._table.structure], sets)
        return CutLattice(
            self.problem, sets, self.most_replicas, self.may_replicate_whole, reachability, _segments(stages)
        )


@dataclass
class _FoundCuts:
    """The cuts found so far, numbered in the order in which they were found: the empty set is 0, that of all ops 1.

    words: of each. used: the fewest devices that get to it.
    """

    n_ops: int
    words: list[WordArray] = field(init=False)
    used: list[int] = field(init=False)
    _numbers: dict[bytes, int] = field(init=False)

    def __post_init__(self) -> None:
        self.words = list(DownSets.of([0, (1 << self.n_ops) - 1], self.n_ops).words)
        self.used = [0, _UNREACHED]
        self._numbers = {words.tobytes(): number for number, words in enumerate(self.words)}

    def with_devices(self, used: int) -> IndexArray:
        """The numbers of the cuts that exactly so many devices get to, that of all ops left out."""
        numbers = [number for number, devices in enumerate(self.used) if devices == used and number != 1]
        return np.array(numbers, np.intp)

    def numbers_of(self, words: WordArray) -> IndexArray:
        """The number of the cut in each row; new cuts are added."""
        distinct, which = np.unique(words, axis=0, return_inverse=True)
        numbers = np.empty(len(distinct), np.intp)
        for row, cut in enumerate(distinct):
            number = numbers[row] = self._numbers.setdefault(cut.tobytes(), len(self.words))
            if number == len(self.words):
                self.words.append(cut)
                self.used.append(_UNREACHED)
        return numbers[which.reshape(-1)]

    def note(self, stages: _Stages) -> None:
        """Take note of the devices that get to the ends of these stages."""
        for start, end, replicas in zip(
            stages.start.tolist(), stages.end.tolist(), stages.replicas.tolist(), strict=True
        ):
            self.used[end] = min(self.used[end], self.used[start] + replicas)

    def sets(self, numbers: IndexArray) -> DownSets:
        """These cuts, as rows in this order."""
        words = [self.words[number] for number in numbers.tolist()]
        return DownSets(np.array(words, np.uint64).reshape(len(words), word_count(self.n_ops)), self.n_ops)

    def ranked(self, numbers: IndexArray) -> tuple[IndexArray, IndexArray]:
        """These cuts with subsets before supersets; and for each cut that there is its place among them."""
        sizes = self.sets(numbers).total([1] * self.n_ops)
        ranked = numbers[np.argsort(sizes, kind="stable")]
        place = np.zeros(len(self.words), np.intp)
        place[ranked] = np.arange(len(ranked))
        return ranked, place


def _extended(problem: Problem, growth: StageGrowth, found: _FoundCuts, used: int, budget: Budget) -> _Stages:
    """The stages from all cuts that this number of devices gets to. Their ends are found, too."""
    starts = found.with_devices(used)
    grown = growth.grown(found.sets(starts).words, np.full(len(starts), used), budget)
    stages = _costed(problem, found, starts[grown.start], found.numbers_of(grown.ends), budget)
    limits = growth.limits
    replicas = np.maximum(1, -(-stages.time_ns // limits.most_ns))
    keeps = (replicas <= limits.most_replicas) & (used + replicas <= limits.devices)
    stages = stages._replace(replicas=replicas).take(keeps)
    stages = stages.take(_leads_on(growth, found, stages, used))
    found.note(stages)
    return stages


def _leads_on(growth: StageGrowth, found: _FoundCuts, stages: _Stages, used: int) -> BoolArray:
    """For each stage whether the devices left may be enough for all that follows, now that its exact cost is known."""
    limits = growth.limits
    ends, row = np.unique(stages.end, return_inverse=True)
    bounds = cut_bounds(growth.structure, found.sets(np.append(ends, 1)))
    free = limits.devices - used - stages.replicas
    leads_on: BoolArray = stages.end == 1
    for count in range(1, limits.devices - used):
        leads_on |= (free >= count) & (bounds.suffix_ns(count)[row.reshape(-1)] <= limits.most_ns * free)
    return leads_on


def _costed(problem: Problem, found: _FoundCuts, start: IndexArray, end: IndexArray, budget: Budget) -> _Stages:
    """The segments between these pairs of cuts that may stand, with their exact costs. Replicas are left at 1."""
    budget.spend(len(start))
    ranked, row = found.ranked(np.union1d(start, end))
    order = np.argsort(row[start], kind="stable")
    start, end = start[order], end[order]
    if not len(start):
        none = np.zeros(0, np.int64)
        return _Stages(start, end, none, none, none)
    between = problem.batch(found.sets(ranked), problem.devices[0][0])
    costs = between(row[start], row[end])
    stages = _Stages(start, end, costs.time_ns, costs.streamed_bytes, np.ones(len(start), np.int64))
    return stages.take(costs.allowed)


def _without_dead_ends(found: _FoundCuts, stages: _Stages, devices: int) -> _Stages:
    """The stages from which others lead on to all ops within the devices."""
    used = np.array(found.used)
    needed = np.full(len(used), _UNREACHED)  # devices from each cut on
    needed[1] = 0
    order = np.argsort(used[stages.start], kind="stable")[::-1]
    # A stage's end takes more devices to get to than its start: what follows an end is known before the start is asked.
    for k in order.tolist():
        start = stages.start[k]
        needed[start] = min(needed[start], needed[stages.end[k]] + stages.replicas[k])
    return stages.take(used[stages.start] + stages.replicas + needed[stages.end] <= devices)


def _numbered(found: _FoundCuts, stages: _Stages) -> tuple[DownSets, _Stages]:
    """The cuts of these stages, subsets first, and the stages between them by the new numbers."""
    numbers = np.union1d(np.array([0, 1]), np.concatenate([stages.start, stages.end]))
    ranked, row = found.ranked(numbers)
    return found.sets(ranked), stages._replace(start=row[stages.start], end=row[stages.end])


def _segments(stages: _Stages) -> KnownSegments:
    """The stages, to be asked for by their starts."""
    stages = stages.take(np.lexsort((stages.end, stages.start)))
    columns = SegmentColumns(stages.end, stages.time_ns, stages.streamed_bytes)
    starts, first = np.unique(stages.start, return_index=True)
    parts = zip(starts.tolist(), pairwise([*first.tolist(), len(stages.start)]), strict=True)
    return KnownSegments({start: columns.take(np.arange(*part)) for start, part in parts})
