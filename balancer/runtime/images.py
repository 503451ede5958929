"""Pictures as a model's input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.errors import DependencyError, InputError

if TYPE_CHECKING:
    from pathlib import Path

    from balancer.inputs import InputSpec

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}
_OFFSETS = {"uint8": 0, "int8": -128}


def image_files(folder: Path) -> list[Path]:
    """The pictures in a folder, by name. Raises InputError where there are none."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if not found:
        raise InputError("holds no pictures", str(folder), f"give a folder with {', '.join(sorted(ENDINGS))}")
    return found


def load_image(path: Path, spec: InputSpec) -> Any:
    """A picture, resized to what the input takes: RGB or grey levels 0 to 255 as they are for uint8, less 128 for
    int8, from -1 to 1 for floats.

    Raises InputError where the input takes no pictures or the file is none, DependencyError without pillow.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DependencyError("is needed to read pictures", "pillow", "pip install pillow") from error
    if len(spec.shape) != 4 or spec.shape[0] != 1 or spec.shape[3] not in (1, 3):
        what = f"input '{spec.name}' of shape {list(spec.shape)} takes no pictures"
        raise InputError(what, str(path), "give arrays: .npy or .npz")
    try:
        with Image.open(path) as image:
            levels = image.convert("RGB" if spec.shape[3] == 3 else "L").resize((spec.shape[2], spec.shape[1]))
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"is no picture that can be read ({error})", str(path), "remove it, or convert it") from error
    array = np.asarray(levels, np.int16).reshape(spec.shape)
    if spec.dtype in _OFFSETS:
        return (array + _OFFSETS[spec.dtype]).astype(spec.dtype)
    if spec.dtype == "float32":
        return (array / 127.5 - 1).astype(np.float32)
    raise InputError(f"input '{spec.name}' is {spec.dtype}", str(path), "give arrays: .npy or .npz")
