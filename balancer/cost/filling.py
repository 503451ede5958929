"""What of many segments' parameters overflows the capacity. Equal to `Caching.cached` for each segment, but in arrays.

`Caching` tries one op after the other. Here all segments advance together, in runs: a run of ops that fit is taken, then
a run of ops that are too large is skipped. One class of ops and a capacity of 75 bytes, for example:

    rank in the order of priority     0     1     2     3     4   (end: 5)
    bytes                            60    30    20    10     5
    sum of bytes before the rank      0    60    90   110   120   (125)

    take rank 0          rank 1 is the last one with a sum before it of at most 0 + 75; 75 - 60 = 15 bytes are left
    skip ranks 1 and 2   rank 3 is the first op of at most 15 bytes; 110 - 60 = 50 bytes overflow
    take ranks 3 and 4   the end is the last rank with a sum before it of at most 110 + 15

Both ends of a run are found by bisection. A skipped run is contiguous only because the ops of a class are ordered by size:
once an op does not fit, the ops after it that are as large do not fit either.

A segment lies between two down-sets, and the inner is contained in the outer. So the sum over its ops before a rank is
the outer set's sum less the inner set's, and one table with a row for each down-set serves all segments. Ops that a segment
lacks add nothing to its sums.

Dense ops must fit into the tiles besides. Where that is not certain, they are tried one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from balancer.cost.segment import SegmentCosts
    from balancer.ground.downsets import DownSets
    from balancer.ground.opsets import OpSet

MOST_CELLS = 1 << 25  # of a table of sums; where all sets need more, the segments are taken a part at a time
_PART = 1 << 14  # segments


class Overflow(NamedTuple):
    """One entry for each segment: bytes that do not fit on the chip, and ns that their ops stall for them."""

    overflow_bytes: NDArray[np.int64]
    stall_ns: NDArray[np.int64]


class PrefixSums(NamedTuple):
    """Sums over the ops of each set before each rank, as flat tables: set after set, `width` ranks each.

    cached: bytes on the chip. streamed: bytes if streamed. stall_ns: if streamed.
    """

    width: int
    cached: NDArray[np.signedinteger]
    streamed: NDArray[np.signedinteger]
    stall_ns: NDArray[np.signedinteger]


@dataclass(frozen=True, slots=True)
class Fillings:
    """Fills segments between down-sets with the parameters of the ops that are on the TPU.

    order: these ops by priority; an op's rank is its position here. classes: the ranks of each class. all_sums: of all
    sets; None where they are too many, then sums are made for a part of the segments at a time.
    """

    costs: SegmentCosts
    sets: DownSets
    order: tuple[int, ...]
    classes: tuple[range, ...]
    all_sums: PrefixSums | None

    def overflow(
        self, inners: NDArray[np.intp], outers: NDArray[np.intp], capacity_bytes: NDArray[np.int64],
        dense_fit: NDArray[np.bool_],
    ) -> Overflow:  # fmt: skip
        """What overflows in each segment.

        inners, outers: rows of the segments' sets. capacity_bytes: for parameters. dense_fit: whether the segment's dense
        ops fit into the tiles for certain, whichever of them are cached.
        """
        if self.all_sums is not None:
            return self._overflow(self.all_sums, inners, outers, capacity_bytes, dense_fit)
        parts = []
        for first in range(0, len(inners), _PART):
            part = slice(first, first + _PART)
            rows, numbers = np.unique(np.concatenate([inners[part], outers[part]]), return_inverse=True)
            inner, outer = np.split(numbers, 2)
            sums = _prefix_sums(self.costs, self.sets, self.order, rows)
            parts.append(self._overflow(sums, inner, outer, capacity_bytes[part], dense_fit[part]))
        return Overflow(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _overflow(
        self, sums: PrefixSums, inners: NDArray[np.intp], outers: NDArray[np.intp], capacity_bytes: NDArray[np.int64],
        dense_fit: NDArray[np.bool_],
    ) -> Overflow:  # fmt: skip
        """inners, outers: rows of the table of sums."""
        overflow_bytes, stall_ns = np.zeros(len(inners), np.int64), np.zeros(len(inners), np.int64)
        for fit in (True, False):
            here = np.nonzero(dense_fit == fit)[0]
            if len(here):
                filling = _Filling(self, sums, inners[here], outers[here], capacity_bytes[here])
                for ops, ranks in zip(self.costs.caching.classes, self.classes, strict=True):
                    if fit or not ops & self.costs.caching.dense:
                        filling.take_in_runs(ranks)
                    else:
                        filling.take_one_by_one(ranks)
                overflow_bytes[here], stall_ns[here] = filling.overflow_bytes, filling.stall_ns
        return Overflow(overflow_bytes, stall_ns)


def fillings(costs: SegmentCosts, sets: DownSets, on_tpu: OpSet, most_cells: int = MOST_CELLS) -> Fillings:
    """Prepares to fill segments between these sets. on_tpu: the ops on the chip. most_cells: of a table for all sets."""
    order = tuple(i for i in costs.caching.priority if on_tpu >> i & 1)
    counts = [(ops & on_tpu).bit_count() for ops in costs.caching.classes]
    classes = tuple(range(end - count, end) for count, end in zip(counts, accumulate(counts), strict=True))
    few = len(sets) * len(order) <= most_cells
    all_sums = _prefix_sums(costs, sets, order, np.arange(len(sets))) if few else None
    return Fillings(costs, sets, order, classes, all_sums)


def _prefix_sums(costs: SegmentCosts, sets: DownSets, order: Sequence[int], rows: NDArray[np.intp]) -> PrefixSums:
    """The sums of these rows of the sets."""
    held = sets.members(rows)[:, order]
    return PrefixSums(
        width=len(order) + 1,
        cached=_sums_before(held, [costs.caching.size_bytes[i] for i in order]),
        streamed=_sums_before(held, [costs.op_terms[i].layout.streamed for i in order]),
        stall_ns=_sums_before(held, [costs.op_terms[i].stall_ns for i in order]),
    )


def _sums_before(held: NDArray[np.bool_], weights: Sequence[int]) -> NDArray[np.signedinteger]:
    """For each row the sums of the weights of the ops held before each rank, and before the end.

    >>> _sums_before(np.array([[True, True, True], [True, False, True]]), [60, 30, 20]).reshape(2, 4).tolist()
    [[0, 60, 90, 110], [0, 60, 60, 80]]
    """
    # Half the memory where it suffices: the tables are the largest arrays of the cost model.
    dtype = np.int32 if sum(weights) < 1 << 31 else np.int64
    table = np.zeros((len(held), len(weights) + 1), dtype)
    np.cumsum(held * np.array(weights, dtype), axis=1, out=table[:, 1:])
    return table.ravel()


class _Filling:
    """Segments while they are filled, class after class, each from its inner set to its outer set.

    left_bytes: capacity that is not yet taken. overflow_bytes, stall_ns: of the ops skipped so far.
    """

    def __init__(
        self, fillings: Fillings, sums: PrefixSums, inners: NDArray[np.intp], outers: NDArray[np.intp],
        capacity_bytes: NDArray[np.int64],
    ) -> None:  # fmt: skip
        """inners, outers: rows of the table of sums. capacity_bytes: of each segment."""
        self.costs, self.order, self.sums = fillings.costs, fillings.order, sums
        self.inners, self.outers = inners * sums.width, outers * sums.width
        self.left_bytes = capacity_bytes.astype(np.int64)
        self.overflow_bytes, self.stall_ns = np.zeros(len(inners), np.int64), np.zeros(len(inners), np.int64)

    def _before(
        self, table: NDArray[np.signedinteger], here: NDArray[np.intp], ranks: NDArray[np.intp] | int
    ) -> NDArray[np.int64]:
        """For some segments, the sum over their ops before a rank. here: which segments; ranks: of each of them."""
        sums: NDArray[np.int64] = table[self.outers[here] + ranks].astype(np.int64)
        sums -= table[self.inners[here] + ranks]
        return sums

    def take_in_runs(self, ranks: range) -> None:
        """Fill in the ops of a class, by runs of those that fit and of those that do not."""
        # Ascending, as searchsorted needs it: the largest op stands first.
        negated = -np.array([self.costs.caching.size_bytes[self.order[k]] for k in ranks], np.int64)
        here = np.arange(len(self.left_bytes)) if len(ranks) else np.zeros(0, np.intp)
        at = np.full(len(here), ranks.start)
        while len(here):
            taken = self._before(self.sums.cached, here, at)
            end = self._last_fitting(here, at, ranks.stop, taken + self.left_bytes[here])
            self.left_bytes[here] -= self._before(self.sums.cached, here, end) - taken
            unfinished = end < ranks.stop
            here, end = here[unfinished], end[unfinished]
            # The op at `end` does not fit. Skip to the first op that is no larger than what is left.
            at = ranks.start + np.searchsorted(negated, -self.left_bytes[here])
            for table, total in ((self.sums.streamed, self.overflow_bytes), (self.sums.stall_ns, self.stall_ns)):
                total[here] += self._before(table, here, at) - self._before(table, here, end)
            unfinished = at < ranks.stop
            here, at = here[unfinished], at[unfinished]

    def _last_fitting(
        self, here: NDArray[np.intp], low: NDArray[np.intp], stop: int, most_bytes: NDArray[np.int64]
    ) -> NDArray[np.intp]:
        """For some segments, the last rank from low to stop before which their ops take at most so many bytes in sum."""
        high = np.full(len(here), stop)
        # In most segments all the rest fits. They need no bisection.
        high = np.where(self._before(self.sums.cached, here, high) <= most_bytes, high, high - 1)
        low = np.where(high == stop, stop, low)
        while (low < high).any():
            middle = (low + high + 1) // 2
            fits = self._before(self.sums.cached, here, middle) <= most_bytes
            low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
        return low

    def take_one_by_one(self, ranks: range) -> None:
        """Fill in dense ops, one after the other, as far as capacity and tiles take them."""
        every = np.arange(len(self.left_bytes))
        tiles = _DenseTiles(self.costs, len(self.left_bytes))
        for k in ranks:
            i = self.order[k]
            held = self._before(self.sums.cached, every, k + 1) > self._before(self.sums.cached, every, k)
            here = np.nonzero(held)[0]
            fits = self.left_bytes[here] >= self.costs.caching.size_bytes[i]
            fits[fits] = tiles.take(i, here[fits])
            self.left_bytes[here[fits]] -= self.costs.caching.size_bytes[i]
            skipped = here[~fits]
            self.overflow_bytes[skipped] += self.costs.op_terms[i].layout.streamed
            self.stall_ns[skipped] += self.costs.op_terms[i].stall_ns


class _DenseTiles:
    """Which dense ops the tiles of each segment hold.

    Few different sets of dense ops occur in many segments. Each set has a number, and is tried once. sets: by number.
    held: for each segment the number of its set.
    """

    def __init__(self, costs: SegmentCosts, count: int) -> None:
        """count: of segments. All tiles are empty."""
        self.caching = costs.caching
        self.sets: list[OpSet] = [0]
        self.number: dict[OpSet, int] = {0: 0}
        self.held = np.zeros(count, np.int64)

    def take(self, i: int, here: NDArray[np.intp]) -> NDArray[np.bool_]:
        """In which of these segments op i fits beside the dense ops held. There it is added."""
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
