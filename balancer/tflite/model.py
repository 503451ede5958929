"""A TFLite file's tables, checked as a whole: what reading and cutting both start from.

`flatbuffer` vouches for offsets and lengths; this module vouches for the indices between tables, so that past it code
can follow them without asking.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.errors import ModelError
from balancer.tflite import flatbuffer
from balancer.tflite.schema import schema

if TYPE_CHECKING:
    from balancer.tflite.flatbuffer import Table

IDENTIFIER = b"TFL3"
EDGETPU_CUSTOM_OP = "edgetpu-custom-op"
# Bytes of one element; types that are absent (strings, resources, variants) have no fixed size.
_BITS = {
    "FLOAT32": 32, "FLOAT16": 16, "INT32": 32, "UINT8": 8, "INT64": 64, "BOOL": 8, "INT16": 16, "COMPLEX64": 64,
    "INT8": 8, "FLOAT64": 64, "COMPLEX128": 128, "UINT64": 64, "UINT32": 32, "UINT16": 16, "INT4": 4, "BFLOAT16": 16,
    "INT2": 2, "UINT4": 4, "FLOAT8_E4M3FN": 8, "FLOAT8_E5M2": 8,
}  # fmt: skip
_MAX_RANK = 8
# Larger than anything an interpreter can hold; sums of a few million such sizes still fit 64 bits.
_MAX_TENSOR_BYTES = 1 << 31
# Solving holds tables with the square of the number of ops; the largest published networks have about 1,000.
_MAX_OPS = 4096
_RECONVERT = "convert the model again"


def decode_model(data: bytes, where: str) -> Table:
    """The tables of a TFLite file. Raises ModelError where the bytes are none."""
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise ModelError(f"not a TFLite file (no '{IDENTIFIER.decode()}' at byte 4)", where, "give a .tflite model")
    return flatbuffer.decode(data, root="Model", where=where)


class Model:
    """The checked tables of a file with one subgraph. where: its name for errors."""

    def __init__(self, data: bytes, where: str) -> None:
        self.where = where
        self.size = len(data)
        self.root = decode_model(data, where)
        subgraphs = self.root["subgraphs"]
        if len(subgraphs) != 1:
            raise ModelError(
                f"{len(subgraphs)} subgraphs, where one is expected", where, "convert the model without control flow"
            )
        self.subgraph: Table = subgraphs[0]
        self.tensors: list[Table] = list(self.subgraph["tensors"])
        self.operators: list[Table] = list(self.subgraph["operators"])
        self.buffers: list[Table] = list(self.root["buffers"])
        self.codes: list[Table] = list(self.root["operator_codes"])
        self._check()
        self._empty = self._empty_constants()
        self._check_order()

    def type_name(self, operator: Table) -> str:
        """'CONV_2D', or 'CUSTOM:<its name>', or 'BUILTIN_<n>' for an op newer than the schema here."""
        code = self.codes[operator["opcode_index"]]
        # Codes below 127 stand in the deprecated one-byte field; new ones in the wider field alone.
        number = max(code["builtin_code"], code["deprecated_builtin_code"])
        names = schema().enums["BuiltinOperator"]
        name = names[number] if 0 <= number < len(names) else f"BUILTIN_{number}"
        return f"CUSTOM:{code['custom_code']}" if name == "CUSTOM" else name

    def version(self, operator: Table) -> int:
        return int(self.codes[operator["opcode_index"]]["version"])

    def type_of(self, tensor: Table) -> str:
        name: str = schema().enums["TensorType"][tensor["type"]]
        return name

    def constant(self, index: int) -> Any:
        """The bytes of a constant tensor as a uint8 array, or None for an activation. Buffer 0 is the empty one."""
        data = self.buffers[self.tensors[index]["buffer"]]["data"]
        if index in self._empty:
            return np.zeros(0, np.uint8)
        return data if len(data) else None

    def is_constant(self, index: int) -> bool:
        return self.constant(index) is not None

    def _fail(self, what: str, place: str) -> ModelError:
        return ModelError(what, f"{self.where}: {place}", _RECONVERT)

    def _check(self) -> None:
        if not self.buffers:
            raise self._fail("no buffers", "model")
        if len(self.operators) > _MAX_OPS:
            raise ModelError(f"{len(self.operators)} ops", self.where, f"give a model of at most {_MAX_OPS} ops")
        for i, buffer in enumerate(self.buffers):
            if buffer["offset"] > 1 or buffer["size"] > 1:
                raise self._fail("its bytes lie outside the flatbuffer, which is not supported", f"buffer {i}")
        if self.root["external_buffers"] or self.root["external_buffer_groups"]:
            raise self._fail("its constants lie in other files, which is not supported", "model")
        for i, tensor in enumerate(self.tensors):
            self._check_tensor(i, tensor)
        for i, operator in enumerate(self.operators):
            self._check_operator(i, operator)
        for name in ("inputs", "outputs"):
            self._indices(self.subgraph[name], 0, f"the model's {name}")
        self._check_extras()
        if not self.operators:
            raise self._fail("the model has no ops", "subgraph")

    def _check_extras(self) -> None:
        for meta in self.root["metadata"]:
            if meta["buffer"] >= len(self.buffers):
                raise self._fail(f"buffer {meta['buffer']} does not exist", f"metadata '{meta['name']}'")
        for signature in self.root["signature_defs"]:
            entries = [*signature["inputs"], *signature["outputs"]]
            self._indices([e["tensor_index"] for e in entries], 0, f"signature '{signature['signature_key']}'")

    def _indices(self, indices: Any, lowest: int, place: str) -> None:
        for t in indices:
            if not lowest <= t < len(self.tensors):
                raise self._fail(f"tensor {t} does not exist", place)

    def _check_tensor(self, i: int, tensor: Table) -> None:
        place = f"tensor {i} '{tensor['name']}'"
        if not 0 <= tensor["type"] < len(schema().enums["TensorType"]):
            raise self._fail(f"unknown element type {tensor['type']}", place)
        if tensor["buffer"] >= len(self.buffers):
            raise self._fail(f"buffer {tensor['buffer']} does not exist", place)
        if tensor["external_buffer"]:
            raise self._fail("its constants lie in another file, which is not supported", place)
        shape = [int(d) for d in tensor["shape"]]
        if len(shape) > _MAX_RANK or any(d < -1 for d in shape):
            raise self._fail(f"impossible shape {shape}", place)
        bits = _BITS.get(self.type_of(tensor))
        size = byte_size(shape, bits or 8)
        if size > _MAX_TENSOR_BYTES:
            raise self._fail(f"shape {shape} takes {size} bytes", place)
        data = self.buffers[tensor["buffer"]]["data"]
        if bits and len(data) and not tensor["sparsity"] and len(data) != size:
            raise self._fail(f"shape {shape} takes {size} bytes, its buffer has {len(data)}", place)

    def _check_operator(self, i: int, operator: Table) -> None:
        if operator["opcode_index"] >= len(self.codes):
            raise self._fail(f"operator code {operator['opcode_index']} does not exist", f"op {i}")
        place = f"op {i} {self.type_name(operator)}"
        if operator["large_custom_options_offset"] > 1 or operator["large_custom_options_size"] > 1:
            raise self._fail("its options lie outside the flatbuffer, which is not supported", place)
        self._indices(operator["inputs"], -1, place)
        self._indices(operator["intermediates"], -1, place)
        self._indices(operator["outputs"], 0, place)

    def _empty_constants(self) -> set[int]:
        """Tensors of no elements that nothing computes: constants (the shape of a scalar, say) whose buffer is empty
        like that of an activation.
        """
        made = {int(t) for operator in self.operators for t in operator["outputs"]}
        made |= {int(t) for t in self.subgraph["inputs"]}
        return {
            t
            for t, tensor in enumerate(self.tensors)
            if 0 in tensor["shape"] and t not in made and not tensor["is_variable"]
            and not len(self.buffers[tensor["buffer"]]["data"])
        }  # fmt: skip

    def _check_order(self) -> None:
        """Each op may read only what stands before it; each activation has one producer."""
        known = {int(t) for t in self.subgraph["inputs"]}
        made: set[int] = set()
        if len(known) < len(self.subgraph["inputs"]):
            raise self._fail("an input is listed twice", "the model's inputs")
        for t in known:
            if self.is_constant(t):
                raise self._fail("is both a constant and a model input", f"tensor {t} '{self.tensors[t]['name']}'")
        for i, operator in enumerate(self.operators):
            place = f"op {i} {self.type_name(operator)}"
            for t in operator["inputs"]:
                if t >= 0 and int(t) not in known and not self.is_constant(t) and not self.tensors[t]["is_variable"]:
                    raise self._fail(f"reads tensor {t} '{self.tensors[t]['name']}' before any op computes it", place)
            for t in operator["outputs"]:
                if int(t) in known or self.is_constant(t):
                    raise self._fail(f"writes tensor {t} '{self.tensors[t]['name']}' a second time", place)
                known.add(int(t))
                made.add(int(t))
        self._check_outputs(made)

    def _check_outputs(self, made: set[int]) -> None:
        """Each output is computed by an op, and there is one: what a model hands through takes no device."""
        if not len(self.subgraph["outputs"]):
            raise self._fail("the model gives no outputs", "the model's outputs")
        given = {int(t) for t in self.subgraph["inputs"]}
        for t in dict.fromkeys(int(t) for t in self.subgraph["outputs"]):
            if t in made:
                continue
            name = self.tensors[t]["name"]
            if t in given or self.is_constant(t):
                what = "an input" if t in given else "a constant"
                raise ModelError(
                    f"output '{name}' is {what} handed straight through, which is not supported",
                    f"{self.where}: the model's outputs", "convert the model without that output; its value is known before",
                )  # fmt: skip
            raise self._fail(f"output '{name}' is computed by no op", "the model's outputs")


def refuse_compiled(model: Model) -> None:
    """Raises ModelError where the model is the compiler's output, which has no ops left to see."""
    if any(model.type_name(operator) == f"CUSTOM:{EDGETPU_CUSTOM_OP}" for operator in model.operators):
        raise ModelError(
            "the model is already compiled for the Edge TPU (it holds an edgetpu-custom-op)",
            model.where,
            "give the .tflite file that the compiler was given",
        )


def byte_size(shape: list[int] | tuple[int, ...], bits: int) -> int:
    """Bytes of a dense value; a free dimension (-1) counts as 1; elements under a byte are packed."""
    count = 1
    for d in shape:
        count *= abs(d)
    return (count * bits + 7) // 8


def element_bits(type_name: str) -> int:
    """Bits of one element; 0 for types without a fixed size (strings, resources, variants)."""
    return _BITS.get(type_name, 0)
