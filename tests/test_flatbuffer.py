"""Decoding and encoding on real files: nothing is lost, and an independent reader sees what ours sees."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as generated

from balancer.errors import ModelError
from balancer.tflite import flatbuffer
from balancer.tflite.decoding import decode_root
from balancer.tflite.flatbuffer import Table
from balancer.tflite.model import IDENTIFIER
from balancer.tflite.schema import schema
from tests import handmade
from tests.shared import PACKAGES, SOURCES, many_ops_wide, stem

if TYPE_CHECKING:
    from pathlib import Path

# The Edge TPU's runtime and TFLite's kernels read constants in place; the schema asks for this alignment.
_ALIGNMENT = 16


def _decode(data: bytes) -> Table:
    return decode_root(data, "a test")


def _encode(root: Table) -> bytes:
    return flatbuffer.encode(root, identifier=IDENTIFIER, size_hint=1 << 10)


def _differences(left: Any, right: Any, path: str = "root") -> list[str]:
    """Paths at which two decoded values differ. Numbers are compared as bytes: NaN equals itself."""
    if isinstance(left, Table) and isinstance(right, Table) and left.type == right.type:
        found = [f"{path}: fields {sorted(set(left.fields) ^ set(right.fields))}"] * (
            set(left.fields) != set(right.fields)
        )
        for name in left.fields.keys() & right.fields.keys():
            found += _differences(left.fields[name], right.fields[name], f"{path}.{name}")
        return found
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [d for k, pair in enumerate(zip(left, right, strict=True)) for d in _differences(*pair, f"{path}[{k}]")]
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return [] if left.dtype == right.dtype and left.tobytes() == right.tobytes() else [path]
    return [] if type(left) is type(right) and repr(left) == repr(right) else [path]


@pytest.mark.shared
@pytest.mark.parametrize("path", many_ops_wide([*SOURCES, *PACKAGES]), ids=stem)
def test_decoding_what_was_encoded_gives_the_same_tables(path: Path) -> None:
    once = _decode(path.read_bytes())
    assert _differences(once, _decode(_encode(once))) == []


@pytest.mark.shared
@pytest.mark.parametrize("path", many_ops_wide(SOURCES), ids=stem)
def test_constants_lie_at_multiples_of_16_in_encoded_files(path: Path) -> None:
    data = _encode(_decode(path.read_bytes()))
    start = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    checked = 0
    for buffer in _decode(data)["buffers"]:
        if len(buffer["data"]):
            assert (buffer["data"].__array_interface__["data"][0] - start) % _ALIGNMENT == 0
            checked += 1
    assert checked


def _snake(name: str) -> str:
    """'builtinOptions2' and 'builtin_options_2' as one and the same."""
    return re.sub("_", "", name).lower()


def _agrees(ours: Any, theirs: Any, path: str) -> None:
    """Walk our tables beside the generated object classes; each of their attributes must hold what ours holds."""
    if theirs is None or ours is None:
        # What a file leaves out is None there; it is our default, an absent table or an empty vector.
        assert theirs is None or ours is None
        assert not _filled(ours), path
        assert not _filled(theirs), path
    elif isinstance(ours, Table):
        assert type(theirs).__name__ == f"{ours.type}T", path
        by_name = {_snake(f.name): f.name for f in schema().tables[ours.type]}
        for name, value in vars(theirs).items():
            _agrees(ours[by_name[_snake(name)]], value, f"{path}.{name}")
    elif isinstance(ours, str):
        assert ours.encode() == (theirs if isinstance(theirs, bytes) else theirs.encode()), path
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), path
        for k, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            _agrees(one, other, f"{path}[{k}]")
    elif isinstance(ours, np.ndarray):
        assert np.array_equal(ours, np.asarray(theirs, ours.dtype), equal_nan=ours.dtype.kind == "f"), path
    elif not isinstance(ours, tuple):
        assert ours == theirs or (ours != ours and theirs != theirs), path


def _filled(value: Any) -> bool:
    return isinstance(value, Table) or (value is not None and len(value) > 0)


@pytest.mark.shared
@pytest.mark.parametrize("path", many_ops_wide([*SOURCES, *PACKAGES]), ids=stem)
def test_an_independent_reader_sees_the_same_values(path: Path) -> None:
    data = path.read_bytes()
    ours, theirs = _decode(data), generated.ModelT.InitFromPackedBuf(data, 0)
    _agrees(ours, theirs, "root")
    assert [o["builtin_code"] for o in ours["operator_codes"]] == [o.builtinCode for o in theirs.operatorCodes]


def test_a_table_that_two_others_share_is_written_once() -> None:
    options = Table("AddOptions", {"pot_scale_int16": 0})
    tag = schema().unions["BuiltinOptions"].index("AddOptions")
    operators = [Table("Operator", {"builtin_options_type": tag, "builtin_options": options}) for _ in range(2)]
    root = Table("Model", {"subgraphs": [Table("SubGraph", {"operators": operators})]})
    read = _decode(_encode(root))["subgraphs"][0]["operators"]
    assert read[0]["builtin_options"] is read[1]["builtin_options"]


def test_a_field_that_is_present_with_its_default_stays_present() -> None:
    operator = Table("Operator", {"opcode_index": 0, "inputs": np.zeros(0, np.int32)})
    root = Table("Model", {"version": 0, "subgraphs": [Table("SubGraph", {"operators": [operator]})]})
    read = _decode(_encode(root))
    assert "version" in read.fields
    assert set(read["subgraphs"][0]["operators"][0].fields) == {"opcode_index", "inputs"}


def test_names_that_are_no_utf_8_survive_a_round_trip() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    data = _encode(Table("Model", {"description": name}))
    assert b"caf\xe9" in data
    assert _decode(data)["description"] == name


def test_decoding_copies_no_constants() -> None:
    data = handmade.conv_chain()
    for buffer in _decode(data)["buffers"]:
        if len(buffer["data"]):
            assert not buffer["data"].flags.owndata


@pytest.mark.parametrize("cut", [0, 3, 7, 8, 11])
def test_a_file_cut_off_in_its_header_is_refused(cut: int) -> None:
    with pytest.raises(ModelError):
        _decode(handmade.conv_chain()[:cut])


def test_a_field_newer_than_the_schema_is_refused_by_its_slot() -> None:
    data = bytearray(_encode(Table("Model", {"version": 3, "metadata_buffer": np.zeros(1, np.int32)})))
    root = int.from_bytes(data[:4], "little")
    vtable = root - int.from_bytes(data[root : root + 4], "little", signed=True)
    slots = len(schema().tables["Model"])
    size = 4 + 2 * (slots + 1)
    moved = bytearray(size)
    moved[:4] = size.to_bytes(2, "little") + data[vtable + 2 : vtable + 4]
    moved[-2:] = (4).to_bytes(2, "little")
    data[root : root + 4] = (root - len(data)).to_bytes(4, "little", signed=True)
    with pytest.raises(ModelError, match=f"slot {slots}"):
        _decode(bytes(data + moved))
