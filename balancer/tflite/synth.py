"""Synthetic models as in the published measurements, written as TFLite files without TensorFlow.

fc:    dense layers: inputs -> width, then width -> width (layers - 2 times), then width -> outputs. TANH follows every
       layer but the last. Each weight tensor has one scale.
conv:  `layers` 3x3 convolutions with 'same' padding, `width` filters and ReLU, on a square picture. Each filter has its
       own scale.

Both take float32, which op 0 quantises, and have biases of zero, like freshly initialised Keras models: these are the
models that were measured. Weights are pseudo-random and the same on every machine. Scales are chosen so that the
variance of activations stays the same at every depth. Source of the architectures: arXiv 2503.01025.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.tflite import flatbuffer
from balancer.tflite.flatbuffer import Table
from balancer.tflite.model import IDENTIFIER
from balancer.tflite.schema import schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

OUTPUT_TYPES = ("float32", "int8")
MOST_WEIGHT_BYTES = 1 << 30
# *_SQUARE is the mean square of a value; *_SCALE is the width of one quantisation step.
_WEIGHT_VARIANCE = 127**2 / 3  # of integers uniform in -127 to 127
_INPUT_SCALE = 2 / 255  # inputs from -1 to 1
_INPUT_SQUARE = 1 / 3  # of inputs uniform in that range
_DENSE_SCALE = 8 / 255  # values of unit variance, clipped at four standard deviations
_TANH_SCALE = 1 / 128  # TFLite's kernel takes no other
_TANH_SQUARE = 0.394  # of the tanh of a standard normal variable
_RELU_SCALE = 4 / 255  # values of unit variance without the negative ones, clipped likewise
_RELU_SQUARE = 0.5  # of the positive half of a standard normal variable
_RELU = 1


def fc(width: int, *, layers: int = 5, inputs: int = 64, outputs: int = 10, output_type: str = "float32") -> bytes:
    """A model of the dense family.

    width, inputs, outputs: sizes of layers. layers: how many, at least 2. output_type: "float32", or "int8" to leave out
    the final DEQUANTIZE. Raises ValueError for impossible sizes, and for a model of more than 1 GiB.
    """
    check_fc(width, layers=layers, inputs=inputs, outputs=outputs)
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"fc needs an output type of {OUTPUT_TYPES}")
    writer = Writer(f"fc {width} {layers} {inputs} {outputs}")
    at, square, depth = writer.quantised_input((1, inputs)), _INPUT_SQUARE, inputs
    for layer in range(layers):
        last = layer == layers - 1
        size = outputs if last else width
        at = writer.dense(at, depth, size, square)
        if not last:
            at, square, depth = writer.tanh(at, size), _TANH_SQUARE, size
    if output_type == "float32":
        at = writer.dequantised(at, (1, outputs))
    return writer.file(at)


def conv(width: int, *, layers: int = 5, size: int = 64, channels: int = 3) -> bytes:
    """A model of the convolution family, on pictures of size x size x channels.

    width: filters of each layer. layers: how many, at least 1. Raises ValueError for impossible sizes, and for a model
    of more than 1 GiB.
    """
    check_conv(width, layers=layers, size=size, channels=channels)
    writer = Writer(f"conv {width} {layers} {size} {channels}")
    at, square, depth = writer.quantised_input((1, size, size, channels)), _INPUT_SQUARE, channels
    for _ in range(layers):
        at, square, depth = writer.convolution(at, size, depth, width, square), _RELU_SQUARE, width
    return writer.file(at)


def check_fc(width: int, *, layers: int, inputs: int, outputs: int = 10) -> None:
    """Raises ValueError for sizes that `fc` does not take."""
    _check(width=width, layers=layers, inputs=inputs, outputs=outputs)
    if layers < 2:
        raise ValueError("fc needs 2 or more layers")
    _check_size(inputs * width + (layers - 2) * width * width + width * outputs)


def check_conv(width: int, *, layers: int, size: int, channels: int) -> None:
    """Raises ValueError for sizes that `conv` does not take."""
    _check(width=width, layers=layers, size=size, channels=channels)
    _check_size(9 * width * (channels + (layers - 1) * width))


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        if not 1 <= value <= 65_536:
            raise ValueError(f"{name} must be from 1 to 65536, not {value}")


def _check_size(weights: int) -> None:
    if weights > MOST_WEIGHT_BYTES:
        raise ValueError(f"a model of {weights} weight bytes is more than {MOST_WEIGHT_BYTES}")


def _quantised(scales: list[float], zero: int) -> Table:
    zeros = np.full(len(scales), zero, np.int64)
    return Table("QuantizationParameters", {"scale": np.array(scales, "f4"), "zero_point": zeros})


class Writer:
    """Collects tensors, buffers and ops of one chain of ops. Methods return the index of the tensor that they add.

    square: mean square of the values that an op reads; its weights' scale is chosen by it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.tensors: list[Table] = []
        self.buffers: list[Table] = [Table("Buffer", {})]
        self.operators: list[Table] = []
        self.codes: dict[tuple[str, int], int] = {}

    def quantised_input(self, shape: tuple[int, ...]) -> int:
        given = self.tensor("input", shape, "FLOAT32")
        made = self.activation("input_int8", shape, _INPUT_SCALE, 0)
        self.op("QUANTIZE", 1, [given], made, Table("QuantizeOptions", {}))
        return made

    def dequantised(self, source: int, shape: tuple[int, ...]) -> int:
        made = self.tensor("output", shape, "FLOAT32")
        self.op("DEQUANTIZE", 2, [source], made, Table("DequantizeOptions", {}))
        return made

    def dense(self, source: int, depth: int, size: int, square: float) -> int:
        scale = 1 / math.sqrt(depth * square * _WEIGHT_VARIANCE)
        k = len(self.operators)
        weights = self.weights(f"dense_{k}/weights", (size, depth), [scale])
        bias = self.bias(f"dense_{k}/bias", size, [scale * self._scale(source)])
        made = self.activation(f"dense_{k}", (1, size), _DENSE_SCALE, 0)
        options = Table("FullyConnectedOptions", {"fused_activation_function": 0, "keep_num_dims": 0})
        self.op("FULLY_CONNECTED", 4, [source, weights, bias], made, options)
        return made

    def tanh(self, source: int, size: int) -> int:
        made = self.activation(f"tanh_{len(self.operators)}", (1, size), _TANH_SCALE, 0)
        self.op("TANH", 2, [source], made, None)
        return made

    def convolution(self, source: int, size: int, depth: int, filters: int, square: float) -> int:
        scale = 1 / math.sqrt(9 * depth * square * _WEIGHT_VARIANCE)
        k = len(self.operators)
        weights = self.weights(f"conv_{k}/weights", (filters, 3, 3, depth), [scale] * filters)
        bias = self.bias(f"conv_{k}/bias", filters, [scale * self._scale(source)] * filters)
        made = self.activation(f"conv_{k}", (1, size, size, filters), _RELU_SCALE, -128)
        options = Table("Conv2DOptions", {"stride_w": 1, "stride_h": 1, "fused_activation_function": _RELU})
        self.op("CONV_2D", 3, [source, weights, bias], made, options)
        return made

    def weights(self, name: str, shape: tuple[int, ...], scales: list[float]) -> int:
        # A hash with output of any length: unlike numpy's generators it gives the same bytes in every version.
        data = hashlib.shake_128(f"{self.name} {name}".encode()).digest(math.prod(shape))
        values = np.maximum(np.frombuffer(data, np.int8), -127)
        return self.tensor(name, shape, "INT8", quantization=_quantised(scales, 0), buffer=self.buffer(values))

    def bias(self, name: str, size: int, scales: list[float]) -> int:
        buffer = self.buffer(np.zeros(size, np.int32))
        return self.tensor(name, (size,), "INT32", quantization=_quantised(scales, 0), buffer=buffer)

    def activation(self, name: str, shape: tuple[int, ...], scale: float, zero: int) -> int:
        return self.tensor(name, shape, "INT8", quantization=_quantised([scale], zero))

    def _scale(self, t: int) -> float:
        return float(self.tensors[t]["quantization"]["scale"][0])

    def buffer(self, values: NDArray[Any]) -> int:
        self.buffers.append(Table("Buffer", {"data": values.view(np.uint8)}))
        return len(self.buffers) - 1

    def tensor(self, name: str, shape: tuple[int, ...], type_name: str, **fields: Any) -> int:
        number = schema().enums["TensorType"].index(type_name)
        fields = {"name": name, "shape": np.array(shape, np.int32), "type": number, "buffer": 0} | fields
        self.tensors.append(Table("Tensor", fields))
        return len(self.tensors) - 1

    def op(self, kind: str, version: int, inputs: list[int], output: int, options: Table | None) -> None:
        code = self.codes.setdefault((kind, version), len(self.codes))
        fields: dict[str, Any] = {"opcode_index": code, "inputs": inputs, "outputs": [output]}
        if options is not None:
            fields |= {"builtin_options_type": schema().unions["BuiltinOptions"].index(options.type)}
            fields |= {"builtin_options": options}
        self.operators.append(Table("Operator", fields))

    def file(self, output: int) -> bytes:
        """The model's bytes. The first tensor is its input."""
        numbers = schema().enums["BuiltinOperator"]
        codes = [
            Table("OperatorCode", {"deprecated_builtin_code": n, "builtin_code": n, "version": version})
            for n, version in ((numbers.index(kind), version) for kind, version in self.codes)
        ]
        subgraph = Table(
            "SubGraph",
            {"tensors": self.tensors, "inputs": [0], "outputs": [output], "operators": self.operators, "name": "main"},
        )
        root = Table(
            "Model",
            {
                "version": 3, "operator_codes": codes, "subgraphs": [subgraph], "buffers": self.buffers,
                "description": f"synthetic {self.name}",
            },
        )  # fmt: skip
        size = sum(len(b["data"]) for b in self.buffers) + 512 * (len(self.tensors) + len(self.operators) + 8)
        return flatbuffer.encode(root, identifier=IDENTIFIER, size_hint=size)
