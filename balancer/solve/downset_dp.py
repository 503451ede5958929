r"""Dynamic programming over down-sets, for any cost: what `period_dp` and `latency_dp` share.

A cut of a pipeline is a down-set: the ops of all stages before it. A graph of four ops, and its down-sets as a lattice,
in which lines join each set to the next larger ones:

        0                               {0,1}
       / \                            /       \
      1   2              {} --- {0} --          -- {0,1,2} --- {0,1,2,3}
       \ /                            \       /
        3                               {0,2}

A pipeline is a path through the lattice from no ops to all ops. Each step goes from a set to any set that contains it,
and the ops that it adds are a stage:

                         {} ----------> {0,2} ----------> {0,1,2,3}
                            ops 0 and 2       ops 1 and 3
                              stage 0           stage 1

So the best pipeline is a best path, with the number of stages and the devices in use as further coordinates. Visit sets in
any order that puts subsets first. Start with best[{}][0][0] = 0. Then, for cut I after s stages on devices u (a count for
each kind),

    best[I][s][u] = min over proper subsets J of I, kinds and replicas r of  extend(best[J][s - 1][u - r], segment I - J, r)

where `extend` is the maximum of periods (`period_dp`), or the sum of latencies (`latency_dp`).

Why this is exact. Every pipeline is such a path, and every such path is a pipeline. `extend` never decreases when `best`
grows: replacing the way to J by one with the same stages and devices and no larger value never makes the whole worse. So
keeping the minimum for each (I, s, u) loses no optimum. Nothing is assumed of the cost of a segment: it need not grow with
the segment, so all pairs J, I count, not only neighbours in the lattice. Before the search, lower bounds leave out the cuts
that no pipeline within the limits can use (`bounds`). Among the pipelines that reach the optimum, `tie_rules` chooses in a
second pass over all segments that such a pipeline may hold.

With the prefixes of one order as the family of sets, this is the interval DP of that order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from balancer.ground.opsets import members
from balancer.solve.bounds import cut_reachability
from balancer.solve.budget import BudgetSpent
from balancer.solve.costed_segments import FEW_SETS, CostedSegments, SegmentColumns
from balancer.solve.periods import MOST_REPLICAS
from balancer.solve.problem import PipelineSpec, StageSpec
from balancer.solve.sizes import CountNumbers, stage_classes
from balancer.solve.tie_rules import PathSize, StageOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balancer.ground.arrays import BoolArray, FloatArray, IndexArray, IntArray
    from balancer.ground.downsets import DownSets
    from balancer.solve.bounds import CutReachability
    from balancer.solve.budget import Budget
    from balancer.solve.costed_segments import SegmentSource
    from balancer.solve.priced_bounds import Prices
    from balancer.solve.problem import Problem
    from balancer.solve.sizes import Counts, StageClasses
    from balancer.solve.tie_rules import CutPath

UsedSegments = list[list[tuple[int, SegmentColumns]]]  # for each kind: cuts, with the segments that start there
MOST_STATES = 1 << 26  # of the table `best`: half a GiB
_UPDATES_A_PAIR = 4  # extending a pipeline by a segment takes about this fraction of the time of costing the segment
_CUTS_AHEAD = 256  # cuts whose segments are costed together


class SizeNumbers(NamedTuple):
    """Numbers for the stages of pipelines, counted by class, and for their devices, counted by kind."""

    classes: StageClasses
    stages: CountNumbers
    devices: CountNumbers


@dataclass(frozen=True, slots=True)
class PipelineLimits:
    """Which pipelines a search looks for.

    devices: at most these, by kind. most_ns: of the period. most_stages: of all classes. exact_stages: whether a pipeline
    of more stages counts even where one of fewer stages is as good. longest_ns: the longest period by the number of the
    devices that a pipeline has in all, 0 where none of that size is wanted; empty where it is most_ns for all.
    """

    devices: Counts
    most_ns: int
    most_stages: int
    exact_stages: bool = False
    longest_ns: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CutLattice:
    """A family of down-sets among which cuts are chosen, with what all searches in it share. `cut_lattice` makes one.

    sets: the empty set first, that of all ops last, each before those that contain it.
    most_replicas: of a stage.
    may_replicate_whole: whether a stage that holds all ops may have several replicas.
    segments: None where there are too many sets to keep the costs of all segments between them.
    """

    problem: Problem
    sets: DownSets
    most_replicas: int
    may_replicate_whole: bool
    reachability: CutReachability
    segments: SegmentSource | None


def cut_lattice(  # noqa: PLR0913 - one lattice's data
    problem: Problem,
    sets: DownSets,
    *,
    most_replicas: int = 1,
    may_replicate_whole: bool = False,
    longest_ns: int | None = None,
    prices: Sequence[Prices] = (),
) -> CutLattice:
    """The lattice of these sets.

    longest_ns: no search will want a segment that takes longer; None where no such limit is known. prices: see
    `cut_reachability`.
    """
    reachability = cut_reachability([problem.structures.get(kind) for kind, _ in problem.devices], sets, prices)
    segments: SegmentSource | None = None
    if len(sets) <= FEW_SETS:
        # Costing is most of the work: with few sets, each segment is costed once for all searches.
        segments = CostedSegments(problem, sets, reachability.window(longest_ns), keep=True)
    return CutLattice(problem, sets, min(most_replicas, MOST_REPLICAS), may_replicate_whole, reachability, segments)


@dataclass(frozen=True, slots=True)
class OpenCuts:
    """The cuts that bounds leave, and with which devices in use. Cuts are numbered in their order here.

    rows: the number of each among the lattice's sets.
    is_open[cut, used]: whether a pipeline can get to the cut with these devices in use, and on from it with the rest.
    longest_ns[cut, used]: the longest period with which it can; None where it is the same for all.
    highest[kind][cut]: the most devices of a kind that may be in use at the cut; -1 where the cut is not open at all.
    """

    rows: IndexArray
    sets: DownSets
    is_open: BoolArray
    longest_ns: FloatArray | None
    highest: list[IntArray]
    segments: SegmentSource


class StateColumns(NamedTuple):
    """Ways to get to a cut, as columns: numbers of the stages so far and of the devices in use, and what is minimised."""

    stages: IndexArray
    used: IndexArray
    value: FloatArray

    def take(self, chosen: BoolArray) -> StateColumns:
        """Some of them, by a mask."""
        return StateColumns(self.stages[chosen], self.used[chosen], self.value[chosen])


@dataclass(frozen=True, slots=True)
class DpTable:
    """The table of one run. best[cut, stages, devices in use]: what is minimised; infinite where nothing is known.

    most_replicas: of a stage, by kind. limit: larger values are of no use.
    """

    best: FloatArray
    cuts: OpenCuts
    limits: PipelineLimits
    numbers: SizeNumbers
    most_replicas: list[int]
    limit: float

    def may_follow(self, states: StateColumns, kind: int) -> BoolArray:
        """Which of these states leave room for one more stage on this kind."""
        of = self.numbers.classes.of_kind[kind]
        room: BoolArray = self.numbers.stages.counts[states.stages, of] < self.numbers.stages.most[of]
        return room

    def non_dominated(self, cut: int) -> StateColumns:
        """The ways to get to a cut that no other way beats or equals with no more devices (and, unless exact_stages, no
        more stages).

        A dominated way can be left out: whatever follows it can follow the other.
        """
        # One axis for the stages of each class, one for the devices of each kind.
        stage_counts, device_counts = self.numbers.stages.most, self.limits.devices
        values = self.best[cut].reshape([count + 1 for count in (*stage_counts, *device_counts)])
        kept, least = values <= self.limit, values
        axes = range(len(stage_counts) if self.limits.exact_stages else 0, values.ndim)
        # After this, least[s, u] is the best value with at most s stages and at most u devices of each kind.
        for axis in axes:
            least = np.minimum.accumulate(least, axis)
        # An entry stays if it is below that minimum of its neighbours with one stage or one device less.
        for axis in axes:
            fewer, more = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
            kept[more] &= least[fewer] > values[more]
        stages, used = np.nonzero(kept.reshape(self.best.shape[1:]))
        return StateColumns(stages, used, self.best[cut, stages, used])

    def ahead(self, cut: int) -> Iterator[int]:
        """The next cuts that are reached so far: a guess at which segments will be asked for soon."""
        reached = (self.best[cut : cut + _CUTS_AHEAD] <= self.limit).any(axis=(1, 2))
        yield from (cut + np.nonzero(reached)[0]).tolist()


class ExtensionRule(Protocol):
    """What a further stage adds to a pipeline: the part of the DP that depends on what is minimised."""

    @property
    def limit(self) -> float:
        """Larger values of what is minimised are of no use."""

    def extend(
        self, table: DpTable, cut: int, kind: int, segments: SegmentColumns, states: StateColumns
    ) -> SegmentColumns | None:
        """Lower `table.best` at the cuts after the segments, for a stage of one kind after each way to get to `cut`.

        segments: all that start at the cut. Returns those that a pipeline within the limits may use; None for none.
        """


@dataclass(frozen=True, slots=True)
class DpPaths:
    """What a run leaves: the non-dominated ways to get to the last cut, and the segments that they may be made of.

    used: for each kind (cut, segments that start there), of segments from which others lead on to the last cut.
    """

    problem: Problem
    sets: DownSets
    arrivals: StateColumns
    numbers: SizeNumbers
    most_replicas: list[int]
    used: UsedSegments

    def ops_between(self, start: int, end: int) -> tuple[int, ...]:
        """The ops between two cuts: by them segments are ranked where all else is equal."""
        return tuple(members(self.sets.set_of(end) & ~self.sets.set_of(start)))

    def stage_options(self, most_ns: float) -> list[StageOptions]:
        """The segments that can be stages of all kinds with a period of at most most_ns, with their replicas."""
        return [option for kind in range(len(self.used)) for option in self._stage_options(kind, most_ns)]

    def _stage_options(self, kind: int, most_ns: float) -> Iterator[StageOptions]:
        """The segments by the fewest replicas with which they keep the period; more would only take devices."""
        if not self.used[kind]:
            return
        start = np.concatenate([np.full(len(segments.end), cut) for cut, segments in self.used[kind]])
        columns = zip(*(segments[:3] for _, segments in self.used[kind]), strict=True)
        end, time, streamed = (np.concatenate(column) for column in columns)
        handover_ns = self.problem.handover_ns.get(self.problem.devices[kind][0], 0)
        placed = np.zeros(len(time), bool)
        # The same division and comparison as in the search, so that exactly the segments that it used come back.
        for r in range(1, self.most_replicas[kind] + 1):
            fast = np.maximum(time, 1) / r <= most_ns
            here = np.nonzero(fast & ~placed)[0]
            if len(here):
                yield StageOptions(kind, r, start[here], end[here], streamed[here] * r, time[here] + handover_ns)
            placed |= fast

    def size(self, stages: Counts, devices: Counts) -> PathSize:
        """The size of a path with these numbers of stages and devices."""
        return PathSize(stages, devices, self.numbers.classes.of_kind)

    def pipeline(self, path: CutPath) -> PipelineSpec:
        """The pipeline that a path through the cuts stands for."""
        kinds = [kind for kind, _ in self.problem.devices]
        done = [0, *(self.sets.set_of(cut) for cut in path.ends)]
        segments = (after & ~before for before, after in pairwise(done))
        return PipelineSpec(
            tuple(StageSpec(ops, kinds[kind], r) for ops, (kind, r) in zip(segments, path.stages, strict=True))
        )


def size_numbers(problem: Problem, limits: PipelineLimits) -> SizeNumbers:
    """Numbers for the sizes of pipelines within the limits."""
    classes = stage_classes(problem)
    most_stages = min(limits.most_stages, sum(limits.devices))
    stages = (min(most_stages, count) for count in classes.counts(limits.devices))
    return SizeNumbers(classes, CountNumbers(tuple(stages)), CountNumbers(limits.devices))


def open_periods(lattice: CutLattice, limits: PipelineLimits) -> FloatArray:
    """[set, devices in use]: the longest period, in ns, that a pipeline may have which gets to a set with these devices, and on
    from it with others, within the limits and as far as bounds tell; negative where there is none.
    """
    numbers, reachability = CountNumbers(limits.devices), lattice.reachability
    stages = min(limits.most_stages, sum(limits.devices))
    longest = np.full((len(lattice.sets), len(numbers.vectors)), -1.0)
    for total, period in _sought(limits, numbers):
        for used in np.nonzero((numbers.counts <= numbers.counts[total]).all(axis=1))[0].tolist():
            before = numbers.vectors[used]
            rest = tuple((numbers.counts[total] - numbers.counts[used]).tolist())
            if not any(before):
                continue
            # Both bounds are relaxations of the same pipeline, cut in two: each may assume its best number of stages.
            opens = reachability.prefix_fits(before, period, stages)
            # Without devices left, only the last cut can be reached: nothing may come after it.
            opens[:-1] &= reachability.suffix_fits(rest, period, stages)[:-1] if any(rest) else False
            here = longest[:, used]
            here[opens] = np.maximum(here[opens], period)
    longest[0] = -1  # nothing comes before the empty set; the DP starts there by itself
    return longest


def _sought(limits: PipelineLimits, numbers: CountNumbers) -> Iterator[tuple[int, int]]:
    """Numbers of the devices that pipelines may have in all, with the longest periods of interest."""
    if not limits.longest_ns:
        # A pipeline on fewer devices leaves the others idle.
        yield len(numbers.vectors) - 1, limits.most_ns
    for total, period in enumerate(limits.longest_ns):
        if period:
            yield total, period


def open_cuts(lattice: CutLattice, limits: PipelineLimits, periods: FloatArray, longest_ns: int) -> OpenCuts:
    """The sets that can be cuts. periods: see `open_periods`. longest_ns: segments that take longer are of no use.

    Where there are few sets, all of them stay, so that the segments between them are costed once for all searches.
    """
    mask = periods >= 0
    if lattice.segments is not None:
        rows, sets, segments = np.arange(len(lattice.sets)), lattice.sets, lattice.segments
    else:
        rows = np.union1d(np.nonzero(mask.any(axis=1))[0], [0, len(lattice.sets) - 1])
        sets, mask, periods = lattice.sets.take(rows), mask[rows], periods[rows]
        windows = lattice.reachability.window(longest_ns)
        taken = None if windows is None else [window.take(rows) for window in windows]
        segments = CostedSegments(lattice.problem, sets, taken, keep=False)
    numbers = CountNumbers(limits.devices)
    highest = [np.where(mask, counts, -1).max(axis=1, initial=-1) for counts in numbers.counts.T]
    return OpenCuts(rows, sets, mask, periods if limits.longest_ns else None, highest, segments)


def best_paths(
    lattice: CutLattice, limits: PipelineLimits, cuts: OpenCuts, rule: ExtensionRule, budget: Budget
) -> DpPaths:
    """Run the dynamic program. Raises BudgetSpent, also where the table would be too large."""
    numbers = size_numbers(lattice.problem, limits)
    # The table is dense: most entries stay infinite, but numpy then visits all states of a cut at once.
    shape = (len(cuts.sets), len(numbers.stages.vectors), len(numbers.devices.vectors))
    if math.prod(shape) > MOST_STATES:
        raise BudgetSpent
    table = DpTable(np.full(shape, np.inf), cuts, limits, numbers, replicas_by_kind(lattice, limits), rule.limit)
    used: UsedSegments = [[] for _ in limits.devices]
    if cuts.is_open[-1].any():
        _fill(table, rule, budget, used)
    arrivals = table.non_dominated(len(cuts.sets) - 1)
    # Without an arrival, every segment is a dead end.
    used = _without_dead_ends(used, len(cuts.sets)) if len(arrivals.stages) else [[] for _ in used]
    return DpPaths(lattice.problem, cuts.sets, arrivals, numbers, table.most_replicas, used)


def replicas_by_kind(lattice: CutLattice, limits: PipelineLimits) -> list[int]:
    """The most replicas of a stage, by kind."""
    return [min(count, lattice.most_replicas) for count in limits.devices]


def _fill(table: DpTable, rule: ExtensionRule, budget: Budget, used: UsedSegments) -> None:
    """Visit the cuts in order and extend what got there. used: gains the segments that the rule takes, for each kind.

    Subsets stand before supersets, so when a cut is visited, all ways to get to it are known.
    """
    table.best[0, 0, 0] = 0
    for cut in range(len(table.cuts.sets) - 1):
        states = table.non_dominated(cut)
        if not len(states.stages):
            continue  # never reached within the limits: its segments need no costing
        for kind, segments in enumerate(table.cuts.segments.after(cut, table.ahead(cut), budget)):
            budget.spend(len(states.stages) * (len(segments.end) // _UPDATES_A_PAIR + 1))
            taken = rule.extend(table, cut, kind, segments, states)
            if taken is not None:
                used[kind].append((cut, taken))


def _without_dead_ends(used: UsedSegments, n_cuts: int) -> UsedSegments:
    """The segments from which others lead on to the last cut, for each kind: a sweep from the last cut backwards.

    Empties `used`, whose entries stand in the order of their cuts: both lists in full would take twice the memory.
    """
    leads_on = np.zeros(n_cuts, bool)
    leads_on[-1] = True
    kept: UsedSegments = [[] for _ in used]
    for _, kind in sorted(((cut, kind) for kind, starts in enumerate(used) for cut, _ in starts), reverse=True):
        cut, segments = used[kind].pop()
        leading = leads_on[segments.end]
        if leading.any():
            leads_on[cut] = True
            kept[kind].append((cut, segments.take(leading)))
    return kept
