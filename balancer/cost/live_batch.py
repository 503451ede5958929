"""The bytes of activations that are live in many segments at once. Equal to `SegmentCosts.judgement(ops).tile_bytes`."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from balancer.ground.opsets import members

if TYPE_CHECKING:
    from balancer.cost.segment import SegmentCosts
    from balancer.ground.arrays import IndexArray, IntArray
    from balancer.ground.downsets import DownSets


class LiveBatch:
    """Live bytes of the segments between down-sets of a graph."""

    def __init__(self, costs: SegmentCosts, sets: DownSets) -> None:
        self.costs, self.sets = costs, sets

    def __call__(self, inners: IndexArray, outers: IndexArray) -> IntArray:
        """For each pair of rows the bytes of a tile, at the op of the segment that needs most; 0 if none runs on the chip.

        inners, outers: row numbers of the sets, one inner row or as many as outer ones. Inner rows ascend.
        """
        inner_rows, outer_rows = (np.ravel(rows) for rows in np.broadcast_arrays(inners, outers))
        live = np.zeros(len(outer_rows), np.int64)
        starts = np.nonzero(np.diff(inner_rows, prepend=-1))[0].tolist()
        for start, end in pairwise([*starts, len(inner_rows)]):
            of_ops = self.of_ops(int(inner_rows[start]))
            live[start:end] = self.sets.largest(of_ops, outer_rows[start:end])
        return live

    def of_ops(self, inner: int) -> IntArray:
        """For each op the live bytes of a tile, in segments that start at this row; 0 for its ops and those on the CPU."""
        costs, held = self.costs, self.sets.members(inner)
        outside = costs.graph.all_ops & ~self.sets.set_of(inner)
        # Whether an op runs on the CPU depends on the ops that precede it in its segment, and so on the inner set alone.
        off_chip = list(members(~costs.mapped & outside | costs.on_cpu(outside)))
        live: IntArray = costs.compile_rule.activations.profile(~held) * ~held
        live[off_chip] = 0
        return live
