"""Flatbuffer schemas as data, read from `schema.txt` (TFLite) and `package.txt` (what the compiler adds): what
decoding, checking and encoding all go by.

Why a table instead of generated classes: Python's flatbuffers checks nothing, and generated code silently drops each
field that it does not know. With the layout as data one loop checks every offset, carries every known field, and can
name what it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True)
class Field:
    """One slot of a table.

    kind: "scalar", "string", "table", "union", "scalars", "strings", "blobs" or "tables" (the last four are vectors),
    or "unread": something stands there that nobody here reads. type: width code of a scalar ("i4"), name of a table
    or union. align: of a vector's first byte, 0 = by its width.
    """

    name: str
    kind: str
    type: str
    default: Any
    align: int = 0


@dataclass(frozen=True, slots=True)
class Schema:
    """tables: fields by slot. enums, unions: names by value. defaults: of each table's fields, by name."""

    tables: dict[str, tuple[Field, ...]]
    enums: dict[str, tuple[str, ...]]
    unions: dict[str, tuple[str, ...]]

    defaults: dict[str, dict[str, Any]]


def _field(text: str) -> Field:
    if text == "-":
        return Field("-", "unread", "", None)
    name, kind = text.split(":")
    kind, _, default = kind.partition("=")
    if kind.startswith("{"):
        return Field(name, "union", kind[1:-1], None)
    if kind.startswith("["):
        inner, _, align = kind[1:-1].partition("@")
        plural = {"str": "strings", "bytes": "blobs"}.get(inner, "scalars" if _is_width(inner) else "tables")
        return Field(name, plural, inner, (), int(align or 0))
    if kind == "str":
        return Field(name, "string", kind, "")
    if _is_width(kind):
        return Field(name, "scalar", kind, _number(default))
    return Field(name, "table", kind, None)


def _is_width(code: str) -> bool:
    return len(code) == 2 and code[0] in "iufb" and code[1].isdigit()


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text or 0)


_FILES = ("schema.txt", "package.txt")


@cache
def schema() -> Schema:
    """The schemas that this version of balancer knows; no name stands in both files."""
    folder = resources.files(__package__)
    text = "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in _FILES)
    lines = [line for line in text.replace("\n    ", " ").splitlines() if not line.startswith("#")]
    found: dict[str, dict[str, list[str]]] = {"table": {}, "enum": {}, "union": {}}
    for line in lines:
        sort, name, *items = line.split()
        found[sort][name] = items
    tables = {name: tuple(_field(item) for item in items) for name, items in found["table"].items()}
    return Schema(
        tables=tables,
        enums={name: tuple(items) for name, items in found["enum"].items()},
        unions={name: ("NONE", *items) for name, items in found["union"].items()},
        defaults={name: {f.name: f.default for f in slots} for name, slots in tables.items()},
    )
