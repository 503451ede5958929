"""The TFLite schema as data, read from `schema.txt`: what decoding, checking and encoding all go by.

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

    kind: "scalar", "string", "table", "union", "scalars", "strings" or "tables" (the last three are vectors).
    type: width code of a scalar ("i4"), name of a table or union. align: of a vector's first byte, 0 = by its width.
    """

    name: str
    kind: str
    type: str
    default: Any
    align: int = 0


@dataclass(frozen=True, slots=True)
class Schema:
    """tables: fields by slot. enums, unions: names by value."""

    tables: dict[str, tuple[Field, ...]]
    enums: dict[str, tuple[str, ...]]
    unions: dict[str, tuple[str, ...]]

    def defaults(self, table: str) -> dict[str, Any]:
        return {f.name: f.default for f in self.tables[table]}


def _field(text: str) -> Field:
    name, kind = text.split(":")
    kind, _, default = kind.partition("=")
    if kind.startswith("{"):
        return Field(name, "union", kind[1:-1], None)
    if kind.startswith("["):
        inner, _, align = kind[1:-1].partition("@")
        plural = "strings" if inner == "str" else "scalars" if _is_width(inner) else "tables"
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


@cache
def schema() -> Schema:
    """The schema that this version of balancer knows."""
    text = resources.files(__package__).joinpath("schema.txt").read_text(encoding="utf-8")
    lines = [line for line in text.replace("\n    ", " ").splitlines() if not line.startswith("#")]
    found: dict[str, dict[str, list[str]]] = {"table": {}, "enum": {}, "union": {}}
    for line in lines:
        sort, name, *items = line.split()
        found[sort][name] = items
    return Schema(
        tables={name: tuple(_field(item) for item in items) for name, items in found["table"].items()},
        enums={name: tuple(items) for name, items in found["enum"].items()},
        unions={name: ("NONE", *items) for name, items in found["union"].items()},
    )
