"""From a model's tables and shapes to its Graph: tensors, ops with their costs in bytes and multiply-accumulates, and
which ops share state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.errors import ModelError
from balancer.graph import Graph, Op, Tensor
from balancer.ground.opsets import OpSet, op_set
from balancer.tflite.macs import macs
from balancer.tflite.model import MOST_TENSOR_BYTES, Model, byte_size, element_bits
from balancer.tflite.schema import schema
from balancer.tflite.shape_rules import UnknownInputError
from balancer.tflite.support import unmapped_reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.tflite.flatbuffer import Table
    from balancer.tflite.shapes import ModelShapes

_WEIGHTED = {
    "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D", "CONV_3D_TRANSPOSE", "LSTM",
    "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "RNN", "SVDF",
}  # fmt: skip
_FLOATS = {"float32", "float16", "bfloat16", "float64"}
_STATE = {"RESOURCE", "VARIANT"}
_RESOURCES = -1  # stands for all resources among the keys of a dict by tensor
# Thousands of times the largest op that is known; times of thousands of such ops still fit 64 bits.
_MOST_MACS = 1 << 46


def build_graph(model: Model, shapes: ModelShapes, name: str) -> Graph:
    """The graph of a model. name: of the graph.

    Raises ModelError if a tensor or an op is impossibly large, if an op with weights has shapes that are not known or
    do not fit it, or if it computes in float.
    """
    tensors = tuple(_tensor(model, shapes, t) for t in range(len(model.tensors)))
    inputs = tuple(int(t) for t in model.subgraph["inputs"])
    model_inputs = frozenset(inputs)
    ops = tuple(_op(model, shapes, tensors, i, model_inputs) for i in range(len(model.operators)))
    _refuse_float(model, ops, tensors)
    return Graph(
        name=name,
        tensors=tensors,
        ops=ops,
        inputs=inputs,
        outputs=tuple(int(t) for t in model.subgraph["outputs"]),
        together=_ops_sharing_state(model, ops),
    )


def _tensor(model: Model, shapes: ModelShapes, t: int) -> Tensor:
    table = model.tensors[t]
    type_name, shape, constant = model.tensor_types[t], shapes.shapes[t], model.constants[t]
    bits = element_bits(type_name)
    size_bytes = byte_size(shape, bits) if bits and shape is not None else 0
    # Checked again: this shape may have been worked out, not read from the file.
    if size_bytes > MOST_TENSOR_BYTES:
        what, where = f"shape {list(shape or ())} takes {size_bytes} bytes", f"tensor {t} '{table['name']}'"
        raise ModelError(what, f"{model.where}: {where}", "convert the model again with smaller inputs")
    quantisation = table["quantization"]
    scales, zeros = (quantisation["scale"], quantisation["zero_point"]) if quantisation else ((), ())
    return Tensor(
        index=t,
        name=table["name"],
        shape=shape,
        dtype=type_name.lower(),
        bytes=size_bytes,
        is_parameter=constant is not None or t in shapes.values,
        is_variable=bool(table["is_variable"]),
        all_zero=constant is not None and not constant.any(),
        scales=tuple(float(s) for s in scales),
        zero_points=tuple(int(z) for z in zeros),
    )


def _op(model: Model, shapes: ModelShapes, tensors: Sequence[Tensor], i: int, model_inputs: frozenset[int]) -> Op:
    table = model.operators[i]
    kind = model.op_types[i]
    inputs, outputs = (tuple(int(t) for t in table[side]) for side in ("inputs", "outputs"))
    read, made = [tensors[t] for t in inputs if t >= 0], [tensors[t] for t in outputs]
    options = _options(table)
    from_input = bool(inputs) and inputs[0] in model_inputs
    folded = i in shapes.folded
    return Op(
        index=i,
        type=kind,
        version=model.op_versions[i],
        inputs=inputs,
        outputs=outputs,
        intermediates=tuple(int(t) for t in table["intermediates"]),
        options=options,
        macs=0 if folded else _macs(model, kind, i, [tensors[t] if t >= 0 else None for t in inputs], made),
        # An op may read one tensor twice; it is on the chip once.
        parameter_bytes=sum(t.bytes for t in {t.index: t for t in read}.values() if t.is_parameter),
        unmapped="" if folded else unmapped_reason(kind, options, read, made, reads_model_input=from_input),
        folded=folded,
    )


def _options(operator: Table) -> dict[str, int | float]:
    """The op's scalar options by name, with the schema's defaults for those that the file leaves out."""
    table: Table | None = operator["builtin_options"] or operator["builtin_options2"]
    if table is None:
        return {}
    return {f.name: table[f.name] for f in schema().tables[table.type] if f.kind == "scalar"}


def _macs(model: Model, kind: str, i: int, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> int:
    """Multiply-accumulates of op i. Raises ModelError if the shapes do not allow them, or for too many."""
    where = f"{model.where}: op {i} {kind}"
    try:
        count = macs(kind, [t.shape if t else None for t in inputs], [t.shape for t in outputs])
    except (UnknownInputError, IndexError) as error:
        unknown = [t.name for t in (*inputs, *outputs) if t is not None and t.shape is None]
        if unknown:
            what = f"the shape of tensor '{unknown[0]}' is not known before the model runs"
            raise ModelError(what, where, "convert the model with fixed input sizes, batch included") from error
        what = "its tensors do not have the shapes that such an op needs"
        raise ModelError(what, where, "convert the model again") from error
    if count > _MOST_MACS:
        raise ModelError(f"takes {count} multiply-accumulates", where, "convert the model again")
    return count


def _refuse_float(model: Model, ops: Sequence[Op], tensors: Sequence[Tensor]) -> None:
    """Raises ModelError if an op with weights computes in float: then the model was not quantised.

    Other ops in float, between quantised parts, are allowed: they run on the CPU.
    """
    for op in ops:
        if op.type not in _WEIGHTED:
            continue
        for t in (*op.inputs, *op.outputs):
            # Variable tensors do not count: quantised LSTMs may keep those that serve as scratch space in float.
            if t >= 0 and tensors[t].dtype in _FLOATS and not tensors[t].is_variable:
                raise ModelError(
                    f"the model computes in float: tensor '{tensors[t].name}' is {tensors[t].dtype}",
                    f"{model.where}: op {op.index} {op.type}",
                    "convert the model with full-integer post-training quantisation",
                )


def _ops_sharing_state(model: Model, ops: Sequence[Op]) -> tuple[OpSet, ...]:
    """Sets of two and more ops that share a variable tensor or a resource.

    All resources count as one, since ops find a resource by its name when they run, not by a tensor.
    """
    users: dict[int, set[int]] = {}
    for op in ops:
        for t in (*op.inputs, *op.outputs, *op.intermediates):
            if t < 0:
                continue
            if model.tensor_types[t] in _STATE:
                users.setdefault(_RESOURCES, set()).add(op.index)
            elif model.tensors[t]["is_variable"]:
                users.setdefault(t, set()).add(op.index)
    merged: list[set[int]] = []  # pairwise disjoint
    for group in users.values():
        touching = [g for g in merged if g & group]
        merged = [g for g in merged if not g & group] + [group.union(*touching)]
    return tuple(sorted(op_set(g) for g in merged if len(g) > 1))
