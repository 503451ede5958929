"""Networks of any size for `scaling.py`, as int8 TFLite files with real shapes and zeros as weights.

The ops are those that converters write for such networks: normalisation, attention and GELU are made of several ops
each. The Edge TPU does not support BATCH_MATMUL, so that all ops that depend on one run on the CPU, unless a cut
separates them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from network import Network

if TYPE_CHECKING:
    from collections.abc import Sequence

_TINY_STAGES = ((3, 96, 56), (3, 192, 28), (9, 384, 14), (3, 768, 7))  # blocks, channels and side of ConvNeXt-Tiny


def transformer(blocks: int, channels: int = 384, *, tokens: int = 196, heads: int = 6) -> bytes:
    """Blocks of attention and a multilayer perceptron, each after a layer norm and with an addition around it."""
    net = Network()
    at = net.input((1, tokens, channels))
    for _ in range(blocks):
        at = net.add(at, _attention(net, _norm(net, at), heads))
        wide = net.dense(_norm(net, at), 4 * channels)
        at = net.add(at, net.dense(_gelu(net, wide), channels))
    return net.file(at)


def convnext(stages: Sequence[tuple[int, int, int]] = _TINY_STAGES) -> bytes:
    """Stages of blocks: a depthwise 7x7 convolution, a norm, two 1x1 convolutions around a GELU, and an addition."""
    net = Network()
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
    net = Network()
    at = net.input((1, side, side, channels))
    for _ in range(ops):
        at = net.conv(at, channels, kernel=3)
    return net.file(at)


def branches(count: int, *, channels: int = 8, side: int = 8) -> bytes:
    """One convolution, `count` convolutions that read its output, and a concatenation of their outputs."""
    net = Network()
    stem = net.conv(net.input((1, side, side, channels)), channels, kernel=3)
    made = [net.conv(stem, channels) for _ in range(count)]
    return net.file(net.op("CONCATENATION", made, (1, side, side, channels * count)))


def _norm(net: Network, x: int) -> int:
    """Layer norm, (x - mean) * gamma / deviation + beta. Converters subtract the mean last, as is done here."""
    channels, mean = net.shape(x)[-1], net.mean(x)
    variance = net.mean(net.op("SQUARED_DIFFERENCE", [x, mean], net.shape(x)))
    deviation = net.op("RSQRT", [net.scaled("ADD", variance, 1)], net.shape(variance))
    gain = net.scaled("MUL", deviation, channels)
    offset = net.op("SUB", [net.constant((channels,)), net.op("MUL", [mean, gain], net.shape(gain))], net.shape(gain))
    return net.add(net.op("MUL", [x, gain], net.shape(x)), offset)


def _gelu(net: Network, x: int) -> int:
    """GELU by its approximation x * logistic(1.702 x)."""
    gate = net.op("LOGISTIC", [net.scaled("MUL", x, 1)], net.shape(x))
    return net.op("MUL", [x, gate], net.shape(x))


def _attention(net: Network, x: int, heads: int) -> int:
    _, tokens, channels = net.shape(x)
    split, swapped = (1, tokens, heads, channels // heads), (1, heads, tokens, channels // heads)
    query, key, value = (
        net.op("TRANSPOSE", [net.op("RESHAPE", [net.dense(x, channels)], split)], swapped) for _ in range(3)
    )
    weights = net.op("BATCH_MATMUL", [net.scaled("MUL", query, 1), key], (1, heads, tokens, tokens))
    mixed = net.op("BATCH_MATMUL", [net.op("SOFTMAX", [weights], net.shape(weights)), value], swapped)
    joined = net.op("RESHAPE", [net.op("TRANSPOSE", [mixed], split)], (1, tokens, channels))
    return net.dense(joined, channels)
