"""How many bytes on the chip a segment has for parameters: all of wide memory less the largest scratch that one op,
or one tensor that enters the segment, needs there.

Each of the 16 tiles has 8320 lines of 64 bytes of wide memory (the highest address of a buffer in compiled files:
8.125 MiB in all, which is why reports can print 8.05). Parameters fill it from below, buffers sit at its top. Terms
marked *decoded* were read out of the instruction streams of compiled files; terms marked *empirical* were set so that
the streamed bytes of published reports come out, each from the nets named, and are the weak part of this model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.cost.geometry import ARRAY_INPUTS, TILE_SIDE, Picture, Window, picture, window
from balancer.ground.units import ceil_div, ceil_to

if TYPE_CHECKING:
    from balancer.cost.layout import ParameterLayout
    from balancer.graph import Graph, Op

TILES = 16
_KIB = 1 << 10
MILLION = 1_000_000
UNBOUNDED = 1 << 62

# Decoded: rows of a landing buffer are padded to 256 bytes; parameters begin 640 bytes up at most; beside the landing
# buffers of a convolution stand two of 256 bytes for its headers and a gap of 128 lines.
_DMA_BYTES = 256
_BASE_BYTES = 640
_HEADER_BUFFER_BYTES = 512
_GAP_BYTES = 128 * 64
# Decoded, roughly: one weight transfer holds all taps of a kernel with 8 or more, else up to 16 blocks of 64 outputs
# x 4 inputs.
_LANDING_BLOCKS = 16
# Narrow memory, for activations: the largest use in a compiled file is 196,596 bytes a tile.
_NARROW_BYTES = 192 * _KIB
# Empirical, convolutions on 64x64 pictures: an input that cannot be held beside the output is kept back in wide memory.
_HELD_INPUT_BYTES = 39 * _KIB
# Empirical, five reports: room that a dense op with scales or a bias takes.
_DENSE_BYTES = 25 * _KIB
# Empirical, nets that start at 224 px: a window whose pictures take more than the first takes the second.
_BIG_TILE_BYTES, _BIG_BYTES = 60 * _KIB, 62 * _KIB
# Empirical, Xception alone: a depthwise convolution takes twice its input tile, up to this tile size.
_DEPTHWISE_TILE_BYTES = 40 * _KIB
# Empirical, Inception-V3 (slope) and Inception-V4 (steep part, weak): overlapping pools of stride 1.
_POOL_PERCENT, _POOL_KNEE_BYTES, _POOL_STEEP_PERCENT = 175, 37 * _KIB, 480
# Empirical, two points (112x112x64, 147x147x64) and a limit (768 px): overlapping pools of larger stride.
_STRIDED_POOL_PERCENT, _STRIDED_POOL_FREE_BYTES, _POOL_MOST_BYTES = 244, 66 * _KIB, 268 * _KIB


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes for parameters in a segment, given its largest scratch in bytes a tile.

    per_million, more_bytes, most_bytes: what the compiler's reports have taught; so many of each million bytes, so
    many more, and never more than so many.
    """

    wide_bytes_per_tile: int
    per_million: int = MILLION
    more_bytes: int = 0
    most_bytes: int = UNBOUNDED

    def __call__(self, scratch: int) -> int:
        whole = max(0, TILES * (self.wide_bytes_per_tile - _BASE_BYTES - scratch))
        return min(self.most_bytes, max(0, whole * self.per_million // MILLION + self.more_bytes))

    def each(self, scratch: Any) -> Any:
        """The same for an int64 array of scratches."""
        whole = np.maximum(0, TILES * (self.wide_bytes_per_tile - _BASE_BYTES - scratch))
        return np.clip(whole * self.per_million // MILLION + self.more_bytes, 0, self.most_bytes)

    @property
    def largest(self) -> int:
        """Where nothing needs scratch."""
        return self(0)

    def scratch_for(self, room: int) -> int:
        """The least scratch that leaves no more than so much room."""
        whole = max(0, room - self.more_bytes) * MILLION // max(self.per_million, 1)
        return max(0, self.wide_bytes_per_tile - _BASE_BYTES - whole // TILES)


def op_scratch(graph: Graph, op: Op, layout: ParameterLayout) -> int:
    """Wide memory, in bytes a tile, that the op needs while it runs, wherever its inputs come from."""
    if op.type == "FULLY_CONNECTED":
        return _DENSE_BYTES if layout.has_headers else 0
    found = window(graph, op)
    if found is None:
        return 0
    landing = _landing_bytes(found) if found.kind != "pool" else 0
    if found.source.pixels <= 1:
        return landing
    return max(landing, _big_bytes(found), _window_bytes(found))


def input_scratch(graph: Graph, t: int, reader: Op) -> int:
    """Wide memory, in bytes a tile, for a tensor that enters the segment and is read by this op of it.

    Two of its rows (decoded); where it is the picture of a convolution and does not fit beside the output, more.
    """
    shape = picture(graph.tensors[t])
    rows = 2 * ceil_to(shape.width * shape.channels, _DMA_BYTES)
    found = window(graph, reader)
    held = (
        found is not None and found.kind == "conv" and reader.inputs[0] == t and _working_bytes(found) > _NARROW_BYTES
    )
    return rows + (_HELD_INPUT_BYTES if held else 0)


def _landing_bytes(found: Window) -> int:
    """The double buffer in which every tile receives the weights of a convolution (decoded)."""
    steps = 1 if found.kind == "depthwise" else ceil_div(found.source.channels, ARRAY_INPUTS)
    blocks = found.taps
    if found.kind == "conv" and found.taps < _LANDING_BLOCKS // 2:
        blocks = min(_LANDING_BLOCKS, found.taps * steps)
    return 2 * _DMA_BYTES * blocks + _HEADER_BUFFER_BYTES + _GAP_BYTES


def _big_bytes(found: Window) -> int:
    overlapping = found.kind != "pool" or _overlaps(found)
    return _BIG_BYTES if overlapping and found.taps > 1 and _working_bytes(found) > _BIG_TILE_BYTES else 0


def _window_bytes(found: Window) -> int:
    """What depthwise convolutions and overlapping pools need for their input."""
    halo = _halo_tile(found)
    if found.kind == "depthwise":
        return 2 * halo if halo <= _DEPTHWISE_TILE_BYTES else _BIG_BYTES
    if found.kind != "pool" or not _overlaps(found):
        return 0
    if found.stride > 1:
        return min(max(0, halo * _STRIDED_POOL_PERCENT // 100 - _STRIDED_POOL_FREE_BYTES), _POOL_MOST_BYTES)
    steep = max(0, halo - _POOL_KNEE_BYTES)
    return min((halo - steep) * _POOL_PERCENT // 100 + steep * _POOL_STEEP_PERCENT // 100, _POOL_MOST_BYTES)


def _overlaps(found: Window) -> bool:
    return max(found.height, found.width) > found.stride


def _halo_tile(found: Window) -> int:
    """Bytes of one tile's share of the input in the 4 x 4 split of the output, with the rows and columns beyond its
    edge.
    """
    height = min(found.source.height + found.height - 1, _reach(found.made.height, found.stride, found.height))
    width = min(found.source.width + found.width - 1, _reach(found.made.width, found.stride, found.width))
    return height * width * ceil_to(found.source.channels, ARRAY_INPUTS)


def _reach(made: int, stride: int, kernel: int) -> int:
    return (ceil_div(made, TILE_SIDE) - 1) * stride + kernel


def _working_bytes(found: Window) -> int:
    return _halo_tile(found) + _made_tile(found.made)


def _made_tile(made: Picture) -> int:
    return ceil_div(made.height, TILE_SIDE) * ceil_div(made.width, TILE_SIDE) * ceil_to(made.channels, ARRAY_INPUTS)
