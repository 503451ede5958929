"""The activations of a segment in narrow memory: what each tensor takes in a tile, and which are live at which op.

Each of the 16 tiles has 192 KiB of *narrow memory* for activations. A feature map is split over 4 x 4 tiles. Each tile
holds its share, and around it the halo: the rows and columns beyond the share that windows need which read the tensor.

    112x112x64, read by a 3x3 window of stride 2:   29 x 29 x 64 = 53,824 bytes in each tile, not 28 x 28 x 64

At each op some tensors are live: those that it reads and writes, and those that *wait* for an op which runs later.

    a --t--> b --u--> c --v--> d        at c: u and v, and t, which waits for d
       \\                       /
        +----------t----------+

Ops run in the file's order. A tensor that the segment makes is live from the op that makes it to its last reader in the
whole model. A tensor that enters is live from its first reader to its last. Of the ops before, only those count that the
op depends on: whether others are in the same segment is not known from the cut before it alone. So what is live at an op
follows from this cut and is the same for all segments that start there. `spilling` tells what happens if they do not fit.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from balancer.cost.geometry import ARRAY_INPUTS, ARRAY_OUTPUTS, TILE_SIDE, feature_map, operand, sliding_window
from balancer.ground.units import ceil_div, ceil_to

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from balancer.graph import Graph, Op
    from balancer.ground.opsets import OpSet

# Decoded, two packages of dense nets, exact: what a dense op takes beside its input and its output.
_DENSE_BYTES = 320
# Forged shapes may claim any size. Larger ones count as this one, so that sums over thousands of tensors stay within 64 bits.
LARGEST_BYTES = 1 << 40
# Ops that put values at other places: each tile may need values of any other.
MOVING = ("CONCATENATION", "RESHAPE", "TRANSPOSE")


class Activations:
    """The activations of a graph in narrow memory, and which are live where.

    tensors: the indices of all activations that an op makes or reads, ascending. tile_bytes: of each, what it takes in a
    tile. beside_bytes: of each op, what it takes in a tile beside the tensors. touched: [tensor, op], whether the op reads or
    makes the tensor.
    """

    def __init__(self, graph: Graph, ancestors: Sequence[OpSet]) -> None:
        """ancestors: for each op all ops that it depends on, directly or through others."""
        self.graph = graph
        self.tensors = tuple(sorted(set(graph.producer) | set(graph.readers)))
        self.tile_bytes = np.array([tile_bytes(graph, t) for t in self.tensors], np.int64)
        self.beside_bytes = np.array([_beside_bytes(graph, op) for op in graph.ops], np.int64)
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
        return self.live_at(held, np.arange(len(held)))

    def profile(self, held: NDArray[np.bool_]) -> NDArray[np.int64]:
        """For each op the bytes of a tile that it and its live tensors take together. held: as in `live`."""
        return self.needs(self.live(held), np.arange(len(held)))

    def live_at(self, held: NDArray[np.bool_], at: NDArray[np.intp]) -> NDArray[np.bool_]:
        """The columns of `live` for the ops `at`."""
        made = self._made & held[self._producer]
        live = np.zeros((len(self.tensors), len(at)), bool)
        live[made] = self._reach[np.ix_(self._producer[made], at)]
        entering = np.nonzero(~made[self._pair_tensor] & held[self._pair_reader])[0]
        np.logical_or.at(live, self._pair_tensor[entering], self._reach[np.ix_(self._pair_reader[entering], at)])
        live &= self._counted[:, at]
        return live

    def needs(self, live: NDArray[np.bool_], at: NDArray[np.intp]) -> NDArray[np.int64]:
        """For each of these ops the bytes of a tile that it and its live tensors take together. live: at these ops."""
        needs: NDArray[np.int64] = self.tile_bytes @ live + self.beside_bytes[at]
        return needs

    @cached_property
    def needs_alone(self) -> NDArray[np.int64]:
        """For each op the bytes of a tile that it takes with the tensors that it reads and makes. No segment needs less."""
        alone: NDArray[np.int64] = self.tile_bytes @ (self.touched & self._counted) + self.beside_bytes
        return alone

    @cached_property
    def touched(self) -> NDArray[np.bool_]:
        """[tensor, op]: whether the op reads or makes the tensor. The other live tensors wait."""
        touched = np.zeros((len(self.tensors), len(self.graph.ops)), bool)
        touched[self._pair_tensor, self._pair_reader] = True
        touched[np.nonzero(self._made)[0], self._producer[self._made]] = True
        return touched

    @cached_property
    def _reach(self) -> NDArray[np.bool_]:
        """[op, later op]: whether the later op is the op itself or depends on it."""
        count = len(self.graph.ops)
        size = ceil_div(count, 8)
        raw = b"".join((1 << i | before).to_bytes(size, "little") for i, before in enumerate(self._ancestors))
        bits = np.frombuffer(raw, np.uint8).reshape(count, size)
        return np.ascontiguousarray(np.unpackbits(bits, axis=1, count=count, bitorder="little").astype(bool).T)

    @cached_property
    def _counted(self) -> NDArray[np.bool_]:
        """[tensor, op]: whether the tensor counts at the op if it is live there: up to its last reader; where there is none,
        up to its maker. A QUANTIZE that is the last to read its input works in place: its output does not count beside it.
        """
        last = [max(self.graph.readers.get(t, (self.graph.producer.get(t, 0),))) for t in self.tensors]
        counted: NDArray[np.bool_] = np.arange(len(self.graph.ops)) <= np.array(last, np.intp)[:, None]
        row = {t: k for k, t in enumerate(self.tensors)}
        for op in self.graph.ops:
            if (
                op.type == "QUANTIZE"
                and op.inputs
                and op.outputs
                and op.inputs[0] in row
                and last[row[op.inputs[0]]] == op.index
            ):
                counted[row[op.outputs[0]], op.index] = False
        return counted


def tile_bytes(graph: Graph, t: int) -> int:
    """Bytes that an activation takes in each tile, with the halo for the windows that read it; 0 if its shape is not known.

    Channels are padded to a multiple of 4; a vector stands in every tile and is padded to a multiple of 64. Exact on the
    packages of MobileNet v1 (four widths), MobileNet v2, SSD MobileNet v2, movenet, PoseNet and dense nets.
    """
    tensor = graph.tensors[t]
    if tensor.shape is None:
        return 0
    shape = feature_map(tensor)
    if shape.pixels == 1:
        return min(LARGEST_BYTES, ceil_to(shape.channels, ARRAY_OUTPUTS))
    rows = columns = 0
    for r in graph.readers.get(t, ()):
        op = graph.ops[r]
        window = sliding_window(graph, op)
        # The map that a transposed convolution slides over is its output.
        if window is not None and op.inputs[0] == t and op.type != "TRANSPOSE_CONV":
            rows = max(rows, _share(shape.height, window.output.height, window.height, window.stride))
            columns = max(columns, _share(shape.width, window.output.width, window.width, window.stride))
    rows, columns = max(rows, ceil_div(shape.height, TILE_SIDE)), max(columns, ceil_div(shape.width, TILE_SIDE))
    return min(LARGEST_BYTES, rows * columns * ceil_to(shape.channels, ARRAY_INPUTS))


def moved_bytes(graph: Graph, op: Op) -> int:
    """Bytes that an op holds at one place which transposes, flattens, or moves values to other places of a table; else 0.

    A table has rows and channels, but no two spatial axes, such as the boxes of a detector. Packages of YOLOv5n at 160 px
    (1575 boxes of 85 numbers) and YOLOv8n at 320 px (2100 of 68) show it: they take 183,104 and 185,684 bytes of a tile,
    5 % more than the whole table and the shares of what it is made of, and none of their feature maps takes half of that.
    A map of 128x128 pixels with one channel, padded to four, that is flattened takes 70,660 bytes, the map itself 65,536.
    """
    tensor = graph.tensors[op.outputs[0]] if op.type in MOVING and op.outputs else None
    if tensor is None or tensor.shape is None:
        return 0
    shape, source = feature_map(tensor), operand(graph, op, 0)
    if shape.pixels == 1 and source is not None:
        shape = feature_map(source)
        return shape.pixels * ceil_to(shape.channels, ARRAY_INPUTS) if shape.pixels > 1 else 0
    whole_bytes = shape.pixels * ceil_to(shape.channels, ARRAY_INPUTS)
    return whole_bytes if shape.height == 1 < shape.width or op.type == "TRANSPOSE" else 0


def _beside_bytes(graph: Graph, op: Op) -> int:
    if op.type == "FULLY_CONNECTED":
        return _DENSE_BYTES
    moved = min(LARGEST_BYTES, moved_bytes(graph, op))
    if not moved:
        return 0
    # The whole table takes the place of the share that the output has in each tile afterwards.
    return max(0, moved - tile_bytes(graph, op.outputs[0])) + _joined_bytes(graph, op)


def _joined_bytes(graph: Graph, op: Op) -> int:
    """The share of the table that others join with the op's output: it stands ready while the op writes into it.

    So says an SSD's package: level 0 of its classes (1083 boxes of 91 numbers), its feature map and the share of all 1917 boxes
    are 150,696 bytes, the package takes 150,820.
    """
    readers = (graph.ops[r] for r in graph.readers.get(op.outputs[0], ()))
    return max(
        (tile_bytes(graph, r.outputs[0]) for r in readers if r.type == "CONCATENATION" and moved_bytes(graph, r)),
        default=0,
    )


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
