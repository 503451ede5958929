"""The activations of a segment in narrow memory: what each tensor takes in a tile, and which are live at which op.

Each of the 16 tiles has 192 KiB of *narrow memory* for activations. A feature map is split over 4 x 4 tiles. Each tile
holds its share, and around it the halo: the rows and columns beyond the share that windows need which read the tensor.

    112x112x64, read by a 3x3 window of stride 2:   29 x 29 x 64 = 53,824 bytes in each tile, not 28 x 28 x 64

At each op some tensors are live: those that it reads and writes, and those that wait for an op which runs later.

    a --t--> b --u--> c --v--> d        at c: u and v, and t, which waits for d
       \\                       /
        +----------t----------+

Ops run in the file's order. A tensor that the segment makes is live from the op that makes it to its last reader in the
whole model. A tensor that enters is live from its first reader to its last. Of the ops before, only those count that the
op depends on: whether others are in the same segment is not known from the cut before it alone. So what is live at an op
follows from this cut and is the same for all segments that start there.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from balancer.cost.geometry import ARRAY_INPUTS, TILE_SIDE, feature_map, sliding_window
from balancer.ground.units import KIB, ceil_div, ceil_to

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from balancer.graph import Graph
    from balancer.ground.opsets import OpSet

# Narrow memory of one tile. Decoded: the largest use in a compiled file is 196,596 bytes.
NARROW_BYTES = 192 * KIB


class Activations:
    """The activations of a graph in narrow memory, and which are live where.

    tensors: the indices of all activations that an op makes or reads, ascending. tile_bytes: of each, what it takes in a
    tile. The other arrays also have one entry for each of them.
    """

    def __init__(self, graph: Graph, ancestors: Sequence[OpSet]) -> None:
        """ancestors: for each op all ops that it depends on, directly or through others."""
        self.graph = graph
        self.tensors = tuple(sorted(set(graph.producer) | set(graph.readers)))
        self.tile_bytes = np.array([tile_bytes(graph, t) for t in self.tensors], np.int64)
        self._ancestors = ancestors
        # A model input has the producer -1, which indexes the last op: `_made` is false for it.
        self._producer = np.array([graph.producer.get(t, -1) for t in self.tensors], np.intp)
        self._made = self._producer >= 0
        pairs = [(k, r) for k, t in enumerate(self.tensors) for r in graph.readers.get(t, ())]
        self._pair_tensor = np.array([k for k, _ in pairs], np.intp)
        self._pair_reader = np.array([r for _, r in pairs], np.intp)

    def live(self, held: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[tensor, op]: whether the tensor is live at the op, in a segment that holds the op and those of these ops on which
        it depends. held: for each op whether the segment may hold it. For other ops the entries mean nothing.
        """
        made = self._made & held[self._producer]
        live = np.zeros((len(self.tensors), len(held)), bool)
        live[made] = self._reach[self._producer[made]]
        entering = np.nonzero(~made[self._pair_tensor] & held[self._pair_reader])[0]
        np.logical_or.at(live, self._pair_tensor[entering], self._reach[self._pair_reader[entering]])
        live &= self._until_last
        return live

    def profile(self, held: NDArray[np.bool_]) -> NDArray[np.int64]:
        """For each op the bytes of a tile that its live tensors take together. held: as in `live`."""
        taken: NDArray[np.int64] = self.tile_bytes @ self.live(held)
        return taken

    @cached_property
    def _reach(self) -> NDArray[np.bool_]:
        """[op, later op]: whether the later op is the op itself or depends on it."""
        count = len(self.graph.ops)
        size = ceil_div(count, 8)
        raw = b"".join((1 << i | before).to_bytes(size, "little") for i, before in enumerate(self._ancestors))
        bits = np.frombuffer(raw, np.uint8).reshape(count, size)
        return np.ascontiguousarray(np.unpackbits(bits, axis=1, count=count, bitorder="little").astype(bool).T)

    @cached_property
    def _until_last(self) -> NDArray[np.bool_]:
        """[tensor, op]: whether the op is the last reader or runs before it; where there is none, the maker counts as last."""
        last = [max(self.graph.readers.get(t, (self.graph.producer.get(t, 0),))) for t in self.tensors]
        until: NDArray[np.bool_] = np.arange(len(self.graph.ops)) <= np.array(last, np.intp)[:, None]
        return until


def tile_bytes(graph: Graph, t: int) -> int:
    """Bytes that an activation takes in each tile, with the halo for the windows that read it; 0 if its shape is not known.

    Channels are padded to a multiple of 4. Exact on the packages of MobileNet v1 (four widths) and v2.
    """
    tensor = graph.tensors[t]
    if tensor.shape is None:
        return 0
    shape = feature_map(tensor)
    rows = columns = 0
    for r in graph.readers.get(t, ()):
        op = graph.ops[r]
        window = sliding_window(graph, op)
        # The map that a transposed convolution slides over is its output.
        if window is not None and op.inputs[0] == t and op.type != "TRANSPOSE_CONV":
            rows = max(rows, _share(shape.height, window.output.height, window.height, window.stride))
            columns = max(columns, _share(shape.width, window.output.width, window.width, window.stride))
    rows, columns = max(rows, ceil_div(shape.height, TILE_SIDE)), max(columns, ceil_div(shape.width, TILE_SIDE))
    return rows * columns * ceil_to(shape.channels, ARRAY_INPUTS)


def _share(source: int, output: int, kernel: int, stride: int) -> int:
    """The positions along one axis that a tile holds: its own, and those that a window over them needs.

    >>> _share(112, 56, 3, 2), _share(150, 75, 3, 2), _share(10, 10, 3, 1)
    (29, 40, 5)
    """
    before = max(0, (output - 1) * stride + kernel - source) // 2  # padding, which tiles hold, too
    most = 0
    for (own, own_end), (made, made_end) in zip(_shares(source), _shares(output), strict=True):
        start, end = own, own_end
        if made_end > made:
            start, end = min(own, made * stride - before), max(own_end, (made_end - 1) * stride - before + kernel)
        most = max(most, end - start)
    return most


def _shares(length: int) -> list[tuple[int, int]]:
    """Which positions along one axis each of the four tiles computes: from the first to before the second.

    >>> _shares(10)
    [(0, 3), (3, 5), (5, 8), (8, 10)]
    """
    edges = [ceil_div(k * length, TILE_SIDE) for k in range(TILE_SIDE + 1)]
    return list(pairwise(edges))


def op_mask(ops: Iterable[int], count: int) -> NDArray[np.bool_]:
    """For each of `count` ops whether it is one of these."""
    mask = np.zeros(count, bool)
    mask[list(ops)] = True
    return mask
