"""From a full-integer .tflite file to its Graph.

The steps, each a module that hands a record on:

    bytes --decoding--> Model --shapes--> ModelShapes --graph_building--> Graph

`ReadModel` keeps all three, since the cutter needs them.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.errors import ModelError
from balancer.ground.file_kinds import kind_of_path, refused
from balancer.tflite.decoding import decode_model
from balancer.tflite.graph_building import build_graph
from balancer.tflite.model import Model, refuse_compiled
from balancer.tflite.shapes import ModelShapes, propagate_shapes

if TYPE_CHECKING:
    from balancer.graph import Graph

# Offsets in a flatbuffer have 32 bits, one of them for the sign. Constants behind it could make a file larger, but then
# no segment that holds them could be written.
_MOST_FILE_BYTES = (1 << 31) - 1


@dataclass(frozen=True, slots=True, eq=False)
class ReadModel:
    """A model as tables, the shapes that follow from them, and the graph made of both."""

    model: Model
    shapes: ModelShapes
    graph: Graph


def load_graph(model: str | Path | bytes) -> Graph:
    """The graph of a .tflite file, given as a path or as its bytes (then its name is "model").

    Raises ModelError if it is not a full-integer TFLite model with static shapes; the message says where, and what to
    do.
    """
    if isinstance(model, bytes):
        return read_graph(model, name="model")
    path = Path(model)
    return read_graph(read_model_bytes(path), name=path.stem, where=str(path))


def read_model_bytes(path: Path) -> bytes:
    """The file's bytes. Raises ModelError if it cannot be read, or is larger than 2 GiB."""
    try:
        status = path.stat()
        # Reading a pipe or a device may never end; a directory fails below, with the system's own reason.
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise ModelError("is not a file", str(path), "give a .tflite model")
        if status.st_size > _MOST_FILE_BYTES:
            raise ModelError("larger than 2 GiB", str(path), "give a smaller .tflite model")
        return path.read_bytes()
    except OSError as error:
        otherwise = f"cannot be read ({error.strerror or error})"
        kind = kind_of_path(path) if isinstance(error, IsADirectoryError) else None
        remedy = "check the path and its permissions" if kind is None else "give a .tflite model"
        what, remedy = refused("a TFLite file", remedy, kind, otherwise)
        raise ModelError(what, str(path), remedy) from error


def read_graph(data: bytes, *, name: str, where: str | None = None) -> Graph:
    """The graph of a model's bytes. name: of the graph. where: what messages call the model; default: the name.

    Raises ModelError as `load_graph` does.
    """
    return read_model(data, name=name, where=where).graph


def read_model(data: bytes, *, name: str, where: str | None = None) -> ReadModel:
    """The same, with the tables and shapes that the graph was made of."""
    model = decode_model(data, where or name)
    refuse_compiled(model)
    shapes = propagate_shapes(model)
    return ReadModel(model, shapes, build_graph(model, shapes, name))
