"""Converts records (frozen dataclasses) to JSON and back. Reading checks every value, at every depth."""

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

LARGEST = 1 << 53  # the largest number in a file: floats hold it exactly, and sums and products stay finite
UNSAVED = {"unsaved": True}  # metadata of a field that is not written to the file
MOST_OPS = 16_384  # four times the largest model that balancer reads
_TEXT_OF = "text"  # key of a field's metadata; its value says how the field is written as text
_KEYS = {"source": "from"}  # field name -> key in the file: `from` is a Python keyword


class TextForm(NamedTuple):
    """How to write a value as text that has no JSON form of its own. read raises ValueError for text that it cannot read."""

    write: Callable[[Any], str]
    read: Callable[[str], Any]


# Metadata of a field that holds an op set or a tuple of op sets. In the file it is written as "0-11,14".
OP_RANGES = {_TEXT_OF: TextForm(op_text, lambda text: parse_op_set(text, MOST_OPS))}


def to_json(value: Any) -> Any:
    """The JSON value of a record, or of a part of one."""
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
    """A value of the given type from JSON.

    kind: a type, as in a dataclass's annotations. where: file and key, for messages. A field with a default may be
    absent. Numbers must be from 0 to 2^53. Raises PlanError, which names the place of a wrong value.
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
    # In Python 3.10 `tuple[int, ...]` is an instance of `type`, so the origin is asked, not `isinstance`.
    fits = _FITS.get(kind) if origin is None else None
    if fits is not None and fits(value):
        return kind(value)
    raise PlanError(f"{json.dumps(value)[:40]} is not a valid value here", where, "solve again, or correct the file")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _is_text(value: Any) -> bool:
    """Whether it is text that can be written as UTF-8. JSON can hold half a surrogate pair, which cannot."""
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
        raise PlanError("is not a JSON object", where, "solve again, or correct the file")
    hints, made = _hints(kind), {}
    for f in fields(kind):
        key = _KEYS.get(f.name, f.name)
        if f.metadata.get("unsaved") or (key not in value and f.default is not MISSING):
            continue
        if key not in value:
            raise PlanError(f"'{key}' is missing", where, "solve again, or correct the file")
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
        raise PlanError(str(error), where, "solve again, or correct the file") from error
