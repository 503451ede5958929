"""A TFLite model under construction, for networks that are written without a converter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.tflite import flatbuffer
from balancer.tflite.flatbuffer import Table
from balancer.tflite.model import IDENTIFIER
from balancer.tflite.schema import schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """How integers stand for real numbers: (integer - zero) * step."""

    step: float
    zero: int = 0


ACTIVATION = Scale(0.05)
UNIT = Scale(1 / 256, -128)  # 0 to 1. TFLite's LOGISTIC and SOFTMAX take no other for an int8 output.
# The kernels of these ops copy values, so the output has the scale of the (first) input.
_COPYING = {
    "AVERAGE_POOL_2D", "CONCATENATION", "MAX_POOL_2D", "PAD", "RESHAPE", "RESIZE_NEAREST_NEIGHBOR", "STRIDED_SLICE",
    "TRANSPOSE",
}  # fmt: skip
_FIXED = {"LOGISTIC": UNIT, "SOFTMAX": UNIT}


class Network:
    """Collects ops. Each method that adds one returns the number of its output tensor."""

    def __init__(self) -> None:
        self.tensors: list[Table] = []
        self.buffers: list[Table] = [Table("Buffer", {})]
        self.operators: list[Table] = []
        self.codes: dict[tuple[str, int], int] = {}  # an op type and its version, to the number of the operator code
        self.scales: list[Scale | None] = []  # of each tensor

    def shape(self, t: int) -> Shape:
        return tuple(self.tensors[t]["shape"].tolist())

    def input(self, shape: Shape, dtype: str = "INT8") -> int:
        return self.tensor(shape, dtype=dtype)

    def constant(self, shape: Shape) -> int:
        """An int8 constant of zeros."""
        return self.parameter(np.zeros(shape, np.int8), ACTIVATION)

    def parameter(self, values: NDArray[Any], scale: Scale | None, *, axis: int | None = None) -> int:
        """A constant. scale: None if the numbers are not quantised. axis: each index of it has a scale of its own."""
        self.buffers.append(Table("Buffer", {"data": np.frombuffer(values.tobytes(), np.uint8)}))
        made = self.tensor(values.shape, dtype=values.dtype.name.upper(), scale=scale, buffer=len(self.buffers) - 1)
        if scale is not None and axis is not None:
            self.tensors[made].fields["quantization"] = _quantization(scale, values.shape[axis], axis)
        return made

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

    def op(self, kind: str, inputs: Sequence[int], shape: Shape, options: Table | None = None, version: int = 2) -> int:
        """An op with one int8 output, in the scale that its type takes."""
        usual = self.scales[inputs[0]] if kind in _COPYING else _FIXED.get(kind, ACTIVATION)
        made = self.tensor(shape, scale=usual)
        self.operator(kind, inputs, [made], options, version=version)
        return made

    def operator(
        self, kind: str, inputs: Sequence[int], outputs: Sequence[int], options: Table | None = None, *,
        version: int, **fields: Any,
    ) -> None:  # fmt: skip
        """An op between tensors that exist. kind: "CUSTOM:" and its name for a custom one. fields: others of the table."""
        made: dict[str, Any] = {
            "opcode_index": self.codes.setdefault((kind, version), len(self.codes)),
            "inputs": np.array(inputs, np.int32), "outputs": np.array(outputs, np.int32),
        }  # fmt: skip
        if options is not None:
            number = schema().unions["BuiltinOptions"].index(options.type)
            made |= {"builtin_options_type": number, "builtin_options": options}
        self.operators.append(Table("Operator", made | fields))

    def tensor(self, shape: Shape, *, dtype: str = "INT8", scale: Scale | None = ACTIVATION, buffer: int = 0) -> int:
        fields: dict[str, Any] = {
            "name": f"t{len(self.tensors)}", "shape": np.array(shape, np.int32), "buffer": buffer,
            "type": schema().enums["TensorType"].index(dtype),
        }  # fmt: skip
        if scale is not None:
            fields["quantization"] = _quantization(scale)
        self.tensors.append(Table("Tensor", fields))
        self.scales.append(scale)
        return len(self.tensors) - 1

    def file(self, *outputs: int) -> bytes:
        """The model as a TFLite file. Its input is the first tensor. outputs: the numbers of its output tensors."""
        codes = [_code(kind, version) for kind, version in self.codes]
        ends: dict[str, Any] = {"inputs": np.array([0], np.int32), "outputs": np.array(outputs, np.int32)}
        main = Table("SubGraph", {"tensors": self.tensors, "operators": self.operators, "name": "main"} | ends)
        root = {"version": 3, "operator_codes": codes, "subgraphs": [main], "buffers": self.buffers}
        size = sum(len(b["data"]) for b in self.buffers[1:]) + 512 * len(self.tensors)
        return flatbuffer.encode(Table("Model", root), identifier=IDENTIFIER, size_hint=size)


def _quantization(scale: Scale, count: int = 1, axis: int = 0) -> Table:
    """count: how many times the scale is written, once for each index of the axis."""
    steps, zeros = np.full(count, scale.step, np.float32), np.full(count, scale.zero, np.int64)
    return Table("QuantizationParameters", {"scale": steps, "zero_point": zeros, "quantized_dimension": axis})


def _code(kind: str, version: int) -> Table:
    """The operator code of a type of op, which may be a custom one."""
    builtin, _, custom = kind.partition(":")
    number = schema().enums["BuiltinOperator"].index(builtin)
    fields = {"deprecated_builtin_code": min(number, 127), "builtin_code": number, "version": version}
    return Table("OperatorCode", fields | ({"custom_code": custom} if custom else {}))
