"""Constants and custom options behind the flatbuffer: read like those inside, written inside, and refused where forged."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from ai_edge_litert.schema_py_generated import Model, ModelT
from hypothesis import given
from hypothesis import strategies as st

import balancer
from balancer.errors import ModelError
from balancer.ground.opsets import op_set
from balancer.inputs import model_interface, random_items
from balancer.interpreter import open_interpreter
from balancer.tflite.cut import Cutter
from balancer.tflite.decoding import decode_model
from balancer.tflite.flatbuffer import Table, decode, decode_measured, encode
from balancer.tflite.model import IDENTIFIER
from balancer.tflite.opened import open_model
from tests import handmade
from tests.outside import forged, moved_out
from tests.shared import LITERT, RUNNABLE, SOURCES, many_ops_wide, stem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MADE = {
    "chain": handmade.conv_chain(),
    "custom op": handmade.custom_op(),
    "shared buffer": handmade.shared_buffer(),
    "state": handmade.shared_state(),
    "metadata": handmade.with_signature_and_metadata(),
    "free batch": handmade.free_batch("RESHAPE"),
    "float ends": handmade.float_glue(),
}


def _thirds(data: bytes) -> list[bytes]:
    """The files of three segments of about equal numbers of ops, and of the whole."""
    cutter = Cutter(data)
    n = len(cutter.graph.ops)
    edges = sorted({0, n // 3, 2 * n // 3, n})
    sets = [op_set(range(a, b)) for a, b in itertools.pairwise(edges)]
    return [cutter.cut(ops) for ops in [*sets, cutter.graph.all_ops] if ops & ~cutter.graph.folded]


def _everything_is_inside(data: bytes) -> bool:
    model = ModelT.InitFromPackedBuf(data, 0)
    (graph,) = model.subgraphs
    of_buffers = [(b.offset, b.size) for b in model.buffers]
    of_ops = [(o.largeCustomOptionsOffset, o.largeCustomOptionsSize) for o in graph.operators]
    return set(of_buffers + of_ops) <= {(0, 0)} and decode_model(data, "a segment").is_inline


@pytest.mark.parametrize("name", MADE)
def test_the_same_graph_and_the_same_segments_come_of_bytes_inside_and_outside(name: str) -> None:
    inside, outside = MADE[name], moved_out(MADE[name])
    assert not decode_model(outside, name).is_inline
    assert balancer.load_graph(outside) == balancer.load_graph(inside)
    segments = _thirds(outside)
    assert segments == _thirds(inside)
    assert all(_everything_is_inside(segment) for segment in segments)


@st.composite
def nets(draw: Callable[[Any], Any]) -> bytes:
    """A few ops in any order, some of which read one constant."""
    b = handmade.Builder()
    source = b.tensor("in")
    made, unread = [source], set[int]()
    shared = b.weights("shared", handmade.SHAPE)
    for k in range(draw(st.integers(2, 6))):
        left, right = draw(st.sampled_from(made)), draw(st.sampled_from([*made, shared]))
        kind = draw(st.sampled_from(["conv", "dense", "relu", "add"]))
        read = {left, right} if kind == "add" else {left}
        out = b.add(left, right, f"add_{k}") if kind == "add" else getattr(b, kind)(left, f"{kind}_{k}")
        made.append(out)
        unread = unread - read | {out}
    return b.file([source], sorted(unread))


def _answer(plan: balancer.Plan) -> balancer.Plan:
    """The plan without the hash of its model."""
    return dataclasses.replace(plan, model=dataclasses.replace(plan.model, sha256=""))


def _outputs(data: bytes) -> list[bytes]:
    (item,) = random_items(model_interface(balancer.load_graph(data)).inputs, 1)
    interpreter = open_interpreter(data)
    interpreter.run(list(item.values()))
    return [array.tobytes() for array in interpreter.outputs()]


@given(inside=nets(), draw=st.data(), merged=st.booleans(), alignment=st.sampled_from([1, 4, 16, 64]))
def test_a_model_with_constants_outside_is_decoded_solved_cut_and_run_as_its_twin(
    inside: bytes, draw: st.DataObject, merged: bool, alignment: int
) -> None:
    count = len(decode_model(inside, "inside").buffers)
    chosen = draw.draw(st.sets(st.integers(1, count - 1), min_size=1))
    outside = moved_out(inside, chosen, merged=merged, alignment=alignment)
    assert balancer.load_graph(outside) == balancer.load_graph(inside)
    options = balancer.Options(stages=2)
    plans = [balancer.balance(data, 2, options=options) for data in (inside, outside)]
    assert _answer(plans[0]) == _answer(plans[1])
    assert merged or _thirds(outside) == _thirds(inside)
    assert all(_everything_is_inside(segment) for segment in _thirds(outside))
    assert _outputs(outside) == _outputs(inside)
    assert balancer.verify(plans[1], 1).bit_exact


@pytest.mark.shared
@pytest.mark.parametrize("path", many_ops_wide(SOURCES), ids=stem)
def test_half_of_a_real_models_constants_may_be_outside(path: Path) -> None:
    inside = path.read_bytes()
    full = [k for k, buffer in enumerate(decode_model(inside, path.stem).buffers) if len(buffer["data"])]
    outside = moved_out(inside, random.Random(path.stem).sample(full, -(-len(full) // 2)))
    assert balancer.load_graph(outside) == balancer.load_graph(inside)
    assert _thirds(outside) == _thirds(inside)


@pytest.mark.parametrize("name", sorted(set(MADE) - {"custom op"}))
@pytest.mark.parametrize("alignment", [1, 16, 128])
def test_the_interpreter_reads_the_whole_model_as_we_do(name: str, alignment: int) -> None:
    outside = moved_out(MADE[name], merged=True, alignment=alignment)
    plan = balancer.balance(outside, 1)
    assert balancer.verify(plan, 2).bit_exact


def test_a_copy_for_old_readers_computes_the_same_and_has_everything_inside() -> None:
    model = open_model(moved_out(handmade.conv_chain()))
    assert _everything_is_inside(model.inline)
    (item,) = random_items(model_interface(model.graph).inputs, 1)
    found = []
    for data in (model.data, model.inline):
        interpreter = open_interpreter(data)
        interpreter.run(list(item.values()))
        found.append(interpreter.outputs()[0].tobytes())
    assert found[0] == found[1]
    plain = handmade.conv_chain()
    assert open_model(plain).inline is plain or open_model(plain).inline == plain


def test_equal_constants_that_a_writer_stored_once_stay_one_in_a_segment() -> None:
    b = handmade.Builder()
    source = at = b.tensor("in")
    kernel, zeros = np.arange(4 * 9 * 4).astype(np.int8), np.zeros(4, np.int32)
    for k in range(4):
        made = b.tensor(f"conv_{k}")
        weights = b.tensor(f"w_{k}", (4, 3, 3, 4), scale=0.02, zero=0, data=kernel)
        b.op(
            "CONV_2D",
            [at, weights, b.tensor(f"b_{k}", (4,), "INT32", scale=None, data=zeros)],
            [made],
            Table("Conv2DOptions", {"stride_w": 1, "stride_h": 1}),
        )
        at = made
    inside = b.file([source], [at])
    outside = moved_out(inside, merged=True)
    assert balancer.load_graph(outside) == balancer.load_graph(inside)
    whole = Cutter(outside).graph.all_ops
    assert len(Cutter(outside).cut(whole)) + 3 * kernel.nbytes <= len(Cutter(inside).cut(whole))
    assert balancer.verify(balancer.balance(outside, 2, options=balancer.Options(stages=2)), 1).bit_exact


def test_a_saved_plan_keeps_the_model_as_it_is_and_verifies(tmp_path: Path) -> None:
    model = tmp_path / "net.tflite"
    model.write_bytes(moved_out(handmade.with_signature_and_metadata()))
    plan = balancer.save(balancer.balance(model, 2, options=balancer.Options(stages=2)), tmp_path / "plan")
    assert (tmp_path / "plan" / "net.tflite").read_bytes() == model.read_bytes()
    assert balancer.verify(tmp_path / "plan", 2).bit_exact
    segments = [tmp_path / "plan" / f"{s.name}.tflite" for s in plan.segments]
    assert all(_everything_is_inside(path.read_bytes()) for path in segments)


def test_a_segment_with_the_whole_interface_does_not_say_that_constants_are_outside() -> None:
    cutter = Cutter(moved_out(handmade.with_signature_and_metadata()))
    whole = ModelT.InitFromPackedBuf(cutter.cut(cutter.graph.all_ops), 0)
    assert [m.name for m in whole.metadata] == [b"min_runtime_version", b"TFLITE_METADATA"]


def test_custom_options_outside_are_those_of_the_op() -> None:
    model = decode_model(moved_out(handmade.custom_op()), "made")
    assert model.operators[1]["custom_options"].tolist() == list(range(7))


@pytest.mark.parametrize("name", MADE)
def test_the_flatbuffer_ends_where_its_last_table_or_vector_ends(name: str) -> None:
    data = moved_out(MADE[name])
    _, end = decode_measured(data, root="Model", where="made")
    kept, same_end = decode_measured(data[:end], root="Model", where="made")
    assert same_end == end
    assert encode(kept, identifier=IDENTIFIER, size_hint=end) == encode(
        decode(data, root="Model", where="made"), identifier=IDENTIFIER, size_hint=end
    )
    with pytest.raises(ModelError):
        decode_measured(data[: end - 1], root="Model", where="made")


# Forged places. `_first` is the buffer of a kernel of 144 bytes.


def _first(root: Table) -> Table:
    found: Table = next(b for b in root["buffers"] if b["offset"] > 1)
    return found


def _nth(root: Table, n: int) -> Table:
    found: Table = [b for b in root["buffers"] if b["offset"] > 1][n]
    return found


def _set(which: Callable[[Table], Table], **fields: Any) -> Callable[[Table], None]:
    return lambda root: which(root).fields.update(fields)


def _shifted(n: int, by: int) -> Callable[[Table], None]:
    """The n-th place moved."""
    return lambda root: _nth(root, n).fields.update(offset=_nth(root, n)["offset"] + by)


FORGED: dict[str, tuple[Callable[[Table], None], str]] = {
    "offset beyond the end": (_set(_first, offset=1 << 20), "beyond the file's end"),
    "offset of 63 bits": (_set(_first, offset=(1 << 63) - 1), "beyond the file's end"),
    "offset like -1": (_set(_first, offset=(1 << 64) - 1), "beyond the file's end"),
    "offset like -144": (_set(_first, offset=(1 << 64) - 144), "beyond the file's end"),
    "size beyond the end": (_set(_first, size=1 << 20), "beyond the file's end"),
    "size like -1": (_set(_first, size=(1 << 64) - 1), "beyond the file's end"),
    "sum that wraps around": (_set(_first, offset=1 << 63, size=(1 << 63) + 144), "beyond the file's end"),
    "first byte of the file": (_set(_first, offset=2), "start at 2, which is inside"),
    "within the tables": (_set(_first, offset=96), "start at 96, which is inside"),
    "no place": (_set(_first, offset=0), "no place .offset 0."),
    "placeholder as place": (_set(_first, offset=1), "no place .offset 1."),
    "neither place nor size": (_set(_first, offset=1, size=1), "reads tensor 1 'conv_0/w' before any op"),
    "no size": (_set(_first, size=0), "has elements, its buffer outside the flatbuffer has 0 bytes"),
    "one byte": (_set(_first, size=1), "takes 144 bytes, its buffer has 1"),
    "too small": (_set(_first, size=143), "takes 144 bytes, its buffer has 143"),
    "too large": (_set(_first, size=160), "overlap|takes 144 bytes"),
    "a bias in a kernel": (_shifted(1, -16), "overlap those of buffer 1"),
    "a kernel over a bias": (_shifted(2, -16), "overlap those of buffer 2|takes 144"),
    "a kernel over another": (_shifted(2, -24), "overlap those of buffer 1"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_place_is_refused_in_one_line(name: str) -> None:
    change, what = FORGED[name]
    data = forged(moved_out(handmade.conv_chain()), change)
    with pytest.raises(ModelError, match=what) as caught:
        Cutter(data, where="made")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("made: ")
    assert caught.value.args[2], "a remedy"


@pytest.mark.parametrize("inside", [144, 0])
def test_bytes_inside_and_outside_at_once_are_refused(inside: int) -> None:
    """An empty vector inside, too: interpreters take it and then miss the constant."""
    b = handmade.Builder()
    source = b.tensor("in")
    made = b.conv(source, "conv")
    b.buffers[1] = b.buffers[1].changed(data=np.zeros(inside, np.uint8), offset=1 << 12, size=144)
    with pytest.raises(ModelError, match="buffer 1: has bytes both in the flatbuffer and outside"):
        Cutter(b.file([source], [made]) + bytes(1 << 13))


@pytest.mark.parametrize("kept", [0, 1, 16, 100])
def test_a_file_that_ends_too_early_is_to_be_fetched_again(kept: int) -> None:
    data = moved_out(handmade.conv_chain())
    first = min(b["offset"] for b in _placed_buffers(data))
    with pytest.raises(ModelError, match=r"beyond the file's end .*; fetch the file again"):
        Cutter(data[: first + kept])


def _placed_buffers(data: bytes) -> list[Table]:
    found: list[Table] = []
    forged(data, lambda root: found.extend(b for b in root["buffers"] if b["offset"] > 1))
    return found


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"large_custom_options_offset": 1 << 63}, "beyond the file's end"),
        ({"large_custom_options_size": 1 << 63}, "beyond the file's end"),
        ({"large_custom_options_offset": 8}, "which is inside"),
        ({"large_custom_options_offset": 1}, "no place"),
    ],
)
def test_forged_places_of_options_name_the_op(fields: dict[str, int], what: str) -> None:
    def change(root: Table) -> None:
        root["subgraphs"][0]["operators"][1].fields.update(fields)

    with pytest.raises(ModelError, match=f"op 1: .*{what}"):
        Cutter(forged(moved_out(handmade.custom_op()), change))


def test_options_of_two_ops_have_two_places() -> None:
    """So that thousands of ops cannot make gigabytes of segments out of one long run of bytes."""
    b = handmade.Builder()
    source = b.tensor("in")
    for k in range(2):
        b.op("CUSTOM:Decode", [source], [b.tensor(f"made_{k}")], custom_options=np.arange(7, dtype=np.uint8))

    def change(root: Table) -> None:
        one, two = root["subgraphs"][0]["operators"]
        two.fields["large_custom_options_offset"] = one["large_custom_options_offset"]

    data = moved_out(b.file([source], [1, 2]))
    Cutter(data)
    with pytest.raises(ModelError, match=r"op 1: its bytes .* overlap those of op 0"):
        Cutter(forged(data, change))


def _buffers_that_share_their_bytes(count: int, size: int) -> bytes:
    """A model of one op whose inputs are so many constants of one size, all with the same bytes in the file."""
    b = handmade.Builder()
    source = b.tensor("in")
    parts = [b.tensor(f"part_{k}", (size,), data=b"\0") for k in range(count)]
    made = b.tensor("made")
    b.op("CONCATENATION", [source, *parts], [made])
    data = b.file([source], [made])
    shared = bytearray(data.ljust(-(-len(data) // 4) * 4, b"\0"))
    at = len(shared)
    shared += size.to_bytes(4, "little") + bytes(size)
    model = Model.GetRootAs(data)
    for k in range(count):
        table = model.Buffers(k + 1)._tab
        field = table.Pos + table.Offset(4)  # of `data`, the first field
        shared[field : field + 4] = (at - field).to_bytes(4, "little")
    return bytes(shared)


def test_a_file_that_would_be_larger_than_2_gib_is_refused_before_memory_is_taken() -> None:
    """500 constants of 5 MiB that are one run of bytes in the model's file."""
    cutter = Cutter(_buffers_that_share_their_bytes(500, 5 << 20), where="made")
    with pytest.raises(ModelError, match=r"made: the segment of ops 0: would be larger than 2 GiB .2621440000 bytes"):
        cutter.cut(0b1)


def test_constants_in_other_files_are_still_refused() -> None:
    b = handmade.Builder()
    source = b.tensor("in")
    group = Table("ExternalBufferGroup", {"name": "weights.bin"})
    data = b.file([source], [b.conv(source, "conv")], external_buffer_groups=[group])
    with pytest.raises(ModelError, match="lie in other files"):
        Cutter(data)


# The real file: YOLOv8n at 320 px, converted by LiteRT and quantised by its quantiser.


@pytest.mark.shared
@pytest.mark.parametrize("path", LITERT, ids=stem)
def test_segments_of_a_file_of_litert_have_all_constants_inside(path: Path) -> None:
    data = path.read_bytes()
    assert not decode_model(data, path.stem).is_inline
    cutter = Cutter(data)
    assert all(op.mapped or op.unmapped for op in cutter.graph.ops)
    assert not any(op.type.startswith("BUILTIN_") for op in cutter.graph.ops)
    assert all(t.shape is not None for t in cutter.graph.tensors)
    assert all(_everything_is_inside(segment) for segment in _thirds(data))


@pytest.mark.shared
@pytest.mark.parametrize("path", LITERT, ids=stem)
def test_moving_its_constants_in_and_out_again_changes_nothing(path: Path) -> None:
    data = path.read_bytes()
    again = moved_out(open_model(data).inline, merged=True)
    assert balancer.load_graph(again) == balancer.load_graph(data)
    for one, other in zip(decode_model(again, "again").constants, decode_model(data, "once").constants, strict=True):
        assert (None if one is None else one.tobytes()) == (None if other is None else other.tobytes())


@pytest.mark.shared
@pytest.mark.parametrize("path", RUNNABLE[:3], ids=stem)
def test_a_real_model_with_its_constants_outside_verifies(path: Path) -> None:
    plan = balancer.balance(moved_out(path.read_bytes()), 2, options=balancer.Options(stages=2, solver="chain"))
    assert balancer.verify(plan, 1).bit_exact
