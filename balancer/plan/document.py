"""Records (frozen dataclasses) to JSON and back, checked all the way down."""

from __future__ import annotations

import json
import types
import typing
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from balancer.errors import PlanError
from balancer.ground.opsets import op_text, parse_op_set

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST = 1 << 53  # of any number in a file: what a float holds exactly, so that sums and products stay finite
UNSAVED = {"unsaved": True}  # metadata of a field that stays out of the file
MOST_OPS = 16_384  # four times what a model may have that is read here
_TEXT_OF = "text"  # the key of a field's metadata that says how its value is written
_KEYS = {"source": "from"}  # a Python keyword in the file


class TextForm(NamedTuple):
    """How a value that JSON does not have is written as text. read raises ValueError where the text is none."""

    write: Callable[[Any], str]
    read: Callable[[str], Any]


# Metadata of a field that holds an op set, or a tuple of op sets: "0-11,14" in the file.
OP_RANGES = {_TEXT_OF: TextForm(op_text, lambda text: parse_op_set(text, MOST_OPS))}


def to_json(value: Any) -> Any:
    """What a record, or a part of one, is in a file."""
    if is_dataclass(value) and not isinstance(value, type):
        saved = (f for f in fields(value) if not f.metadata.get("unsaved"))
        return {_KEYS.get(f.name, f.name): _written(f, getattr(value, f.name)) for f in saved}
    if isinstance(value, tuple):
        return [to_json(v) for v in value]
    return value


def _written(f: Field[Any], value: Any) -> Any:
    form: TextForm | None = f.metadata.get(_TEXT_OF)
    if form is None:
        return to_json(value)
    return [form.write(v) for v in value] if isinstance(value, tuple) else form.write(value)


def from_json(kind: Any, value: Any, where: str) -> Any:
    """A value of this type from JSON, checked all the way down. A field with a default may be absent; numbers are from
    0 to 2^53.

    Raises PlanError naming the place.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return from_json(next(a for a in arguments if a is not type(None)), value, where)
    if is_dataclass(kind):
        return _record(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(from_json(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {k: v if arguments[1] is Any else from_json(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    # In Python 3.10 `tuple[int, ...]` claims to be a type.
    fits = _FITS.get(kind) if origin is None else None
    if fits is not None and fits(value):
        return kind(value)
    raise PlanError(f"{json.dumps(value)[:40]} is not what belongs here", where, "solve again, or mend the file")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _is_text(value: Any) -> bool:
    """Half a surrogate pair, which JSON can hold, is none: it could not be written again."""
    return isinstance(value, str) and value == value.encode("utf-8", "ignore").decode()


_FITS: dict[Any, Callable[[Any], bool]] = {
    int: lambda value: isinstance(value, int) and _is_number(value),
    float: _is_number,
    str: _is_text,
    bool: lambda value: isinstance(value, bool),
}


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise PlanError("is not an object", where, "solve again, or mend the file")
    hints, made = _hints(kind), {}
    for f in fields(kind):
        key = _KEYS.get(f.name, f.name)
        if f.metadata.get("unsaved") or (key not in value and f.default is not MISSING):
            continue
        if key not in value:
            raise PlanError(f"'{key}' is missing", where, "solve again, or mend the file")
        made[f.name] = _read(f, hints[f.name], value[key], f"{where}: {key}")
    return kind(**made)


def _read(f: Field[Any], kind: Any, value: Any, where: str) -> Any:
    form: TextForm | None = f.metadata.get(_TEXT_OF)
    if form is None:
        return from_json(kind, value, where)
    several = typing.get_origin(kind) is tuple
    texts = from_json(tuple[str, ...] if several else str, value, where)
    try:
        return tuple(form.read(text) for text in texts) if several else form.read(texts)
    except ValueError as error:
        raise PlanError(str(error), where, "solve again, or mend the file") from error
