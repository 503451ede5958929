"""The few shapes of an op that its costs depend on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balancer.graph import Graph, Op, Tensor

# The array is 64 output channels wide and takes 4 input channels a step; pictures are dealt out to 4 x 4 tiles.
ARRAY_OUTPUTS, ARRAY_INPUTS, TILE_SIDE = 64, 4, 4

_KIND = {
    "CONV_2D": "conv",
    "TRANSPOSE_CONV": "conv",
    "DEPTHWISE_CONV_2D": "depthwise",
    "MAX_POOL_2D": "pool",
    "AVERAGE_POOL_2D": "pool",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """Height, width and channels of a tensor; other than pictures have one row."""

    height: int
    width: int
    channels: int

    @property
    def pixels(self) -> int:
        return self.height * self.width


@dataclass(frozen=True, slots=True)
class Window:
    """What slides over a picture, and the pictures before and behind it. kind: "conv" (transposed ones too),
    "depthwise" or
    "pool"."""

    kind: str
    source: Picture
    made: Picture
    height: int
    width: int
    stride: int

    @property
    def taps(self) -> int:
        return self.height * self.width


def picture(tensor: Tensor) -> Picture:
    shape = tensor.shape or ()
    if len(shape) >= 4:
        return Picture(shape[-3], shape[-2], shape[-1])
    if len(shape) == 3:
        return Picture(1, shape[-2], shape[-1])
    return Picture(1, 1, math.prod(shape))


def window(graph: Graph, op: Op) -> Window | None:
    """The op's sliding window, or None for an op that has none (or malformed shapes)."""
    kind = _KIND.get(op.type)
    source = operand(graph, op, 2 if op.type == "TRANSPOSE_CONV" else 0)
    if kind is None or source is None or not op.outputs:
        return None
    before, made = picture(source), picture(graph.tensors[op.outputs[0]])
    stride = max(int(op.options.get("stride_h", 1)), int(op.options.get("stride_w", 1)))
    if kind == "pool":
        height, width = int(op.options.get("filter_height", 1)), int(op.options.get("filter_width", 1))
        return Window(kind, before, made, height, width, stride)
    weights = operand(graph, op, 1)
    if weights is None or weights.shape is None or len(weights.shape) != 4:
        return None
    return Window(kind, before, made, weights.shape[1], weights.shape[2], stride)


def operand(graph: Graph, op: Op, k: int) -> Tensor | None:
    """The op's k-th input, None where it has none."""
    return graph.tensors[op.inputs[k]] if k < len(op.inputs) and op.inputs[k] >= 0 else None
