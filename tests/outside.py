"""Moves constants and custom options of a .tflite file behind its flatbuffer, as LiteRT's writers do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.tflite import flatbuffer
from balancer.tflite.flatbuffer import Table
from balancer.tflite.model import IDENTIFIER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_ALIGNMENT = 16  # of TensorFlow's flatbuffer_export.cc


def moved_out(
    data: bytes, buffers: Collection[int] | None = None, *, merged: bool = False, alignment: int = _ALIGNMENT
) -> bytes:
    """The same model with the bytes of these buffers (None: of all) and of all custom options behind the flatbuffer.

    merged: equal bytes of buffers are stored once.
    """
    root = _root(data)
    inside = root["buffers"]
    moving = [k for k, b in enumerate(inside) if len(b["data"]) and (buffers is None or k in buffers)]
    blobs = {("buffer", k): inside[k]["data"].tobytes() for k in moving}
    blobs |= {
        ("op", i): operator["custom_options"].tobytes()
        for i, operator in enumerate(root["subgraphs"][0]["operators"])
        if "custom_options" in operator.fields
    }
    unplaced = dict.fromkeys(blobs, (1, 1))
    start = _rounded(len(_encoded(_placed(root, unplaced))), alignment)
    tail, places = _laid_out(blobs, start, alignment, merged=merged)
    return _encoded(_placed(root, places)).ljust(start, b"\0") + tail


def forged(data: bytes, change: Callable[[Table], None]) -> bytes:
    """A file with bytes outside whose tables `change` has changed in place, without changing their size."""
    root, end = flatbuffer.decode_measured(data, root="Model", where="forged")
    change(root)
    made = _encoded(root)
    assert len(made) - end < _ALIGNMENT, "the flatbuffer has grown"
    return made + data[len(made) :]


def _root(data: bytes) -> Table:
    return flatbuffer.decode(data, root="Model", where="made")


def _encoded(root: Table) -> bytes:
    return flatbuffer.encode(root, identifier=IDENTIFIER, size_hint=1 << 12)


def _rounded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _laid_out(
    blobs: dict[tuple[str, int], bytes], start: int, alignment: int, *, merged: bool
) -> tuple[bytes, dict[tuple[str, int], tuple[int, int]]]:
    """The bytes behind the flatbuffer, and where each part of them lies in the file: offset and size."""
    tail, places, known = bytearray(), dict[tuple[str, int], tuple[int, int]](), dict[bytes, int]()
    for key, blob in blobs.items():
        at = known.get(blob) if merged and key[0] == "buffer" else None
        if at is None:
            at = start + len(tail)
            tail += blob.ljust(_rounded(len(blob), alignment), b"\0")
            known[blob] = at
        places[key] = (at, len(blob))
    return bytes(tail), places


def _placed(root: Table, places: dict[tuple[str, int], tuple[int, int]]) -> Table:
    """The model whose buffers and ops have these places instead of their bytes, and that says so in its metadata."""
    buffers = list(root["buffers"])
    (subgraph,) = root["subgraphs"]
    operators = list(subgraph["operators"])
    for (kind, k), (offset, size) in places.items():
        if kind == "buffer":
            buffers[k] = buffers[k].changed(data=None, offset=offset, size=size)
        else:
            fields: dict[str, Any] = {"large_custom_options_offset": offset, "large_custom_options_size": size}
            operators[k] = operators[k].changed(custom_options=None, **fields)
    buffers.append(Table("Buffer", {"data": np.frombuffer(b"outside flatbuffers", np.uint8)}))
    location = Table("Metadata", {"name": "buffer_location", "buffer": len(buffers) - 1})
    return root.changed(
        buffers=buffers,
        subgraphs=[subgraph.changed(operators=operators)],
        metadata=[*root["metadata"], location],
    )
