"""Converts an ONNX network of random weights to int8, in an environment that has onnx2tf.

    python with_onnx2tf.py onnx small PIXELS OUT

The network is written with the onnx package, so that PyTorch is not needed. The full-integer file is taken, which onnx2tf
names `_full_integer_quant`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx2tf
from onnx import TensorProto, helper, numpy_helper

_SEED = 7
_SAMPLES = 2
_OPSET = 17
# onnx2tf tries its float network on this file, which it fetches from the network unless it is there.
_PICTURES = "calibration_image_sample_data_20x128x128x3_float32.npy"


class _Network:
    """Nodes and weights, as they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._draw = np.random.default_rng(_SEED)

    def add(
        self, kind: str, inputs: list[str], shapes: dict[str, tuple[int, ...]] | None = None, **settings: object
    ) -> str:
        """A node; returns the name of its output. shapes: of the weights that it reads behind its inputs."""
        made = f"{kind}_{len(self.nodes)}"
        for name, shape in (shapes or {}).items():
            values = self._draw.normal(0, 0.3, shape).astype(np.float32)
            self.weights.append(numpy_helper.from_array(values, f"{made}/{name}"))
        self.nodes.append(
            helper.make_node(kind, [*inputs, *(f"{made}/{n}" for n in shapes or {})], [made], made, **settings)
        )
        return made

    def conv(self, source: str, channels: tuple[int, int], kernel: int, *, stride: int = 1, group: int = 1) -> str:
        """channels: in and out."""
        before, after = channels
        shapes = {"weight": (after, before // group, kernel, kernel), "bias": (after,)}
        edge = kernel // 2
        settings = {"kernel_shape": [kernel] * 2, "pads": [edge] * 4, "strides": [stride] * 2, "group": group}
        return self.add("Conv", [source], shapes, **settings)


def small(pixels: int) -> onnx.ModelProto:
    """A few kinds of ops: convolutions, an addition, a sigmoid, a concatenation, a mean, a dense layer."""
    net = _Network()
    stem = net.add("Relu", [net.conv("image", (3, 16), 3, stride=2)])
    deep = net.add("Relu", [net.conv(stem, (16, 16), 3, group=16)])
    added = net.add("Add", [stem, net.conv(deep, (16, 16), 1)])
    joined = net.add("Concat", [added, net.add("Sigmoid", [net.conv(added, (16, 8), 3)])], axis=1)
    mean = net.add("Flatten", [net.add("GlobalAveragePool", [joined])])
    scores = net.add("Gemm", [mean], {"weight": (24, 10), "bias": (10,)})
    graph = helper.make_graph(
        net.nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, pixels, pixels))],
        [helper.make_tensor_value_info(scores, TensorProto.FLOAT, (1, 10))],
        net.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)


def main() -> None:
    name, pixels, out = sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    assert name == "small"
    onnx.save(small(pixels), "net.onnx")
    draw = np.random.default_rng(_SEED)
    np.save(_PICTURES, draw.random((20, 128, 128, 3), np.float32))
    np.save("images.npy", draw.random((_SAMPLES, pixels, pixels, 3), np.float32))  # NHWC, as onnx2tf wants
    onnx2tf.convert(
        input_onnx_file_path="net.onnx",
        output_folder_path="made",
        output_integer_quantized_tflite=True,
        custom_input_op_name_np_data_path=[["image", "images.npy", [[[[0.0] * 3]]], [[[[1.0] * 3]]]]],
        verbosity="error",
    )
    shutil.copy(next(Path("made").glob("*_full_integer_quant.tflite")), out)


if __name__ == "__main__":
    main()
