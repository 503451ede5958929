"""What a run is given: files of arrays and pictures, whole or broken, and what is said of each by its name."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image

import balancer
from balancer.arrays import load_arrays
from balancer.cli.main import main
from balancer.cli.run_inputs import Reading, given_inputs, outcomes
from balancer.directory.writing import check_free
from balancer.errors import InputError, OutputError, StageError
from balancer.inputs import InputSpec, Quantisation, load_items, model_interface
from balancer.interpreter import open_interpreter
from balancer.runtime.images import load_image, load_pixels
from balancer.workers import Failure
from tests import handmade

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

SPEC = InputSpec("x", (1, 2, 3), "int8")
PICTURE = InputSpec("x", (1, 4, 4, 1), "uint8")
DTYPES = ("int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64", "bool", ">f4", "complex64")


@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: st_numpy.arrays(dtype, st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
    ),
    st.booleans(),
)
def test_arrays_are_read_as_numpy_writes_them(array: Any, fortran: bool) -> None:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    array = np.asfortranarray(array) if fortran else array
    with TemporaryDirectory() as folder:
        plain, packed = Path(folder) / "x.npy", Path(folder) / "x.npz"
        np.save(plain, array)
        np.savez_compressed(packed, x=array, y=array)
        one, named = load_arrays(plain, ()), load_arrays(packed, {"x"})
        assert isinstance(one, np.ndarray)
        assert isinstance(named, dict)
        for found in (one, named["x"]):
            assert found.dtype == array.dtype
            assert found.shape == array.shape
            assert found.tobytes() == array.tobytes()
        assert set(load_arrays(packed, {"x", "absent"})) == {"x"}


def _npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin-1") + data


def _npz(member: bytes, packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", packing) as archive:
        archive.writestr("x.npy", member)
    return made.getvalue()


def _header(shape: str, descr: str = "|i1") -> str:
    return f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n"


GOOD = _npy(_header("(5, 2, 3)"), bytes(30))
BAD = {
    "empty": b"",
    "cut in the magic": GOOD[:4],
    "cut in the header": GOOD[:30],
    "cut in the data": GOOD[:-1],
    "no such version": GOOD.replace(b"NUMPY\x01", b"NUMPY\x09"),
    "header with an open string": _npy("{'descr': '|i1\n"),
    "header with open brackets": _npy("(" * 5000),
    "more elements than memory": _npy(_header("(999999999999, 2, 3)")),
    "more dimensions than numpy has": _npy(_header(f"({'1, ' * 99})")),
    "objects": _npy(_header("(5, 2, 3)", "|O"), bytes(30)),
    "an element type that is none": _npy(_header("(5, 2, 3)", "<f16"), bytes(30)),
    "archive cut short": _npz(GOOD)[:-9],
    "archive with a wrong checksum": _npz(GOOD, zipfile.ZIP_STORED).replace(bytes(30), b"\1" + bytes(29), 1),
    "archive with a corrupt stream": _npz(GOOD)[:45] + b"\xff\xff\xff" + _npz(GOOD)[48:],
    "archive packed otherwise": _npz(GOOD, zipfile.ZIP_BZIP2),
    "archive of something else": _npz(b"hello"),
    "archive of nothing": _npz(b""),
}


@pytest.mark.parametrize("ending", ["npy", "npz"])
@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_a_broken_file_of_arrays_is_refused_in_one_line(tmp_path: Path, data: bytes, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"not a readable .npy or .npz file|is float128|but an empty file") as caught:
        load_items(path, [SPEC])
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_array_without_axes_holds_no_items(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.int8(3))
    with pytest.raises(InputError, match="has shape"):
        load_items(tmp_path / "x.npy", [InputSpec("x", (), "int8")])


def _grey16(path: Path) -> Any:
    levels = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    Image.fromarray(levels).save(path)
    return levels


def test_grey_levels_of_16_bits_are_scaled(tmp_path: Path) -> None:
    levels = _grey16(tmp_path / "x.png")
    for channels in (1, 3):
        found = load_image(tmp_path / "x.png", InputSpec("x", (1, 4, 4, channels), "uint8"))
        assert np.array_equal(found[0, :, :, 0], np.rint(levels / 257))


def test_grey_levels_of_16_bits_are_resized(tmp_path: Path) -> None:
    levels = np.full((9, 12), 40_000, np.uint16)
    Image.fromarray(levels).save(tmp_path / "x.png")
    assert set(load_image(tmp_path / "x.png", PICTURE).ravel().tolist()) == {round(40_000 / 257)}


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(width: int, height: int, *extra: bytes) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = _chunk(b"IDAT", zlib.compress(b"\0" * 20 * 20))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + rows + _chunk(b"IEND", b"")


def test_a_picture_keeps_its_own_size(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert np.array_equal(load_pixels(tmp_path / "x.png"), pixels)
    levels = _grey16(tmp_path / "grey.png")
    assert np.array_equal(load_pixels(tmp_path / "grey.png"), np.rint(levels / 257)[:, :, None].repeat(3, axis=2))


def test_a_broken_picture_has_no_pixels(tmp_path: Path) -> None:
    for name, data in PICTURES.items():
        (tmp_path / "x.png").write_bytes(data)
        with pytest.raises(InputError, match="cannot be read as a picture") as caught:
            load_pixels(tmp_path / "x.png")
        assert str(tmp_path / "x.png") in str(caught.value), name


# Integers that stand for real numbers

SCALES = st.floats(1e-6, 1e3).map(lambda scale: float(np.float32(scale)))
INTEGERS = st.sampled_from(["int8", "uint8", "int16"])


@given(SCALES, st.data(), INTEGERS)
def test_integers_come_back_from_their_real_numbers(scale: float, data: st.DataObject, dtype: str) -> None:
    limits = np.iinfo(dtype)
    quantisation = Quantisation(scale, data.draw(st.integers(limits.min, limits.max)))
    every = np.arange(limits.min, limits.max + 1).astype(dtype)
    back = quantisation.integers(quantisation.reals(every), dtype)
    assert back.dtype == dtype
    assert np.array_equal(back, every)


@given(SCALES, st.integers(-128, 127), st.floats(-1e6, 1e6))
def test_a_real_number_moves_by_half_a_step_at_most_or_to_the_end_of_the_range(
    scale: float, zero_point: int, value: float
) -> None:
    quantisation = Quantisation(scale, zero_point)
    integer = quantisation.integers([value], "int8")
    if (-128 - zero_point) * scale <= value <= (127 - zero_point) * scale:
        assert abs(quantisation.reals(integer)[0] - value) <= scale * 0.5001
    else:
        assert integer[0] == (127 if value > 0 else -128)


def test_a_models_interface_says_what_its_integers_stand_for() -> None:
    """As the interpreter's own QUANTIZE does it."""
    b = handmade.Builder()
    source, inner = b.tensor("in", (1, 500), "FLOAT32", scale=None), b.tensor("inner", (1, 500), scale=0.03, zero=-7)
    made, unknown = b.tensor("out", (1, 500), scale=0.03, zero=-7), b.tensor("bare", (1, 500), scale=None)
    b.op("QUANTIZE", [source], [inner])
    b.op("RELU", [inner], [made])
    b.op("RELU", [inner], [unknown])
    data = b.file([source], [inner, made, unknown])
    interface = model_interface(balancer.load_graph(data))
    assert interface.quantisation == dict.fromkeys(("inner", "out"), Quantisation(float(np.float32(0.03)), -7))
    values = np.random.default_rng(0).uniform(-6, 6, (1, 500)).astype(np.float32)
    interpreter = open_interpreter(data)
    interpreter.run([values])
    assert np.array_equal(interpreter.outputs()[0], interface.quantisation["inner"].integers(values, "int8"))


PICTURES = {
    "a bomb": _png(60_000, 60_000),
    "a smaller bomb": _png(12_000, 12_000),
    "text that unpacks to megabytes": _png(4, 4, _chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(8 << 20)))),
    "cut short": _png(4, 4)[:40],
    "no picture": b"hello",
    "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
}


@pytest.mark.parametrize("data", PICTURES.values(), ids=PICTURES.keys())
def test_a_broken_picture_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(InputError, match="cannot be read as a picture"):
        load_image(tmp_path / "x.png", PICTURE)


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """A plan of a model that takes pictures of 4 x 4 colours, saved."""
    b = handmade.Builder()
    source, made = b.tensor("in", (1, 4, 4, 3)), b.tensor("out", (1, 4, 4, 3))
    b.op("RELU", [source], [made])
    (tmp_path / "net.tflite").write_bytes(b.file([source], [made]))
    plan = balancer.save(balancer.balance(tmp_path / "net.tflite", 1), tmp_path / "plan")
    return str(tmp_path / "plan" / plan.file_name)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures, of which the second and the fourth cannot be read; each whole one has a level of its own."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k, name in enumerate("abcdef"):
        Image.new("RGB", (4, 4), (k * 20 + 140,) * 3).save(folder / f"{name}.png")
    (folder / "b.png").write_bytes(PICTURES["a bomb"])
    (folder / "d.png").write_bytes(PICTURES["text that unpacks to megabytes"])
    return folder


@pytest.mark.parametrize("how", [["--devices", "cpu"], ["--devices", "sim", "--sim-outputs", "recorded"]])
def test_pictures_that_cannot_be_read_are_passed_over_and_the_others_keep_their_names(
    saved: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: list[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["run", saved, "--inputs", str(pictures), "--outputs", str(out), "--json", *how]
    assert main([*arguments, "--on-error", "continue"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["items"] == 6
    assert sorted(path.name for path in out.iterdir()) == [
        f"{k:06}_{n}.npz" for k, n in enumerate("abcdef") if n not in "bd"
    ]
    for k, name in ((0, "a"), (2, "c"), (4, "e"), (5, "f")):
        with np.load(out / f"{k:06}_{name}.npz") as found:
            assert set(found["out"].ravel().tolist()) == {k * 20 + 140 - 128}
    assert len(document["failures"]) == 2
    for name, line in zip("bd", document["failures"], strict=True):
        assert line.startswith(f"{pictures / f'{name}.png'}: cannot be read as a picture")


@pytest.mark.parametrize("how", [["--devices", "cpu"], ["--devices", "sim", "--sim-outputs", "recorded"]])
def test_the_first_picture_that_cannot_be_read_ends_a_run(
    saved: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: list[str]
) -> None:
    assert main(["run", saved, "--inputs", str(pictures), "--outputs", str(tmp_path / "out"), *how]) == 1
    assert f"balancer: {pictures / 'b.png'}: cannot be read as a picture" in capsys.readouterr().err


def _failing(stop: bool) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """Runs of which the second item that is handed in fails in a stage."""

    def run(items: Iterable[Any]) -> Iterator[Any]:
        for k, item in enumerate(list(items)):
            error = StageError("failed", "net_segment_0_of_1, item 1", "try again")
            if k == 1 and stop:
                raise error
            yield Failure(0, error) if k == 1 else item

    return run


@pytest.mark.parametrize("stop", [True, False])
def test_a_failure_in_a_stage_names_the_picture(pictures: Path, stop: bool) -> None:
    """The second that is handed in is the third picture."""
    spec = InputSpec("x", (1, 4, 4, 3), "uint8")
    reading = Reading(given_inputs(pictures, [spec]), going_on=True)
    if stop:
        with pytest.raises(StageError, match=r"c\.png: net_segment_0_of_1, item 1: failed; try again"):
            list(outcomes(reading, _failing(stop)))
        return
    found = list(outcomes(reading, _failing(stop)))
    assert [outcome.given.name for outcome in found] == [f"{k:06}_{n}" for k, n in ((0, "a"), (2, "c"), (4, "e"), (5, "f"),
                                                                                   (1, "b"), (3, "d"))]  # fmt: skip
    assert [bool(outcome.failure) for outcome in found] == [False, True, False, False, True, True]
    assert found[1].failure.startswith(f"{pictures / 'c.png'}: net_segment_0_of_1, item 1: failed")


def test_a_failure_in_a_stage_names_the_file_of_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2, 3), np.int8))
    reading = Reading(given_inputs(tmp_path / "x.npy", [SPEC]), going_on=False)
    found = list(outcomes(reading, _failing(stop=False)))
    assert found[1].failure.startswith(f"{tmp_path / 'x.npy'}, item 1: net_segment_0_of_1")


def test_an_empty_file_is_in_the_way_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "net_plan_2.json").touch()
    with pytest.raises(OutputError, match="exists already"):
        check_free(tmp_path, "net_plan_2.json", force=False)
    check_free(tmp_path, "net_plan_2.json", force=True)
    for directory in (tmp_path / "net_plan_2.json", tmp_path / "net_plan_2.json" / "below"):
        with pytest.raises(OutputError, match="is not a directory"):
            check_free(directory, "net_plan_2.json", force=False)


@pytest.mark.parametrize("most", [0, 1 << 20])
def test_the_demo_says_in_one_line_that_there_is_no_room(tmp_path: Path, most: int) -> None:
    """A largest size of files takes the part of a disk that is full: from the start, or after a megabyte."""
    done = subprocess.run(
        [sys.executable, "-m", "balancer", "demo"], capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)}, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "set TMPDIR to another folder" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--min-fps", "1e-300"], ["--max-latency", "1e300"], ["--min-fps", "inf"]])
def test_absurd_times_are_usage_errors(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "net.tflite").write_bytes(handmade.conv_chain())
    assert main(["solve", str(tmp_path / "net.tflite"), "-n", "2", *arguments]) == 2


def test_an_absurd_item_timeout_is_a_usage_error(saved: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 4, 4, 3), np.int8))
    arguments = [
        "run",
        saved,
        "--inputs",
        str(tmp_path / "x.npy"),
        "--outputs",
        str(tmp_path / "out"),
        "--devices",
        "sim",
    ]
    assert main([*arguments, "--item-timeout", "1e11"]) == 2
