"""Records (frozen dataclasses) to JSON and back, checked all the way down."""

from __future__ import annotations

import json
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from balancer.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST = 1 << 53  # of any number in a file: what a float holds exactly, so that sums and products stay finite
UNSAVED = {"unsaved": True}  # metadata of a field that stays out of the file
_KEYS = {"source": "from"}  # a Python keyword in the file


def to_json(value: Any) -> Any:
    """What a record, or a part of one, is in a file."""
    if is_dataclass(value) and not isinstance(value, type):
        saved = (f for f in fields(value) if not f.metadata.get("unsaved"))
        return {_KEYS.get(f.name, f.name): to_json(getattr(value, f.name)) for f in saved}
    if isinstance(value, tuple):
        return [to_json(v) for v in value]
    return value


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
        made[f.name] = from_json(hints[f.name], value[key], f"{where}: {key}")
    return kind(**made)
