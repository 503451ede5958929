"""Small int8 models of one kind of op each, from which a machine's CPU is calibrated.

Each is a chain: every op reads the one before it, and some read the chain's input, too. Sizes are those that networks have,
narrow and wide, so that a fit can tell apart what goes with multiply-accumulates, with bytes and with rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.tflite.flatbuffer import Table
from balancer.tflite.synth import Writer

if TYPE_CHECKING:
    from collections.abc import Sequence

_SCALE, _WEIGHT_SCALE = 0.05, 0.004
_SAME, _VALID = 0, 1
_BILINEAR = "RESIZE_BILINEAR"


@dataclass(frozen=True, slots=True)
class Chain:
    """What is in a chain: its name, and how to write it. shape: of the chain's input. steps: the ops in their order."""

    name: str
    shape: tuple[int, ...]
    steps: tuple[Step, ...]

    def model(self) -> bytes:
        """The bytes of the .tflite file."""
        writer = _ChainWriter(self.name)
        first = at = writer.input(self.shape)
        for step in self.steps:
            at = step.add(writer, at, first)
        return writer.file(at)


@dataclass(frozen=True, slots=True)
class Step:
    """One op. kind: its type. size: filters, or the side of a window for pooling. window, stride: of convolutions. const: its
    second operand is a constant of one value for each channel.
    """

    kind: str
    size: int = 0
    window: int = 1
    stride: int = 1
    const: bool = False

    def add(self, writer: _ChainWriter, at: int, first: int) -> int:
        """Add the op behind the activation `at`; returns the activation that it makes."""
        if self.kind in {"CONV_2D", "DEPTHWISE_CONV_2D"}:
            return writer.window(self, at)
        if self.kind == "FULLY_CONNECTED":
            return writer.dense_op(self, at)
        if self.kind in {"ADD", "MUL"}:
            return writer.two_operands(self, at, first)
        if self.kind in {"MAX_POOL_2D", "AVERAGE_POOL_2D"}:
            return writer.pool(self, at)
        return writer.other(self, at)


class _ChainWriter(Writer):
    """Adds the ops of chains. All activations have one scale, but where a kernel wants another."""

    def shape(self, t: int) -> tuple[int, ...]:
        return tuple(int(n) for n in self.tensors[t]["shape"])

    def input(self, shape: tuple[int, ...]) -> int:
        return self.activation("input", shape, _SCALE, 0)

    def made(self, shape: Sequence[int], scale: float = _SCALE, zero: int = 0) -> int:
        return self.activation(f"made_{len(self.operators)}", tuple(shape), scale, zero)

    def ints(self, name: str, values: Any) -> int:
        array = np.array(values, np.int32)
        return self.tensor(f"{name}_{len(self.operators)}", array.shape, "INT32", buffer=self.buffer(array.reshape(-1)))

    def window(self, step: Step, at: int) -> int:
        _, height, width, depth = self.shape(at)
        sides = (-(-height // step.stride), -(-width // step.stride))
        strides = {"padding": _SAME, "stride_w": step.stride, "stride_h": step.stride}
        if step.kind == "CONV_2D":
            filters, kernel = step.size, (step.size, step.window, step.window, depth)
            options, per_channel = Table("Conv2DOptions", strides), [_WEIGHT_SCALE] * step.size
        else:
            filters, kernel = depth, (1, step.window, step.window, depth)
            # Depthwise weights would be quantised along their last axis: one scale for all keeps the table simple.
            options, per_channel = Table("DepthwiseConv2DOptions", strides | {"depth_multiplier": 1}), [_WEIGHT_SCALE]
        k = len(self.operators)
        weights = self.weights(f"weights_{k}", kernel, per_channel)
        bias = self.bias(f"bias_{k}", filters, [s * _SCALE for s in per_channel])
        made = self.made((1, *sides, filters))
        self.op(step.kind, 3, [at, weights, bias], made, options)
        return made

    def dense_op(self, step: Step, at: int) -> int:
        items, depth = self.shape(at)
        k = len(self.operators)
        weights = self.weights(f"weights_{k}", (step.size, depth), [_WEIGHT_SCALE])
        bias = self.bias(f"bias_{k}", step.size, [_WEIGHT_SCALE * _SCALE])
        made = self.made((items, step.size))
        self.op(step.kind, 4, [at, weights, bias], made, Table("FullyConnectedOptions", {}))
        return made

    def two_operands(self, step: Step, at: int, first: int) -> int:
        shape, other = self.shape(at), first
        if step.const:
            other = self.weights(f"operand_{len(self.operators)}", (shape[-1],), [_SCALE])
        made = self.made(shape)
        self.op(step.kind, 2, [at, other], made, Table("AddOptions" if step.kind == "ADD" else "MulOptions", {}))
        return made

    def pool(self, step: Step, at: int) -> int:
        batch, height, width, depth = self.shape(at)
        made = self.made((batch, -(-height // step.stride), -(-width // step.stride), depth))
        sides = {"filter_width": step.window, "filter_height": step.window}
        strides = {"padding": _SAME, "stride_w": step.stride, "stride_h": step.stride}
        self.op(step.kind, 2, [at], made, Table("Pool2DOptions", strides | sides))
        return made

    def other(self, step: Step, at: int) -> int:
        """Ops that need neither weights nor a window."""
        shape = self.shape(at)
        if step.kind == "LOGISTIC":
            made = self.made(shape, 1 / 256, -128)
            self.op("LOGISTIC", 2, [at], made, None)
        elif step.kind == "SOFTMAX":
            made = self.made(shape, 1 / 256, -128)
            self.op("SOFTMAX", 2, [at], made, Table("SoftmaxOptions", {"beta": 1.0}))
        elif step.kind == "RELU":
            made = self.made(shape)
            self.op("RELU", 2, [at], made, None)
        elif step.kind == "MEAN":
            axes = self.ints("axes", [1, 2])
            made = self.made((shape[0], 1, 1, shape[3]))
            self.op("MEAN", 2, [at, axes], made, Table("ReducerOptions", {"keep_dims": 1}))
        elif step.kind == "PAD":
            paddings = self.ints("paddings", [[0, 0], [1, 1], [1, 1], [0, 0]])
            made = self.made((shape[0], shape[1] + 2, shape[2] + 2, shape[3]))
            self.op("PAD", 2, [at, paddings], made, Table("PadOptions", {}))
        elif step.kind == "CONCATENATION":
            made = self.made((*shape[:-1], 2 * shape[-1]))
            self.op("CONCATENATION", 2, [at, at], made, Table("ConcatenationOptions", {"axis": 3}))
        elif step.kind == "STRIDED_SLICE":
            bounds = [
                self.ints("begin", [0] * 4),
                self.ints("end", [*shape[:-1], shape[-1] // 2]),
                self.ints("by", [1] * 4),
            ]
            made = self.made((*shape[:-1], shape[-1] // 2))
            self.op("STRIDED_SLICE", 2, [at, *bounds], made, Table("StridedSliceOptions", {}))
        else:
            return self.resized(step, at)
        return made

    def resized(self, step: Step, at: int) -> int:
        batch, height, width, depth = self.shape(at)
        size = self.ints("size", [2 * height, 2 * width])
        made = self.made((batch, 2 * height, 2 * width, depth))
        options = "ResizeBilinearOptions" if step.kind == _BILINEAR else "ResizeNearestNeighborOptions"
        self.op(step.kind, 3, [at, size], made, Table(options, {"half_pixel_centers": 1}))
        return made


def _chain(label: str, side: int, channels: int, *steps: Step) -> Chain:
    return Chain(f"{label} {side}x{side}x{channels}", (1, side, side, channels), steps)


def _convolutions() -> list[Chain]:
    def conv(side: int, channels: int, *filters: int, window: int = 1, stride: int = 1) -> Chain:
        steps = tuple(Step("CONV_2D", f, window, stride) for f in filters)
        return _chain(f"CONV_2D {window}x{window} {'-'.join(map(str, filters))}", side, channels, *steps)

    return [
        conv(56, 16, 96, 16), conv(56, 24, 144), conv(28, 64, 64, 64, 64), conv(28, 128, 256), conv(14, 256, 512),
        conv(7, 512, 512, 512), conv(14, 96, 576, 96), conv(28, 12, 12, 12, 12, 12), conv(56, 44, 22), conv(28, 32, 192, 32),
        conv(1, 480, 20, 480, 20, 480), conv(14, 80, 40, 80), conv(7, 160, 960),
        conv(56, 16, 16, 16, window=3), conv(28, 32, 32, 32, window=3), conv(28, 64, 64, window=3),
        conv(14, 128, 128, window=3), conv(7, 256, 256, window=3), conv(14, 48, 96, window=3),
        conv(112, 3, 32, window=3, stride=2), conv(64, 3, 16, window=3), conv(28, 24, 48, window=5),
        conv(56, 3, 32, window=7, stride=2), conv(7, 1024, 1024, 1024, 1024), conv(4, 512, 512, 512, window=3),
    ]  # fmt: skip


def _depthwise() -> list[Chain]:
    def depthwise(side: int, channels: int, window: int, count: int = 2, stride: int = 1) -> Chain:
        step = Step("DEPTHWISE_CONV_2D", window=window, stride=stride)
        return _chain(f"DEPTHWISE_CONV_2D {window}x{window}", side, channels, *[step] * count)

    return [
        depthwise(56, 32, 3), depthwise(28, 96, 3), depthwise(14, 384, 3), depthwise(7, 576, 3, 3), depthwise(28, 44, 3),
        depthwise(56, 11, 3), depthwise(14, 88, 3, 3), depthwise(56, 144, 3, 1, 2), depthwise(28, 96, 5), depthwise(14, 240, 5),
        depthwise(14, 88, 5), depthwise(7, 672, 5), depthwise(28, 44, 5), depthwise(7, 32, 7, 1),
        depthwise(7, 88, 7, 1), depthwise(14, 16, 7, 1), depthwise(5, 64, 9, 1),
    ]  # fmt: skip


def _dense() -> list[Chain]:
    def dense(items: int, depth: int, *sizes: int) -> Chain:
        name = f"FULLY_CONNECTED {items}x{depth}-{'-'.join(map(str, sizes))}"
        return Chain(name, (items, depth), tuple(Step("FULLY_CONNECTED", size) for size in sizes))

    return [dense(1, 256, 256, 256, 256), dense(1, 1024, 1024, 1024), dense(1, 1280, 1000), dense(1, 64, 512, 64, 512, 64),
            dense(49, 256, 256, 256), dense(1, 2048, 512), dense(1, 2048, 2048, 2048)]  # fmt: skip


def _moving() -> list[Chain]:
    """Ops that mostly read and write."""
    add, mul, by_channel = Step("ADD"), Step("MUL"), Step("MUL", const=True)
    logistic, relu, mean = Step("LOGISTIC"), Step("RELU"), Step("MEAN")
    three, two, five = (Step("MAX_POOL_2D", window=w, stride=s) for w, s in ((3, 1), (2, 2), (5, 1)))
    pads = [_chain("PAD", side, channels, Step("PAD")) for side, channels in ((28, 64), (56, 16), (14, 256), (112, 3))]
    blocks = [
        _chain(kind, side, channels, Step(kind))
        for kind in ("CONCATENATION", "STRIDED_SLICE") for side, channels in ((28, 64), (56, 24), (14, 256))
    ]  # fmt: skip
    resizes = [_chain(kind, 14, 64, Step(kind)) for kind in (_BILINEAR, "RESIZE_NEAREST_NEIGHBOR")]
    resizes += [_chain(kind, 28, 32, Step(kind)) for kind in (_BILINEAR, "RESIZE_NEAREST_NEIGHBOR")]
    return [
        _chain("ADD", 28, 64, *[add] * 4), _chain("ADD", 56, 96, add), _chain("ADD", 7, 256, *[add] * 8),
        _chain("MUL", 14, 96, *[mul] * 4), _chain("MUL", 28, 192, mul, mul), _chain("ADD", 2, 8, *[add] * 24),
        _chain("LOGISTIC", 28, 64, logistic), _chain("LOGISTIC", 56, 96, logistic), _chain("LOGISTIC", 14, 384, logistic),
        _chain("MUL by channel", 28, 44, by_channel, by_channel), _chain("MUL by channel", 56, 64, by_channel),
        _chain("MUL by channel", 14, 480, *[by_channel] * 3), _chain("MUL by channel", 28, 160, by_channel, by_channel),
        _chain("RELU", 14, 64, relu, relu), _chain("RELU", 28, 64, relu), _chain("RELU", 7, 256, relu, relu),
        Chain("SOFTMAX 1000", (1, 1000), (Step("SOFTMAX"),)), Chain("SOFTMAX 256x16", (256, 16), (Step("SOFTMAX"),)),
        _chain("MAX_POOL_2D 3x3", 28, 64, three, three), _chain("MAX_POOL_2D 2x2", 56, 32, two),
        _chain("MAX_POOL_2D 5x5", 14, 128, five, five), _chain("MAX_POOL_2D 3x3", 56, 12, three),
        _chain("AVERAGE_POOL_2D 3x3", 28, 32, Step("AVERAGE_POOL_2D", window=3)),
        _chain("AVERAGE_POOL_2D 2x2", 28, 64, Step("AVERAGE_POOL_2D", window=2, stride=2)),
        _chain("AVERAGE_POOL_2D 3x3", 14, 88, Step("AVERAGE_POOL_2D", window=3)),
        _chain("AVERAGE_POOL_2D 3x3", 7, 176, Step("AVERAGE_POOL_2D", window=3)),
        _chain("MEAN", 7, 1024, mean), _chain("MEAN", 28, 96, mean), _chain("MEAN", 56, 32, mean),
        *pads, *blocks, *resizes,
    ]  # fmt: skip


def calibration_chains() -> tuple[Chain, ...]:
    """The chains that a CPU is calibrated with. All take about a tenth of a second together on a current core."""
    return (*_convolutions(), *_depthwise(), *_dense(), *_moving())
