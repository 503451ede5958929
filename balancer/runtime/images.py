"""Pictures as a model's input."""

from __future__ import annotations

import struct
import warnings
import zlib
from typing import TYPE_CHECKING

import numpy as np

from balancer.errors import DependencyError, InputError
from balancer.ground.file_kinds import PICTURES

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image as Picture

    from balancer.inputs import Array, InputSpec

# No other format: pillow starts a program for some of them (EPS), and few of the other decoders are maintained.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
_MOST_PIXELS = 128_000_000  # more than cameras give; half a GiB as RGB
_OFFSETS = {"uint8": 0, "int8": -128}  # added to levels of 0 to 255
# What pillow's decoders raise for files that are cut short or corrupt, besides OSError: seen by mutating files.
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError,
           MemoryError, RuntimeError, struct.error, zlib.error)  # fmt: skip


def image_files(folder: Path) -> list[Path]:
    """The pictures in a folder, sorted by name. Raises InputError where there are none."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", str(folder), "check its permissions") from error
    if not paths:
        raise InputError("holds no pictures", str(folder), f"give a folder with {', '.join(sorted(PICTURES))}")
    return paths


def load_pixels(path: Path) -> Array:
    """A picture in its own size: RGB levels from 0 to 255 as uint8 [height, width, 3]; 16-bit grey levels are scaled.

    Raises InputError where the file cannot be read as a picture, DependencyError without pillow.
    """
    return np.asarray(_levels(path, None, "RGB"), np.uint8)


def load_image(path: Path, spec: InputSpec) -> Array:
    """A picture as an input's array, resized to the input's shape [1, height, width, 1 or 3].

    RGB or grey levels from 0 to 255; for an int8 input 128 less; for a float32 input from -1 to 1. 16-bit grey levels
    are scaled to 0 to 255. Raises InputError where the input takes no pictures or the file cannot be read as one,
    DependencyError without pillow.
    """
    if len(spec.shape) != 4 or spec.shape[0] != 1 or spec.shape[3] not in (1, 3):
        what = f"input '{spec.name}' of shape {list(spec.shape)} takes no pictures"
        raise InputError(what, str(path), "give arrays: .npy or .npz")
    levels = _levels(path, (spec.shape[2], spec.shape[1]), "RGB" if spec.shape[3] == 3 else "L")
    array = np.asarray(levels, np.int16).reshape(spec.shape)
    if spec.dtype in _OFFSETS:
        return (array + _OFFSETS[spec.dtype]).astype(spec.dtype)
    if spec.dtype == "float32":
        return (array / 127.5 - 1).astype(np.float32)
    raise InputError(f"input '{spec.name}' is {spec.dtype}", str(path), "give arrays: .npy or .npz")


def _levels(path: Path, size: tuple[int, int] | None, mode: str) -> Picture:
    """The picture in this width and height, or its own, and in this mode. Raises as `load_image` does."""
    if path.exists() and not path.is_file():  # a named pipe may never end
        raise InputError("is not a file", str(path), "give a folder that holds only pictures")
    try:
        from PIL import Image
    except ImportError as error:
        raise DependencyError("is needed to read pictures", "pillow", "pip install pillow") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes, transparency and metadata: none of them changes the levels
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels")
                return _resized(image, size or image.size, mode)
    except (*_BROKEN, Image.DecompressionBombError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"cannot be read as a picture ({reason})", str(path), "remove it, or convert it") from error


def _resized(image: Picture, size: tuple[int, int], mode: str) -> Picture:
    """The picture in this size and mode. 16-bit grey levels are scaled, since pillow would clip them at 255.

    pillow calls their mode `I` or `I;16`, depending on its version.
    """
    from PIL import Image

    if not image.mode.startswith("I"):
        return image.convert(mode).resize(size)
    levels = np.asarray(image.convert("I").resize(size)) / 257  # resized first: few levels are left to scale
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8)).convert(mode)
