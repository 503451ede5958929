"""Bytes to tables and back, by the schema: the one door through which a file's structure enters or leaves.

`decode` checks while it walks: every offset and length lies inside the file, no part is walked twice, so that no
forged file makes it read astray, hang, or take memory beyond a small multiple of the file. Vectors of numbers are
numpy views of the file's bytes, not copies.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import flatbuffers
import numpy as np
from flatbuffers import number_types

from balancer.errors import ModelError
from balancer.tflite.schema import Field, schema

if TYPE_CHECKING:
    from collections.abc import Callable

_STRUCT = {code: struct.Struct(f) for code, f in {
    "i1": "<b", "u1": "<B", "b1": "<B", "i2": "<h", "u2": "<H", "i4": "<i", "u4": "<I", "i8": "<q", "u8": "<Q",
    "f4": "<f", "f8": "<d",
}.items()}  # fmt: skip
_DTYPE = {code: np.dtype(code if code != "b1" else "u1").newbyteorder("<") for code in _STRUCT}
_FLAGS = {
    "i1": number_types.Int8Flags, "u1": number_types.Uint8Flags, "b1": number_types.Uint8Flags,
    "i2": number_types.Int16Flags, "u2": number_types.Uint16Flags, "i4": number_types.Int32Flags,
    "u4": number_types.Uint32Flags, "i8": number_types.Int64Flags, "u8": number_types.Uint64Flags,
    "f4": number_types.Float32Flags, "f8": number_types.Float64Flags,
}  # fmt: skip
_CORRUPT = "fetch the file again, or convert the model again"


@dataclass(slots=True, eq=False)
class Table:
    """One flatbuffer table: the fields that the file holds, by name; `table["x"]` is the schema's default for the
    rest.
    """

    type: str
    fields: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        if name in self.fields:
            return self.fields[name]
        return schema().defaults[self.type][name]

    def changed(self, **fields: Any) -> Table:
        """The same table with other values; None removes a field. Other fields are shared, not copied."""
        merged = {k: v for k, v in (self.fields | fields).items() if v is not None}
        return Table(self.type, merged)


def decode(data: bytes, *, root: str, where: str) -> Table:
    """The tables from the root on. where: the file's name, for errors.

    Raises ModelError where the bytes are cut short or corrupt, or hold what the schema does not know.
    """
    return _Decoder(data, where).root(root)


class _Decoder:
    def __init__(self, data: bytes, where: str) -> None:
        self.data = data
        self.where = where
        self.seen: dict[tuple[int, str], Any] = {}
        # An honest file spends at least four bytes on each table and vector element, and shares none by accident.
        self.left = len(data) // 4 + 16
        # Numbers in vectors, bytes of constants apart. Tables may share a vector (a shape), but each takes bytes itself.
        self.numbers_left = len(data) + 16

    def root(self, name: str) -> Table:
        return self._table(self._offset(0), name)

    def _corrupt(self, what: str, offset: int) -> ModelError:
        return ModelError(f"truncated or corrupt: {what} at byte {offset}", self.where, _CORRUPT)

    def _number(self, code: str, offset: int) -> Any:
        form = _STRUCT[code]
        if offset < 0 or offset + form.size > len(self.data):
            raise self._corrupt("a number beyond the end", offset)
        return form.unpack_from(self.data, offset)[0]

    def _offset(self, at: int) -> int:
        target: int = at + self._number("u4", at)
        if target + 4 > len(self.data):
            raise self._corrupt("an offset beyond the end", at)
        return target

    def _spend(self, count: int, offset: int) -> None:
        self.left -= count
        if self.left < 0:
            raise self._corrupt("more parts than the file has room for", offset)

    def _table(self, pos: int, name: str) -> Table:
        key = (pos, name)
        if key not in self.seen:
            self._spend(1, pos)
            self.seen[key] = self._fields(pos, name)
        found: Table = self.seen[key]
        return found

    def _fields(self, pos: int, name: str) -> Table:
        slots, length = self._vtable(pos)
        layout = schema().tables[name]
        table = Table(name, {})
        for slot, within in enumerate(slots):
            if not within:
                continue
            if slot >= len(layout):
                raise ModelError(
                    f"{name} has a field (slot {slot}) that this version does not know", self.where,
                    "convert the model with an older converter, or update balancer",
                )  # fmt: skip
            entry = layout[slot]
            width = _width(entry)
            if within < 4 or within + width > length:
                raise self._corrupt(f"field '{entry.name}' outside its {name}", pos)
            if entry.kind != "unread":
                table.fields[entry.name] = _READ[entry.kind](self, pos + within, entry, table)
        return table

    def _vtable(self, pos: int) -> tuple[tuple[int, ...], int]:
        vtable = pos - self._number("i4", pos)
        size, length = self._number("u2", vtable), self._number("u2", vtable + 2)
        if size < 4 or size % 2 or vtable + size > len(self.data) or length < 4 or pos + length > len(self.data):
            raise self._corrupt("a table without a valid layout", pos)
        return struct.unpack_from(f"<{size // 2 - 2}H", self.data, vtable + 4), length

    def _vector(self, at: int, width: int) -> tuple[int, int]:
        start = self._offset(at)
        count = self._number("u4", start)
        if start + 4 + count * width > len(self.data):
            raise self._corrupt("a vector beyond the end", at)
        return start + 4, count

    def scalar(self, at: int, entry: Field, table: Table) -> Any:
        return self._number(entry.type, at)

    def string(self, at: int, entry: Field, table: Table) -> str:
        start, count = self._vector(at, 1)
        return self.data[start : start + count].decode("utf-8", "surrogateescape")

    def child(self, at: int, entry: Field, table: Table) -> Table:
        return self._table(self._offset(at), entry.type)

    def union(self, at: int, entry: Field, table: Table) -> Table:
        names = schema().unions[entry.type]
        tag = table[f"{entry.name}_type"]
        if not 0 < tag < len(names):
            raise ModelError(
                f"{table.type} has {entry.name} of an unknown kind ({tag})", self.where,
                "convert the model with an older converter, or update balancer",
            )  # fmt: skip
        return self._table(self._offset(at), names[tag])

    def scalars(self, at: int, entry: Field, table: Table) -> Any:
        start, count = self._vector(at, _DTYPE[entry.type].itemsize)
        if _DTYPE[entry.type].itemsize > 1:
            self.numbers_left -= count
            if self.numbers_left < 0:
                raise self._corrupt("more numbers than the file has room for", at)
        return np.frombuffer(self.data, _DTYPE[entry.type], count, start)

    def strings(self, at: int, entry: Field, table: Table) -> list[str]:
        start, count = self._vector(at, 4)
        self._spend(count, at)
        return [self.string(start + 4 * i, entry, table) for i in range(count)]

    def blobs(self, at: int, entry: Field, table: Table) -> list[bytes]:
        start, count = self._vector(at, 4)
        self._spend(count, at)
        ends = (self._vector(start + 4 * i, 1) for i in range(count))
        return [self.data[first : first + size] for first, size in ends]

    def tables(self, at: int, entry: Field, table: Table) -> list[Table]:
        start, count = self._vector(at, 4)
        self._spend(count, at)
        return [self._table(self._offset(start + 4 * i), entry.type) for i in range(count)]


_READ: dict[str, Callable[[_Decoder, int, Field, Table], Any]] = {
    "scalar": _Decoder.scalar,
    "string": _Decoder.string,
    "table": _Decoder.child,
    "union": _Decoder.union,
    "scalars": _Decoder.scalars,
    "strings": _Decoder.strings,
    "blobs": _Decoder.blobs,
    "tables": _Decoder.tables,
}


def encode(root: Table, *, identifier: bytes, size_hint: int) -> bytes:
    """The file that holds these tables. Fields that are present are written, also when they equal their default.

    size_hint: roughly the bytes to come; a good one spares copies while the file grows.
    """
    builder = flatbuffers.Builder(size_hint)
    builder.ForceDefaults(forceDefaults=True)
    writer = _Encoder(builder)
    builder.Finish(writer.table(root), file_identifier=identifier)
    return bytes(memoryview(builder.Bytes)[builder.Head() :])


class _Encoder:
    def __init__(self, builder: flatbuffers.Builder) -> None:
        self.builder = builder
        self.written: dict[int, int] = {}
        self.kept: list[Any] = []

    def table(self, table: Table) -> int:
        """Offset of the table; one that several others share is written once."""
        if id(table) not in self.written:
            self.written[id(table)] = self._table(table)
            self.kept.append(table)  # an id is only unique while its object lives
        return self.written[id(table)]

    def _table(self, table: Table) -> int:
        layout = schema().tables[table.type]
        present = [(slot, f, table.fields[f.name]) for slot, f in enumerate(layout) if f.name in table.fields]
        ready = [(slot, f, v if f.kind == "scalar" else self._part(f, v)) for slot, f, v in present]
        self.builder.StartObject(len(layout))
        # Wide fields first, so that no padding stands between them.
        for slot, entry, value in sorted(ready, key=lambda r: _width(r[1])):
            if entry.kind == "scalar":
                self.builder.PrependSlot(_FLAGS[entry.type], slot, value, 0)
            else:
                self.builder.PrependUOffsetTRelativeSlot(slot, value, 0)
        return int(self.builder.EndObject())

    def _part(self, entry: Field, value: Any) -> int:
        if entry.kind in ("table", "union"):
            return self.table(value)
        if entry.kind == "string":
            return self._string(value)
        if entry.kind == "scalars":
            return self._scalars(np.asarray(value, _DTYPE[entry.type]), entry.align)
        parts = [self._string(v) if entry.kind == "strings" else self.table(v) for v in value]
        self.builder.StartVector(4, len(parts), 4)
        for part in reversed(parts):
            self.builder.PrependUOffsetTRelative(part)
        return int(self.builder.EndVector())

    def _string(self, text: str) -> int:
        return int(self.builder.CreateString(text, "utf-8", "surrogateescape"))

    def _scalars(self, values: Any, align: int) -> int:
        """A vector of numbers, copied once (the library's own call for arrays copies twice and cannot align)."""
        width = values.dtype.itemsize
        self.builder.StartVector(width, len(values), max(align, width))
        head = self.builder.Head() - values.nbytes
        self.builder.Bytes[head : head + values.nbytes] = np.ascontiguousarray(values).data.cast("B")
        self.builder.head = head
        return int(self.builder.EndVector())


def _width(entry: Field) -> int:
    if entry.kind == "unread":
        return 0
    return _STRUCT[entry.type].size if entry.kind == "scalar" else 4
