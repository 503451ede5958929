"""The segments between a family of down-sets, costed when they are asked for, from many cuts at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.ground.downsets import DownSets
    from balancer.solve.budget import Budget
    from balancer.solve.problem import Problem

FEW_SETS = 2048  # with all their pairs, about 50 MiB
_AT_ONCE = 1 << 17


class SegmentColumns(NamedTuple):
    """Segments from one cut: the cuts after them, and their costs; those that are allowed."""

    end: Any
    time_ns: Any
    streamed_bytes: Any


class CostedSegments:
    """work_ns, window_ns: segments with more work than the window are left out. keep: whether all that was costed is
    kept for later, or only what is in use.
    """

    def __init__(self, problem: Problem, sets: DownSets, *, work_ns: Any | None, window_ns: float, keep: bool) -> None:
        self.sets, self.keep = sets, keep
        self.batches = [problem.batch(sets, kind) for kind, _ in problem.devices]
        self.work_ns, self.window_ns = work_ns, window_ns
        self.known: dict[int, list[SegmentColumns]] = {}

    def after(self, at: int, ahead: Iterable[int], budget: Budget) -> list[SegmentColumns]:
        """The segments that start at a cut, for each kind of device. ahead: cuts that will be asked for next.

        Raises BudgetSpent.
        """
        if at not in self.known:
            if not self.keep:
                self.known.clear()
            self._cost([at, *(row for row in ahead if row != at)], budget)
        return self.known[at]

    def _cost(self, rows: Sequence[int], budget: Budget) -> None:
        """As many of the rows as make a good batch, the first at least."""
        found, count = [], 0
        for row in rows:
            outers = self._supersets(row)
            count += len(outers)
            found.append((row, outers))
            if count > _AT_ONCE:
                break
        budget.spend(count * len(self.batches))
        inners = np.concatenate([np.full(len(outers), row) for row, outers in found])
        outers = np.concatenate([outers for _, outers in found])
        tables = [between(inners, outers) for between in self.batches]
        first = 0
        for row, ends in found:
            here = slice(first, first + len(ends))
            first += len(ends)
            self.known[row] = [
                _allowed(ends, time[here], streamed[here], allowed[here]) for time, streamed, allowed in tables
            ]

    def _supersets(self, row: int) -> Any:
        outers = np.arange(row + 1, len(self.sets))
        if self.work_ns is not None and self.window_ns < math.inf:
            outers = outers[self.work_ns[row + 1 :] <= self.work_ns[row] + self.window_ns]
        return self.sets.containing(self.sets.set_of(row), outers)


def _allowed(end: Any, time_ns: Any, streamed_bytes: Any, allowed: Any) -> SegmentColumns:
    return SegmentColumns(end[allowed], time_ns[allowed], streamed_bytes[allowed])
