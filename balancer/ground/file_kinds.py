"""What a file or folder is that was given in place of another one, by its first bytes, and which verb takes it.

Readers ask here after they have refused something: a message that names the mistake is worth more than one that says
which bytes are missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"})  # endings of files that are read as pictures
_START_BYTES = 4096
_COMPILED = b"edgetpu-custom-op"
_FORMAT = re.compile(rb'"format"\s*:\s*"balancer-(plan|hardware|profile|benchmark)"')
PLAN_NAME = re.compile(r".+_plan_\d+\.json", re.DOTALL)  # as `Plan.file_name` makes it


@dataclass(frozen=True, slots=True)
class FileKind:
    """name: with its article, for the middle of a sentence. hint: what takes it, or what helps."""

    name: str
    hint: str


_PLAN_VERBS = "`balancer run`, `bench`, `tune`, `verify`, `compile`, `size` and `inspect` take it"
_ARRAYS = FileKind("a file of arrays", "`run --inputs` and `verify --inputs` take it")
_PICTURE = FileKind("a picture", "`run --inputs` takes the folder that holds it")
_CONVERT = "convert the model to a full-integer .tflite file first"
EMPTY = FileKind("an empty file", "write or copy it again")
_MODEL = FileKind("a TFLite model", "`balancer solve MODEL -n N -o DIR` makes a plan of it, which most verbs take")
_COMPILED_MODEL = FileKind("a model compiled for the Edge TPU", "`balancer inspect` takes it")
_OWN = {
    b"plan": FileKind("a plan file", _PLAN_VERBS),
    b"hardware": FileKind("a hardware file", "`--hardware` and `calibrate --from` take it"),
    b"profile": FileKind("a profile", "`solve --profile` takes it"),
    b"benchmark": FileKind("the output of a benchmark", "`bench --csv` writes times that other verbs take"),
}
_BY_START = (
    (b"\x93NUMPY", _ARRAYS),
    (b"\x89PNG", _PICTURE),
    (b"\xff\xd8\xff", _PICTURE),
    (b"GIF8", _PICTURE),
    (b"\x89HDF", FileKind("an HDF5 file, in which Keras keeps models", _CONVERT)),
    (b"Edge TPU Compiler", FileKind("a log of the compiler", "`balancer inspect` takes it, if its name ends in .log")),
)
MEASURED_TIMES = FileKind(
    "a CSV file of measured times", "`tune --recorded`, `calibrate --data` and `--sim-times` take it"
)


def kind_of(data: bytes) -> FileKind | None:
    """The kind of a file with these bytes; None where they do not tell.

    >>> kind_of(b""), kind_of(b"    TFL3    ").name, kind_of(b"hello")
    (FileKind(name='an empty file', hint='write or copy it again'), 'a TFLite model', None)
    """
    start = data[:_START_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    if not data:
        return EMPTY
    if data[4:8] == b"TFL3":
        return _COMPILED_MODEL if _COMPILED in data else _MODEL
    if data.startswith(b"PK"):
        is_npz = b".npy" in data[:_START_BYTES]
        return _ARRAYS if is_npz else FileKind("a zip archive, in which PyTorch keeps models", _CONVERT)
    if start.startswith((b"{", b"[")):
        own = _FORMAT.search(start)
        return _OWN[own.group(1)] if own else None
    if {b"plan", b"stage", b"measured_ms"} <= {name.strip() for name in start.partition(b"\n")[0].split(b",")}:
        return MEASURED_TIMES
    return next((kind for magic, kind in _BY_START if data.startswith(magic)), None)


def kind_of_path(path: Path) -> FileKind | None:
    """The kind of a file or folder; None where its bytes do not tell, or where it cannot be read."""
    try:
        if path.is_dir():
            return _kind_of_folder([entry.name for entry in path.iterdir()])
        with path.open("rb") as file:
            return kind_of(file.read(_START_BYTES))
    except (OSError, ValueError):
        return None


def _kind_of_folder(names: list[str]) -> FileKind:
    """names: of what it holds."""
    if any(PLAN_NAME.fullmatch(name) for name in names):
        return FileKind("a plan's directory", _PLAN_VERBS)
    if "saved_model.pb" in names:
        return FileKind("a SavedModel of TensorFlow", _CONVERT)
    if any(name[name.rfind(".") :].lower() in PICTURES for name in names if "." in name):
        return FileKind("a folder of pictures", "`run --inputs` takes it")
    return FileKind("a folder" if names else "an empty folder", "name a file in it" if names else "name another one")


def refused(expected: str, remedy: str, kind: FileKind | None, otherwise: str) -> tuple[str, str]:
    """What is wrong, and the remedy, where a reader has refused a file.

    expected: what the reader takes, such as "a plan file". remedy: what the reader asks for. kind: what the file is, as far
    as that is known. otherwise: what is wrong if it is not known.

    >>> refused("a plan file", "give a plan", kind_of(b""), "not JSON")
    ('not a plan file but an empty file', 'give a plan; write or copy it again')
    """
    if kind is None or kind.name == expected:
        return otherwise, remedy
    return f"not {expected} but {kind.name}", f"{remedy}; {kind.hint}"
