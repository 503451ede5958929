"""What the compiler put into a compiled file: the parameters that stay on chip, those that are streamed,
instructions, and the tensors and ops that stayed outside.

A compiled file is a TFLite file in which the mapped ops became one `edgetpu-custom-op`. The op's custom options are a
FlexBuffer map; under "4" lies the package, a flatbuffer with others nested in it, down to executables: one that
caches parameters, one that runs (or one that does both, without parameters).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flatbuffers import flexbuffers

from balancer.errors import ModelError
from balancer.tflite import flatbuffer
from balancer.tflite.model import EDGETPU_CUSTOM_OP, Model
from balancer.tflite.read import read_model_bytes

if TYPE_CHECKING:
    from balancer.tflite.flatbuffer import Table

_PACKAGE_IDENTIFIER = b"DWN1"
_PACKAGE_KEY = "4"
_CACHING = 1  # type of an executable: 0 stand-alone, 1 caches parameters, 2 runs with cached ones
COMPILED = f"CUSTOM:{EDGETPU_CUSTOM_OP}"
_DATA_TYPES = {0: "uint8", 8: "int8", 9: "int16"}
_REMEDY = "compile the model again"


@dataclass(frozen=True, slots=True)
class Layer:
    """A tensor that enters or leaves the Edge TPU. size_bytes: padded as the chip takes it."""

    name: str
    size_bytes: int
    shape: tuple[int, int, int]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A compiled model, as its file says. narrow_bytes_per_tile: activation memory. cpu_ops: types of the ops left
    outside.

    token: equal in models that were compiled to share the chip. scratch_bytes: host memory for what does not fit the
    chip.
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
    """reads, makes: tensor names; constants are among those that it reads."""

    type: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]


class FileOps(NamedTuple):
    """A file from outside: its ops in order, the names of its inputs and outputs."""

    ops: tuple[FileOp, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def load_package(path: str | Path) -> Package:
    """The package of a compiled file. Raises ModelError where it cannot be read, is not compiled, or is corrupt."""
    path = Path(path)
    return read_package(read_model_bytes(path), name=path.stem, where=str(path))


def is_compiled(data: bytes, where: str) -> bool:
    """Whether the file holds an op of the compiler. Raises ModelError where it is no TFLite file."""
    return bool(_compiled_ops(Model(data, where)))


def describe(data: bytes, where: str) -> FileOps:
    """Ops and interface of a file, compiled or not. Raises ModelError where it is no TFLite file."""
    model = Model(data, where)

    def names(tensors: Any) -> tuple[str, ...]:
        return tuple(model.tensors[int(t)]["name"] for t in tensors if t >= 0)

    ops = tuple(FileOp(model.type_name(o), names(o["inputs"]), names(o["outputs"])) for o in model.operators)
    return FileOps(ops, names(model.subgraph["inputs"]), names(model.subgraph["outputs"]))


def read_package(data: bytes, *, name: str, where: str) -> Package:
    """The package in these bytes of a compiled file. Raises ModelError as `load_package` does."""
    model = Model(data, where)
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
        cpu_ops=tuple(model.type_name(o) for o in model.operators if o is not compiled[0]),
    )


def _compiled_ops(model: Model) -> list[Table]:
    return [o for o in model.operators if model.type_name(o) == COMPILED]


def _package_bytes(operator: Table, where: str) -> bytes:
    options = bytes(operator["custom_options"])
    try:
        found: Any = flexbuffers.GetRoot(options).AsMap[_PACKAGE_KEY]
        package = bytes(found.AsBlob if found.IsBlob else found.AsStringBytes)
    except (ValueError, IndexError, KeyError, TypeError, struct.error, RecursionError, OverflowError) as error:
        raise ModelError(f"its compiled part has no readable package ({error})", where, _REMEDY) from error
    if package[4:8] != _PACKAGE_IDENTIFIER:
        raise ModelError("its compiled part holds no package that is known here", where, _REMEDY)
    return package


def _executables(data: bytes, where: str) -> list[Table]:
    blobs: list[bytes] = flatbuffer.decode(data, root="MultiExecutable", where=where)["serialized_executables"]
    return [flatbuffer.decode(blob, root="Executable", where=where) for blob in blobs]


def _layer(table: Table) -> Layer:
    kind = _DATA_TYPES.get(table["data_type"], f"type {table['data_type']}")
    return Layer(table["name"], int(table["size_bytes"]), (table["y_dim"], table["x_dim"], table["z_dim"]), kind)
