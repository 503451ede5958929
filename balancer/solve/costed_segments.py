"""The costs of the segments between a family of down-sets, worked out when they are asked for, many cuts at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from balancer.ground.arrays import BoolArray, IndexArray, IntArray
    from balancer.ground.downsets import DownSets
    from balancer.solve.budget import Budget
    from balancer.solve.problem import Problem

FEW_SETS = 2048  # the costs of all pairs of this number of sets take about 50 MiB
_BATCH_SEGMENTS = 1 << 17


class SegmentColumns(NamedTuple):
    """The allowed segments that start at one cut, as columns: the cut after each, and what each costs."""

    end: IndexArray
    time_ns: IntArray
    streamed_bytes: IntArray
    shared_ns: IntArray | None = None  # [resource, segment], as in `CostColumns`

    def take(self, chosen: IndexArray | BoolArray) -> SegmentColumns:
        """Some of the segments, by their numbers or by a mask."""
        shared_ns = None if self.shared_ns is None else self.shared_ns[:, chosen]
        return SegmentColumns(self.end[chosen], self.time_ns[chosen], self.streamed_bytes[chosen], shared_ns)


@dataclass(frozen=True, slots=True)
class WorkWindow:
    """Which segments are too slow to be worth costing: those that hold more than window_ns of work.

    work_ns: for each down-set the work of its ops, so that a segment's work is a difference.
    """

    work_ns: IntArray
    window_ns: float

    def holds(self, cut: int, ends: IndexArray) -> BoolArray:
        """Which of the segments from a cut to these ends are worth costing."""
        within: BoolArray = self.work_ns[ends] <= self.work_ns[cut] + self.window_ns
        return within

    def take(self, rows: IndexArray) -> WorkWindow:
        """The window for some of the down-sets."""
        return WorkWindow(self.work_ns[rows], self.window_ns)


class SegmentSource(Protocol):
    """The costs of segments by the cuts that they start at."""

    def after(self, cut: int, ahead: Iterable[int], budget: Budget) -> list[SegmentColumns]:
        """The segments that start at a cut, for each kind of device. ahead: cuts that will be asked for next.

        Raises BudgetSpent.
        """


class KnownSegments:
    """Segments whose costs are known already, for one kind of device. columns: by the cut that they start at."""

    def __init__(self, columns: Mapping[int, SegmentColumns]) -> None:
        self._columns = columns
        none = np.zeros(0, np.int64)
        self._none = SegmentColumns(np.zeros(0, np.intp), none, none)

    def after(self, cut: int, ahead: Iterable[int], budget: Budget) -> list[SegmentColumns]:
        """See `SegmentSource`."""
        return [self._columns.get(cut, self._none)]


class CostedSegments:
    """A cache of segment costs, filled in batches. `keep`: everything stays known; else the last batch alone does."""

    def __init__(self, problem: Problem, sets: DownSets, windows: Sequence[WorkWindow] | None, *, keep: bool) -> None:
        """windows: for each kind, None where all segments are worth costing."""
        self.sets, self.windows, self.keep = sets, windows, keep
        self._batches = [problem.batch(sets, kind) for kind, _ in problem.devices]
        self._known: dict[int, list[SegmentColumns]] = {}

    def after(self, cut: int, ahead: Iterable[int], budget: Budget) -> list[SegmentColumns]:
        """See `SegmentSource`."""
        if cut not in self._known:
            if not self.keep:
                self._known.clear()
            self._cost([cut, *(row for row in ahead if row != cut)], budget)
        return self._known[cut]

    def _cost(self, cuts: Sequence[int], budget: Budget) -> None:
        """Cost the segments that start at these cuts: at the first one, and at others until the batch is full."""
        ends, count = [], 0
        for cut in cuts:
            ends.append(self._supersets(cut))
            count += len(ends[-1])
            if count > _BATCH_SEGMENTS:
                break
        self._known.update((cut, []) for cut, _ in zip(cuts, ends, strict=False))
        for kind, between in enumerate(self._batches):
            here = [self._within(kind, cut, end) for cut, end in zip(cuts, ends, strict=False)]
            sizes = [len(end) for end in here]
            budget.spend(sum(sizes))
            costs = between(np.repeat(cuts[: len(here)], sizes), np.concatenate(here))
            first = 0
            for cut, end in zip(cuts, here, strict=False):
                part = slice(first, first + len(end))
                first += len(end)
                shared_ns = None if costs.shared_ns is None else costs.shared_ns[:, part]
                columns = SegmentColumns(end, costs.time_ns[part], costs.streamed_bytes[part], shared_ns)
                self._known[cut].append(columns.take(costs.allowed[part]))

    def _supersets(self, cut: int) -> IndexArray:
        """The cuts at which a segment from this one may end. They stand behind it: supersets come later."""
        rows = np.arange(cut + 1, len(self.sets))
        if self.windows is not None:
            rows = rows[np.logical_or.reduce([window.holds(cut, rows) for window in self.windows])]
        return self.sets.containing(self.sets.set_of(cut), rows)

    def _within(self, kind: int, cut: int, ends: IndexArray) -> IndexArray:
        """Those of the ends whose segments are worth costing on a kind."""
        if self.windows is None or len(self.windows) == 1:
            return ends
        return ends[self.windows[kind].holds(cut, ends)]
