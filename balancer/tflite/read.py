"""From the bytes of a full-integer .tflite file to a Graph."""

from __future__ import annotations

import math
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balancer.errors import ModelError
from balancer.graph import Graph, Op, Tensor
from balancer.ground.opsets import OpSet, op_set
from balancer.tflite.model import Model, byte_size, element_bits, refuse_compiled
from balancer.tflite.schema import schema
from balancer.tflite.shapes import Shapes
from balancer.tflite.support import unmapped_reason

if TYPE_CHECKING:
    from balancer.tflite.flatbuffer import Table

_WEIGHTED = {
    "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D", "CONV_3D_TRANSPOSE", "LSTM",
    "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "RNN", "SVDF",
}  # fmt: skip
_FLOATS = {"FLOAT32", "FLOAT16", "BFLOAT16", "FLOAT64"}
_STATE = {"RESOURCE", "VARIANT"}
_MAX_BYTES = 1 << 31
# Thousands of times the largest op of any model at hand; times of thousands of such ops still fit 64 bits.
_MAX_MACS = 1 << 46
_MAX_FILE_BYTES = (1 << 31) - 1


def load_graph(model: str | Path | bytes) -> Graph:
    """The graph of a .tflite file, given as a path or as its bytes (then its name is "model").

    Raises ModelError where it is no full-integer TFLite model with static shapes; the message names the place and
    remedy.
    """
    if isinstance(model, bytes):
        return read_graph(model, name="model")
    path = Path(model)
    return read_graph(read_model_bytes(path), name=path.stem, where=str(path))


def read_model_bytes(path: Path) -> bytes:
    """The file's bytes. Raises ModelError where it cannot be read."""
    try:
        found = path.stat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise ModelError("is no file", str(path), "give a .tflite model")  # a pipe or a device may never end
        if found.st_size > _MAX_FILE_BYTES:
            raise ModelError("larger than 2 GiB, which no flatbuffer can be", str(path), "give a .tflite model")
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelError(f"cannot be read ({reason})", str(path), "check the path and its permissions") from error


def read_graph(data: bytes, *, name: str, where: str | None = None) -> Graph:
    """The graph of these bytes. name: of the graph. where: for errors, default the name."""
    return graph_of(Model(data, where or name), name)


def graph_of(model: Model, name: str) -> Graph:
    """The graph of a model whose tables are already read."""
    refuse_compiled(model)
    shapes = Shapes(model)
    tensors = tuple(_tensor(model, shapes, t) for t in range(len(model.tensors)))
    inputs = frozenset(int(t) for t in model.subgraph["inputs"])
    ops = tuple(_op(model, shapes, tensors, i, inputs) for i in range(len(model.operators)))
    _refuse_float(model, ops, tensors)
    return Graph(
        name=name,
        tensors=tensors,
        ops=ops,
        inputs=tuple(int(t) for t in model.subgraph["inputs"]),
        outputs=tuple(int(t) for t in model.subgraph["outputs"]),
        together=_together(model, ops),
    )


def _tensor(model: Model, shapes: Shapes, t: int) -> Tensor:
    table = model.tensors[t]
    type_name, shape, constant = model.type_of(table), shapes.shape[t], model.constant(t)
    bits = element_bits(type_name)
    size = byte_size(shape, bits) if bits and shape is not None else 0
    if size > _MAX_BYTES:
        raise ModelError(f"shape {list(shape or ())} takes {size} bytes", f"{model.where}: tensor {t} '{table['name']}'",
                         "convert the model again with smaller inputs")  # fmt: skip
    quantisation = table["quantization"]
    scales, zeros = (quantisation["scale"], quantisation["zero_point"]) if quantisation else ((), ())
    return Tensor(
        index=t,
        name=table["name"],
        shape=shape,
        dtype=type_name.lower(),
        bytes=size,
        is_parameter=constant is not None or t in shapes.value,
        is_variable=bool(table["is_variable"]),
        all_zero=constant is not None and not constant.any(),
        scales=tuple(float(s) for s in scales),
        zero_points=tuple(int(z) for z in zeros),
    )


def _op(model: Model, shapes: Shapes, tensors: tuple[Tensor, ...], i: int, model_inputs: frozenset[int]) -> Op:
    table = model.operators[i]
    kind = model.type_name(table)
    inputs = tuple(int(t) for t in table["inputs"])
    outputs = tuple(int(t) for t in table["outputs"])
    read, made = [tensors[t] for t in inputs if t >= 0], [tensors[t] for t in outputs]
    options = _options(table)
    from_input = bool(inputs) and inputs[0] in model_inputs
    folded = i in shapes.folded
    return Op(
        index=i,
        type=kind,
        version=model.version(table),
        inputs=inputs,
        outputs=outputs,
        intermediates=tuple(int(t) for t in table["intermediates"]),
        options=options,
        macs=0 if folded else _macs(model, kind, i, [tensors[t] if t >= 0 else None for t in inputs], made),
        parameter_bytes=sum(t.bytes for t in {t.index: t for t in read}.values() if t.is_parameter),
        unmapped="" if folded else unmapped_reason(kind, options, read, made, reads_model_input=from_input),
        folded=folded,
    )


def _options(operator: Table) -> dict[str, int | float]:
    """The op's scalar options by name, with the schema's defaults where the file leaves them out."""
    table: Table | None = operator["builtin_options"] or operator["builtin_options2"]
    if table is None:
        return {}
    return {f.name: table[f.name] for f in schema().tables[table.type] if f.kind == "scalar"}


def _macs(model: Model, kind: str, i: int, inputs: list[Tensor | None], outputs: list[Tensor]) -> int:
    """Multiply-accumulates of one inference, of the real channels (no rounding to the array)."""
    count = _MACS.get(kind)
    if count is None:
        return 0
    try:
        shapes = [t.shape if t else None for t in inputs]
        macs = int(count(shapes, outputs[0].shape))
    except (TypeError, IndexError) as error:
        unknown = [t.name for t in (*inputs, *outputs) if t is not None and t.shape is None]
        if unknown:
            raise ModelError(
                f"the shape of tensor '{unknown[0]}' is not known before the model runs", f"{model.where}: op {i} {kind}",
                "convert the model with fixed input sizes, batch included",
            ) from error  # fmt: skip
        raise ModelError(
            "its tensors do not have the shapes that such an op needs", f"{model.where}: op {i} {kind}",
            "convert the model again",
        ) from error  # fmt: skip
    if macs > _MAX_MACS:
        raise ModelError(
            f"takes {macs} multiply-accumulates", f"{model.where}: op {i} {kind}", "convert the model again"
        )
    return macs


def _lstm_macs(shapes: Any, out: Any) -> int:
    steps: int = shapes[0][-2] if len(shapes[0]) > 2 else 1
    weights: int = sum(math.prod(s) for s in shapes[1:9] if s is not None)
    return steps * weights


_MACS: dict[str, Any] = {
    "CONV_2D": lambda s, out: math.prod(out) * s[1][1] * s[1][2] * s[1][3],
    "DEPTHWISE_CONV_2D": lambda s, out: math.prod(out) * s[1][1] * s[1][2],
    "FULLY_CONNECTED": lambda s, out: math.prod(out) * s[1][1],
    "TRANSPOSE_CONV": lambda s, out: math.prod(s[2][:3]) * math.prod(s[1]),
    "BATCH_MATMUL": lambda s, out: math.prod(out) * s[0][-1],
    "CONV_3D": lambda s, out: math.prod(out) * math.prod(s[1][:4]),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _lstm_macs,
}


def _refuse_float(model: Model, ops: tuple[Op, ...], tensors: tuple[Tensor, ...]) -> None:
    """Float glue is allowed (it runs on the CPU); an op with weights in float means that nothing was quantised."""
    for op in ops:
        if op.type not in _WEIGHTED:
            continue
        for t in (*op.inputs, *op.outputs):
            if t >= 0 and tensors[t].dtype.upper() in _FLOATS and not _is_scratch(tensors[t]):
                raise ModelError(
                    f"the model computes in float: tensor '{tensors[t].name}' is {tensors[t].dtype}",
                    f"{model.where}: op {op.index} {op.type}",
                    "convert the model with full-integer post-training quantisation",
                )


def _is_scratch(tensor: Tensor) -> bool:
    return tensor.is_variable


def _together(model: Model, ops: tuple[Op, ...]) -> tuple[OpSet, ...]:
    """Groups of ops that share state: a variable tensor, or any resource (resources are known by name, not by
    tensor).
    """
    groups: dict[int, set[int]] = {}
    for op in ops:
        for t in (*op.inputs, *op.outputs, *op.intermediates):
            if t < 0:
                continue
            table = model.tensors[t]
            if model.type_of(table) in _STATE:
                groups.setdefault(-1, set()).add(op.index)
            elif table["is_variable"]:
                groups.setdefault(t, set()).add(op.index)
    merged: list[set[int]] = []
    for group in groups.values():
        touching = [g for g in merged if g & group]
        merged = [g for g in merged if not g & group] + [group.union(*touching)]
    return tuple(sorted(op_set(g) for g in merged if len(g) > 1))
