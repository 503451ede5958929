"""schema.txt against the classes that flatc generated from the original schema, as ai-edge-litert ships them."""

from __future__ import annotations

import inspect
import itertools
import re
from functools import cache

import pytest
from ai_edge_litert import schema_py_generated as generated

from balancer.tflite.schema import Field, schema

_WIDTHS = {
    "Bool": "b1", "Int8": "i1", "Uint8": "u1", "Int16": "i2", "Uint16": "u2", "Int32": "i4", "Uint32": "u4", "Int64": "i8",
    "Uint64": "u8", "Float32": "f4", "Float64": "f8",
}  # fmt: skip
_ACCESSOR = re.compile(
    r"    def (\w+)\(self(, j)?\):\n        o = [^\n]*\.Offset\((\d+)\)\)\n(.*?)(?=\n    #|\n\n|\Z)", re.S
)


@cache
def _source() -> str:
    return inspect.getsource(generated)


@cache
def _class_source(name: str) -> str:
    found = re.search(rf"^class {name}\(object\):\n(.*?)(?=^\S)", _source(), re.S | re.M)
    assert found, name
    return found[1]


@cache
def _function(name: str) -> str:
    found = re.search(rf"^def {name}\([^\n]*\n((?:    [^\n]*\n)+)", _source(), re.M)
    assert found, name
    return found[1]


# Tables of `package.txt`: what the Edge TPU compiler adds, for which no generated classes are published.
_PACKAGE = {"Package", "MultiExecutable", "Executable", "InstructionBitstream", "Layer"}
_TABLES = sorted(set(schema().tables) - _PACKAGE)


def _generated_tables() -> set[str]:
    return {name for name, value in vars(generated).items() if inspect.isclass(value) and hasattr(value, "GetRootAs")}


@cache
def _slots(table: str) -> dict[int, tuple[str, str]]:
    """Slot -> field name and a description (kind, type, default) in the terms of `Field`."""
    found = {}
    for name, indexed, offset, body in _ACCESSOR.findall(_class_source(table)):
        if re.search(r".(AsNumpy|Length|IsNone)$", name):
            continue  # companions of a vector's accessor
        slot = (int(offset) - 4) // 2
        found[slot] = (name, _described(table, name, slot, body, is_vector=bool(indexed)))
    return found


def _described(table: str, name: str, slot: int, body: str, *, is_vector: bool) -> str:
    plural = "s" if is_vector else ""
    if "self._tab.Union(" in body:
        return f"union {_union_of(table, name)}"
    if inner := re.search(r"obj = (\w+)\(\)", body):
        return f"table{plural} {inner[1]}"
    if "self._tab.String(" in body:
        return f"string{plural}"
    # Booleans show in the flags of a single value, and as `BoolFlags` in those of a vector.
    width = re.search(r"number_types\.(\w+)Flags, (?:a|o) \+", body)
    assert width, f"{table}.{name}"
    if is_vector:
        return f"scalars {_WIDTHS[width[1]]}"
    stored = re.search(r"Prepend(\w+)Slot\((\d+), \w+, ([^)]+)\)", _function(f"{table}Add{name}"))
    assert stored, f"{table}.{name}"
    assert int(stored[2]) == slot
    default = {"True": 1.0, "False": 0.0}.get(stored[3]) if stored[3] in ("True", "False") else float(stored[3])
    return f"scalar {_WIDTHS[stored[1]]} {default}"


def _union_of(table: str, name: str) -> str:
    """The union whose creator the table's object class calls for this field."""
    found = re.search(rf"self\.{name[0].lower()}{name[1:]} = (\w+)Creator\(", _class_source(f"{table}T"))
    assert found, f"{table}.{name}"
    return found[1]


def _ours(field: Field) -> str:
    if field.kind == "string":
        return field.kind
    default = f" {float(field.default)}" if isinstance(field.default, (int, float)) else ""
    return f"{field.kind} {field.type}{default}"


def test_the_schema_has_the_tables_of_the_generated_classes() -> None:
    assert set(_TABLES) == _generated_tables()


@pytest.mark.parametrize("table", _TABLES)
def test_every_slot_has_the_generated_name_type_and_default(table: str) -> None:
    ours = {
        slot: (field.name.replace("_", ""), _ours(field))
        for slot, field in enumerate(schema().tables[table])
        if slot in _slots(table) or not field.name.startswith("deprecated_")
    }
    theirs = {slot: (name.lower(), described) for slot, (name, described) in _slots(table).items()}
    assert ours == theirs


@pytest.mark.parametrize("table", _TABLES)
def test_every_table_has_as_many_slots_as_the_generated_one(table: str) -> None:
    started = re.search(r"StartObject\((\d+)\)", _function(f"{table}Start"))
    assert started
    assert len(schema().tables[table]) == int(started[1])


@pytest.mark.parametrize("name", sorted(schema().enums))
def test_every_enum_has_the_generated_values(name: str) -> None:
    theirs = {k: v for k, v in vars(getattr(generated, name)).items() if not k.startswith("_")}
    assert {k: v for v, k in enumerate(schema().enums[name])} == theirs


@pytest.mark.parametrize("name", sorted(schema().unions))
def test_every_union_has_the_generated_tables(name: str) -> None:
    theirs = {k: v for k, v in vars(getattr(generated, name)).items() if not k.startswith("_")}
    assert {k: v for v, k in enumerate(schema().unions[name])} == theirs


def test_every_table_vector_and_union_of_the_schema_is_defined_in_it() -> None:
    for table, fields in schema().tables.items():
        for field in fields:
            if field.kind in ("table", "tables"):
                assert field.type in schema().tables, f"{table}.{field.name}"
            if field.kind == "union":
                assert set(schema().unions[field.type]) - {"NONE"} <= set(schema().tables), f"{table}.{field.name}"


def test_every_union_stands_right_behind_its_tag() -> None:
    for table, fields in schema().tables.items():
        for tag, field in itertools.pairwise(fields):
            if field.kind == "union":
                assert (tag.name, tag.type) == (f"{field.name}_type", "u1"), f"{table}.{field.name}"
