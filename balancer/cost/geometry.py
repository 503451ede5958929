"""The shapes of an op that its cost depends on: its feature maps, and the window that slides over them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from balancer.graph import Graph, Op, Tensor

WindowKind = Literal["conv", "depthwise", "pool"]

# The array computes 64 output channels at once and takes 4 input channels a step; feature maps are split over 4 x 4 tiles.
ARRAY_OUTPUTS, ARRAY_INPUTS, TILE_SIDE = 64, 4, 4

_KIND: dict[str, WindowKind] = {
    "CONV_2D": "conv",
    "TRANSPOSE_CONV": "conv",
    "DEPTHWISE_CONV_2D": "depthwise",
    "MAX_POOL_2D": "pool",
    "AVERAGE_POOL_2D": "pool",
}


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """Height, width and channels of an activation. An activation without two spatial axes has height 1."""

    height: int
    width: int
    channels: int

    @property
    def pixels(self) -> int:
        return self.height * self.width


@dataclass(frozen=True, slots=True)
class Window:
    """What slides over a feature map: a kernel or a pooling window of height x width.

    kind: "conv" includes transposed convolutions. source, output: the feature maps that the op reads and writes. stride:
    the larger of both directions.
    """

    kind: WindowKind
    source: FeatureMap
    output: FeatureMap
    height: int
    width: int
    stride: int

    @property
    def taps(self) -> int:
        return self.height * self.width


def feature_map(tensor: Tensor) -> FeatureMap:
    """The tensor's last three axes as height, width and channels. Without two spatial axes, height and width are 1.

    A tensor of three axes is a row (batch, width, channels); of fewer axes, all values are channels.

    >>> from balancer.graph import Tensor
    >>> feature_map(Tensor(0, "picture", (1, 8, 6, 3), "int8", 144))
    FeatureMap(height=8, width=6, channels=3)
    >>> feature_map(Tensor(0, "sequence", (1, 28, 10), "int8", 280))
    FeatureMap(height=1, width=28, channels=10)
    >>> feature_map(Tensor(0, "scores", (1, 1000), "int8", 1000))
    FeatureMap(height=1, width=1, channels=1000)
    """
    shape = tensor.shape or ()
    if len(shape) >= 4:
        return FeatureMap(shape[-3], shape[-2], shape[-1])
    if len(shape) == 3:
        return FeatureMap(1, shape[-2], shape[-1])
    return FeatureMap(1, 1, math.prod(shape))


def sliding_window(graph: Graph, op: Op) -> Window | None:
    """The op's window, or None for an op that has none or whose weights have an unexpected shape."""
    kind = _KIND.get(op.type)
    source = operand(graph, op, 2 if op.type == "TRANSPOSE_CONV" else 0)
    if kind is None or source is None or not op.outputs:
        return None
    before, after = feature_map(source), feature_map(graph.tensors[op.outputs[0]])
    stride = max(int(op.options.get("stride_h", 1)), int(op.options.get("stride_w", 1)))
    if kind == "pool":
        height, width = int(op.options.get("filter_height", 1)), int(op.options.get("filter_width", 1))
        return Window(kind, before, after, height, width, stride)
    weights = operand(graph, op, 1)
    if weights is None or weights.shape is None or len(weights.shape) != 4:
        return None
    return Window(kind, before, after, weights.shape[1], weights.shape[2], stride)


def operand(graph: Graph, op: Op, k: int) -> Tensor | None:
    """The op's k-th input, None where the op has fewer inputs or leaves out an optional one."""
    return graph.tensors[op.inputs[k]] if k < len(op.inputs) and op.inputs[k] >= 0 else None
