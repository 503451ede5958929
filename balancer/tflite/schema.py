"""The layouts of tables, read from `schema.txt` (TFLite) and `package.txt` (the Edge TPU compiler's additions).

Decoding, checking and encoding all use these layouts instead of generated classes. Python's flatbuffers library checks
nothing, and generated code silently drops each field that it does not know. With the layouts as data, one loop checks
every offset, carries every known field along, and can name a field that it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TypeAlias

# What a field is if the file leaves it out. Vectors are empty; tables and unions are absent.
Default: TypeAlias = "int | float | str | tuple[()] | None"


@dataclass(frozen=True, slots=True)
class Field:
    """One slot of a table.

    kind: "scalar", "string", "table" or "union"; "scalars", "tables" or "blobs" for vectors of them ("blobs":
    of vectors of bytes); or "unread" for a field that balancer does not need. type: code of a number's type, such as
    "i4" for a signed one of 4 bytes, or the name of a table or union. align: the first byte of a vector stands at a
    multiple of it; 0 for the size of one element.
    """

    name: str
    kind: str
    type: str
    default: Default
    align: int = 0


@dataclass(frozen=True, slots=True)
class Schema:
    """tables: of each table the fields by slot. enums, unions: of each the names by value. defaults: of each table the
    fields' defaults by name.
    """

    tables: dict[str, tuple[Field, ...]]
    enums: dict[str, tuple[str, ...]]
    unions: dict[str, tuple[str, ...]]
    defaults: dict[str, dict[str, Default]]


def _field(text: str) -> Field:
    """One field as the files write it: "name:type", "name:type=default" or "-".

    >>> _field("version:u4=1")
    Field(name='version', kind='scalar', type='u4', default=1, align=0)
    >>> _field("data:[u1@16]")
    Field(name='data', kind='scalars', type='u1', default=(), align=16)
    >>> _field("builtin_options:{BuiltinOptions}").kind, _field("tensors:[Tensor]").kind, _field("name:str").kind
    ('union', 'tables', 'string')
    """
    if text == "-":
        return Field("-", "unread", "", None)
    name, kind = text.split(":")
    kind, _, default = kind.partition("=")
    if kind.startswith("{"):
        return Field(name, "union", kind[1:-1], None)
    if kind.startswith("["):
        inner, _, align = kind[1:-1].partition("@")
        plural = "blobs" if inner == "bytes" else "scalars" if _is_width(inner) else "tables"
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
    """All layouts that this version of balancer knows. No name stands in both files."""
    folder = resources.files(__package__)
    text = "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in _FILES)
    # A line that starts with four spaces continues the one before.
    lines = [line for line in text.replace("\n    ", " ").splitlines() if not line.startswith("#")]
    entries: dict[str, dict[str, list[str]]] = {"table": {}, "enum": {}, "union": {}}
    for line in lines:
        sort, name, *items = line.split()
        entries[sort][name] = items
    tables = {name: tuple(_field(item) for item in items) for name, items in entries["table"].items()}
    return Schema(
        tables=tables,
        enums={name: tuple(items) for name, items in entries["enum"].items()},
        unions={name: ("NONE", *items) for name, items in entries["union"].items()},
        defaults={name: {f.name: f.default for f in slots} for name, slots in tables.items()},
    )
