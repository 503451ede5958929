"""Every verb given every wrong kind of file: one line that says what the file is, and no traceback."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import balancer
from balancer.cli.main import main
from balancer.ground.file_kinds import kind_of
from balancer.tflite import synth

if TYPE_CHECKING:
    from pathlib import Path

# What messages call each of the files that `kinds` makes.
NAMES = {
    "model.tflite": "a TFLite model", "plan": "a plan's directory", "plan.json": "a plan file",
    "hardware.json": "a hardware file", "profile.json": "a profile", "times.csv": "a CSV file of measured times",
    "in.npy": "a file of arrays", "in.npz": "a file of arrays", "pic.png": "a picture", "pics": "a folder of pictures",
    "nothing": "an empty folder", "empty": "an empty file", "empty.json": "an empty file", "weights.pt": "a zip archive",
    "text.txt": "", "noise.bin": "",
}  # fmt: skip
_RUN = ["-o", "out", "--devices", "cpu", "--force"]
# Each verb with the place where a file is given, and the kinds that it takes there.
VERBS = {
    "solve": (["solve", "?", "-n", "2"], {"model.tflite"}),
    "compare": (["compare", "?", "-n", "2"], {"model.tflite"}),
    "size": (["size", "?", "--max-tpus", "1"], {"model.tflite", "plan", "plan.json"}),
    "predict": (["predict", "?", "--cuts", "2"], {"model.tflite"}),
    "predict --plan": (["predict", "model.tflite", "--plan", "?"], {"plan", "plan.json"}),
    "predict --hardware": (["predict", "model.tflite", "--cuts", "2", "--hardware", "?"], {"hardware.json"}),
    "solve --profile": (["solve", "model.tflite", "-n", "2", "--profile", "?"], {"profile.json"}),
    "inspect": (["inspect", "?"], {"model.tflite", "plan", "plan.json"}),
    "profile": (["profile", "?", "-o", "p.json", "--force"], {"model.tflite"}),
    "compile": (["compile", "?"], {"plan", "plan.json"}),
    "verify": (["verify", "?", "--random", "1"], {"plan", "plan.json"}),
    "verify --inputs": (["verify", "plan", "--inputs", "?"], {"in.npy", "in.npz"}),
    "run": (["run", "?", "--inputs", "in.npy", *_RUN], {"plan", "plan.json"}),
    "run --inputs": (["run", "plan", "--inputs", "?", *_RUN], {"in.npy", "in.npz", "pics"}),
    "bench": (["bench", "?", "--devices", "sim"], {"plan", "plan.json"}),
    "bench --sim-times": (["bench", "plan", "--devices", "sim", "--sim-times", "?"], {"times.csv"}),
    "tune": (["tune", "?", "--devices", "sim"], {"plan", "plan.json"}),
    "tune --recorded": (["tune", "plan", "--recorded", "?", "-o", "t", "--force"], {"times.csv"}),
    "calibrate": (["calibrate", "--data", "?"], {"times.csv", "plan", "plan.json"}),
    "calibrate --from": (["calibrate", "--data", "times.csv", "--from", "?"], {"hardware.json"}),
}


def _png() -> bytes:
    """A black picture of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(4))) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file or folder of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "model.tflite").write_bytes(synth.fc(32, layers=3))
    plan = balancer.save(balancer.balance(folder / "model.tflite", 1), folder / "plan")
    (folder / "plan.json").write_bytes((folder / "plan" / plan.file_name).read_bytes())
    (folder / "times.csv").write_text("plan,stage,measured_ms\nplan,0,1\n")
    assert main(["profile", str(folder / "model.tflite"), "-o", str(folder / "profile.json"), "-q"]) == 0
    assert main(["calibrate", "--data", str(folder / "times.csv"), "-o", str(folder / "hardware.json"), "-q"]) == 0
    np.save(folder / "in.npy", np.zeros((1, 64), np.float32))
    np.savez(folder / "in.npz", x=np.zeros((1, 64), np.float32))
    (folder / "pic.png").write_bytes(_png())
    for name in ("pics", "nothing"):
        (folder / name).mkdir()
    (folder / "pics" / "a.png").write_bytes(_png())
    for name, data in (
        ("empty", b""),
        ("empty.json", b""),
        ("text.txt", b"hello\n"),
        ("noise.bin", bytes(range(128, 256))),
    ):
        (folder / name).write_bytes(data)
    (folder / "weights.pt").write_bytes(b"PK\x03\x04" + bytes(60))
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_kind_of_file_is_one_line_that_says_what_it_is(
    verb: str, kinds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(kinds)
    arguments, taken = VERBS[verb]
    for file in NAMES.keys() - taken:
        capsys.readouterr()
        assert main([file if a == "?" else a for a in arguments]) == 1, file
        said = capsys.readouterr()
        assert said.out == ""
        lines = [line for line in said.err.splitlines() if "has no effect" not in line]
        assert len(lines) == 1, lines
        assert lines[0].startswith(f"balancer: {file}"), lines
        assert NAMES[file] in lines[0] or "holds no pictures" in lines[0], lines
        assert lines[0].count("; ") >= 1, "a remedy"


@given(st.binary(max_size=200))
def test_any_bytes_have_a_kind_or_none(data: bytes) -> None:
    assert (kind_of(data) is not None) >= (not data)
    assert kind_of(b"    TFL3" + data) is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["solve", "model.tflite", "-n", "1", "--search_delegate", "--jobs", "2"], ["--jobs", "--search_delegate"]),
        (["bench", "plan", "--devices", "sim,sim", "--seconds", "0.1"], ["--devices: the plan takes 1; not used: sim"]),
        (["tune", "plan", "--recorded", "times.csv", "--seconds", "3", "-o", "t", "--force"], ["--seconds"]),
        (["synth", "conv", "--width", "8", "--inputs", "3", "-o", "c.tflite", "--force"], ["--inputs"]),
        (["bench", "plan", "--devices", "cpu", "--sim-outputs", "live", "--seconds", "0.1"], ["--sim-outputs"]),
        (["solve", "model.tflite", "-n", "1"], []),
    ],
)
def test_options_without_effect_are_named(
    arguments: list[str],
    said: list[str],
    kinds: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(kinds)
    assert main(arguments) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(said)
    assert all(line.startswith(f"balancer: {words}") for line, words in zip(lines, said, strict=True))
