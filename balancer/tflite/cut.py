"""Segments of a model as .tflite files that stand alone.

What goes into a segment's file, on purpose:

ops         those of the segment in the model's order, with their options, versions, custom options, absent (-1)
            inputs and intermediates. Folded ops stay out; what they compute goes in as constants.
tensors     those that its ops name, with name, type, quantisation, sparsity; shapes static. A boundary tensor whose
            name is empty or not unique in the model gets the suffix `_t<index>`, since runners match tensors by name.
buffers     the empty buffer 0, and the constants of its tensors, each once; tensors that share one go on sharing it.
            Variable tensors (state) keep their empty buffer.
the rest    `min_runtime_version`, description, subgraph name. Signatures and other metadata speak of the whole model's
            interface: they stay where a segment has just that, and go otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.graph import Interface
from balancer.ground.opsets import OpSet, members
from balancer.tflite import flatbuffer
from balancer.tflite.flatbuffer import Table
from balancer.tflite.model import IDENTIFIER, Model
from balancer.tflite.read import graph_of
from balancer.tflite.shapes import Shapes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_ALWAYS_KEPT = "min_runtime_version"
_BYTES_PER_PART = 512  # of structure, generously: only to size the first allocation


class Cutter:
    """Cuts one model. The model's bytes are only read; constants are not copied before they reach a segment's file."""

    def __init__(self, data: bytes, *, name: str = "model", where: str | None = None) -> None:
        self._model = Model(data, where or name)
        self.graph = graph_of(self._model, name)
        self._shapes = Shapes(self._model)

    def cut(self, ops: OpSet, names: Mapping[int, str] | None = None) -> bytes:
        """The file of the segment that holds these ops. names: of boundary tensors, where they differ from the model's.

        Raises ValueError where the set is empty or holds nothing but folded ops.
        """
        kept = [i for i in members(ops) if not self.graph.ops[i].folded]
        if not kept:
            raise ValueError("a segment needs at least one op that computes more than shapes")
        interface = self.graph.interface(ops)
        whole = interface == Interface(self.graph.inputs, self.graph.outputs)
        return _SegmentWriter(self._model, self._shapes, names or {}).build(kept, interface, whole=whole)


class _SegmentWriter:
    """Renumbers tensors, buffers and operator codes for one segment."""

    def __init__(self, model: Model, shapes: Shapes, names: Mapping[int, str]) -> None:
        self.model = model
        self.shapes = shapes
        self.names = names
        self.buffers: list[Table] = [model.buffers[0] if not len(model.buffers[0]["data"]) else Table("Buffer", {})]
        self.buffer_of: dict[int, int] = {}
        if not len(model.buffers[0]["data"]):
            self.buffer_of[0] = 0

    def build(self, kept: list[int], interface: Interface, *, whole: bool) -> bytes:
        """The file with these ops. whole: whether it has the model's own interface."""
        operators = [self.model.operators[i] for i in kept]
        tensor_of = self._number_tensors(operators, interface)
        code_of = {c: n for n, c in enumerate(sorted({o["opcode_index"] for o in operators}))}
        subgraph = self.model.subgraph.changed(
            tensors=[self._tensor(t) for t in tensor_of],
            inputs=_renumber(interface.inputs, tensor_of),
            outputs=_renumber(interface.outputs, tensor_of),
            operators=[_operator(o, tensor_of, code_of) for o in operators],
            debug_metadata_index=None,
        )
        root = self.model.root.changed(
            operator_codes=[self.model.codes[c] for c in code_of],
            subgraphs=[subgraph],
            metadata=self._metadata(whole=whole),
            metadata_buffer=self._metadata_buffers(whole=whole),
            signature_defs=self._signatures(tensor_of, whole=whole),
        )
        root = root.changed(buffers=self.buffers)
        parts = len(self.buffers) + len(tensor_of) + len(operators)
        size = sum(len(b["data"]) for b in self.buffers) + _BYTES_PER_PART * parts
        return flatbuffer.encode(root, identifier=IDENTIFIER, size_hint=size)

    def _number_tensors(self, operators: list[Table], interface: Interface) -> dict[int, int]:
        named = {int(t) for o in operators for part in ("inputs", "outputs", "intermediates") for t in o[part]}
        used = sorted((named | set(interface.inputs) | set(interface.outputs)) - {-1})
        return {t: n for n, t in enumerate(used)}

    def _buffer(self, old: int) -> int:
        if old not in self.buffer_of:
            self.buffer_of[old] = self._add(self.model.buffers[old])
        return self.buffer_of[old]

    def _add(self, buffer: Table) -> int:
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def _tensor(self, t: int) -> Table:
        tensor = self.model.tensors[t]
        changes: dict[str, Any] = {}
        if t in self.shapes.value:
            value = self.shapes.value[t]
            changes = {"buffer": self._add(Table("Buffer", {"data": np.frombuffer(value.tobytes(), np.uint8)}))}
        else:
            changes = {"buffer": self._buffer(tensor["buffer"])}
        signature = tensor["shape_signature"]
        shape = self.shapes.shape[t]
        if shape is not None and ((len(signature) and -1 in signature) or t in self.shapes.value):
            changes["shape_signature"] = None
            changes["shape"] = np.array(shape, np.int32)
        elif shape is not None and len(shape) and tuple(tensor["shape"].tolist()) != shape:
            changes["shape"] = np.array(shape, np.int32)
        if t in self.names and self.names[t] != tensor["name"]:
            changes["name"] = self.names[t]
        changed = tensor.changed(**changes)
        changed.fields.setdefault("buffer", 0)
        return changed

    def _metadata(self, *, whole: bool) -> list[Table] | None:
        kept = [m for m in self.model.root["metadata"] if whole or m["name"] == _ALWAYS_KEPT]
        return [m.changed(buffer=self._buffer(m["buffer"])) for m in kept] or None

    def _metadata_buffers(self, *, whole: bool) -> Any:
        old = self.model.root["metadata_buffer"]
        if not whole or "metadata_buffer" not in self.model.root.fields:
            return None
        return np.array([self._buffer(int(b)) for b in old if 0 <= b < len(self.model.buffers)], np.int32)

    def _signatures(self, tensor_of: dict[int, int], *, whole: bool) -> list[Table] | None:
        if not whole:
            return None
        found = [self._signature(s, tensor_of) for s in self.model.root["signature_defs"]]
        return [s for s in found if s is not None] or None

    def _signature(self, signature: Table, tensor_of: dict[int, int]) -> Table | None:
        sides: dict[str, list[Table]] = {}
        for side in ("inputs", "outputs"):
            entries: list[Table] = signature[side]
            if any(e["tensor_index"] not in tensor_of for e in entries):
                return None
            sides[side] = [e.changed(tensor_index=tensor_of[e["tensor_index"]]) for e in entries]
        return signature.changed(**sides)


def _renumber(tensors: Iterable[int], tensor_of: Mapping[int, int]) -> Any:
    return np.array([tensor_of[int(t)] if t >= 0 else -1 for t in tensors], np.int32)


def _operator(operator: Table, tensor_of: Mapping[int, int], code_of: Mapping[int, int]) -> Table:
    changes: dict[str, Any] = {
        part: _renumber(operator[part], tensor_of)
        for part in ("inputs", "outputs", "intermediates")
        if part in operator.fields
    }
    # Debug metadata is numbered over the whole model, so the number means nothing in a segment.
    return operator.changed(opcode_index=code_of[operator["opcode_index"]], debug_metadata_index=None, **changes)
