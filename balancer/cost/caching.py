"""Which ops the compiler keeps on the chip, and which it streams.

Whole ops, in a fixed order: depthwise convolutions, then dense ops, then all others; inside a class the largest
first. One that does not fit is skipped, and smaller ones still get the room that is left. Convolutions are poured
from tile to tile, so that only their bytes count; a dense op lies at the same address in all tiles, so that each
group of 64 outputs must fit whole into one of them: big groups first, each into the least loaded tile.

Source: exact on the published reports of ResNet-101 and ResNet-50, Inception-V3, 807 dense and 337 convolution
segments, and the co-compiled MobileNets; that dense ops come before convolutions rests on the ResNets alone.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from balancer.cost.capacity import TILES
from balancer.cost.geometry import ARRAY_INPUTS, ARRAY_OUTPUTS
from balancer.ground.opsets import members, op_set
from balancer.ground.units import ceil_div, ceil_to

if TYPE_CHECKING:
    from collections.abc import Iterable

    from balancer.cost.layout import ParameterLayout
    from balancer.graph import Graph
    from balancer.ground.opsets import OpSet

_CLASS = {"DEPTHWISE_CONV_2D": 0, "FULLY_CONNECTED": 1}
_OTHERS = len(_CLASS)
_DENSE = "FULLY_CONNECTED"


class Caching:
    """The rule, for the ops of one graph. priority: the ops with parameters, in the order in which they get room. classes:
    the same as sets, those that get room first before the others.
    """

    def __init__(self, graph: Graph, layouts: list[ParameterLayout], dense_tile_bytes: int) -> None:
        self.size = [layout.cached for layout in layouts]
        ops = graph.ops
        sized = (i for i, size in enumerate(self.size) if size)
        self.priority = sorted(sized, key=lambda i: (_CLASS.get(ops[i].type, _OTHERS), -self.size[i], i))
        self.classes = tuple(
            op_set(i for i in self.priority if _CLASS.get(ops[i].type, _OTHERS) == c) for c in range(_OTHERS + 1)
        )
        self.dense = op_set(i for i in self.priority if ops[i].type == _DENSE)
        self._groups = {i: _groups(graph, i) for i in members(self.dense)}
        self._tile_bytes = dense_tile_bytes
        self._fitting: dict[OpSet, bool] = {}
        # What each dense op takes in the tiles, and how many such bytes fit whatever the ops: a tile that takes a group
        # is no fuller than the mean before. Groups of fewer ops fit where those of more do.
        self.dense_bytes = {i: size * count for i, (size, count) in self._groups.items()}
        largest = max((size for size, _ in self._groups.values()), default=0)
        sure = max(0, TILES * dense_tile_bytes - (TILES - 1) * largest)
        self.dense_sure_bytes = sum(self.dense_bytes.values()) if self.dense_fit(self.dense) else sure

    def cached(self, ops: OpSet, capacity: int) -> OpSet:
        """Those of the ops whose parameters stay on chip, where there is room for so many bytes."""
        left, kept = capacity, 0
        for i in self.priority:
            if not ops >> i & 1 or self.size[i] > left:
                continue
            if self.dense >> i & 1 and not self.dense_fit(kept & self.dense | 1 << i):
                continue
            left -= self.size[i]
            kept |= 1 << i
        return kept

    def dense_fit(self, ops: OpSet) -> bool:
        """Whether the groups of these dense ops fit into the tiles."""
        if ops not in self._fitting:
            self._fitting[ops] = _fit([self._groups[i] for i in members(ops)], self._tile_bytes)
        return self._fitting[ops]


def _groups(graph: Graph, i: int) -> tuple[int, int]:
    """Bytes of a group of 64 outputs, and how many there are."""
    shape = graph.tensors[graph.ops[i].inputs[1]].shape or (1, 1)
    return ARRAY_OUTPUTS * ceil_to(shape[-1], ARRAY_INPUTS), ceil_div(shape[0], ARRAY_OUTPUTS)


def _fit(groups: Iterable[tuple[int, int]], tile_bytes: int) -> bool:
    tiles = [0] * TILES
    for size, count in sorted(groups, reverse=True):
        for _ in range(count):
            load = heapq.heappop(tiles) + size
            if load > tile_bytes:
                return False
            heapq.heappush(tiles, load)
    return True
