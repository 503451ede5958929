"""What the compiler wrote into a compiled file: sizes of parameters and instructions, the Edge TPU's inputs and outputs,
and the ops that it left to the CPU.

A compiled file is a TFLite file in which all mapped ops are replaced by one `edgetpu-custom-op`. That op's custom
options are a FlexBuffer map, in which flatbuffers are nested:

    custom options (FlexBuffer map)
    └── "4": Package                  identifier DWN1
        └── MultiExecutable
            ├── Executable, caching   its parameters are sent once and stay on chip
            └── Executable, running   its parameters are sent with every inference

A model without parameters to cache has a single stand-alone executable instead.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flatbuffers import flexbuffers

from balancer.errors import ModelError
from balancer.tflite import flatbuffer
from balancer.tflite.decoding import decode_model
from balancer.tflite.model import EDGETPU_CUSTOM_OP
from balancer.tflite.read import read_model_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from balancer.tflite.flatbuffer import Table
    from balancer.tflite.model import Model

_PACKAGE_IDENTIFIER = b"DWN1"
_PACKAGE_KEY = "4"
_CACHING = 1  # an executable's type: 0 runs on its own, 1 caches parameters, 2 runs with cached parameters
COMPILED = f"CUSTOM:{EDGETPU_CUSTOM_OP}"
_DATA_TYPES = {0: "uint8", 8: "int8", 9: "int16"}
_REMEDY = "compile the model again"


@dataclass(frozen=True, slots=True)
class Layer:
    """A tensor that enters or leaves the Edge TPU.

    size_bytes: with the chip's padding. shape: height, width, channels.
    """

    name: str
    size_bytes: int
    shape: tuple[int, int, int]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """The contents of a compiled model's package.

    cached_bytes, streamed_bytes: of parameters. narrow_bytes_per_tile: memory for activations. scratch_bytes: host
    memory for what does not fit the chip. token: equal in models that were compiled together to share the
    chip. cpu_ops: types of the ops that the compiler left to the CPU.
    """

    name: str
    cached_bytes: int
    streamed_bytes: int
    instruction_bytes: int
    narrow_bytes_per_tile: int
    scratch_bytes: int
    min_runtime_version: int
    token: int
    inputs: tuple[Layer, ...]
    outputs: tuple[Layer, ...]
    cpu_ops: tuple[str, ...]


class FileOp(NamedTuple):
    """An op by its type. reads, makes: names of its input tensors, constants included, and of its output tensors."""

    type: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]


class FileOps(NamedTuple):
    """A file's ops in execution order, and the names of its input and output tensors."""

    ops: tuple[FileOp, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def load_package(path: str | Path) -> Package:
    """The package of a compiled file. Raises ModelError if it cannot be read, is not compiled, or is corrupt."""
    path = Path(path)
    return read_package(read_model_bytes(path), name=path.stem, where=str(path))


def is_compiled(data: bytes, where: str) -> bool:
    """Whether the file is compiled for the Edge TPU. Raises ModelError if it is not a valid TFLite file."""
    return bool(_compiled_ops(decode_model(data, where)))


def describe(data: bytes, where: str) -> FileOps:
    """Ops and interface of a file, compiled or not. Raises ModelError if it is not a valid TFLite file."""
    model = decode_model(data, where)

    def names(tensors: Iterable[int]) -> tuple[str, ...]:
        return tuple(model.tensors[int(t)]["name"] for t in tensors if t >= 0)

    ops = tuple(
        FileOp(kind, names(o["inputs"]), names(o["outputs"]))
        for o, kind in zip(model.operators, model.op_types, strict=True)
    )
    return FileOps(ops, names(model.subgraph["inputs"]), names(model.subgraph["outputs"]))


def read_package(data: bytes, *, name: str, where: str) -> Package:
    """The package in these bytes of a compiled file. Raises ModelError as `load_package` does."""
    model = decode_model(data, where)
    compiled = _compiled_ops(model)
    if len(compiled) != 1:
        raise ModelError(f"holds {len(compiled)} compiled parts, where one is expected", where, _REMEDY)
    package = flatbuffer.decode(_package_bytes(compiled[0], where), root="Package", where=where)
    nested = package["serialized_multi_executable"]
    executables = _executables(bytes(nested), where) if len(nested) else []
    if not executables:
        raise ModelError("its package holds no executable", where, _REMEDY)
    running = [e for e in executables if e["type"] != _CACHING]
    if len(running) != 1:
        raise ModelError(f"its package holds {len(running)} executables that run", where, _REMEDY)
    return Package(
        name=name,
        cached_bytes=sum(len(e["parameters"]) for e in executables if e["type"] == _CACHING),
        streamed_bytes=len(running[0]["parameters"]),
        instruction_bytes=sum(len(b["bitstream"]) for e in executables for b in e["instruction_bitstreams"]),
        narrow_bytes_per_tile=int(running[0]["used_narrow_memory_bytes_per_tile"]),
        scratch_bytes=int(running[0]["scratch_size_bytes"]),
        min_runtime_version=int(package["min_runtime_version"]),
        token=int(running[0]["parameter_caching_token"]),
        inputs=tuple(_layer(entry) for entry in running[0]["input_layers"]),
        outputs=tuple(_layer(entry) for entry in running[0]["output_layers"]),
        cpu_ops=tuple(kind for o, kind in zip(model.operators, model.op_types, strict=True) if o is not compiled[0]),
    )


def _compiled_ops(model: Model) -> list[Table]:
    return [o for o, kind in zip(model.operators, model.op_types, strict=True) if kind == COMPILED]


def _package_bytes(operator: Table, where: str) -> bytes:
    options = bytes(operator["custom_options"])
    try:
        entry: Any = flexbuffers.GetRoot(options).AsMap[_PACKAGE_KEY]
        package = bytes(entry.AsBlob if entry.IsBlob else entry.AsStringBytes)
    # The library checks nothing; these are all that it raised on mutated files.
    except (ValueError, IndexError, KeyError, TypeError, struct.error, RecursionError, OverflowError) as error:
        raise ModelError(f"its compiled part has no readable package ({error})", where, _REMEDY) from error
    if package[4:8] != _PACKAGE_IDENTIFIER:
        raise ModelError("the package in its compiled part has an unknown format", where, _REMEDY)
    return package


def _executables(data: bytes, where: str) -> list[Table]:
    blobs: list[bytes] = flatbuffer.decode(data, root="MultiExecutable", where=where)["serialized_executables"]
    return [flatbuffer.decode(blob, root="Executable", where=where) for blob in blobs]


def _layer(table: Table) -> Layer:
    kind = _DATA_TYPES.get(table["data_type"], f"type {table['data_type']}")
    return Layer(table["name"], int(table["size_bytes"]), (table["y_dim"], table["x_dim"], table["z_dim"]), kind)
