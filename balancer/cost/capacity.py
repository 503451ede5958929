"""How many bytes on the chip a segment has for parameters, and the scratch memory that its ops need beside them.

Each of the 16 tiles has 8320 lines of 64 bytes of *wide memory*. The compiler fills it with parameters from below, and
puts buffers at its top. The ops of a segment run one after the other, so the buffers of all ops share one place:

    wide memory of one tile
                 +------------------------------+  532,480 bytes
                 | scratch                      |  of the op that needs most: landing buffers for weights, tiles of feature
                 |                              |  maps, rows of tensors that enter the segment
                 +------------------------------+
                 | capacity                     |  parameters; what does not fit here is streamed
                 +------------------------------+  640 bytes
                 | not used for parameters      |
                 +------------------------------+  0

    capacity_bytes = 16 * (532,480 - 640 - scratch_bytes)

A 3x3 convolution on a small feature map needs 13,312 bytes of scratch in each tile (`op_scratch`). Where no other op of
its segment needs more, the segment has 16 * (532,480 - 640 - 13,312) = 8,296,448 bytes for parameters.

Constants marked *decoded* were read out of the instruction streams of compiled files. Those marked *empirical* were set
so that predicted streamed bytes agree with published reports of the nets named; they are the weakest part of this model.
The 8320 lines are decoded, too: the highest address of a buffer. The 16 x 8320 lines are 8.125 MiB, which is why reports can
show 8.05 MiB, and more than 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from balancer.cost.geometry import ARRAY_INPUTS, TILE_SIDE, FeatureMap, Window, feature_map, sliding_window
from balancer.ground.units import KIB, ceil_div, ceil_to

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from balancer.cost.layout import ParameterLayout
    from balancer.graph import Graph, Op

TILES = 16
MILLION = 1_000_000
UNBOUNDED = 1 << 62  # as max_bytes: more than any capacity

# Decoded: rows of a landing buffer are padded to 256 bytes; parameters begin at most 640 bytes up; beside the landing
# buffers of a convolution stand two buffers of 256 bytes for its headers and a gap of 128 lines.
_DMA_BYTES = 256
_BASE_BYTES = 640
_HEADER_BUFFER_BYTES = 512
_GAP_BYTES = 128 * 64
# Decoded, roughly: one weight transfer holds all taps of a kernel with 8 or more, else up to 16 blocks of 64 outputs
# x 4 inputs.
_LANDING_BLOCKS = 16
# Decoded: narrow memory of a tile, for activations. The largest use in a compiled file is 196,596 bytes.
_NARROW_BYTES = 192 * KIB
# Empirical, convolutions on 64x64 feature maps: an input that does not fit narrow memory beside the output is held in
# wide memory.
_HELD_INPUT_BYTES = 39 * KIB
# Empirical, five reports: scratch of a dense op with scales or a bias.
_DENSE_BYTES = 25 * KIB
# Empirical, nets that start at 224 px: a window whose feature maps take more than _BIG_TILE_BYTES needs
# _BIG_BYTES.
_BIG_TILE_BYTES, _BIG_BYTES = 60 * KIB, 62 * KIB
# Empirical, Xception alone: a depthwise convolution needs twice its input tile, up to this tile size.
_DEPTHWISE_TILE_BYTES = 40 * KIB
# Empirical, Inception-V3 (slope) and Inception-V4 (steep part, weak): overlapping pools of stride 1.
_POOL_PERCENT, _POOL_KNEE_BYTES, _POOL_STEEP_PERCENT = 175, 37 * KIB, 480
# Empirical, two points (112x112x64, 147x147x64) and a limit (768 px): overlapping pools of larger stride.
_STRIDED_POOL_PERCENT, _STRIDED_POOL_FREE_BYTES, _POOL_MAX_BYTES = 244, 66 * KIB, 268 * KIB


@dataclass(frozen=True, slots=True)
class CapacityRule:
    """From the largest scratch of a segment to its capacity: the bytes that it has for parameters.

        whole    = 16 tiles * (wide_bytes_per_tile - 640 - scratch)
        capacity = whole * scale_per_million / 1,000,000 + offset_bytes, within 0 .. max_bytes

    scale_per_million, offset_bytes, max_bytes: corrections learnt from the compiler's reports; by default they change
    nothing. The more scratch, the less capacity.
    """

    wide_bytes_per_tile: int
    scale_per_million: int = MILLION
    offset_bytes: int = 0
    max_bytes: int = UNBOUNDED

    def capacity_bytes(self, scratch_bytes: int) -> int:
        """Bytes for parameters in all tiles. scratch_bytes: the largest of the segment's ops, of one tile.

        >>> CapacityRule(532_480).capacity_bytes(13_312)
        8296448
        >>> CapacityRule(532_480, max_bytes=8_000_000).capacity_bytes(13_312)
        8000000
        """
        whole = max(0, TILES * (self.wide_bytes_per_tile - _BASE_BYTES - scratch_bytes))
        return min(self.max_bytes, max(0, whole * self.scale_per_million // MILLION + self.offset_bytes))

    def capacities_bytes(self, scratch_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
        """`capacity_bytes` of each entry."""
        whole = np.maximum(0, TILES * (self.wide_bytes_per_tile - _BASE_BYTES - scratch_bytes))
        corrected = whole * self.scale_per_million // MILLION + self.offset_bytes
        capacities: NDArray[np.int64] = np.clip(corrected, 0, self.max_bytes)
        return capacities

    @property
    def largest_bytes(self) -> int:
        """The capacity of a segment whose ops need no scratch: no segment has more."""
        return self.capacity_bytes(0)

    def scratch_for(self, capacity_bytes: int) -> int:
        """The least scratch, in bytes of one tile, that leaves at most this capacity.

        >>> CapacityRule(532_480).scratch_for(8_296_448)
        13312
        """
        whole = max(0, capacity_bytes - self.offset_bytes) * MILLION // max(self.scale_per_million, 1)
        return max(0, self.wide_bytes_per_tile - _BASE_BYTES - whole // TILES)


def op_scratch(graph: Graph, op: Op, layout: ParameterLayout) -> int:
    """Bytes of wide memory in each tile that the op needs while it runs, wherever its inputs come from."""
    if op.type == "FULLY_CONNECTED":
        return _DENSE_BYTES if layout.has_headers else 0
    window = sliding_window(graph, op)
    if window is None:
        return 0
    landing = _landing_bytes(window) if window.kind != "pool" else 0
    if window.source.pixels <= 1:
        return landing
    return max(landing, _big_bytes(window), _window_bytes(window))


def input_scratch(graph: Graph, t: int, reader: Op) -> int:
    """Bytes of wide memory in each tile that tensor t needs where it enters a segment in which this op reads it.

    Two of the tensor's rows (decoded). The input of a convolution that does not fit narrow memory beside the output needs
    `_HELD_INPUT_BYTES` more.
    """
    shape = feature_map(graph.tensors[t])
    rows = 2 * ceil_to(shape.width * shape.channels, _DMA_BYTES)
    window = sliding_window(graph, reader)
    if window is None or window.kind != "conv" or reader.inputs[0] != t:
        return rows
    return rows + (_HELD_INPUT_BYTES if _working_bytes(window) > _NARROW_BYTES else 0)


def _landing_bytes(window: Window) -> int:
    """The double buffer in which every tile receives the weights of a convolution (decoded).

    >>> from balancer.cost.geometry import FeatureMap
    >>> maps = FeatureMap(8, 8, 64), FeatureMap(8, 8, 64)
    >>> _landing_bytes(Window("conv", *maps, 3, 3, 1)) == 2 * 256 * 9 + 512 + 128 * 64
    True
    >>> _landing_bytes(Window("conv", *maps, 1, 1, 1)) == 2 * 256 * 16 + 512 + 128 * 64
    True
    """
    steps = 1 if window.kind == "depthwise" else ceil_div(window.source.channels, ARRAY_INPUTS)
    blocks = window.taps
    if window.kind == "conv" and window.taps < _LANDING_BLOCKS // 2:
        blocks = min(_LANDING_BLOCKS, window.taps * steps)
    return 2 * _DMA_BYTES * blocks + _HEADER_BUFFER_BYTES + _GAP_BYTES


def _big_bytes(window: Window) -> int:
    """What a window over large feature maps needs, unless it is a pool whose windows do not overlap."""
    overlapping = window.kind != "pool" or _overlaps(window)
    return _BIG_BYTES if overlapping and window.taps > 1 and _working_bytes(window) > _BIG_TILE_BYTES else 0


def _window_bytes(window: Window) -> int:
    """What depthwise convolutions and overlapping pools need for their input."""
    halo = _halo_tile(window)
    if window.kind == "depthwise":
        return 2 * halo if halo <= _DEPTHWISE_TILE_BYTES else _BIG_BYTES
    if window.kind != "pool" or not _overlaps(window):
        return 0
    if window.stride > 1:
        return min(max(0, halo * _STRIDED_POOL_PERCENT // 100 - _STRIDED_POOL_FREE_BYTES), _POOL_MAX_BYTES)
    steep = max(0, halo - _POOL_KNEE_BYTES)
    return min((halo - steep) * _POOL_PERCENT // 100 + steep * _POOL_STEEP_PERCENT // 100, _POOL_MAX_BYTES)


def _overlaps(window: Window) -> bool:
    """Whether neighbouring positions of the window share pixels."""
    return max(window.height, window.width) > window.stride


def _working_bytes(window: Window) -> int:
    """Bytes of input and output that one tile works on at once."""
    return _halo_tile(window) + _output_tile(window.output)


def _halo_tile(window: Window) -> int:
    """Bytes of input that one tile reads to compute its share of the output, which is split over 4 x 4 tiles.

    The rows and columns beyond the tile's own share, the halo, are included.
    """
    height = min(window.source.height + window.height - 1, _reach(window.output.height, window.stride, window.height))
    width = min(window.source.width + window.width - 1, _reach(window.output.width, window.stride, window.width))
    return height * width * ceil_to(window.source.channels, ARRAY_INPUTS)


def _reach(outputs: int, stride: int, kernel: int) -> int:
    """Input positions along one axis that one tile's share of `outputs` output positions reads.

    >>> _reach(outputs=16, stride=2, kernel=3)  # a share of 4 outputs reads positions 0 .. 8
    9
    """
    return (ceil_div(outputs, TILE_SIDE) - 1) * stride + kernel


def _output_tile(output: FeatureMap) -> int:
    """Bytes of one tile's share of the output."""
    tile_pixels = ceil_div(output.height, TILE_SIDE) * ceil_div(output.width, TILE_SIDE)
    return tile_pixels * ceil_to(output.channels, ARRAY_INPUTS)
