"""Which ops keep their parameters on the chip, and which stream them with each inference.

The compiler goes through the ops of a segment in a fixed order of priority: depthwise convolutions, then dense ops, then
all others; within a class the op with more bytes comes first. It caches an op's parameters whole, or not at all. An op
that does not fit is skipped, and smaller ops after it can still be cached:

    a capacity of 100 bytes

    priority  class      bytes   free before
    dw_1      depthwise     10           100    cached
    fc_1      dense         50            90    cached
    conv_3    other         60            40    skipped: overflow, streamed with each inference
    conv_1    other         30            40    cached
    conv_2    other         20            10    skipped

A convolution's parameters are spread evenly over the 16 tiles, so only their bytes count. A dense op needs the same
address in each tile that holds a part of it, so each of its groups of 64 outputs must fit into one tile whole. Groups
are placed largest first, each into the tile with the least load.

Source: exact on the published reports of ResNet-101 and ResNet-50, Inception-V3, 807 dense and 337 convolution
segments, and the co-compiled MobileNets. That dense ops come before convolutions rests on the ResNets alone.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from balancer.cost.capacity import TILES
from balancer.cost.geometry import ARRAY_INPUTS, ARRAY_OUTPUTS
from balancer.ground.opsets import members, op_set
from balancer.ground.units import ceil_div, ceil_to

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from balancer.cost.layout import ParameterLayout
    from balancer.graph import Graph
    from balancer.ground.opsets import OpSet

_DENSE = "FULLY_CONNECTED"
_CLASS = {"DEPTHWISE_CONV_2D": 0, _DENSE: 1}
_OTHERS = len(_CLASS)


class DenseGroups(NamedTuple):
    """The groups of 64 outputs of one dense op: bytes of one group, and the number of groups."""

    group_bytes: int
    groups: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Caching:
    """The compiler's rule for the ops of one graph.

    size_bytes: for each op, what its parameters take on the chip. priority: the ops with parameters, those that are
    cached first before the others. classes: the same ops as one set for each class, in the order of priority. dense: the
    dense ops among them. dense_groups: of each dense op. dense_tile_bytes: what dense ops may take of one tile.
    dense_sure_bytes: dense ops with at most so many bytes in all fit into the tiles, whichever they are.
    """

    size_bytes: tuple[int, ...]
    priority: tuple[int, ...]
    classes: tuple[OpSet, ...]
    dense: OpSet
    dense_groups: Mapping[int, DenseGroups]
    dense_tile_bytes: int
    dense_sure_bytes: int
    _fits: dict[OpSet, bool] = field(default_factory=dict, repr=False, compare=False)  # memoised `dense_fit`

    def cached(self, ops: OpSet, capacity_bytes: int) -> OpSet:
        """Those of the ops whose parameters stay on the chip, where this many bytes are free for parameters."""
        free_bytes, kept = capacity_bytes, 0
        for i in self.priority:
            if not ops >> i & 1 or self.size_bytes[i] > free_bytes:
                continue
            if self.dense >> i & 1 and not self.dense_fit(kept & self.dense | 1 << i):
                continue
            free_bytes -= self.size_bytes[i]
            kept |= 1 << i
        return kept

    def dense_fit(self, ops: OpSet) -> bool:
        """Whether all groups of these dense ops fit into the tiles together."""
        if ops not in self._fits:
            self._fits[ops] = groups_fit([self.dense_groups[i] for i in members(ops)], self.dense_tile_bytes)
        return self._fits[ops]

    def dense_bytes(self, i: int) -> int:
        """Bytes that op i takes of the tiles as a dense op; 0 for other ops."""
        dense = self.dense_groups.get(i)
        return dense.group_bytes * dense.groups if dense else 0


def caching_rule(graph: Graph, layouts: Sequence[ParameterLayout], dense_tile_bytes: int) -> Caching:
    """The rule for this graph. layouts: of each op. dense_tile_bytes: what dense ops may take of one tile."""
    size_bytes = tuple(layout.cached for layout in layouts)
    classes = [_CLASS.get(op.type, _OTHERS) for op in graph.ops]
    with_parameters = (i for i, size in enumerate(size_bytes) if size)
    priority = tuple(sorted(with_parameters, key=lambda i: (classes[i], -size_bytes[i], i)))
    dense = op_set(i for i in priority if graph.ops[i].type == _DENSE)
    dense_groups = {i: _dense_groups(graph, i) for i in members(dense)}
    return Caching(
        size_bytes=size_bytes,
        priority=priority,
        classes=tuple(op_set(i for i in priority if classes[i] == c) for c in range(_OTHERS + 1)),
        dense=dense,
        dense_groups=dense_groups,
        dense_tile_bytes=dense_tile_bytes,
        dense_sure_bytes=dense_sure_bytes(list(dense_groups.values()), dense_tile_bytes),
    )


def dense_sure_bytes(dense: Sequence[DenseGroups], tile_bytes: int) -> int:
    """The bytes up to which any of these dense ops fit into the tiles together.

    >>> dense_sure_bytes([DenseGroups(group_bytes=10, groups=40)], tile_bytes=20)  # only 2 groups fit into a tile
    170
    >>> dense_sure_bytes([DenseGroups(group_bytes=10, groups=3)], tile_bytes=20)
    30
    """
    # Fewer groups never fill a tile more, so where all ops fit together, any of them do.
    if groups_fit(dense, tile_bytes):
        return sum(op.group_bytes * op.groups for op in dense)
    # The tile with the least load is loaded no more than the mean of all tiles. So a group of g bytes that is the last
    # of T bytes in all fits if (T - g) / TILES + g <= tile_bytes; the largest group gives the tightest condition.
    largest = max((op.group_bytes for op in dense), default=0)
    return max(0, TILES * tile_bytes - (TILES - 1) * largest)


def groups_fit(dense: Iterable[DenseGroups], tile_bytes: int) -> bool:
    """Whether the groups of dense ops fit into the tiles: largest first, each into the tile with the least load.

    >>> groups_fit([DenseGroups(group_bytes=10, groups=32)], tile_bytes=20)
    True
    >>> groups_fit([DenseGroups(group_bytes=10, groups=33)], tile_bytes=20)
    False
    """
    loads = [0] * TILES
    for group_bytes, groups in sorted(dense, reverse=True):
        for _ in range(groups):
            load = heapq.heappop(loads) + group_bytes
            if load > tile_bytes:
                return False
            heapq.heappush(loads, load)
    return True


def _dense_groups(graph: Graph, i: int) -> DenseGroups:
    shape = graph.tensors[graph.ops[i].inputs[1]].shape or (1, 1)
    return DenseGroups(ARRAY_OUTPUTS * ceil_to(shape[-1], ARRAY_INPUTS), ceil_div(shape[0], ARRAY_OUTPUTS))
