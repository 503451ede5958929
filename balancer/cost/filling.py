"""What of many segments' parameters does not stay on chip. Equal to `Caching.cached` for each of them.

Inside a class of ops the largest come first, so that room is given in runs: ops are taken until one does not fit; then
all that are larger than what is left are skipped at once. With sums over the ops of each down-set in the order in which
they get room, both ends of a run are found by bisection, for all segments at a time. Only dense ops that may not fit
into the tiles are tried one by one.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.cost.segment import SegmentCosts
    from balancer.ground.downsets import DownSets
    from balancer.ground.opsets import OpSet

MOST_CELLS = 1 << 25  # of a table of sums: more sets than that are taken a part at a time
_PART = 1 << 14


class Fillings:
    """Segments between down-sets that are filled with the parameters of these ops. Sums are kept if there are few sets."""

    def __init__(self, costs: SegmentCosts, sets: DownSets, on_tpu: OpSet) -> None:
        self.costs, self.sets = costs, sets
        self.order = [i for i in costs.caching.priority if on_tpu >> i & 1]
        # Ranks of each class's ops; within a class they come by size, as `_Filling.run` needs it.
        counts = [(ops & on_tpu).bit_count() for ops in costs.caching.classes]
        self.classes = [range(end - count, end) for count, end in zip(counts, accumulate(counts), strict=True)]
        self.all: _PrefixSums | None = None
        if len(sets) * len(self.order) <= MOST_CELLS:
            self.all = self._sums(np.arange(len(sets)))

    def _sums(self, rows: Any) -> _PrefixSums:
        return _PrefixSums(self.costs, self.sets, self.order, rows)

    def spilled(self, inners: Any, outers: Any, room: Any, dense_fit: Any) -> tuple[Any, Any]:
        """Overflow bytes, and ns of waiting for them. room: bytes; dense_fit: whether dense ops fit the tiles for sure."""
        if self.all:
            return self._spilled(self.all, inners, outers, room, dense_fit)
        found = []
        for first in range(0, len(inners), _PART):
            part = slice(first, first + _PART)
            rows, numbers = np.unique(np.concatenate([inners[part], outers[part]]), return_inverse=True)
            here = np.split(numbers, 2)
            found.append(self._spilled(self._sums(rows), here[0], here[1], room[part], dense_fit[part]))
        return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])

    def _spilled(self, sums: _PrefixSums, inners: Any, outers: Any, room: Any, dense_fit: Any) -> tuple[Any, Any]:
        overflow, waiting = np.zeros(len(inners), np.int64), np.zeros(len(inners), np.int64)
        for fit in (True, False):
            here = np.nonzero(dense_fit == fit)[0]
            if len(here):
                filling = _Filling(self, sums, inners[here], outers[here], room[here])
                for ops, ranks in zip(self.costs.caching.classes, self.classes, strict=True):
                    if fit or not ops & self.costs.caching.dense:
                        filling.run(ranks)
                    else:
                        filling.pour(ranks)
                overflow[here], waiting[here] = filling.overflow_bytes, filling.waiting_ns
        return overflow, waiting


class _PrefixSums:
    """Over the ops of each set, in the order in which they get room: sums before each rank, as flat tables."""

    def __init__(self, costs: SegmentCosts, sets: DownSets, order: Sequence[int], rows: Any) -> None:
        self.width = len(order) + 1
        held = sets.members(rows)[:, order]
        self.cached = self._before(held, [costs.caching.size[i] for i in order])
        self.streamed = self._before(held, [costs.layout[i].streamed for i in order])
        self.waiting = self._before(held, [costs.waiting[i] for i in order])

    def _before(self, held: Any, weights: Sequence[int]) -> Any:
        dtype = np.int32 if sum(weights) < 1 << 31 else np.int64
        table = np.zeros((len(held), self.width), dtype)
        np.cumsum(held * np.array(weights, dtype), axis=1, out=table[:, 1:])
        return table.ravel()


class _Filling:
    """Room that is given to the ops of some segments, in order."""

    def __init__(self, fillings: Fillings, sums: _PrefixSums, inners: Any, outers: Any, room: Any) -> None:
        self.costs, self.order, self.sums = fillings.costs, fillings.order, sums
        self.inners, self.outers = inners * sums.width, outers * sums.width
        self.left = room.astype(np.int64)
        self.overflow_bytes, self.waiting_ns = np.zeros(len(room), np.int64), np.zeros(len(room), np.int64)

    def _before(self, table: Any, here: Any, ranks: Any) -> Any:
        """Of some segments, the sum of their ops before a rank."""
        return table[self.outers[here] + ranks].astype(np.int64) - table[self.inners[here] + ranks]

    def run(self, ranks: range) -> None:
        """Give room to the ops of a class, by runs of those that fit and of those that don't."""
        smaller = -np.array([self.costs.caching.size[self.order[k]] for k in ranks], np.int64)
        here = np.arange(len(self.left)) if len(ranks) else np.zeros(0, np.intp)
        at = np.full(len(here), ranks.start)
        while len(here):
            filled = self._before(self.sums.cached, here, at)
            end = self._fitting(here, at, ranks.stop, filled + self.left[here])
            self.left[here] -= self._before(self.sums.cached, here, end) - filled
            on = end < ranks.stop
            here, end = here[on], end[on]
            # The next op does not fit, nor do those that are no smaller than it.
            at = ranks.start + np.searchsorted(smaller, -self.left[here])
            for table, total in ((self.sums.streamed, self.overflow_bytes), (self.sums.waiting, self.waiting_ns)):
                total[here] += self._before(table, here, at) - self._before(table, here, end)
            on = at < ranks.stop
            here, at = here[on], at[on]

    def _fitting(self, here: Any, low: Any, stop: int, limit: Any) -> Any:
        """The last rank before which the sum is within the limit."""
        high = np.full(len(here), stop)
        high = np.where(self._before(self.sums.cached, here, high) <= limit, high, high - 1)
        low = np.where(high == stop, stop, low)
        while (low < high).any():
            middle = (low + high + 1) // 2
            fits = self._before(self.sums.cached, here, middle) <= limit
            low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
        return low

    def pour(self, ranks: range) -> None:
        """Give room to dense ops, one after the other, as the tiles take them."""
        every = np.arange(len(self.left))
        dense = _Tiles(self.costs, len(self.left))
        for k in ranks:
            i = self.order[k]
            held = self._before(self.sums.cached, every, k + 1) > self._before(self.sums.cached, every, k)
            here = np.nonzero(held)[0]
            fits = self.left[here] >= self.costs.caching.size[i]
            fits[fits] = dense.take(i, here[fits])
            self.left[here[fits]] -= self.costs.caching.size[i]
            spilled = here[~fits]
            self.overflow_bytes[spilled] += self.costs.layout[i].streamed
            self.waiting_ns[spilled] += self.costs.waiting[i]


class _Tiles:
    """Which dense ops are in the tiles. Few different sets of them occur: each is tried once."""

    def __init__(self, costs: SegmentCosts, count: int) -> None:
        self.caching = costs.caching
        self.sets: list[OpSet] = [0]
        self.number: dict[OpSet, int] = {0: 0}
        self.held = np.zeros(count, np.int64)

    def take(self, i: int, here: Any) -> Any:
        """Where the op finds room; there it is added."""
        held = self.held[here]
        fits = np.zeros(len(here), bool)
        for number in np.unique(held).tolist():
            grown = self.sets[number] | 1 << i
            if self.caching.dense_fit(grown):
                if grown not in self.number:
                    self.number[grown] = len(self.sets)
                    self.sets.append(grown)
                fits |= held == number
                self.held[here[held == number]] = self.number[grown]
        return fits
