"""How large the activations of a segment are, by two measures, for one segment and for many at once.

The vendor's compiler refuses segments for "large activation tensors" and says neither what it adds up nor where its limit
is. These are the two ends of what it may be:

    most live    what an op and its live tensors need at once, at the op that needs most: bytes of a tile (`activations`)
    in total     all activations that the segment's ops read or make: bytes

A segment is at least as large as any part of it by both, as long as the same ops run on the chip.
"""

from __future__ import annotations

from enum import Enum
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from balancer.cost.activations import op_mask
from balancer.ground.downsets import OpGroups
from balancer.ground.opsets import members

if TYPE_CHECKING:
    from balancer.cost.segment import SegmentCosts
    from balancer.graph import Graph
    from balancer.ground.arrays import IndexArray, IntArray
    from balancer.ground.downsets import DownSets
    from balancer.ground.opsets import OpSet


class Measure(Enum):
    """What is counted."""

    MOST_LIVE = "bytes live in a tile at once"
    IN_TOTAL = "bytes of all activations"


def least_alone(costs: SegmentCosts, measure: Measure) -> int:
    """The size that the largest segment of every partition has at least: what one op needs wherever it is."""
    alone = (activation_size(costs, 1 << i, measure) for i in members(costs.sure_on_tpu))
    return max(alone, default=0)


def activation_size(costs: SegmentCosts, ops: OpSet, measure: Measure) -> int:
    """The size of the activations of the segment with these ops."""
    graph = costs.graph
    if measure is Measure.MOST_LIVE:
        on_chip = list(members(ops & costs.mapped & ~costs.on_cpu(ops)))
        needs = costs.compile_rule.activations.profile(op_mask(members(ops), len(graph.ops)))
        return int(needs[on_chip].max(initial=0))
    touched = {t for i in members(ops) for t in (*graph.activations[i], *graph.ops[i].outputs)}
    return sum(graph.tensors[t].bytes for t in touched & _activations(graph))


class ActivationSizes:
    """`activation_size` for the segments between pairs of down-sets."""

    def __init__(self, costs: SegmentCosts, sets: DownSets) -> None:
        self.costs, self.sets = costs, sets

    def __call__(self, measure: Measure, inners: IndexArray, outers: IndexArray) -> IntArray:
        """For each pair of rows the size. inners, outers: as `solve.Between` takes them."""
        inner_rows, outer_rows = (np.ravel(rows) for rows in np.broadcast_arrays(inners, outers))
        sizes = np.zeros(len(outer_rows), np.int64)
        starts = np.nonzero(np.diff(inner_rows, prepend=-1))[0].tolist()
        for start, end in pairwise([*starts, len(inner_rows)]):
            sizes[start:end] = self.of_row(measure, int(inner_rows[start]), outer_rows[start:end])
        return sizes

    def of_row(self, measure: Measure, inner: int, outers: IndexArray) -> IntArray:
        """The sizes of the segments that start at the set in one row."""
        if measure is Measure.MOST_LIVE:
            return self.sets.largest(self._live_at_ops(inner), outers)
        made: IntArray = self._made[outers] - self._made[inner]
        groups, entering = self._entering(inner)
        return made + self.sets.weigh(groups, entering, np.zeros_like(entering), outers) if len(entering) else made

    def _live_at_ops(self, inner: int) -> IntArray:
        """For each op what is live in segments that start at this row; 0 for ops of the row and for those on the CPU."""
        costs, held = self.costs, self.sets.members(inner)
        outside = costs.graph.all_ops & ~self.sets.set_of(inner)
        # Whether an op runs on the CPU depends on the ops that precede it in its segment, and so on the inner set alone.
        off_chip = list(members(~costs.mapped & outside | costs.on_cpu(outside)))
        live: IntArray = costs.compile_rule.activations.profile(~held) * ~held
        live[off_chip] = 0
        return live

    @cached_property
    def _made(self) -> IntArray:
        """For each row the bytes of the activations that its ops make."""
        graph, weights = self.costs.graph, [0] * len(self.costs.graph.ops)
        for t, maker in graph.producer.items():
            weights[maker] += graph.tensors[t].bytes
        return self.sets.total(weights)

    def _entering(self, inner: int) -> tuple[OpGroups, IntArray]:
        """For each activation that ops outside a row read and do not make: these ops, and its bytes."""
        graph, held = self.costs.graph, self.sets.set_of(inner)
        ops, starts, sizes = list[int](), list[int](), list[int]()
        for t, all_readers in graph.readers.items():
            readers = [r for r in all_readers if not held >> r & 1]
            made_outside = t in graph.producer and not held >> graph.producer[t] & 1
            if readers and not made_outside:
                starts.append(len(ops))
                ops += readers
                sizes.append(graph.tensors[t].bytes)
        return OpGroups(np.array(ops, np.intp), np.array(starts, np.intp)), np.array(sizes, np.int64)


def _activations(graph: Graph) -> set[int]:
    """The tensors that ops read or make, without parameters and what folded ops make."""
    return {*graph.producer, *graph.readers}
