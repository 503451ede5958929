"""Constants and custom options that stand behind the flatbuffer, in the same file.

Offsets in a flatbuffer have 32 bits. For models above 2 GiB TFLite has a second place for the bytes of constants, and
LiteRT's converter and quantiser use it for small models, too:

    +------------------------------+----------------------+---------+----------------------+
    | flatbuffer                   | bytes of buffer 7    | padding | options of op 3      |
    |   Buffer 7: offset, size ----|--^                   |         |                      |
    |   Operator 3: large_custom_options_offset, _size ---|---------|--^                   |
    +------------------------------+----------------------+---------+----------------------+

Offsets count from the file's first byte. Those of 0 and 1 say that nothing stands outside: writers put 1 there before
they know the place (`IsValidBufferOffset` in TensorFlow's offset_buffer.h). A writer stores equal constants once, so that
several buffers have one place (`AppendBufferData` in its flatbuffer_export.cc); other places do not overlap. TFLite asks
for no alignment of these bytes; its writers use multiples of 16.

`inlined` puts all these bytes into their tables. What is made of the tables then, a segment above all, has everything in
the flatbuffer, as readers from before 2023 need it, the Edge TPU compiler among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from balancer.tflite.flatbuffer import Table

_PLACED_FROM = 2  # the lowest offset that names a place
_LOCATION = "buffer_location"  # metadata that tells old runtimes that constants stand outside
_FETCH = "fetch the file again, or convert the model again"
_RECONVERT = "convert the model again"


@dataclass(frozen=True, slots=True)
class Inlined:
    """root: the model's table with all bytes in it. sizes: bytes of each buffer that stood outside, by its number.
    is_changed: whether anything stood outside.
    """

    root: Table
    sizes: Mapping[int, int]
    is_changed: bool


@dataclass(frozen=True, slots=True)
class _Place:
    """Bytes of the file. owner: what they belong to, for messages."""

    start: int
    end: int
    owner: str


@dataclass(frozen=True, slots=True)
class _Fields:
    """The names of the fields that say where the bytes are: inside, or by offset and size outside."""

    inside: str
    offset: str
    size: str


_OF_BUFFER = _Fields("data", "offset", "size")
_OF_OPERATOR = _Fields("custom_options", "large_custom_options_offset", "large_custom_options_size")


def inlined(root: Table, data: bytes, end: int, where: str) -> Inlined:
    """The model's table with all bytes that stand outside put into their tables, as views of `data`.

    data: the whole file. end: of its flatbuffer, in bytes. where: the file's name, for messages. Buffers whose places are
    equal become one table.

    Raises ModelError if a place is not behind the flatbuffer, is not wholly in the file, or overlaps another; if a table has
    bytes both inside and outside, or a size without a place; or if constants stand in other files. So all bytes outside
    together, inlined, are never more than the file has.
    """
    if root["external_buffers"] or root["external_buffer_groups"]:
        what = "its constants lie in other files, which is not supported"
        raise ModelError(what, f"{where}: model", _RECONVERT)
    reader = _Reader(data, end, where)
    buffers = [reader.inline(b, _OF_BUFFER, f"buffer {i}") for i, b in enumerate(root["buffers"])]
    sizes = {
        i: len(new["data"]) for i, (new, old) in enumerate(zip(buffers, root["buffers"], strict=True)) if new is not old
    }
    subgraphs = [_with_options(subgraph, reader) for subgraph in root["subgraphs"]]
    if not reader.places:
        return Inlined(root, {}, is_changed=False)
    _refuse_overlaps(reader.places, where)
    metadata = [entry for entry in root["metadata"] if entry["name"] != _LOCATION]
    changed = root.changed(buffers=buffers, subgraphs=subgraphs, metadata=metadata or None)
    return Inlined(changed, sizes, is_changed=True)


class _Reader:
    """Reads what stands outside in one file. places: that were read, one for all buffers that have it."""

    def __init__(self, data: bytes, end: int, where: str) -> None:
        self._data, self._end, self._where = data, end, where
        self.places: list[_Place] = []
        self._buffers: dict[tuple[int, int], Table] = {}

    def inline(self, table: Table, fields: _Fields, owner: str) -> Table:
        """The table with its bytes inside; the table itself if nothing of it stands outside."""
        place = self._place(table, fields, owner)
        if place is None:
            return table
        known = self._buffers.get((place.start, place.end)) if fields is _OF_BUFFER else None
        if known is not None:
            return known
        self.places.append(place)
        changes: dict[str, Any] = {
            fields.offset: None, fields.size: None,
            fields.inside: np.frombuffer(self._data, np.uint8, place.end - place.start, place.start),
        }  # fmt: skip
        changed = table.changed(**changes)
        if fields is _OF_BUFFER:
            self._buffers[place.start, place.end] = changed
        return changed

    def _place(self, table: Table, fields: _Fields, owner: str) -> _Place | None:
        offset, size = int(table[fields.offset]), int(table[fields.size])
        if offset < _PLACED_FROM:
            if size > 1:
                raise self._error(
                    f"{size} bytes outside the flatbuffer have no place (offset {offset})", owner, _RECONVERT
                )
            return None
        # An empty vector inside counts: TFLite's interpreter takes it, where other readers take the bytes outside.
        if fields.inside in table.fields:
            raise self._error("has bytes both in the flatbuffer and outside the flatbuffer", owner, _RECONVERT)
        if offset < self._end:
            what = f"its bytes outside the flatbuffer start at {offset}, which is inside (it ends at {self._end})"
            raise self._error(what, owner, _RECONVERT)
        # Python's integers have no limit: a sum of two numbers of 64 bits does not wrap around.
        if offset + size > len(self._data):
            what = f"its {size} bytes outside the flatbuffer, at {offset}, go beyond the file's end ({len(self._data)})"
            raise self._error(what, owner, _FETCH)
        return _Place(offset, offset + size, owner)

    def _error(self, what: str, owner: str, remedy: str) -> ModelError:
        return ModelError(what, f"{self._where}: {owner}", remedy)


def _with_options(subgraph: Table, reader: _Reader) -> Table:
    old: Sequence[Table] = subgraph["operators"]
    new = [reader.inline(operator, _OF_OPERATOR, f"op {i}") for i, operator in enumerate(old)]
    return subgraph if all(a is b for a, b in zip(new, old, strict=True)) else subgraph.changed(operators=new)


def _refuse_overlaps(places: Iterable[_Place], where: str) -> None:
    for before, place in pairwise(sorted(places, key=lambda p: (p.start, p.end))):
        if place.start < before.end:
            what = f"its bytes {place.start} to {place.end} overlap those of {before.owner}, {before.start} to {before.end}"
            raise ModelError(what, f"{where}: {place.owner}", _RECONVERT)
