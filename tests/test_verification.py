"""Verification must notice: one changed byte, a swapped interface, kept state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import balancer
from balancer.errors import InputError, ModelError
from balancer.graph import boundary_names
from balancer.inputs import InputSpec, Item, load_items, model_interface, random_items
from balancer.interpreter import open_interpreter
from balancer.tflite.cut import Cutter
from balancer.tflite.opened import open_model
from balancer.verification import SegmentFile, verify_partition
from tests import handmade
from tests.shared import MODELS, POSENET

if TYPE_CHECKING:
    from pathlib import Path


def _segments(data: bytes, *sets: int) -> list[SegmentFile]:
    cutter = Cutter(data)
    names = boundary_names(cutter.graph, sets)
    return [SegmentFile(f"segment {k}", ops, cutter.cut(ops, names)) for k, ops in enumerate(sets)]


def _items(data: bytes, count: int = 3) -> list[Item]:
    return random_items(model_interface(Cutter(data).graph).inputs, count)


def test_one_changed_weight_is_found_in_the_first_segment_that_has_it() -> None:
    data = handmade.conv_chain(3)
    files = _segments(data, 0b1, 0b10, 0b100)
    at = files[1].data.index(handmade.constant_input(data, op=1, position=1))
    changed = bytearray(files[1].data)
    changed[at + 13] ^= 0x55
    result = verify_partition(
        open_model(data), [files[0], SegmentFile("broken", 0b10, bytes(changed)), files[2]], _items(data)
    )
    assert not result.bit_exact
    assert result.mismatch is not None
    assert (result.mismatch.segment, result.mismatch.tensor) == ("broken", "conv_1")
    assert result.mismatch.elements > 0
    assert result.verified_segments == ("segment 0",)


def test_a_file_with_another_interface_is_refused() -> None:
    data = handmade.branch_and_add()
    files = _segments(data, 0b11, 0b100)
    swapped = [SegmentFile("first", 0b11, files[1].data), files[1]]
    with pytest.raises(ModelError, match="the plan says"):
        verify_partition(open_model(data), swapped, _items(data))


def test_every_boundary_tensor_of_every_item_is_compared() -> None:
    data = handmade.outputs_against_execution_order()
    result = verify_partition(open_model(data), _segments(data, 0b1, 0b110), _items(data, 4))
    assert result.bit_exact
    assert result.compared_tensors == 4 * (1 + 2)


def test_segments_that_share_no_state_with_others_are_bit_exact() -> None:
    data = handmade.shared_state()
    assert verify_partition(open_model(data), _segments(data, 0b1, 0b1110), _items(data)).bit_exact


def test_an_op_without_a_kernel_is_named_and_the_rest_is_compared() -> None:
    b = handmade.Builder()
    source = b.tensor("in")
    conv = b.conv(b.conv(source, "conv_0"), "conv_1")
    made = b.tensor("out", (1, 4, 4, 4))
    b.op("CUSTOM:Nobody", [conv], [made])
    data = b.file([source], [made])
    result = verify_partition(open_model(data), _segments(data, 0b1, 0b110), _items(data))
    assert result.stopped_by == ("op 2 CUSTOM:Nobody",)
    assert not result.bit_exact
    assert result.verified_segments == ("segment 0",)
    assert result.compared_tensors >= len(_items(data))


@pytest.mark.shared
def test_a_detector_with_a_custom_decoder_is_verified_up_to_it() -> None:
    plan = balancer.balance(POSENET, 3, options=balancer.Options(stages=3))
    result = balancer.verify(plan, 1)
    assert result.stopped_by == ("op 37 CUSTOM:PosenetDecoderOp",)
    assert not result.bit_exact
    assert result.mismatch is None
    assert result.verified_segments == tuple(s.name for s in plan.segments[:-1])


@pytest.mark.shared
def test_state_is_reset_before_each_input() -> None:
    """On the ops up to the LSTM: the softmax behind it saturates on noise and would hide what the state does."""
    cutter = Cutter((MODELS / "keras_lstm_mnist_ptq.tflite").read_bytes())
    lstm = next(op.index for op in cutter.graph.ops if op.type == "UNIDIRECTIONAL_SEQUENCE_LSTM")
    interpreter = open_interpreter(cutter.cut((2 << lstm) - 1))
    first, second = random_items(model_interface(cutter.graph).inputs, 2)
    results = []
    for item in (first, second, first):
        interpreter.run(list(item.values()))
        results.append(interpreter.outputs()[0].tobytes())
    assert results[0] == results[2]
    # The same input without the reset: the state does reach the output, or the line above would prove nothing.
    interpreter.run_next(list(first.values()))
    assert interpreter.outputs()[0].tobytes() != results[2]


@pytest.mark.shared
def test_a_model_with_state_runs_the_same_in_pieces() -> None:
    path = MODELS / "keras_lstm_mnist_ptq.tflite"
    assert balancer.verify(balancer.balance(path, 3, options=balancer.Options(stages=3)), 3).bit_exact


SPEC = InputSpec("x", (1, 2, 3), "int8")


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 1, 2, 3)])
def test_the_leading_axis_of_a_file_counts_items(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.int8).reshape(shape)
    np.save(tmp_path / "x.npy", values)
    items = load_items(tmp_path / "x.npy", [SPEC])
    assert [item["x"].shape for item in items] == [(1, 2, 3)] * 5
    assert np.array_equal(np.concatenate([item["x"] for item in items]).ravel(), values.ravel())


def test_several_inputs_come_by_name(tmp_path: Path) -> None:
    specs = [SPEC, InputSpec("y", (2,), "float32")]
    np.savez(tmp_path / "xy.npz", x=np.zeros((2, 1, 2, 3), np.int8), y=np.ones((2, 2), np.float32))
    assert len(load_items(tmp_path / "xy.npz", specs)) == 2
    np.savez(tmp_path / "less.npz", x=np.zeros((2, 1, 2, 3), np.int8), y=np.ones((1, 2), np.float32))
    with pytest.raises(InputError, match="items"):
        load_items(tmp_path / "less.npz", specs)


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.zeros((1, 2, 3), np.uint8), "is uint8"),
        (np.zeros((4, 4), np.int8), "has shape"),
        (np.array([b"no"], object), "not a readable"),
    ],
)
def test_a_file_that_does_not_fit_the_model_is_refused(tmp_path: Path, array: np.ndarray, what: str) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=what):
        load_items(tmp_path / "x.npy", [SPEC])


def test_a_file_that_is_no_array_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"hello")
    for path in (tmp_path / "x.npy", tmp_path / "absent.npy"):
        with pytest.raises(InputError, match="not a readable"):
            load_items(path, [SPEC])


def test_random_floats_cover_what_the_model_tells_apart() -> None:
    (spec,) = model_interface(Cutter(handmade.float_glue()).graph).inputs
    (item,) = random_items([spec], 1)
    values = item["in"]
    assert values.dtype == np.float32
    # int8 with scale 0.05 and zero point 3 tells -6.55 to 6.2 apart.
    assert -6.6 < values.min() < values.max() < 6.3
