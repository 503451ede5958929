"""Exact dynamic programming over a family of down-sets: the best chain of them from none to all ops, for any cost.

best[I][s][u], the shortest period of the ops of I in s stages on devices u (a count for each kind), is the minimum over
the last stage, I less J on r devices of one kind, of max(best[J][s - 1][u - r], time / r). Nothing is assumed of the
cost, so that all pairs J < I count; what bounds rule out is left out before: cuts that so many devices cannot get to,
or on from, without a longer period than is already known (`bounds`). With the family of an order's prefixes it is the
interval DP of that order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.ground.opsets import members
from balancer.solve.bounds import Reach
from balancer.solve.budget import BudgetSpent
from balancer.solve.costed_segments import FEW_SETS, CostedSegments, SegmentColumns
from balancer.solve.periods import MOST_REPLICAS, exact_period
from balancer.solve.tie_rules import Choice, Way, best_way

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from fractions import Fraction

    from balancer.ground.downsets import DownSets
    from balancer.solve.budget import Budget
    from balancer.solve.problem import Problem

Devices = tuple[int, ...]
MOST_STATES = 1 << 26  # of the table of periods: half a GiB
_UPDATES_A_PAIR = 4  # extending a pipeline by a segment takes a fraction of the time of costing the segment
_AHEAD = 256  # cuts whose segments are costed together
_AT_ONCE = 1 << 18  # ways on from a cut


@dataclass(frozen=True, slots=True)
class Goal:
    """A pipeline that there is: its stages, its devices of each kind, and the shortest period in ns with them."""

    stages: int
    devices: Devices
    period: Fraction

    @property
    def used(self) -> int:
        return sum(self.devices)


@dataclass(frozen=True, slots=True)
class Within:
    """What to look for: pipelines on at most so many devices of each kind, with at most so many stages, and a period of
    at most most_ns. exact_stages: with every number of stages, also where fewer do as well.
    """

    devices: Devices
    most_ns: int
    most_stages: int
    exact_stages: bool = False


class LatticeSolver:
    """Pipelines whose cuts are among `sets`: the empty one first, that of all ops last, each before those that contain
    it.

    most_replicas: of a stage. whole_replicas: whether a pipeline of one stage may have several. longest_ns: a stage that
    takes longer is of no use in any search; None where that is not known.
    """

    def __init__(
        self,
        problem: Problem,
        sets: DownSets,
        *,
        most_replicas: int = 1,
        whole_replicas: bool = False,
        longest_ns: int | None = None,
    ) -> None:
        self.problem = problem
        self.sets = sets
        self.most_replicas = min(most_replicas, MOST_REPLICAS)
        self.whole_replicas = whole_replicas
        self.reach = Reach([problem.structures.get(kind) for kind, _ in problem.devices], sets)
        # Few sets: their segments are costed once for all searches.
        self.segments = self.segments_of(sets, None, longest_ns, keep=True) if len(sets) <= FEW_SETS else None

    def segments_of(self, sets: DownSets, rows: Any | None, longest_ns: int | None, *, keep: bool) -> CostedSegments:
        """The segments between these sets, which are those rows of all, without those that must take longer."""
        least, window, work = self.reach.least, math.inf, None
        if least and longest_ns is not None:
            window = self.reach.window_ns([longest_ns] * len(self.problem.devices))
            work = least.work_ns if rows is None else least.work_ns[rows]
        return CostedSegments(self.problem, sets, work_ns=work, window_ns=window, keep=keep)

    def search(self, within: Within, budget: Budget) -> PeriodSearch:
        """All pipelines within these limits. Raises BudgetSpent."""
        return PeriodSearch(self, within, budget)


class CutSearch(ABC):
    """One run of a dynamic program over cuts. used: the segments from which ties are settled, for each kind by the cut
    before them.

    best[cut, stages, devices in use] is what a subclass minimises. `_extend` says how a stage adds to it, and `limit` how
    much of it there may be. arrivals: (stages, number of the devices in use, best) at the last cut, non-dominated. Devices
    in use are numbered: vectors[k] is a count for each kind, strides what one more of a kind adds to k.
    """

    def __init__(self, solver: LatticeSolver, within: Within, budget: Budget, limit: float) -> None:
        self.solver = solver
        self.within = within
        self.limit = limit
        self.stages = min(within.most_stages, sum(within.devices))
        self.vectors = list(product(*(range(count + 1) for count in within.devices)))
        self.strides = [math.prod(count + 1 for count in within.devices[k + 1 :]) for k in range(len(within.devices))]
        self.most_replicas = [min(count, solver.most_replicas) for count in within.devices]
        self._find_cuts()
        shape = (len(self.sets), self.stages + 1, len(self.vectors))
        if math.prod(shape) > MOST_STATES:
            raise BudgetSpent
        self.best = np.full(shape, np.inf)
        self.used: list[list[tuple[int, SegmentColumns]]] = [[] for _ in within.devices]
        if self.open[-1].any():
            self._run(budget)
        self.arrivals = self._states(len(self.sets) - 1)
        del self.best, self.open
        self._drop_dead_ends()

    def _find_cuts(self) -> None:
        """The sets that can be cuts at all (all of them, where they are few), and with which devices in use."""
        solver, open_sets = self.solver, self._open()
        if solver.segments:
            self.rows = np.arange(len(solver.sets))
            self.sets, self.open, self.segments = solver.sets, open_sets, solver.segments
        else:
            rows = np.nonzero(open_sets.any(axis=1))[0]
            self.rows = rows = np.union1d(rows, [0, len(solver.sets) - 1])
            self.sets, self.open = solver.sets.take(rows), open_sets[rows]
            self.segments = solver.segments_of(self.sets, rows, self._longest_ns(), keep=False)
        numbers = np.array(self.vectors)
        self.highest = [
            np.where(self.open, numbers[:, k], -1).max(axis=1, initial=-1) for k in range(len(self.within.devices))
        ]

    def _longest_ns(self) -> int:
        """Segments that take longer are of no use."""
        return self.within.most_ns * max(self.most_replicas)

    def _open(self) -> Any:
        """For each set and each number of devices in use, whether a pipeline can get there with these and go on with
        the rest.
        """
        reach, devices, most_ns = self.solver.reach, self.within.devices, self.within.most_ns
        fits = np.zeros((len(self.solver.sets), len(self.vectors)), bool)
        for k, vector in enumerate(self.vectors):
            rest = tuple(total - used for total, used in zip(devices, vector, strict=True))
            if any(vector):
                fits[:, k] = reach.before(vector, most_ns, self.stages)
                fits[:-1, k] &= reach.after(rest, most_ns, self.stages)[:-1] if any(rest) else False
        fits[0] = False
        return fits

    def _run(self, budget: Budget) -> None:
        self.best[0, 0, 0] = 0
        for at in range(len(self.sets) - 1):
            states = self._states(at)
            if states:
                for kind, segments in enumerate(self.segments.after(at, self._ahead(at), budget)):
                    budget.spend(len(states) * (len(segments.end) // _UPDATES_A_PAIR + 1))
                    self._extend(at, kind, segments, states)

    def _states(self, at: int) -> list[tuple[int, int, float]]:
        """(stages, devices in use, best) of the non-dominated ways to get to a cut."""
        reached = self.best[at].reshape(-1, *(count + 1 for count in self.within.devices))
        kept, least = reached <= self.limit, reached
        axes = range(int(self.within.exact_stages), reached.ndim)
        for axis in axes:
            least = np.minimum.accumulate(least, axis)
        for axis in axes:
            fewer, more = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
            kept[more] &= least[fewer] > reached[more]
        stages, used = np.nonzero(kept.reshape(self.best.shape[1:]))
        return list(zip(stages.tolist(), used.tolist(), self.best[at, stages, used].tolist(), strict=True))

    def _ahead(self, at: int) -> Iterator[int]:
        """The next cuts that are reached so far."""
        reached = (self.best[at : at + _AHEAD] <= self.limit).any(axis=(1, 2))
        yield from (at + np.nonzero(reached)[0]).tolist()

    @abstractmethod
    def _extend(self, at: int, kind: int, segments: SegmentColumns, states: Sequence[tuple[int, int, float]]) -> None:
        """All stages of one kind that start at a cut, after all the ways to get there."""

    def _drop_dead_ends(self) -> None:
        """Keep the segments from which others lead on to the last cut: what ties are settled from."""
        leads_on = np.zeros(len(self.sets), bool)
        leads_on[-1] = bool(self.arrivals)
        by_start = sorted(((at, kind) for kind, used in enumerate(self.used) for at, _ in used), reverse=True)
        found = {(at, kind): segments for kind, used in enumerate(self.used) for at, segments in used}
        self.used = [[] for _ in self.used]
        for at, kind in by_start:
            segments = found.pop((at, kind))
            kept = leads_on[segments.end]
            if kept.any():
                leads_on[at] = True
                self.used[kind].append((at, SegmentColumns(*(column[kept] for column in segments))))

    def ops_between(self, start: int, end: int) -> tuple[int, ...]:
        """The ops between two cuts, by which segments are ranked where all else is equal."""
        return tuple(members(self.sets.set_of(end) & ~self.sets.set_of(start)))

    def choices(self, most_ns: float) -> list[Choice]:
        """What stages with a period of at most so many ns can be, of all kinds."""
        return [choice for kind in range(len(self.used)) for choice in self._choices(kind, most_ns)]

    def _choices(self, kind: int, limit: float) -> Iterator[Choice]:
        """The segments by the fewest replicas with which they meet the limit; more would only take devices."""
        if not self.used[kind]:
            return
        start = np.concatenate([np.full(len(segments.end), at) for at, segments in self.used[kind]])
        parts = zip(*(segments for _, segments in self.used[kind]), strict=True)
        end, time, streamed = (np.concatenate(part) for part in parts)
        less = np.zeros(len(time), bool)
        for r in range(1, self.most_replicas[kind] + 1):
            enough = np.maximum(time, 1) / r <= limit
            here = np.nonzero(enough & ~less)[0]
            if len(here):
                yield Choice(kind, r, start[here], end[here], streamed[here] * r, time[here])
            less |= enough


class PeriodSearch(CutSearch):
    """The shortest periods. goals: the non-dominated pipelines, in stages, devices and period."""

    def __init__(self, solver: LatticeSolver, within: Within, budget: Budget) -> None:
        super().__init__(solver, within, budget, within.most_ns)
        most = solver.most_replicas
        self.goals = [Goal(s, self.vectors[u], exact_period(period, most)) for s, u, period in self.arrivals]

    def _extend(self, at: int, kind: int, segments: SegmentColumns, states: Sequence[tuple[int, int, float]]) -> None:
        """All stages of one kind that start at a cut, after all the ways to get there."""
        # The fewest replicas with which each segment meets the limit.
        fewest = np.maximum(1, -(-segments.time_ns // self.within.most_ns))
        most = np.minimum(self.highest[kind][segments.end], self.most_replicas[kind])
        short = np.nonzero(fewest <= most)[0]
        if not len(short):
            return
        segments, fewest = SegmentColumns(*(column[short] for column in segments)), fewest[short]
        if at == 0 and not self.solver.whole_replicas:
            most = np.where(segments.end == len(self.sets) - 1, 1, most[short])
        else:
            most = most[short]
        self.used[kind].append((at, segments))
        going_on = [state for state in states if state[0] < self.stages]
        if going_on:
            self._reach(kind, segments, fewest, most, going_on)

    def _reach(
        self, kind: int, segments: SegmentColumns, fewest: Any, most: Any, states: Sequence[tuple[int, int, float]]
    ) -> None:
        """The cuts after the segments, each with every number of replicas from its fewest to its most, from all states."""
        counts = np.maximum(0, most - fewest + 1)
        which = np.repeat(np.arange(len(counts)), counts)
        replicas = fewest[which] + np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        end, step = segments.end[which], replicas * self.strides[kind]
        shares = np.maximum(segments.time_ns[which], 1) / replicas
        before = self.highest[kind][end] - replicas  # so many devices of the kind may be in use at the state
        stages, used, periods = (np.array(column) for column in zip(*states, strict=True))
        in_use = np.array(self.vectors)[used, kind]
        best = self.best.reshape(-1)
        at_once = max(1, _AT_ONCE // max(1, len(which)))
        for first in range(0, len(states), at_once):
            state, way = np.nonzero(in_use[first : first + at_once, None] <= before)
            state += first
            there = used[state] + step[way]
            found = self.open[end[way], there]
            state, way, there = state[found], way[found], there[found]
            at = (end[way] * self.best.shape[1] + stages[state] + 1) * self.best.shape[2] + there
            np.minimum.at(best, at, np.maximum(periods[state], shares[way]))

    def settle(self, goal: Goal) -> Way:
        """Of all pipelines that meet the goal with just its stages and devices, the one that the tie rules name.

        Ends are rows of this search's sets.
        """
        choices = self.choices(float(goal.period))
        return best_way(len(self.sets), goal.stages, goal.devices, choices, self.ops_between)
