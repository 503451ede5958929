"""Reads arrays of numbers from .npy and .npz files as numpy writes them.

numpy's own reader is not safe on files from elsewhere: it evaluates the header as Python, allocates as much memory as
the header claims, and raises many kinds of exceptions. This module matches the header with regular expressions and
allocates memory only for bytes that the file really holds.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from balancer.errors import InputError
from balancer.ground.file_kinds import kind_of_path, refused

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

    from numpy.typing import NDArray

_MAGIC, _ZIP = b"\x93NUMPY", b"PK"
_LENGTHS = {1: "<H", 2: "<I", 3: "<I"}  # how the header's length is stored in each version of the format
_MOST_HEADER_BYTES = 65_536
_MOST_BYTES = 1 << 32
_MOST_RANK = 32
_CHUNK = 1 << 20
_DESCR = re.compile(r"""['"]descr['"]\s*:\s*['"]([<>|=]?[biufc](?:1|2|4|8|16))['"]""")
_ORDER = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\(([0-9, ]*)\)""")
# zipfile raises these for archives that are truncated, corrupt, encrypted, or compressed by an unknown method.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, EOFError, ValueError,
               OSError, OverflowError, MemoryError)  # fmt: skip


def load_arrays(path: Path, wanted: Container[str]) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """The array in a .npy file; or, from a .npz file, a dict of the arrays whose names are in `wanted`.

    Raises InputError if the file cannot be read, is neither, or a wanted array is not one of numbers.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
            file.seek(0)
            if start == _MAGIC:
                return _array(file)
            if start.startswith(_ZIP):
                return _members(file, wanted)
            raise ValueError("it starts like neither")
    except _ZIP_ERRORS as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error or type(error).__name__
        otherwise, remedy = (
            f"is not a readable .npy or .npz file ({reason})",
            "give a .npy or .npz file, as numpy.save or numpy.savez writes it",
        )
        kind = kind_of_path(path)
        what, remedy = refused("a file of arrays", remedy, kind, otherwise)
        raise InputError(what, str(path), remedy) from error


def _members(file: IO[bytes], wanted: Container[str]) -> dict[str, NDArray[Any]]:
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name in wanted:
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("compressed in a way that numpy does not write")
                with archive.open(entry) as member:
                    arrays[name] = _array(member)
    return arrays


def _array(file: IO[bytes]) -> NDArray[Any]:
    """Raises ValueError if the file is not a .npy file of numbers, or is truncated."""
    dtype, order, shape = _header(file)
    size = math.prod(shape) * dtype.itemsize
    if size > _MOST_BYTES:
        raise ValueError(f"an array of {size} bytes, more than {_MOST_BYTES}")
    data = bytearray()
    # In chunks: a forged header may claim gigabytes, and `read` would allocate them before it reads anything.
    while len(data) < size and (chunk := file.read(min(_CHUNK, size - len(data)))):
        data += chunk
    if len(data) < size:
        raise ValueError(f"an array of {size} bytes ends after {len(data)}")
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _header(file: IO[bytes]) -> tuple[np.dtype[Any], Literal["C", "F"], tuple[int, ...]]:
    """Element type, memory order ("C": last axis fastest, "F": first axis fastest) and shape."""
    start = file.read(len(_MAGIC) + 2)
    form = _LENGTHS.get(start[-2]) if start[:-2] == _MAGIC else None
    if form is None:
        raise ValueError("not a .npy file of a known version")
    (length,) = struct.unpack(form, file.read(struct.calcsize(form)))
    if length > _MOST_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    text = file.read(length).decode("latin-1")
    descr, order, dimensions = (pattern.search(text) for pattern in (_DESCR, _ORDER, _SHAPE))
    if not (descr and order and dimensions):
        raise ValueError("not an array of numbers")
    # 18 digits fit 64 bits, and keep int() fast on forged ones.
    shape = tuple(int(d[:18]) for d in dimensions.group(1).replace(" ", "").split(",") if d)
    if len(shape) > _MOST_RANK:
        raise ValueError(f"an array of {len(shape)} dimensions")
    return _dtype(descr.group(1)), "F" if order.group(1) == "True" else "C", shape


def _dtype(descr: str) -> np.dtype[Any]:
    try:
        return np.dtype(descr)
    except TypeError:
        raise ValueError(f"element type {descr}") from None
