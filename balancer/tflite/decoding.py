"""From the bytes of a TFLite file to a Model all of whose indices are checked.

`flatbuffer` checks that offsets and lengths lie inside the file. This module checks what the tables then say to each
other: that each tensor, buffer and operator code that is referred to exists, that constants have the size of their
shape, and that each tensor is computed once, before it is read. Bytes that stand behind the flatbuffer are put into
their tables first (`outside`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.errors import ModelError
from balancer.ground.file_kinds import kind_of, refused
from balancer.tflite import flatbuffer
from balancer.tflite.model import IDENTIFIER, MOST_TENSOR_BYTES, Model, byte_size, element_bits
from balancer.tflite.outside import inlined
from balancer.tflite.schema import schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from balancer.tflite.flatbuffer import Table

# Solvers keep tables whose size is the square of the number of ops; the largest published networks have about 1,000.
MOST_OPS = 4096
_MOST_DIMENSIONS = 8
_RECONVERT = "convert the model again"


def decode_root(data: bytes, where: str) -> Table:
    """The root table of a TFLite file, structurally sound. where: the file's name, for messages.

    Raises ModelError if the bytes are not a TFLite file, or a truncated or corrupt one.
    """
    return _measured_root(data, where)[0]


def _measured_root(data: bytes, where: str) -> tuple[Table, int]:
    """The root table, and where the flatbuffer ends."""
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        otherwise = f"not a TFLite file (no '{IDENTIFIER.decode()}' at byte 4)"
        what, remedy = refused("a TFLite file", "give a .tflite model", kind_of(data), otherwise)
        raise ModelError(what, where, remedy)
    return flatbuffer.decode_measured(data, root="Model", where=where)


def decode_model(data: bytes, where: str) -> Model:
    """The model in a file. where: the file's name, for messages.

    Raises ModelError as `decode_root` does, and if the file does not have exactly one subgraph, if its tables
    contradict each other, or if it relies on other files.
    """
    measured, end = _measured_root(data, where)
    read = inlined(measured, data, end, where)
    root = read.root
    subgraphs: list[Table] = root["subgraphs"]
    if len(subgraphs) != 1:
        what = f"{len(subgraphs)} subgraphs, where one is expected"
        raise ModelError(what, where, "convert the model without control flow")
    model = Model(
        where=where,
        root=root,
        subgraph=subgraphs[0],
        tensors=list(subgraphs[0]["tensors"]),
        operators=list(subgraphs[0]["operators"]),
        buffers=list(root["buffers"]),
        codes=list(root["operator_codes"]),
        is_inline=not read.is_changed,
    )
    _check_indices(model)
    _check_sizes(model, read.sizes)
    _check_order(model)
    return model


def _contradiction(model: Model, what: str, place: str) -> ModelError:
    return ModelError(what, f"{model.where}: {place}", _RECONVERT)


def _check_indices(model: Model) -> None:
    """Raises ModelError if a table refers to something that is not in the file."""
    if not model.buffers:
        raise _contradiction(model, "no buffers", "model")
    if len(model.operators) > MOST_OPS:
        raise ModelError(f"{len(model.operators)} ops", model.where, f"give a model of at most {MOST_OPS} ops")
    for i, tensor in enumerate(model.tensors):
        _check_tensor(model, i, tensor)
    for i, operator in enumerate(model.operators):
        _check_operator(model, i, operator)
    for side in ("inputs", "outputs"):
        _check_tensors_exist(model, model.subgraph[side], 0, f"the model's {side}")
    for entry in model.root["metadata"]:
        if entry["buffer"] >= len(model.buffers):
            raise _contradiction(model, f"buffer {entry['buffer']} does not exist", f"metadata '{entry['name']}'")
    for signature in model.root["signature_defs"]:
        named = [entry["tensor_index"] for side in ("inputs", "outputs") for entry in signature[side]]
        _check_tensors_exist(model, named, 0, f"signature '{signature['signature_key']}'")
    if not model.operators:
        raise _contradiction(model, "the model has no ops", "subgraph")


def _check_sizes(model: Model, sizes: Mapping[int, int]) -> None:
    """Raises ModelError if a constant outside the flatbuffer is empty and its tensor is not.

    Inside, an empty buffer is that of an activation. sizes: bytes of the buffers that stood outside.
    """
    for i, tensor in enumerate(model.tensors):
        if sizes.get(tensor["buffer"]) == 0 and 0 not in tensor["shape"] and element_bits(model.type_of(tensor)):
            what = (
                f"shape {[int(d) for d in tensor['shape']]} has elements, its buffer outside the flatbuffer has 0 bytes"
            )
            raise _contradiction(model, what, f"tensor {i} '{tensor['name']}'")


def _check_tensors_exist(model: Model, indices: Iterable[int], lowest: int, place: str) -> None:
    """lowest: -1 where an index may mean "absent", else 0."""
    for t in indices:
        if not lowest <= t < len(model.tensors):
            raise _contradiction(model, f"tensor {t} does not exist", place)


def _check_tensor(model: Model, i: int, tensor: Table) -> None:
    place = f"tensor {i} '{tensor['name']}'"
    if not 0 <= tensor["type"] < len(schema().enums["TensorType"]):
        raise _contradiction(model, f"unknown element type {tensor['type']}", place)
    if tensor["buffer"] >= len(model.buffers):
        raise _contradiction(model, f"buffer {tensor['buffer']} does not exist", place)
    if tensor["external_buffer"]:
        raise _contradiction(model, "its constants lie in another file, which is not supported", place)
    shape = [int(d) for d in tensor["shape"]]
    if len(shape) > _MOST_DIMENSIONS or any(d < -1 for d in shape):
        raise _contradiction(model, f"impossible shape {shape}", place)
    bits = element_bits(model.type_of(tensor))
    size = byte_size(shape, bits or 8)
    if size > MOST_TENSOR_BYTES:
        raise _contradiction(model, f"shape {shape} takes {size} bytes", place)
    data = model.buffers[tensor["buffer"]]["data"]
    # A sparse constant stores fewer elements than its shape has.
    if bits and len(data) and not tensor["sparsity"] and len(data) != size:
        raise _contradiction(model, f"shape {shape} takes {size} bytes, its buffer has {len(data)}", place)


def _check_operator(model: Model, i: int, operator: Table) -> None:
    if operator["opcode_index"] >= len(model.codes):
        raise _contradiction(model, f"operator code {operator['opcode_index']} does not exist", f"op {i}")
    place = f"op {i} {model.type_name(operator)}"
    _check_tensors_exist(model, operator["inputs"], -1, place)
    _check_tensors_exist(model, operator["intermediates"], -1, place)
    _check_tensors_exist(model, operator["outputs"], 0, place)


def _check_order(model: Model) -> None:
    """Raises ModelError unless each op reads only tensors that exist before it, and each tensor has one producer."""
    inputs = {int(t) for t in model.subgraph["inputs"]}
    if len(inputs) < len(model.subgraph["inputs"]):
        raise _contradiction(model, "an input is listed twice", "the model's inputs")
    for t in inputs:
        if model.is_constant(t):
            place = f"tensor {t} '{model.tensors[t]['name']}'"
            raise _contradiction(model, "is both a constant and a model input", place)
    computed: set[int] = set()
    for i, operator in enumerate(model.operators):
        place = f"op {i} {model.type_name(operator)}"
        for t in operator["inputs"]:
            known = int(t) in inputs or int(t) in computed
            # A variable holds a value from the start, so it may be read before any op writes it.
            if t >= 0 and not known and not model.is_constant(t) and not model.tensors[t]["is_variable"]:
                what = f"reads tensor {t} '{model.tensors[t]['name']}' before any op computes it"
                raise _contradiction(model, what, place)
        for t in operator["outputs"]:
            if int(t) in inputs or int(t) in computed or model.is_constant(t):
                raise _contradiction(model, f"writes tensor {t} '{model.tensors[t]['name']}' a second time", place)
            computed.add(int(t))
    _check_outputs(model, inputs, computed)


def _check_outputs(model: Model, inputs: set[int], computed: set[int]) -> None:
    """Raises ModelError unless the model has outputs and an op computes each of them.

    An output that is an input or a constant needs no device, and no segment could contain it.
    """
    outputs = dict.fromkeys(int(t) for t in model.subgraph["outputs"])
    if not outputs:
        raise _contradiction(model, "the model gives no outputs", "the model's outputs")
    for t in outputs:
        if t in computed:
            continue
        name = model.tensors[t]["name"]
        if t in inputs or model.is_constant(t):
            what = "an input" if t in inputs else "a constant"
            raise ModelError(
                f"output '{name}' is {what} handed straight through, which is not supported",
                f"{model.where}: the model's outputs",
                "convert the model without that output; its value is known before the model runs",
            )
        raise _contradiction(model, f"output '{name}' is computed by no op", "the model's outputs")
