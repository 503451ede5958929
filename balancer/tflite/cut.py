"""Segments of a model as .tflite files that stand alone.

What goes into a segment's file, and what does not:

ops         those of the segment in the model's order, with their options, versions, custom options, absent (-1)
            inputs and intermediates. Folded ops are left out; the constants that they compute are put in.
tensors     those that its ops name, with name, type, quantisation and sparsity; shapes are static. A boundary tensor
            whose name is empty or not unique in the model gets the suffix `_t<index>`, since runners match tensors by
            name.
buffers     the empty buffer 0, and the constants of its tensors, each once; tensors that share one go on sharing it.
            Variable tensors (state) keep their empty buffer. All stand in the flatbuffer, also those that stand outside
            it in the model's file.
the rest    `min_runtime_version`, description, subgraph name. Signatures and other metadata describe the interface of
            the whole model: a segment has them only if it has just that interface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.errors import ModelError
from balancer.graph import Graph, Interface
from balancer.ground.opsets import OpSet, members, op_text
from balancer.tflite import flatbuffer
from balancer.tflite.flatbuffer import Table
from balancer.tflite.model import IDENTIFIER
from balancer.tflite.read import ReadModel, read_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from balancer.tflite.model import Model

_ALWAYS_KEPT = "min_runtime_version"
_MOST_BYTES = 1 << 31  # offsets in a flatbuffer have 32 bits, one of them for the sign
_BYTES_PER_TABLE = 512  # a generous estimate, only to size the first allocation
_NAMED_BY_OPS = ("inputs", "outputs", "intermediates")


class Cutter:
    """Cuts one model. Its bytes are only read; constants are not copied before they reach a segment's file."""

    def __init__(self, data: bytes, *, name: str = "model", where: str | None = None) -> None:
        """Raises ModelError as `load_graph` does. name: of the graph. where: what messages call the model."""
        self._read = read_model(data, name=name, where=where)

    @property
    def graph(self) -> Graph:
        return self._read.graph

    def cut(self, ops: OpSet, names: Mapping[int, str] | None = None) -> bytes:
        """The file of the segment that holds these ops. See `cut_segment`."""
        return cut_segment(self._read, ops, names or {})

    def inline(self) -> bytes | None:
        """The whole model with all constants and options in the flatbuffer; None if the model's file is such a file.

        For readers that do not know of bytes outside it, the Edge TPU compiler above all.
        Raises ModelError if that would be larger than 2 GiB.
        """
        model = self._read.model
        return None if model.is_inline else _encoded(model.root, model.where)


def cut_segment(read: ReadModel, ops: OpSet, names: Mapping[int, str]) -> bytes:
    """The .tflite file of the segment that holds these ops.

    names: of boundary tensors, by tensor, where they differ from the model's.

    Raises ValueError if the set is empty or holds nothing but folded ops, and ModelError if the file would be larger than
    2 GiB.
    """
    kept = [i for i in members(ops) if not read.graph.ops[i].folded]
    if not kept:
        raise ValueError("a segment needs at least one op that computes more than shapes")
    root = _segment_tables(read, kept, read.graph.interface(ops), names)
    return _encoded(root, f"{read.model.where}: the segment of ops {op_text(ops)}")


def _encoded(root: Table, where: str) -> bytes:
    """The file. where: what messages call it. Raises ModelError if it would be larger than 2 GiB."""
    (subgraph,) = root["subgraphs"]
    tables = len(root["buffers"]) + len(subgraph["tensors"]) + len(subgraph["operators"])
    # Buffers of one place in the model's file are one table, which is written once.
    constants = [b["data"] for b in {id(b): b for b in root["buffers"]}.values()]
    constant_bytes = sum(map(len, constants)) + sum(len(o["custom_options"]) for o in subgraph["operators"])
    try:
        if constant_bytes >= _MOST_BYTES:  # before memory is taken
            raise OverflowError("constants larger than 2 GiB")
        return flatbuffer.encode(root, identifier=IDENTIFIER, size_hint=constant_bytes + _BYTES_PER_TABLE * tables)
    except OverflowError as error:
        what = f"would be larger than 2 GiB ({constant_bytes} bytes of constants), which no flatbuffer can be"
        raise ModelError(what, where, "cut the model into more segments") from error


class _SegmentBuffers:
    """The buffers of a segment's file, numbered in the order in which they are first asked for."""

    def __init__(self, model: Model) -> None:
        self.model = model
        # By convention buffer 0 is empty, and all activations have it. A model may break that; no segment does.
        first_is_empty = not len(model.buffers[0]["data"])
        self.tables: list[Table] = [model.buffers[0] if first_is_empty else Table("Buffer", {})]
        self._number_of: dict[int, int] = {0: 0} if first_is_empty else {}

    def number(self, old: int) -> int:
        """The segment's number of a buffer of the model. One buffer has one number, so sharing is kept."""
        if old not in self._number_of:
            self._number_of[old] = self.add(self.model.buffers[old])
        return self._number_of[old]

    def add(self, buffer: Table) -> int:
        self.tables.append(buffer)
        return len(self.tables) - 1


@dataclass(frozen=True, slots=True)
class _Numbering:
    """The segment's number of each of its tensors and operator codes, by the model's number, ascending in both."""

    tensors: Mapping[int, int]
    codes: Mapping[int, int]


def _segment_tables(read: ReadModel, kept: Sequence[int], interface: Interface, names: Mapping[int, str]) -> Table:
    """The root table of the file. kept: the segment's ops that are not folded."""
    model = read.model
    operators = [model.operators[i] for i in kept]
    numbers = _numbering(operators, interface)
    buffers = _SegmentBuffers(model)
    subgraph = model.subgraph.changed(
        tensors=[_tensor(read, t, buffers, names) for t in numbers.tensors],
        inputs=_renumbered(interface.inputs, numbers.tensors),
        outputs=_renumbered(interface.outputs, numbers.tensors),
        operators=[_operator(operator, numbers) for operator in operators],
        debug_metadata_index=None,
    )
    root = model.root.changed(operator_codes=[model.codes[c] for c in numbers.codes], subgraphs=[subgraph])
    if interface == Interface(read.graph.inputs, read.graph.outputs):
        root = _with_all_metadata(root, model, buffers, numbers)
    else:
        root = _with_runtime_version(root, buffers)
    # Last: the calls above number the buffers.
    return root.changed(buffers=buffers.tables)


def _numbering(operators: Iterable[Table], interface: Interface) -> _Numbering:
    operators = list(operators)
    named = {int(t) for operator in operators for part in _NAMED_BY_OPS for t in operator[part]}
    # The interface may name inputs that no op reads; -1 stands for an absent input.
    used = sorted((named | set(interface.inputs) | set(interface.outputs)) - {-1})
    codes = sorted({operator["opcode_index"] for operator in operators})
    return _Numbering({t: n for n, t in enumerate(used)}, {c: n for n, c in enumerate(codes)})


def _tensor(read: ReadModel, t: int, buffers: _SegmentBuffers, names: Mapping[int, str]) -> Table:
    tensor, shape, value = read.model.tensors[t], read.shapes.shapes[t], read.shapes.values.get(t)
    changes: dict[str, Any] = {}
    if value is not None:
        # What a folded op computed: in the model's file this tensor is an activation, with the empty buffer.
        changes["buffer"] = buffers.add(Table("Buffer", {"data": np.frombuffer(value.tobytes(), np.uint8)}))
    else:
        changes["buffer"] = buffers.number(tensor["buffer"])
    if shape is not None:
        changes |= _static_shape(tensor, shape, is_folded=value is not None)
    if t in names and names[t] != tensor["name"]:
        changes["name"] = names[t]
    changed = tensor.changed(**changes)
    changed.fields.setdefault("buffer", 0)
    return changed


def _static_shape(tensor: Table, shape: tuple[int, ...], *, is_folded: bool) -> dict[str, Any]:
    """The fields to change so that the tensor has this static shape; none if the file already says so."""
    signature = tensor["shape_signature"]
    if (len(signature) and -1 in signature) or is_folded:
        return {"shape_signature": None, "shape": np.array(shape, np.int32)}
    # A scalar is left as the file writes it: with or without an empty vector.
    if len(shape) and tuple(tensor["shape"].tolist()) != shape:
        return {"shape": np.array(shape, np.int32)}
    return {}


def _operator(operator: Table, numbers: _Numbering) -> Table:
    changes = {part: _renumbered(operator[part], numbers.tensors) for part in _NAMED_BY_OPS if part in operator.fields}
    # Debug metadata is numbered over the whole model, so its number means nothing in a segment.
    code = numbers.codes[operator["opcode_index"]]
    return operator.changed(opcode_index=code, debug_metadata_index=None, **changes)


def _renumbered(tensors: Iterable[int], number_of: Mapping[int, int]) -> NDArray[np.int32]:
    """
    >>> _renumbered([7, -1, 4], {4: 0, 7: 1}).tolist()
    [1, -1, 0]
    """
    return np.array([number_of[int(t)] if t >= 0 else -1 for t in tensors], np.int32)


def _with_runtime_version(root: Table, buffers: _SegmentBuffers) -> Table:
    """Of the metadata only what says which runtime the ops need, which holds for each part of the model."""
    kept = [_metadata(entry, buffers) for entry in root["metadata"] if entry["name"] == _ALWAYS_KEPT]
    return root.changed(metadata=kept or None, metadata_buffer=None, signature_defs=None)


def _with_all_metadata(root: Table, model: Model, buffers: _SegmentBuffers, numbers: _Numbering) -> Table:
    """All metadata and signatures, for a segment that has the interface of the whole model."""
    metadata = [_metadata(entry, buffers) for entry in root["metadata"]]
    extra = None
    if "metadata_buffer" in root.fields:
        # Obsolete and unchecked: numbers that name no buffer are dropped.
        extra = np.array(
            [buffers.number(int(b)) for b in root["metadata_buffer"] if 0 <= b < len(model.buffers)], np.int32
        )
    signatures = [_signature(signature, numbers.tensors) for signature in root["signature_defs"]]
    return root.changed(
        metadata=metadata or None,
        metadata_buffer=extra,
        signature_defs=[signature for signature in signatures if signature is not None] or None,
    )


def _metadata(entry: Table, buffers: _SegmentBuffers) -> Table:
    return entry.changed(buffer=buffers.number(entry["buffer"]))


def _signature(signature: Table, number_of: Mapping[int, int]) -> Table | None:
    """The signature with the segment's numbers; None if it names a tensor that the segment does not have."""
    sides: dict[str, list[Table]] = {}
    for side in ("inputs", "outputs"):
        entries: list[Table] = signature[side]
        if any(entry["tensor_index"] not in number_of for entry in entries):
            return None
        sides[side] = [entry.changed(tensor_index=number_of[entry["tensor_index"]]) for entry in entries]
    return signature.changed(**sides)
