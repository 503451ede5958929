"""Networks of any size for `scaling.py`, as int8 TFLite files with real shapes and zeros as weights.

The ops are those that converters write for such networks: normalisation, attention and GELU are made of several ops
each. The Edge TPU does not support BATCH_MATMUL, so that all ops that depend on one run on the CPU, unless a cut
separates them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.tflite import flatbuffer
from balancer.tflite.flatbuffer import Table
from balancer.tflite.model import IDENTIFIER
from balancer.tflite.schema import schema

if TYPE_CHECKING:
    from collections.abc import Sequence

Shape = tuple[int, ...]
_TINY_STAGES = ((3, 96, 56), (3, 192, 28), (9, 384, 14), (3, 768, 7))  # blocks, channels and side of ConvNeXt-Tiny


def transformer(blocks: int, channels: int = 384, *, tokens: int = 196, heads: int = 6) -> bytes:
    """Blocks of attention and a multilayer perceptron, each after a layer norm and with an addition around it."""
    net = _Network()
    at = net.input((1, tokens, channels))
    for _ in range(blocks):
        at = net.add(at, _attention(net, _norm(net, at), heads))
        wide = net.dense(_norm(net, at), 4 * channels)
        at = net.add(at, net.dense(_gelu(net, wide), channels))
    return net.file(at)


def convnext(stages: Sequence[tuple[int, int, int]] = _TINY_STAGES) -> bytes:
    """Stages of blocks: a depthwise 7x7 convolution, a norm, two 1x1 convolutions around a GELU, and an addition."""
    net = _Network()
    _, channels, side = stages[0]
    at = _norm(net, net.conv(net.input((1, 4 * side, 4 * side, 3)), channels, kernel=4, side=side))
    for blocks, channels, side in stages:
        if net.shape(at)[-1] != channels:
            at = net.conv(_norm(net, at), channels, kernel=2, side=side)
        for _ in range(blocks):
            wide = net.conv(_norm(net, net.depthwise(at, kernel=7)), 4 * channels)
            narrow = net.conv(_gelu(net, wide), channels)
            at = net.add(at, net.scaled("MUL", narrow, channels))
    return net.file(net.dense(_norm(net, net.mean(at, (1, channels))), 1000))


def chain(ops: int, *, channels: int = 32, side: int = 8) -> bytes:
    """3x3 convolutions one after the other."""
    net = _Network()
    at = net.input((1, side, side, channels))
    for _ in range(ops):
        at = net.conv(at, channels, kernel=3)
    return net.file(at)


def branches(count: int, *, channels: int = 8, side: int = 8) -> bytes:
    """One convolution, `count` convolutions that read its output, and a concatenation of their outputs."""
    net = _Network()
    stem = net.conv(net.input((1, side, side, channels)), channels, kernel=3)
    made = [net.conv(stem, channels) for _ in range(count)]
    return net.file(net.op("CONCATENATION", made, (1, side, side, channels * count)))


def _norm(net: _Network, x: int) -> int:
    """Layer norm, (x - mean) * gamma / deviation + beta. Converters subtract the mean last, as is done here."""
    channels, mean = net.shape(x)[-1], net.mean(x)
    variance = net.mean(net.op("SQUARED_DIFFERENCE", [x, mean], net.shape(x)))
    deviation = net.op("RSQRT", [net.scaled("ADD", variance, 1)], net.shape(variance))
    gain = net.scaled("MUL", deviation, channels)
    offset = net.op("SUB", [net.constant((channels,)), net.op("MUL", [mean, gain], net.shape(gain))], net.shape(gain))
    return net.add(net.op("MUL", [x, gain], net.shape(x)), offset)


def _gelu(net: _Network, x: int) -> int:
    """GELU by its approximation x * logistic(1.702 x)."""
    gate = net.op("LOGISTIC", [net.scaled("MUL", x, 1)], net.shape(x))
    return net.op("MUL", [x, gate], net.shape(x))


def _attention(net: _Network, x: int, heads: int) -> int:
    _, tokens, channels = net.shape(x)
    split, swapped = (1, tokens, heads, channels // heads), (1, heads, tokens, channels // heads)
    query, key, value = (
        net.op("TRANSPOSE", [net.op("RESHAPE", [net.dense(x, channels)], split)], swapped) for _ in range(3)
    )
    weights = net.op("BATCH_MATMUL", [net.scaled("MUL", query, 1), key], (1, heads, tokens, tokens))
    mixed = net.op("BATCH_MATMUL", [net.op("SOFTMAX", [weights], net.shape(weights)), value], swapped)
    joined = net.op("RESHAPE", [net.op("TRANSPOSE", [mixed], split)], (1, tokens, channels))
    return net.dense(joined, channels)


class _Network:
    """A model under construction. Each method that adds an op returns the number of the op's output tensor."""

    def __init__(self) -> None:
        self.tensors: list[Table] = []
        self.buffers: list[Table] = [Table("Buffer", {})]
        self.operators: list[Table] = []
        self.codes: dict[str, int] = {}

    def shape(self, t: int) -> Shape:
        return tuple(self.tensors[t]["shape"].tolist())

    def input(self, shape: Shape) -> int:
        return self._tensor(shape)

    def constant(self, shape: Shape) -> int:
        """An int8 constant."""
        self.buffers.append(Table("Buffer", {"data": np.zeros(math.prod(shape), np.uint8)}))
        return self._tensor(shape, buffer=len(self.buffers) - 1)

    def conv(self, x: int, channels: int, *, kernel: int = 1, side: int | None = None) -> int:
        """A convolution. side: of the output picture; None keeps that of the input."""
        before, after = self.shape(x)[1], side or self.shape(x)[1]
        weights = self.constant((channels, kernel, kernel, self.shape(x)[-1]))
        options = {"stride_w": before // after, "stride_h": before // after}
        return self.op("CONV_2D", [x, weights], (1, after, after, channels), Table("Conv2DOptions", options))

    def depthwise(self, x: int, *, kernel: int) -> int:
        weights = self.constant((1, kernel, kernel, self.shape(x)[-1]))
        options = Table("DepthwiseConv2DOptions", {"stride_w": 1, "stride_h": 1, "depth_multiplier": 1})
        return self.op("DEPTHWISE_CONV_2D", [x, weights], self.shape(x), options)

    def dense(self, x: int, channels: int) -> int:
        """A fully connected layer over the last axis."""
        *outer, inner = self.shape(x)
        return self.op("FULLY_CONNECTED", [x, self.constant((channels, inner))], (*outer, channels))

    def mean(self, x: int, shape: Shape | None = None) -> int:
        """The mean over the last axis. shape: of the result, where other axes are averaged, too."""
        return self.op("MEAN", [x], shape or (*self.shape(x)[:-1], 1))

    def scaled(self, kind: str, x: int, channels: int) -> int:
        """An element-wise op of this kind with a constant of `channels` numbers. A last axis of 1 is broadcast."""
        shape = (*self.shape(x)[:-1], max(self.shape(x)[-1], channels))
        return self.op(kind, [x, self.constant((channels,))], shape)

    def add(self, x: int, y: int) -> int:
        return self.op("ADD", [x, y], self.shape(x))

    def op(self, kind: str, inputs: Sequence[int], shape: Shape, options: Table | None = None) -> int:
        made = self._tensor(shape)
        fields: dict[str, Any] = {
            "opcode_index": self.codes.setdefault(kind, len(self.codes)),
            "inputs": np.array(inputs, np.int32), "outputs": np.array([made], np.int32),
        }  # fmt: skip
        if options is not None:
            number = schema().unions["BuiltinOptions"].index(options.type)
            fields |= {"builtin_options_type": number, "builtin_options": options}
        self.operators.append(Table("Operator", fields))
        return made

    def _tensor(self, shape: Shape, buffer: int = 0) -> int:
        scale = {"scale": np.array([0.05], np.float32), "zero_point": np.array([0], np.int64)}
        fields = {
            "name": f"t{len(self.tensors)}", "shape": np.array(shape, np.int32), "buffer": buffer,
            "type": schema().enums["TensorType"].index("INT8"), "quantization": Table("QuantizationParameters", scale),
        }  # fmt: skip
        self.tensors.append(Table("Tensor", fields))
        return len(self.tensors) - 1

    def file(self, output: int) -> bytes:
        """The model as a TFLite file. Its input is the first tensor. output: the number of its output tensor."""
        numbers = schema().enums["BuiltinOperator"]
        codes = [
            Table("OperatorCode", {"deprecated_builtin_code": min(n, 127), "builtin_code": n, "version": 2})
            for n in (numbers.index(kind) for kind in self.codes)
        ]
        ends: dict[str, Any] = {"inputs": np.array([0], np.int32), "outputs": np.array([output], np.int32)}
        main = Table("SubGraph", {"tensors": self.tensors, "operators": self.operators, "name": "main"} | ends)
        root = {"version": 3, "operator_codes": codes, "subgraphs": [main], "buffers": self.buffers}
        size = sum(len(b["data"]) for b in self.buffers[1:]) + 512 * len(self.tensors)
        return flatbuffer.encode(Table("Model", root), identifier=IDENTIFIER, size_hint=size)
