"""The layers of convolutional networks as TensorFlow's converter writes them, full-integer and with one scale for each
output channel of a kernel.

Weights are pseudo-random and the same on every machine; their scales keep the spread of activations at every depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from network import ACTIVATION, Network, Scale, Shape

from balancer.tflite.flatbuffer import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# A prime number of weights, so that the channels of a kernel differ.
_BLOCK = np.random.Generator(np.random.PCG64(1)).integers(-127, 128, 1021).astype(np.int8)
_WEIGHT_DEVIATION = 255 / math.sqrt(12)  # of integers that are uniform in -127 to 127
_VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "RESHAPE": 1, "FULLY_CONNECTED": 4}
_LATEST = 2  # of all other ops with int8 kernels
_PADDINGS = ("SAME", "VALID")  # by their numbers in the file
_ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6")


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution or a pool moves. size, stride: in both directions. padding: "SAME" or "VALID"."""

    size: int = 1
    stride: int = 1
    activation: str = "NONE"
    padding: str = "SAME"

    @property
    def fields(self) -> dict[str, int]:
        """The options that convolutions and pools share."""
        return {
            "padding": _PADDINGS.index(self.padding), "stride_w": self.stride, "stride_h": self.stride,
            "fused_activation_function": _ACTIVATIONS.index(self.activation),
        }  # fmt: skip


ONE = Window()


class Converted(Network):
    """Pictures have the shape (1, height, width, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self._integers: dict[tuple[str, Shape, bytes], int] = {}

    def integers(self, values: object, dtype: str = "int32") -> int:
        """An integer constant, as ops take for shapes and axes. Equal ones are one tensor."""
        array = np.array(values, dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._integers:
            self._integers[key] = self.parameter(array, None)
        return self._integers[key]

    def small(self, shape: Shape) -> int:
        """A constant operand of an element-wise op."""
        return self.parameter(np.resize(_BLOCK, shape), ACTIVATION)

    def conv2d_parameters(self, kernel: int, inner: int, channels: int) -> tuple[int, int]:
        """Kernel and bias. inner: channels of the input."""
        return self._parameters((channels, kernel, kernel, inner), fan_in=kernel * kernel * inner)

    def depthwise_parameters(self, kernel: int, channels: int) -> tuple[int, int]:
        """Kernel and bias."""
        return self._parameters((1, kernel, kernel, channels), fan_in=kernel * kernel, axis=3)

    def conv2d(self, x: int, channels: int, window: Window = ONE, parameters: Sequence[int] | None = None) -> int:
        """A convolution. parameters: kernel and bias, if others share them."""
        reads = [x, *(parameters or self.conv2d_parameters(window.size, self.shape(x)[-1], channels))]
        fields = window.fields | {"dilation_w_factor": 1, "dilation_h_factor": 1}
        return self._written("CONV_2D", reads, self._windowed(x, window, channels), Table("Conv2DOptions", fields))

    def depthwise_conv2d(self, x: int, window: Window, parameters: Sequence[int] | None = None) -> int:
        """A depthwise convolution. parameters: kernel and bias, if others share them."""
        channels = self.shape(x)[-1]
        reads = [x, *(parameters or self.depthwise_parameters(window.size, channels))]
        fields = window.fields | {"depth_multiplier": 1, "dilation_w_factor": 1, "dilation_h_factor": 1}
        options = Table("DepthwiseConv2DOptions", fields)
        return self._written("DEPTHWISE_CONV_2D", reads, self._windowed(x, window, channels), options)

    def dense_layer(self, x: int, channels: int) -> int:
        """A fully connected layer with a bias, (1, inputs) to (1, channels)."""
        inner = self.shape(x)[-1]
        reads = [x, *self._parameters((channels, inner), fan_in=inner)]
        fields = {"fused_activation_function": 0, "weights_format": 0, "keep_num_dims": 0}
        return self._written("FULLY_CONNECTED", reads, (1, channels), Table("FullyConnectedOptions", fields))

    def averaged(self, x: int) -> int:
        """The mean over a picture, as (1, channels)."""
        reads = [x, self.integers([1, 2])]
        return self._written("MEAN", reads, (1, self.shape(x)[-1]), Table("ReducerOptions", {"keep_dims": 0}))

    def average_pool(self, x: int) -> int:
        """The mean over a picture, as a pool of its size, with the stride of 2 that TF-Slim writes."""
        _, rows, columns, channels = self.shape(x)
        fields = Window(stride=2, padding="VALID").fields | {"filter_width": columns, "filter_height": rows}
        return self._written("AVERAGE_POOL_2D", [x], (1, 1, 1, channels), Table("Pool2DOptions", fields))

    def max_pool(self, x: int, size: int, stride: int = 1) -> int:
        window = Window(size, stride)
        fields = window.fields | {"filter_width": size, "filter_height": size}
        shape = self._windowed(x, window, self.shape(x)[-1])
        return self._written("MAX_POOL_2D", [x], shape, Table("Pool2DOptions", fields))

    def pad(self, x: int, width: int) -> int:
        """Zeros around a picture. width: on each of the four sides."""
        _, rows, columns, channels = self.shape(x)
        reads = [x, self.integers([[0, 0], [width, width], [width, width], [0, 0]])]
        return self._written(
            "PAD", reads, (1, rows + 2 * width, columns + 2 * width, channels), Table("PadOptions", {})
        )

    def resized(self, x: int, rows: int, columns: int, *, half_pixels: bool) -> int:
        """The nearest pixels. half_pixels: distances are taken between the centres of pixels."""
        options = Table("ResizeNearestNeighborOptions", {"align_corners": 0, "half_pixel_centers": int(half_pixels)})
        shape = (1, rows, columns, self.shape(x)[-1])
        version = 3 if half_pixels else 2
        return self.op("RESIZE_NEAREST_NEIGHBOR", [x, self.integers([rows, columns])], shape, options, version)

    def concatenated(self, parts: Sequence[int], axis: int = 3) -> int:
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(p)[axis] for p in parts)
        options = Table("ConcatenationOptions", {"axis": axis, "fused_activation_function": 0})
        return self._written("CONCATENATION", parts, tuple(shape), options)

    def every_second(self, x: int, row: int, column: int) -> int:
        """Every second pixel in both directions, from this row and column on."""
        _, rows, columns, channels = self.shape(x)
        shape = (1, -(-(rows - row) // 2), -(-(columns - column) // 2), channels)
        ends = [0, row, column, 0], [0, 0, 0, 0], [1, 2, 2, 1]
        return self._sliced(x, ends, shape, begin_mask=9, end_mask=15)

    def sliced(self, x: int, axis: int, begin: int, end: int) -> int:
        """The part from `begin` to `end` of one axis, and all of the others."""
        before = self.shape(x)
        shape = tuple(end - begin if k == axis else d for k, d in enumerate(before))
        others = sum(1 << k for k in range(len(before)) if k != axis)
        ends = [[value if k == axis else 0 for k in range(len(before))] for value in (begin, end)]
        begin_mask = others if begin else (1 << len(before)) - 1
        return self._sliced(x, [*ends, [1] * len(before)], shape, begin_mask=begin_mask, end_mask=others)

    def reshaped(self, x: int, shape: Shape) -> int:
        return self._written("RESHAPE", [x, self.integers(shape)], shape, Table("ReshapeOptions", {}))

    def transposed(self, x: int, order: Sequence[int]) -> int:
        shape = tuple(self.shape(x)[k] for k in order)
        return self._written("TRANSPOSE", [x, self.integers(order)], shape, Table("TransposeOptions", {}))

    def combined(self, kind: str, x: int, y: int, activation: str = "NONE") -> int:
        """ADD, SUB or MUL, element by element; one operand may be broadcast."""
        fields = {"fused_activation_function": _ACTIVATIONS.index(activation)}
        shape = tuple(np.broadcast_shapes(self.shape(x), self.shape(y)))
        return self._written(kind, [x, y], shape, Table(f"{kind.capitalize()}Options", fields))

    def logistic(self, x: int) -> int:
        return self._written("LOGISTIC", [x], self.shape(x))

    def softmax(self, x: int) -> int:
        return self._written("SOFTMAX", [x], self.shape(x), Table("SoftmaxOptions", {"beta": 1.0}))

    def silu(self, x: int) -> int:
        return self.combined("MUL", x, self.logistic(x))

    def requantised(self, x: int, scale: Scale = ACTIVATION, dtype: str = "INT8") -> int:
        made = self.tensor(self.shape(x), dtype=dtype, scale=scale)
        self.operator("QUANTIZE", [x], [made], Table("QuantizeOptions", {}), version=1)
        return made

    def _sliced(self, x: int, ends: Sequence[object], shape: Shape, *, begin_mask: int, end_mask: int) -> int:
        """ends: begin, end and step of each axis."""
        fields = {"begin_mask": begin_mask, "end_mask": end_mask, "ellipsis_mask": 0, "new_axis_mask": 0}
        reads = [x, *map(self.integers, ends)]
        options = Table("StridedSliceOptions", fields | {"shrink_axis_mask": 0, "offset": 0})
        return self._written("STRIDED_SLICE", reads, shape, options)

    def _written(self, kind: str, inputs: Sequence[int], shape: Shape, options: Table | None = None) -> int:
        return self.op(kind, inputs, shape, options, _VERSIONS.get(kind, _LATEST))

    def _parameters(self, shape: Shape, *, fan_in: int, axis: int = 0) -> tuple[int, int]:
        """Kernel and bias. fan_in: products that make one output. axis: of the output channels."""
        step = math.sqrt(2 / fan_in) / _WEIGHT_DEVIATION
        values: NDArray[np.int8] = np.resize(np.roll(_BLOCK, len(self.tensors)), shape)
        kernel = self.parameter(values, Scale(step), axis=axis)
        bias = np.resize(np.roll(_BLOCK, len(self.tensors)), shape[axis]).astype(np.int32)
        return kernel, self.parameter(bias, Scale(ACTIVATION.step * step), axis=0)

    def _windowed(self, x: int, window: Window, channels: int) -> Shape:
        _, rows, columns, _ = self.shape(x)
        less = 0 if window.padding == "SAME" else window.size - 1
        return (1, -(-(rows - less) // window.stride), -(-(columns - less) // window.stride), channels)
