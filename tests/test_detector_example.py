"""The example of a detector: its pieces against brute force, and its boxes against those of the whole model."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import detect
import numpy as np
import pytest
import yolo_boxes
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

import balancer
from balancer.interpreter import open_interpreter
from tests import handmade
from tests.lively import SIDE, lively_yolo
from tests.shared import MODELS, ZOO

if TYPE_CHECKING:
    from collections.abc import Sequence

EXAMPLE = Path(detect.__file__)
ZOO_FILE = ZOO / "YOLOv8n_320_int8.tflite"
LITERT = MODELS / "litert" / "YOLOv8n_320_litert_int8.tflite"
SIDES = st.integers(1, 60)
# Random weights: many boxes are as likely as each other.
WANTED = detect.Wanted(score=0.05, overlap=0.5)


# Letterboxing


@given(SIDES, SIDES, SIDES, SIDES)
def test_a_picture_fills_the_input_in_one_direction_and_lies_in_its_middle(
    picture_height: int, picture_width: int, height: int, width: int
) -> None:
    place = yolo_boxes.letterbox_of((picture_height, picture_width), height, width)
    assert place.width == width or place.height == height
    right, below = width - place.left - place.width, height - place.top - place.height
    assert 0 <= right - place.left <= 1
    assert 0 <= below - place.top <= 1
    scale = min(Fraction(height, picture_height), Fraction(width, picture_width))
    assert abs(place.width - picture_width * scale) <= 1
    assert abs(place.height - picture_height * scale) <= 1


def _bilinear(pixels: Any, y: float, x: float, colour: int) -> float:
    """The level at a point, whose pixels have their centres at halves; the edge goes on outside."""
    rows, columns = pixels.shape[:2]
    y, x = min(max(y - 0.5, 0), rows - 1), min(max(x - 0.5, 0), columns - 1)
    total = 0.0
    for row in range(rows):
        for column in range(columns):
            share = max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column))
            total += share * float(pixels[row, column, colour])
    return total


@given(
    st_numpy.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3))),
    st.integers(1, 7), st.integers(1, 7),
)  # fmt: skip
def test_resizing_is_bilinear(pixels: Any, height: int, width: int) -> None:
    found = yolo_boxes.resized(pixels, height, width)
    rows, columns = pixels.shape[:2]
    for i in range(height):
        for j in range(width):
            for colour in range(3):
                exact = _bilinear(pixels, (i + 0.5) * rows / height, (j + 0.5) * columns / width, colour)
                assert abs(found[i, j, colour] - exact) <= 0.501


@given(st_numpy.arrays(np.uint8, st.tuples(SIDES, SIDES, st.just(3))), SIDES, SIDES)
def test_the_margins_are_grey_and_a_picture_of_the_right_size_stays_as_it_is(
    pixels: Any, height: int, width: int
) -> None:
    place = yolo_boxes.letterbox_of(pixels.shape, height, width)
    made = yolo_boxes.letterboxed(pixels, place, height, width)
    inside = np.zeros((height, width), bool)
    inside[place.top : place.top + place.height, place.left : place.left + place.width] = True
    assert (made[~inside] == yolo_boxes.GREY).all()
    same = yolo_boxes.letterbox_of((height, width), height, width)
    assert np.array_equal(yolo_boxes.letterboxed(made, same, height, width), made)


# Decoding


@st.composite
def outputs(draw: st.DrawFn) -> Any:
    """[1, 4 + classes, boxes], with boxes and scores that are often equal."""
    classes = draw(st.integers(1, 4))
    count = draw(st.integers(4 + classes, 14))
    values = st.integers(0, 8).map(lambda k: k / 8)
    return draw(st_numpy.arrays(np.float32, (1, 4 + classes, count), elements=values))


@given(outputs(), st.integers(0, 9).map(lambda k: k / 8), st.sampled_from([(1.0, 1.0), (320.0, 160.0)]))
def test_decoding_is_what_a_loop_over_the_boxes_gives(output: Any, least: float, unit: tuple[float, float]) -> None:
    found = yolo_boxes.decoded(output, unit, least)
    expected = []
    for column in output[0].T.tolist():
        (x, y, width, height), scores = column[:4], column[4:]
        if max(scores) >= least:
            box = [(x - width / 2) * unit[0], (y - height / 2) * unit[1],
                   (x + width / 2) * unit[0], (y + height / 2) * unit[1]]  # fmt: skip
            expected.append((box, max(scores), scores.index(max(scores))))
    assert list(zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)) == expected


@given(
    st.tuples(SIDES, SIDES, SIDES, SIDES),
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=6, max_size=12),
    st.booleans(),
)
def test_decoding_undoes_letterboxing(
    sizes: tuple[int, int, int, int], corners: list[Sequence[float]], in_pixels: bool
) -> None:
    """A box in the picture, where letterboxing puts it in the input, as the model would say it: decoded, it is itself."""
    picture_height, picture_width, height, width = sizes
    place = yolo_boxes.letterbox_of((picture_height, picture_width), height, width)
    boxes = [
        (*sorted((a * picture_width, b * picture_width)), *sorted((c * picture_height, d * picture_height)))
        for a, b, c, d in corners
    ]
    output = np.ones((1, 5, len(boxes)))
    unit = (1.0, 1.0) if in_pixels else (float(width), float(height))
    for k, (left, right, top, bottom) in enumerate(boxes):
        across, down = place.width / picture_width, place.height / picture_height
        output[0, :4, k] = [
            ((left + right) / 2 * across + place.left) / unit[0], ((top + bottom) / 2 * down + place.top) / unit[1],
            (right - left) * across / unit[0], (bottom - top) * down / unit[1],
        ]  # fmt: skip
    found = place.to_picture(yolo_boxes.decoded(output, unit, 1.0).boxes)
    assert np.allclose(found, [(left, top, right, bottom) for left, right, top, bottom in boxes], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 300, 6), (1, 2100, 84), (2, 84, 2100), (84, 2100), (1, 4, 2100)])
def test_an_output_of_another_kind_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="is not"):
        yolo_boxes.decoded(np.zeros(shape, np.float32), (1.0, 1.0), 0.5)


# Suppression

CORNERS = st.tuples(*[st.integers(0, 6)] * 4).map(lambda c: (min(c[:2]), min(c[2:]), max(c[:2]), max(c[2:])))
FOUND = st.lists(st.tuples(CORNERS, st.integers(0, 4), st.integers(0, 2)), max_size=14)


def _found(rows: Sequence[tuple[Sequence[int], int, int]]) -> yolo_boxes.Detections:
    boxes = np.array([row[0] for row in rows], np.float64).reshape(-1, 4)
    return yolo_boxes.Detections(
        boxes, np.array([row[1] / 4 for row in rows]), np.array([row[2] for row in rows], np.intp)
    )


def _overlap(one: Sequence[int], other: Sequence[int]) -> Fraction:
    """Intersection over union."""

    def area(box: Sequence[int]) -> int:
        return max(0, box[2] - box[0]) * max(0, box[3] - box[1])

    shared = area([max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])])
    union = area(one) + area(other) - shared
    return Fraction(shared, union) if union else Fraction(0)


@given(FOUND, st.integers(0, 8), st.integers(1, 14))
def test_suppression_is_its_definition(rows: list[Any], eighths: int, most: int) -> None:
    """In the order of the scores, a box stays if it overlaps no box of its class that stays. Small numbers: no rounding."""
    kept: list[Any] = []
    for row in sorted(rows, key=lambda row: -row[1]):
        if all(row[2] != other[2] or _overlap(row[0], other[0]) <= Fraction(eighths, 8) for other in kept):
            kept.append(row)
    found, expected = yolo_boxes.suppressed(_found(rows), eighths / 8, most), _found(kept[:most])
    assert np.array_equal(found.boxes, expected.boxes)
    assert np.array_equal(found.scores, expected.scores)
    assert np.array_equal(found.classes, expected.classes)


@given(FOUND, st.integers(0, 8))
def test_what_is_left_is_left_again(rows: list[Any], eighths: int) -> None:
    once = yolo_boxes.suppressed(_found(rows), eighths / 8)
    again = yolo_boxes.suppressed(once, eighths / 8)
    assert np.array_equal(once.boxes, again.boxes)


# The example as a whole, on models that are no more than their ends


def _ends(*, planes: bool, scale: float = 0.02) -> bytes:
    """A model that reads its picture of 8 x 8 as boxes: [1, 6, 32], two classes. planes: as LiteRT's converter has it,
    float ends and colours first; else int8 and colours last. scale: of the output.
    """
    b = handmade.Builder()
    if not planes:
        source, made = b.tensor("in", (1, 8, 8, 3), scale=1 / 255, zero=-128), b.tensor("out", (1, 6, 32), scale=scale)
        b.op("RESHAPE", [source, b.ints("shape", (1, 6, 32))], [made])
        return b.file([source], [made])
    source, made = (b.tensor(n, s, "FLOAT32", scale=None) for n, s in (("in", (1, 3, 8, 8)), ("out", (1, 6, 32))))
    inner, turned = b.tensor("q", (1, 3, 8, 8), scale=1 / 255, zero=-128), b.tensor("r", (1, 6, 32), scale=scale)
    b.op("QUANTIZE", [source], [inner])
    b.op("RESHAPE", [inner, b.ints("shape", (1, 6, 32))], [turned])
    b.op("DEQUANTIZE", [turned], [made])
    return b.file([source], [made])


@pytest.mark.parametrize("planes", [False, True])
def test_levels_go_in_and_boxes_come_out_by_the_tensors_scales(planes: bool) -> None:
    (frame,) = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype(np.uint8)
    with balancer.Pipeline(balancer.balance(_ends(planes=planes), 1), "cpu") as pipeline:
        (found,) = detect.detections(pipeline, [frame], detect.Wanted(score=0.5, overlap=1.0))
    integers = (frame.transpose(2, 0, 1) if planes else frame).astype(int) - 128
    real = (integers.reshape(6, 32) - 3) * np.float32(0.02)
    likely = [k for k in range(32) if real[4:, k].max() >= 0.5]
    likely.sort(key=lambda k: -real[4:, k].max())
    assert likely
    assert found.classes.tolist() == [int(real[4:, k].argmax()) for k in likely]
    assert found.scores.tolist() == pytest.approx([real[4:, k].max() for k in likely])


@pytest.mark.parametrize("scale", [0.006, 0.02, 1.88])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("in_pixels", [False, True])
def test_boxes_of_integers_are_fractions_or_pixels_by_their_scale_and_boxes_of_floats_as_it_is_said(
    *, in_pixels: bool, planes: bool, scale: float
) -> None:
    frame = np.full((8, 8, 3), 255, np.uint8)  # every box the same: 127 - 3 steps for each number
    wanted = detect.Wanted(score=0.0, in_pixels=in_pixels)
    with balancer.Pipeline(balancer.balance(_ends(planes=planes, scale=scale), 1), "cpu") as pipeline:
        (found,) = detect.detections(pipeline, [frame], wanted)
    unit = 1 if (in_pixels if planes else scale > 0.1) else 8
    x = 124 * scale * unit
    assert np.allclose(found.boxes, [[min(x / 2, 8), min(x / 2, 8), min(x * 1.5, 8), min(x * 1.5, 8)]])


@pytest.mark.parametrize("scale", [0.006, 1.88])
def test_a_scale_that_is_too_coarse_for_scores_is_named(tmp_path: Path, scale: float) -> None:
    balancer.save(balancer.balance(_ends(planes=False, scale=scale), 1), tmp_path / "plan")
    done = _run(tmp_path / "plan", "--devices", "cpu", "--frames", 1)
    assert done.returncode == 0
    assert ("scores below 0.94 are 0" in done.stderr) == (scale > 1)


def test_integers_without_a_scale_are_refused(tmp_path: Path) -> None:
    b = handmade.Builder()
    source = b.tensor("in", (1, 8, 8, 3), scale=1 / 255, zero=-128)
    made = b.tensor("out", (1, 6, 32), scale=None)
    b.op("RESHAPE", [source, b.ints("shape", (1, 6, 32))], [made])
    balancer.save(balancer.balance(b.file([source], [made]), 1), tmp_path / "plan")
    done = _run(tmp_path / "plan", "--devices", "cpu", "--frames", 1)
    assert done.returncode == 1
    assert "output 'out' has no scale" in done.stderr.splitlines()[-1]


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_model_that_is_no_detector_is_refused_in_one_line(tmp_path: Path, model: Path) -> None:
    balancer.save(balancer.balance(model, 1), tmp_path / "plan")
    done = _run(tmp_path / "plan", "--devices", "cpu")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "takes no colour picture" in done.stderr.splitlines()[-1]


# On a real model


@pytest.fixture(scope="module")
def frames() -> list[Any]:
    return [balancer.load_pixels(MODELS / "cat.bmp"), *detect.made_frames(2)]


@pytest.fixture(scope="module")
def lively() -> bytes:
    return lively_yolo(ZOO_FILE.read_bytes())


@pytest.fixture(scope="module")
def by_the_whole_model(lively: bytes, frames: list[Any]) -> list[yolo_boxes.Detections]:
    """The boxes of the model as it is, in one interpreter, by the scales in its file: levels 0 to 255 are -128 to 127."""
    whole, graph, expected = open_interpreter(lively), balancer.load_graph(lively), []
    output = graph.tensors[graph.outputs[0]]
    for frame in frames:
        place = yolo_boxes.letterbox_of(frame.shape, SIDE, SIDE)
        pixels = yolo_boxes.letterboxed(frame, place, SIDE, SIDE)[None]
        whole.run([(pixels.astype(np.int16) - 128).astype(np.int8)])
        reals = (whole.outputs()[0].astype(np.float32) - output.zero_points[0]) * np.float32(output.scales[0])
        found = yolo_boxes.decoded(reals, (SIDE, SIDE), WANTED.score)
        expected.append(detect.placed(yolo_boxes.suppressed(found, WANTED.overlap), place))
    return expected


@pytest.mark.shared
def test_the_comparison_is_not_vacuous(by_the_whole_model: list[yolo_boxes.Detections]) -> None:
    counts = [len(found.scores) for found in by_the_whole_model]
    assert min(counts) >= 5
    assert len({found.boxes.tobytes() for found in by_the_whole_model}) == len(counts)


@pytest.mark.shared
@pytest.mark.parametrize(
    "segments", [pytest.param(2, marks=pytest.mark.wide), 3, pytest.param(4, marks=pytest.mark.wide)]
)
def test_the_boxes_are_those_of_the_whole_model(
    segments: int, lively: bytes, frames: list[Any], by_the_whole_model: list[yolo_boxes.Detections]
) -> None:
    plan = balancer.balance(lively, segments, options=balancer.Options(stages=segments, solver="chain"))
    for devices in ("cpu", "sim"):
        with balancer.Pipeline(plan, devices) as pipeline:
            found = list(detect.detections(pipeline, frames, WANTED))
        for one, other in zip(found, by_the_whole_model, strict=True):
            assert np.array_equal(one.boxes, other.boxes)
            assert np.array_equal(one.scores, other.scores)
            assert np.array_equal(one.classes, other.classes)


@pytest.mark.shared
def test_a_model_with_floats_at_its_ends_and_colours_first_gives_the_boxes_of_the_whole_model(
    frames: list[Any],
) -> None:
    data, frame = LITERT.read_bytes(), frames[0]
    plan = balancer.balance(data, 2, options=balancer.Options(stages=2, solver="chain"))
    with balancer.Pipeline(plan, "sim") as pipeline:
        (found,) = detect.detections(pipeline, [frame], WANTED)
    whole, place = open_interpreter(data), yolo_boxes.letterbox_of(frame.shape, SIDE, SIDE)
    levels = yolo_boxes.letterboxed(frame, place, SIDE, SIDE).astype(np.float32) / np.float32(255)
    whole.run([np.ascontiguousarray(levels.transpose(2, 0, 1)[None])])
    expected = yolo_boxes.decoded(whole.outputs()[0], (SIDE, SIDE), WANTED.score)
    expected = detect.placed(yolo_boxes.suppressed(expected, WANTED.overlap), place)
    assert len(found.scores) > 5
    assert np.array_equal(found.boxes, expected.boxes)
    assert np.array_equal(found.classes, expected.classes)


@pytest.mark.shared
def test_it_runs_as_its_help_says(
    tmp_path: Path, lively: bytes, by_the_whole_model: list[yolo_boxes.Detections]
) -> None:
    balancer.save(balancer.balance(lively, 2), tmp_path / "plan")
    done = _run(tmp_path / "plan", MODELS / "cat.bmp", MODELS / "cat.bmp", "--devices", "cpu", "--score", WANTED.score,
                "--overlap", WANTED.overlap)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    first = by_the_whole_model[0]
    assert lines[0] == f"{MODELS / 'cat.bmp'}: {len(first.scores)} objects"
    assert lines[1].split()[:2] == ["class", str(first.classes[0])]
    assert "frames/s from the first result to the last (measured on this CPU)" in lines[-2]
    assert "predicted" in lines[-1]


@pytest.mark.shared
def test_without_edge_tpus_it_says_what_helps(tmp_path: Path) -> None:
    balancer.save(balancer.balance(ZOO_FILE, 2), tmp_path / "plan")
    done = _run(tmp_path / "plan")
    assert done.returncode == 1
    assert "--devices sim" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--score", "2"], "detect.py: --score: 2 is not from 0 to 1; "),
        (["--overlap", "-1"], "detect.py: --overlap: -1 is not from 0 to 1; "),
        (["--frames", "0"], "detect.py: --frames: 0 is less than 1; "),
    ],
)
def test_numbers_that_cannot_be_are_one_line(
    more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detect.main([str(tmp_path), *more]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(said)
    assert printed.err.count("\n") == 1


def test_a_folder_without_pictures_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nopics").mkdir()
    assert detect.main([str(tmp_path), str(tmp_path / "nopics"), "--devices", "sim"]) == 1
    assert "nopics: holds no pictures; give a folder with .bmp" in capsys.readouterr().err
