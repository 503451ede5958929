"""Files of arrays: .npy and .npz, as numpy writes them, of plain numbers.

numpy's own reader raises whatever its parts do, evaluates the header, and takes memory for as many elements as a
header claims. Here the header is matched, not evaluated; memory grows with what the file really holds.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from balancer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

_MAGIC, _ZIP = b"\x93NUMPY", b"PK"
_LENGTHS = {1: "<H", 2: "<I", 3: "<I"}  # of the header's length, by the format's version
_MOST_HEADER_BYTES = 65_536
_MOST_BYTES = 1 << 32
_MOST_RANK = 32
_CHUNK = 1 << 20
_DESCR = re.compile(r"""['"]descr['"]\s*:\s*['"]([<>|=]?[biufc](?:1|2|4|8|16))['"]""")
_ORDER = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\(([0-9, ]*)\)""")
# What zipfile raises for archives that are cut short, corrupt, encrypted, or packed in a way that it does not know.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, EOFError, ValueError,
               OSError, OverflowError, MemoryError)  # fmt: skip


def load_arrays(path: Path, wanted: Container[str]) -> Any:
    """The array in a .npy file, or those of these names in a .npz file, by name. Others are not looked at.

    Raises InputError where the file cannot be read, is neither, or holds other things than numbers.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
            file.seek(0)
            if start == _MAGIC:
                return _array(file)
            if start.startswith(_ZIP):
                return _members(file, wanted)
            raise ValueError("it begins like neither")
    except _ZIP_ERRORS as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error or type(error).__name__
        what = f"is not a readable .npy or .npz file ({reason})"
        raise InputError(what, str(path), "write it with numpy.save or numpy.savez") from error


def _members(file: IO[bytes], wanted: Container[str]) -> dict[str, Any]:
    found = {}
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name in wanted:
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("packed in a way that numpy does not write")
                with archive.open(entry) as member:
                    found[name] = _array(member)
    return found


def _array(file: IO[bytes]) -> Any:
    """Raises ValueError where it is none of plain numbers, or is cut short."""
    dtype, order, shape = _header(file)
    size = math.prod(shape) * dtype.itemsize
    if size > _MOST_BYTES:
        raise ValueError(f"an array of {size} bytes, where {_MOST_BYTES} are the most")
    data = bytearray()
    while len(data) < size and (chunk := file.read(min(_CHUNK, size - len(data)))):
        data += chunk
    if len(data) < size:
        raise ValueError(f"an array of {size} bytes ends after {len(data)}")
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _header(file: IO[bytes]) -> tuple[np.dtype[Any], Any, tuple[int, ...]]:
    """Element type, order ("C" or "F") and shape."""
    start = file.read(len(_MAGIC) + 2)
    form = _LENGTHS.get(start[-2]) if start[:-2] == _MAGIC else None
    if form is None:
        raise ValueError("not a .npy file of a version that is known")
    (length,) = struct.unpack(form, file.read(struct.calcsize(form)))
    if length > _MOST_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    text = file.read(length).decode("latin-1")
    descr, order, dimensions = (pattern.search(text) for pattern in (_DESCR, _ORDER, _SHAPE))
    if not (descr and order and dimensions):
        raise ValueError("no array of plain numbers")
    shape = tuple(int(d[:18]) for d in dimensions.group(1).replace(" ", "").split(",") if d)
    if len(shape) > _MOST_RANK:
        raise ValueError(f"an array of {len(shape)} dimensions")
    return _dtype(descr.group(1)), "F" if order.group(1) == "True" else "C", shape


def _dtype(descr: str) -> np.dtype[Any]:
    try:
        return np.dtype(descr)
    except TypeError:
        raise ValueError(f"element type {descr}") from None
