"""Small valid int8 models, made table by table: what real converters write, and the corners that they rarely do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.tflite import flatbuffer
from balancer.tflite.decoding import decode_model
from balancer.tflite.flatbuffer import Table
from balancer.tflite.model import IDENTIFIER
from balancer.tflite.schema import schema

if TYPE_CHECKING:
    from collections.abc import Sequence

SHAPE = (1, 4, 4, 4)
# Of the int8 kernels in use; the resolver knows a range of versions for each op.
_VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "ADD": 2, "MUL": 2, "MAX_POOL_2D": 2, "SPLIT": 2, "TRANSPOSE_CONV": 3,
    "FULLY_CONNECTED": 4, "CONCATENATION": 2, "RELU": 2, "DEQUANTIZE": 2, "PACK": 2, "BROADCAST_TO": 2,
}  # fmt: skip


class Builder:
    """Collects tensors and ops; `file` gives the bytes. Tensor and buffer numbers are those of the order of the
    calls.
    """

    def __init__(self) -> None:
        self.tensors: list[Table] = []
        self.buffers: list[Table] = [Table("Buffer", {})]
        self.operators: list[Table] = []
        self.codes: list[Table] = []
        self.random = np.random.Generator(np.random.PCG64(2))

    def buffer(self, data: Any) -> int:
        self.buffers.append(Table("Buffer", {"data": np.frombuffer(np.asarray(data).tobytes(), np.uint8)}))
        return len(self.buffers) - 1

    def tensor(
        self, name: str, shape: Sequence[int] = SHAPE, type_name: str = "INT8", *, scale: float | None = 0.05,
        zero: int = 3, data: Any = None, **fields: Any,
    ) -> int:  # fmt: skip
        """scale: None for a tensor without quantisation. data: of a constant, in its own element type."""
        made: dict[str, Any] = {
            "name": name, "shape": np.array(shape, np.int32), "buffer": 0,
            "type": schema().enums["TensorType"].index(type_name),
        }  # fmt: skip
        if scale is not None:
            scales, zeros = np.array([scale], np.float32), np.array([zero], np.int64)
            made["quantization"] = Table("QuantizationParameters", {"scale": scales, "zero_point": zeros})
        if data is not None:
            made["buffer"] = self.buffer(data)
        self.tensors.append(Table("Tensor", made | fields))
        return len(self.tensors) - 1

    def ints(self, name: str, values: Any) -> int:
        """An int32 constant, as ops take for shapes, axes and indices."""
        array = np.array(values, np.int32)
        return self.tensor(name, array.shape, "INT32", scale=None, data=array)

    def weights(self, name: str, shape: Sequence[int], scale: float = 0.02) -> int:
        values = self.random.integers(-127, 128, shape).astype(np.int8)
        return self.tensor(name, shape, scale=scale, zero=0, data=values)

    def bias(self, name: str, size: int, scale: float = 0.05 * 0.02) -> int:
        values = self.random.integers(-500, 500, size).astype(np.int32)
        return self.tensor(name, (size,), "INT32", scale=scale, zero=0, data=values)

    def op(
        self, kind: str, inputs: Sequence[int], outputs: Sequence[int], options: Table | None = None, **fields: Any
    ) -> int:
        """kind: a builtin op, or "CUSTOM:" and the name of a custom one. options: builtin options. Returns its index."""
        made: dict[str, Any] = {
            "opcode_index": self._code(kind), "inputs": np.array(inputs, np.int32), "outputs": np.array(outputs, np.int32),
        }  # fmt: skip
        if options is not None:
            made["builtin_options_type"] = schema().unions["BuiltinOptions"].index(options.type)
            made["builtin_options"] = options
        self.operators.append(Table("Operator", made | fields))
        return len(self.operators) - 1

    def _code(self, kind: str) -> int:
        builtin, _, custom = kind.partition(":")
        number = schema().enums["BuiltinOperator"].index(builtin)
        fields: dict[str, Any] = {"deprecated_builtin_code": min(number, 127), "builtin_code": number}
        fields["version"] = _VERSIONS.get(builtin, 1)
        if custom:
            fields["custom_code"] = custom
        for index, code in enumerate(self.codes):
            if code.fields == fields:
                return index
        self.codes.append(Table("OperatorCode", fields))
        return len(self.codes) - 1

    def conv(self, source: int, name: str, *, shape: Sequence[int] = SHAPE) -> int:
        """A 3x3 convolution with 'same' padding from and to `shape`."""
        depth = shape[3]
        kernel = self.weights(f"{name}/w", (depth, 3, 3, depth))
        made = self.tensor(name, shape)
        inputs = [source, kernel, self.bias(f"{name}/b", depth)]
        self.op("CONV_2D", inputs, [made], Table("Conv2DOptions", {"stride_w": 1, "stride_h": 1}))
        return made

    def dense(self, source: int, name: str) -> int:
        """A dense op over the last axis whose bias is absent (-1)."""
        kernel = self.weights(f"{name}/w", (SHAPE[-1], SHAPE[-1]))
        made = self.tensor(name)
        self.op("FULLY_CONNECTED", [source, kernel, -1], [made], Table("FullyConnectedOptions", {"keep_num_dims": 1}))
        return made

    def add(self, left: int, right: int, name: str, *, shape: Sequence[int] = SHAPE) -> int:
        made = self.tensor(name, shape, scale=0.07, zero=-2)
        self.op("ADD", [left, right], [made], Table("AddOptions", {}))
        return made

    def relu(self, source: int, name: str, *, shape: Sequence[int] = SHAPE, **fields: Any) -> int:
        made = self.tensor(name, shape, **fields)
        self.op("RELU", [source], [made])
        return made

    def file(self, inputs: Sequence[int], outputs: Sequence[int], **root: Any) -> bytes:
        subgraph = Table(
            "SubGraph",
            {
                "tensors": self.tensors, "inputs": np.array(inputs, np.int32), "outputs": np.array(outputs, np.int32),
                "operators": self.operators, "name": "main",
            },
        )  # fmt: skip
        fields = {
            "version": 3, "operator_codes": self.codes, "subgraphs": [subgraph], "buffers": self.buffers,
            "description": "handmade",
        } | root  # fmt: skip
        return flatbuffer.encode(Table("Model", fields), identifier=IDENTIFIER, size_hint=1 << 12)


def conv_chain(count: int = 3) -> bytes:
    """Convolutions one after the other."""
    b = Builder()
    source = at = b.tensor("in")
    for k in range(count):
        at = b.conv(at, f"conv_{k}")
    return b.file([source], [at])


def branch_and_add() -> bytes:
    """conv_0 is read by conv_1 and by the final add (op 2)."""
    b = Builder()
    source = b.tensor("in")
    first = b.conv(source, "conv_0")
    second = b.conv(first, "conv_1")
    return b.file([source], [b.add(first, second, "sum")])


def outputs_against_execution_order() -> bytes:
    """Two inputs and three outputs; the model gives the last computed first, and reads its second input first."""
    b = Builder()
    one, two = b.tensor("one"), b.tensor("two")
    first = b.conv(two, "first")
    second = b.add(first, one, "second")
    third = b.conv(second, "third")
    return b.file([one, two], [third, first, second])


def named(*names: str) -> bytes:
    """A chain of convolutions whose activations, the input first, have these names."""
    b = Builder()
    source = at = b.tensor(names[0])
    for k, name in enumerate(names[1:]):
        made = b.conv(at, f"op_{k}")
        b.tensors[made] = b.tensors[made].changed(name=name)
        at = made
    return b.file([source], [at])


def shared_state() -> bytes:
    """Ops 1 and 3 read one variable tensor; op 2 stands between them."""
    b = Builder()
    source = b.tensor("in")
    state = b.tensor("state", is_variable=1)
    first = b.conv(source, "conv")
    second = b.add(first, state, "from_state")
    third = b.conv(second, "between")
    return b.file([source], [b.add(third, state, "from_state_again")])


def custom_op() -> bytes:
    """A convolution, then a custom op with options and intermediates that gives two outputs without a static shape."""
    b = Builder()
    source = b.tensor("in")
    conv = b.conv(source, "conv")
    scratch = b.tensor("scratch", (4,))
    made = []
    for name in ("boxes", "scores"):
        made.append(b.tensor(name, (), "FLOAT32", scale=None))
        b.tensors[-1].fields.pop("shape")
    b.op(
        "CUSTOM:Decode", [conv, -1], made,
        custom_options=np.arange(7, dtype=np.uint8), custom_options_format=0, intermediates=np.array([scratch], np.int32),
    )  # fmt: skip
    return b.file([source], made)


def constant_input(data: bytes, *, op: int, position: int) -> bytes:
    """The bytes of a constant that an op of a model reads. position: among the op's inputs."""
    model = decode_model(data, "handmade")
    constant = model.constant(int(model.operators[op]["inputs"][position]))
    assert constant is not None
    return constant.tobytes()


def shared_buffer() -> bytes:
    """Two convolutions whose kernels are two tensors of one buffer; a third reads the first's kernel tensor itself."""
    b = Builder()
    source = b.tensor("in")
    first = b.conv(source, "conv_0")
    second = b.conv(first, "conv_1")
    third = b.conv(second, "conv_2")
    kernels = [int(o["inputs"][1]) for o in b.operators]
    b.tensors[kernels[1]] = b.tensors[kernels[1]].changed(buffer=b.tensors[kernels[0]]["buffer"])
    b.operators[2] = b.operators[2].changed(
        inputs=np.array([second, kernels[0], b.operators[2]["inputs"][2]], np.int32)
    )
    return b.file([source], [third])


def with_signature_and_metadata() -> bytes:
    """A chain of two convolutions with a signature, a `min_runtime_version` and other metadata."""
    b = Builder()
    source = b.tensor("in")
    made = b.conv(b.conv(source, "conv_0"), "conv_1")
    signature = Table(
        "SignatureDef",
        {
            "inputs": [Table("TensorMap", {"name": "x", "tensor_index": source})],
            "outputs": [Table("TensorMap", {"name": "y", "tensor_index": made})],
            "signature_key": "serving_default",
        },
    )
    version = b.buffer(np.frombuffer(b"1.14.0\0\0\0\0\0\0\0\0\0\0", np.uint8))
    other = b.buffer(np.frombuffer(b"labels", np.uint8))
    metadata = [
        Table("Metadata", {"name": "min_runtime_version", "buffer": version}),
        Table("Metadata", {"name": "TFLITE_METADATA", "buffer": other}),
    ]
    return b.file([source], [made], signature_defs=[signature], metadata=metadata)


def free_batch(kind: str) -> bytes:
    """A free batch: ops 0 to 2 (SHAPE, STRIDED_SLICE, PACK) compute the shape for op 4, a `kind`; op 5 follows it.

    kind: "TRANSPOSE_CONV" or "RESHAPE". The static shapes behind it are placeholders, as converters write them.
    """
    b = Builder()
    source = b.tensor("in", shape_signature=np.array([-1, 4, 4, 4], np.int32))
    wanted = (8, 8, 4) if kind == "TRANSPOSE_CONV" else (2, 8, 4)
    shape = b.tensor("shape", (4,), "INT32", scale=None)
    batch = b.tensor("batch", (), "INT32", scale=None)
    packed = b.tensor("packed", (4,), "INT32", scale=None)
    b.op("SHAPE", [source], [shape], Table("ShapeOptions", {"out_type": 2}))
    bounds = [b.ints("begin", [0]), b.ints("end", [1]), b.ints("strides", [1])]
    b.op("STRIDED_SLICE", [shape, *bounds], [batch], Table("StridedSliceOptions", {"shrink_axis_mask": 1}))
    parts = [batch, *(b.ints(f"dim_{k}", d) for k, d in enumerate(wanted))]
    b.op("PACK", parts, [packed], Table("PackOptions", {"values_count": 4, "axis": 0}))
    conv = b.conv(source, "conv")
    b.tensors[conv] = b.tensors[conv].changed(shape_signature=np.array([-1, 4, 4, 4], np.int32))
    open_shape: dict[str, Any] = {"shape_signature": np.array([-1, -1, -1, 4], np.int32)}
    made = b.tensor("opened", (1, 1, 1, 4), **open_shape)
    if kind == "TRANSPOSE_CONV":
        kernel = b.weights("kernel", (4, 2, 2, 4))
        options = Table("TransposeConvOptions", {"padding": 0, "stride_w": 2, "stride_h": 2})
        b.op("TRANSPOSE_CONV", [packed, kernel, conv, b.bias("bias", 4)], [made], options)
    else:
        b.op("RESHAPE", [conv, packed], [made], Table("ReshapeOptions", {}))
    return b.file([source], [b.relu(made, "out", shape=(1, 1, 1, 4), **open_shape)])


def float_glue() -> bytes:
    """float32 in and out: QUANTIZE, a convolution, DEQUANTIZE."""
    b = Builder()
    source = b.tensor("in", type_name="FLOAT32", scale=None)
    quantised = b.tensor("quantised")
    b.op("QUANTIZE", [source], [quantised], Table("QuantizeOptions", {}))
    conv = b.conv(quantised, "conv")
    made = b.tensor("out", type_name="FLOAT32", scale=None)
    b.op("DEQUANTIZE", [conv], [made], Table("DequantizeOptions", {}))
    return b.file([source], [made])


def float_compute() -> bytes:
    """A convolution in float32."""
    b = Builder()
    source = b.tensor("in", type_name="FLOAT32", scale=None)
    kernel = b.tensor("kernel", (4, 3, 3, 4), "FLOAT32", scale=None, data=np.ones((4, 3, 3, 4), np.float32))
    made = b.tensor("out", type_name="FLOAT32", scale=None)
    b.op("CONV_2D", [source, kernel, -1], [made], Table("Conv2DOptions", {"stride_w": 1, "stride_h": 1}))
    return b.file([source], [made])


def dynamic_height() -> bytes:
    """An input of which more than the batch is open."""
    b = Builder()
    source = b.tensor("picture", shape_signature=np.array([-1, -1, 4, 4], np.int32))
    return b.file([source], [b.conv(source, "conv")])


def two_subgraphs() -> bytes:
    """What control flow makes of a model."""
    b = Builder()
    source = b.tensor("in")
    made = b.conv(source, "conv")
    inner = Table("SubGraph", {"tensors": [], "operators": [], "name": "body"})
    root = flatbuffer.decode(b.file([source], [made]), root="Model", where="handmade")
    doubled = root.changed(subgraphs=[*root["subgraphs"], inner])
    return flatbuffer.encode(doubled, identifier=IDENTIFIER, size_hint=1 << 12)


# One step of `dag`: the kind of the op, and which earlier activations it reads (counted modulo how many there are).
Step = tuple[str, int, int]
DAG_KINDS = ("conv", "dense", "add", "mul", "pool", "split")


def dag(steps: Sequence[Step], outputs: Sequence[int]) -> bytes:
    """A model of two inputs and an op for each step. outputs: given by the model besides what no op reads."""
    b = Builder()
    inputs = [b.tensor("in_0"), b.tensor("in_1")]
    values = list(inputs)
    for k, (kind, left, right) in enumerate(steps):
        one, two = values[left % len(values)], values[right % len(values)]
        values += _step(b, kind, one, two, f"step_{k}")
    read = {int(t) for o in b.operators for t in o["inputs"]}
    unread = [t for t in values if t not in read and t not in inputs]
    chosen = [values[2 + k % (len(values) - 2)] for k in outputs]
    return b.file(inputs, list(dict.fromkeys([*chosen, *unread])))


def _step(b: Builder, kind: str, one: int, two: int, name: str) -> list[int]:
    if kind == "conv":
        return [b.conv(one, name)]
    if kind == "dense":
        return [b.dense(one, name)]
    if kind == "add":
        return [b.add(one, two, name)]
    if kind == "pool":
        made = [b.tensor(name, **_same_scale(b, one))]
        options = {"stride_w": 1, "stride_h": 1, "filter_width": 3, "filter_height": 3}
        b.op("MAX_POOL_2D", [one], made, Table("Pool2DOptions", options))
        return made
    if kind == "mul":
        made = [b.tensor(name, scale=0.03, zero=5)]
        b.op("MUL", [one, two], made, Table("MulOptions", {}))
        return made
    halves = [b.tensor(f"{name}_{k}", (1, 4, 4, 2), **_same_scale(b, one)) for k in range(2)]
    b.op("SPLIT", [b.ints(f"{name}/axis", 3), one], halves, Table("SplitOptions", {"num_splits": 2}))
    made = [b.tensor(name, **_same_scale(b, one))]
    b.op("CONCATENATION", halves[::-1], made, Table("ConcatenationOptions", {"axis": 3}))
    return made


def _same_scale(b: Builder, t: int) -> dict[str, Any]:
    """The quantisation of another tensor, which ops that only move values need."""
    q = b.tensors[t]["quantization"]
    return {"scale": float(q["scale"][0]), "zero": int(q["zero_point"][0])}
