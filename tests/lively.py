"""YOLOv8n of the zoo as a detector whose boxes say something of its picture.

The zoo's file has random weights, and those of its last convolutions were all rounded to 0: it gives the same output for
every picture. And it gives boxes in pixels. One scale for boxes and scores then leaves scores no step between 0 and 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

import balancer
from balancer.tflite import flatbuffer
from balancer.tflite.flatbuffer import Table
from balancer.tflite.model import IDENTIFIER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from balancer.graph import Graph, Op

SIDE = 320
# Scale of the last convolutions' sums, by the cells of the grid: the coarser grids read tensors of few distinct values.
_STEPS = {1600: 1e-4, 400: 2e-3, 100: 2e-3}
_LOGIT = (0.05, 0)  # scale and zero point: from -6.4 to 6.35
_CELL = (80 / 255, -128)  # of boxes in cells; the finest grid is 40 wide
_FRACTION = (1.5 / 255, -128)  # of boxes and scores
_BIAS = {64: 0.0, 80: -3.0}  # by the channels of the last convolutions: of boxes, and of classes


def lively_yolo(data: bytes) -> bytes:
    """The zoo's file with other weights in its last convolutions and other scales behind them, so that boxes are fractions
    of the picture, as Ultralytics' `format=edgetpu` has them. Ops and shapes stay as they are.
    """
    root = flatbuffer.decode(data, root="Model", where="YOLOv8n")
    graph = balancer.load_graph(data)
    tensors, buffers = root["subgraphs"][0]["tensors"], root["buffers"]
    dice = np.random.Generator(np.random.PCG64(0))

    def quantise(t: int, scale: float, zero_point: int) -> None:
        count = len(graph.tensors[t].scales)
        numbers = {"scale": np.full(count, scale, np.float32), "zero_point": np.full(count, zero_point, np.int64)}
        tensors[t].fields["quantization"] = Table("QuantizationParameters", numbers)

    def fill(t: int, values: Any) -> None:
        buffers.append(Table("Buffer", {"data": np.frombuffer(values.tobytes(), np.uint8)}))
        tensors[t].fields["buffer"] = len(buffers) - 1

    for channels, bias in _BIAS.items():
        for op in _behind(graph, channels):
            quantise(op.outputs[0], *_LOGIT)
            if op.type == "CONV_2D":
                source, weights, biases = op.inputs
                step = _STEPS[math.prod((graph.tensors[source].shape or ())[1:3])]
                quantise(weights, step / graph.tensors[source].scales[0], 0)
                quantise(biases, step, 0)
                fill(weights, dice.integers(-127, 128, graph.tensors[weights].shape).astype(np.int8))
                fill(biases, np.full(channels, round(bias / step), np.int32))
    last = graph.ops[graph.producer[graph.outputs[0]]]
    joined = [graph.ops[graph.producer[t]] for t in last.inputs]
    for op in graph.ops:
        if graph.tensors[op.outputs[0]].scales == graph.tensors[last.outputs[0]].scales:
            quantise(op.outputs[0], *(_FRACTION if op in (last, *joined) else _CELL))
    _, strides = joined[0].inputs
    quantise(strides, graph.tensors[strides].scales[0] / SIDE, graph.tensors[strides].zero_points[0])
    return flatbuffer.encode(root, identifier=IDENTIFIER, size_hint=len(data))


def _behind(graph: Graph, channels: int) -> Iterator[Op]:
    """The ops from the last convolutions with so many channels to where their three grids are joined."""
    joined = (1, channels, sum(_STEPS))
    waiting = [op for op in graph.ops if op.type == "CONCATENATION" and graph.tensors[op.outputs[0]].shape == joined]
    while waiting:
        op = waiting.pop()
        yield op
        if op.type != "CONV_2D":
            waiting += [graph.ops[graph.producer[t]] for t in graph.activations[op.index]]
