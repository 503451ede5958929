"""Turns the bytes of a flatbuffer into tables and tables into bytes, by the layouts in `schema`.

How a table lies in the file; all numbers are little-endian, `u2` is an unsigned number of two bytes:

      vtable, at v                      table, at p
    +-----------------------+         +---------------------------+
    | u2  bytes of vtable   | <-------| i4  p - v                 |
    | u2  bytes of table    |         |                           |
    | u2  slot 0:  12 ------|----+    | 4   an inline number      | <-+
    | u2  slot 1:  0        |    |    |                           |   |   string, vector or table, at q
    | u2  slot 2:  4 -------|--+ |    |                           |   |     +------------------------+
    +-----------------------+  | +--> | 12  u4  q - (p + 12) -----|---|---> | u4 count, elements ... |
                               +------|---------------------------|---+     +------------------------+
                                      +---------------------------+

A slot is the number of a field in the schema. Its entry in the vtable is the field's distance from p, or 0 if the file
leaves the field out (slot 1 above): then the schema's default holds. Numbers stand in the table itself; for anything
else the table holds a distance forward. Equal vtables, and by our encoder equal tables, are stored once and shared.

`decode` checks while it walks: every offset and length must lie inside the file, and no table is walked twice. A
forged file therefore cannot make it read elsewhere, hang, or take more memory than a small multiple of the file's
size. Vectors of numbers are numpy views of the file's bytes, not copies.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import flatbuffers
import numpy as np
from flatbuffers import number_types
from flatbuffers.builder import BuilderSizeError

from balancer.errors import ModelError
from balancer.tflite.schema import Field, schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
_UNKNOWN = "convert the model with an older converter, or update balancer"
_OFFSET_BYTES = 4
_SPARE = 16  # parts that even the smallest file may have


@dataclass(slots=True, eq=False)
class Table:
    """One flatbuffer table. `table["x"]` is the field's value, or the schema's default if the file leaves it out.

    type: the table's name in the schema. fields: the values that the file holds, by name; of which type a value is, the
    schema says: an int or float, a str, a Table, a numpy vector, or a list of bytes or Tables.
    """

    type: str
    fields: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        if name in self.fields:
            return self.fields[name]
        return schema().defaults[self.type][name]

    def changed(self, **fields: Any) -> Table:
        """A new table with these values; None removes a field. All other values are shared, not copied."""
        merged = {k: v for k, v in (self.fields | fields).items() if v is not None}
        return Table(self.type, merged)


def decode(data: bytes, *, root: str, where: str) -> Table:
    """The root table, with all tables that it refers to. root: its type. where: the file's name, for messages.

    Raises ModelError if the bytes are truncated or corrupt, or hold a field or table that the schema does not know.
    """
    return decode_measured(data, root=root, where=where)[0]


def decode_measured(data: bytes, *, root: str, where: str) -> tuple[Table, int]:
    """The same, with where the flatbuffer ends: behind the last byte of any table or vector. More bytes may follow."""
    decoder = _Decoder(data, where, parts_left=len(data) // 4 + _SPARE, numbers_left=len(data) + _SPARE)
    return decoder.table_at(decoder.target(0), root), decoder.end


@dataclass(slots=True)
class _Decoder:
    """One walk through a file.

    Two budgets bound the work, since offsets may point to one place from many others. Every table and every vector
    element other than a number takes at least 4 bytes of an honest file: `parts_left` starts at a quarter of the file's
    size. Tables may share a vector of numbers (a shape, say), but each table takes bytes itself: `numbers_left` starts
    at the file's size, and vectors of bytes are not counted, since they are views.
    """

    data: bytes
    where: str
    parts_left: int
    numbers_left: int
    end: int = 0  # of what was walked so far
    tables: dict[tuple[int, str], Table] = field(default_factory=dict)

    def target(self, at: int) -> int:
        """Where the offset that is stored at `at` points to. Offsets are unsigned: they only lead forward."""
        target: int = at + self._number("u4", at)
        if target + _OFFSET_BYTES > len(self.data):
            raise self._corrupt("an offset beyond the end", at)
        return target

    def table_at(self, pos: int, name: str) -> Table:
        """The table at `pos`, decoded once however many others refer to it."""
        # By type as well: a forged file may refer to the same bytes as two types of table.
        key = (pos, name)
        if key not in self.tables:
            self._spend(1, pos)
            self.tables[key] = self._decode_table(pos, name)
        return self.tables[key]

    def scalar(self, at: int, entry: Field, table: Table) -> int | float:
        value: int | float = self._number(entry.type, at)
        return value

    def string(self, at: int, entry: Field, table: Table) -> str:
        # Converters write names that are not UTF-8; surrogates carry such bytes through to the segments unchanged.
        start, count = self._vector(at, 1)
        return self.data[start : start + count].decode("utf-8", "surrogateescape")

    def child(self, at: int, entry: Field, table: Table) -> Table:
        return self.table_at(self.target(at), entry.type)

    def union(self, at: int, entry: Field, table: Table) -> Table:
        # The tag, which says of which type the table is, stands in the slot before and so is already decoded.
        names = schema().unions[entry.type]
        tag = table[f"{entry.name}_type"]
        if not 0 < tag < len(names):
            raise ModelError(f"{table.type} has {entry.name} of an unknown kind ({tag})", self.where, _UNKNOWN)
        return self.table_at(self.target(at), names[tag])

    def scalars(self, at: int, entry: Field, table: Table) -> NDArray[Any]:
        dtype = _DTYPE[entry.type]
        start, count = self._vector(at, dtype.itemsize)
        if dtype.itemsize > 1:
            self.numbers_left -= count
            if self.numbers_left < 0:
                raise self._corrupt("more numbers than the file has room for", at)
        return np.frombuffer(self.data, dtype, count, start)

    def blobs(self, at: int, entry: Field, table: Table) -> list[bytes]:
        vectors = (self._vector(place, 1) for place in self._places(at))
        return [self.data[start : start + size] for start, size in vectors]

    def children(self, at: int, entry: Field, table: Table) -> list[Table]:
        return [self.table_at(self.target(place), entry.type) for place in self._places(at)]

    def _places(self, at: int) -> list[int]:
        """Where the offsets in a vector of offsets stand."""
        start, count = self._vector(at, _OFFSET_BYTES)
        self._spend(count, at)  # before the list is made: a forged count may be in the thousands of millions
        return [start + _OFFSET_BYTES * i for i in range(count)]

    def _vector(self, at: int, width: int) -> tuple[int, int]:
        """Position of the first element, and the number of elements. width: bytes of one."""
        start = self.target(at)
        count = int(self._number("u4", start))
        if start + 4 + count * width > len(self.data):
            raise self._corrupt("a vector beyond the end", at)
        self.end = max(self.end, start + 4 + count * width)
        return start + 4, count

    def _decode_table(self, pos: int, name: str) -> Table:
        slots, length = self._vtable(pos)
        layout = schema().tables[name]
        table = Table(name, {})
        for slot, within in enumerate(slots):
            if not within:
                continue
            # A field that we would drop silently could change what the model computes, so we refuse it by name.
            if slot >= len(layout):
                what = f"{name} has a field (slot {slot}) that this version does not know"
                raise ModelError(what, self.where, _UNKNOWN)
            entry = layout[slot]
            if within < 4 or within + _width(entry) > length:  # the first 4 bytes are the offset to the vtable
                raise self._corrupt(f"field '{entry.name}' outside its {name}", pos)
            if entry.kind != "unread":
                table.fields[entry.name] = _READ[entry.kind](self, pos + within, entry, table)
        return table

    def _vtable(self, pos: int) -> tuple[tuple[int, ...], int]:
        """The entries of the table's vtable, and the table's own length in bytes."""
        # Signed, and subtracted: a vtable may stand before or behind its table.
        vtable = pos - int(self._number("i4", pos))
        size, length = int(self._number("u2", vtable)), int(self._number("u2", vtable + 2))
        if size < 4 or size % 2 or vtable + size > len(self.data) or length < 4 or pos + length > len(self.data):
            raise self._corrupt("a table without a valid layout", pos)
        self.end = max(self.end, vtable + size, pos + length)
        return struct.unpack_from(f"<{size // 2 - 2}H", self.data, vtable + 4), length

    def _number(self, code: str, offset: int) -> Any:
        form = _STRUCT[code]
        # Python would take a negative offset from the end of the file.
        if offset < 0 or offset + form.size > len(self.data):
            raise self._corrupt("a number beyond the end", offset)
        return form.unpack_from(self.data, offset)[0]

    def _spend(self, count: int, offset: int) -> None:
        self.parts_left -= count
        if self.parts_left < 0:
            raise self._corrupt("more parts than the file has room for", offset)

    def _corrupt(self, what: str, offset: int) -> ModelError:
        return ModelError(f"truncated or corrupt: {what} at byte {offset}", self.where, _CORRUPT)


class _ReadField(Protocol):
    """Reads the field that stands at a position; table: the one it belongs to, decoded up to this field."""

    def __call__(self, decoder: _Decoder, at: int, entry: Field, table: Table, /) -> Any: ...


_READ: dict[str, _ReadField] = {
    "scalar": _Decoder.scalar,
    "string": _Decoder.string,
    "table": _Decoder.child,
    "union": _Decoder.union,
    "scalars": _Decoder.scalars,
    "blobs": _Decoder.blobs,
    "tables": _Decoder.children,
}


def encode(root: Table, *, identifier: bytes, size_hint: int) -> bytes:
    """The file that holds these tables. A field that is present is written even if it equals the schema's default.

    identifier: four bytes that name the file's format. size_hint: about how many bytes the file will have; a good one
    saves copies while the file grows.

    Raises OverflowError if the file would be larger than 2 GiB, which no flatbuffer can be.
    """
    builder = flatbuffers.Builder(min(size_hint, flatbuffers.Builder.MAX_BUFFER_SIZE))
    # The library leaves fields out that equal the default it is given. That would change tables we only hand through.
    builder.ForceDefaults(forceDefaults=True)
    encoder = _Encoder(builder)
    try:
        builder.Finish(encoder.table(root), file_identifier=identifier)
    except BuilderSizeError as error:
        raise OverflowError("a flatbuffer larger than 2 GiB") from error
    return bytes(memoryview(builder.Bytes)[builder.Head() :])


@dataclass(slots=True)
class _Encoder:
    """One file being written. The library writes from the end to the front, so children come before their table."""

    builder: flatbuffers.Builder
    offsets: dict[int, int] = field(default_factory=dict)
    written: list[Table] = field(default_factory=list)

    def table(self, table: Table) -> int:
        """Offset of the table. A table that several others share is written once."""
        if id(table) not in self.offsets:
            self.offsets[id(table)] = self._write_table(table)
            self.written.append(table)  # keeps the object alive: only then is its id unique
        return self.offsets[id(table)]

    def _write_table(self, table: Table) -> int:
        layout = schema().tables[table.type]
        present = [(slot, f, table.fields[f.name]) for slot, f in enumerate(layout) if f.name in table.fields]
        # Tables cannot be nested while they are written: all parts first, then the table with their offsets.
        ready = [(slot, f, v if f.kind == "scalar" else self._write_part(f, v)) for slot, f, v in present]
        self.builder.StartObject(len(layout))
        # Narrow fields are written first and so end up behind the wide ones: no padding stands between them.
        for slot, entry, value in sorted(ready, key=lambda r: _width(r[1])):
            if entry.kind == "scalar":
                self.builder.PrependSlot(_FLAGS[entry.type], slot, value, 0)
            else:
                self.builder.PrependUOffsetTRelativeSlot(slot, value, 0)
        return int(self.builder.EndObject())

    def _write_part(self, entry: Field, value: Any) -> int:
        """Offset of a field's value that does not stand in the table itself."""
        if entry.kind in ("table", "union"):
            return self.table(value)
        if entry.kind == "string":
            return self._write_string(value)
        if entry.kind == "scalars":
            return self._write_scalars(np.asarray(value, _DTYPE[entry.type]), entry.align)
        parts = [self.table(v) for v in value]
        self.builder.StartVector(_OFFSET_BYTES, len(parts), _OFFSET_BYTES)
        for part in reversed(parts):
            self.builder.PrependUOffsetTRelative(part)
        return int(self.builder.EndVector())

    def _write_string(self, text: str) -> int:
        return int(self.builder.CreateString(text, "utf-8", "surrogateescape"))

    def _write_scalars(self, values: NDArray[Any], align: int) -> int:
        """A vector of numbers, copied once. align: of its first byte; 0 for the width of a number.

        The library's own call for arrays copies twice and cannot align: runtimes map constants into memory and need
        them at multiples of 16 bytes.
        """
        width = values.dtype.itemsize
        self.builder.StartVector(width, len(values), max(align, width))
        head = self.builder.Head() - values.nbytes
        self.builder.Bytes[head : head + values.nbytes] = np.ascontiguousarray(values).data.cast("B")
        self.builder.head = head
        return int(self.builder.EndVector())


def _width(entry: Field) -> int:
    """Bytes that the field takes in its table; 0 if it is not read."""
    if entry.kind == "unread":
        return 0
    return _STRUCT[entry.type].size if entry.kind == "scalar" else _OFFSET_BYTES
