"""Compiling a plan with a stand-in for the vendor's compiler: every way it can go, and what is left behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import balancer
from balancer.cli.main import main
from balancer.compiler import Compiled, Compiler, CompilerOptions, Refused, find_compiler
from balancer.compiler.report import parse_report, rounding_bytes
from balancer.errors import CompilerError, OutputError, PlanError
from balancer.tflite import synth
from balancer.tflite.package import load_package
from tests import edgetpu_compiler
from tests.shared import COMPILED, MODELS

LARGE = (
    "ERROR: Restored original execution plan after delegate application failure.\n"
    "Compilation failed: Compilation failed due to large activation tensors in model."
)
SEGMENTS = [f"net_segment_{i}_of_3" for i in range(3)]
KILLS = int(os.environ.get("BALANCER_KILLS", "4"))


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan's directory with three segments; not to be changed."""
    folder = tmp_path_factory.mktemp("solved")
    (folder / "net.tflite").write_bytes(synth.fc(1800, layers=6, output_type="int8"))
    plan = balancer.balance(folder / "net.tflite", 3, options=balancer.Options(stages=3))
    balancer.save(plan, folder / "plan")
    return folder / "plan"


@pytest.fixture
def plan(solved: Path, tmp_path: Path) -> Path:
    """A copy of it: the plan's file."""
    shutil.copytree(solved, tmp_path / "plan")
    return tmp_path / "plan" / "net_plan_3.json"


def _compiler(folder: Path, seconds: int = 60, **behaviour: Any) -> Compiler:
    options = CompilerOptions(seconds=seconds, search_delegate=behaviour.pop("search_delegate", False))
    return find_compiler(edgetpu_compiler.install(folder / "bin", **behaviour), options, cache=folder / "cache")


def _calls(folder: Path) -> list[str]:
    calls = folder / "bin" / "calls"
    return [line.split()[0] for line in calls.read_text().splitlines()] if calls.exists() else []


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_plan_is_compiled_and_says_what_was_reported(plan: Path, tmp_path: Path) -> None:
    found = balancer.compile_plan(plan, _compiler(tmp_path))
    assert (found.refused, found.doubts) == ((), ())
    loaded = balancer.load_plan(plan)
    assert loaded == found.plan
    for segment in loaded.segments:
        reported = segment.reported
        assert reported is not None
        assert (reported.file, reported.log) == (f"{segment.name}_edgetpu.tflite", f"{segment.name}_edgetpu.log")
        assert reported.compiler_version == edgetpu_compiler.VERSION
        assert (reported.streamed_bytes, reported.cpu_ops) == (segment.predicted.streamed_bytes, 0)
        for seen, predicted in (
            (reported.cached_bytes, segment.predicted.cached_bytes), (reported.capacity_bytes, segment.predicted.capacity_bytes)
        ):  # fmt: skip
            assert abs(seen - predicted) <= 2 * rounding_bytes(predicted)


def test_inspect_agrees_with_the_parsed_log(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    balancer.compile_plan(plan, _compiler(tmp_path, room_per_million=500_000))
    for segment in balancer.load_plan(plan).segments:
        (model,) = parse_report((plan.parent / segment.log_name).read_text()).models
        capsys.readouterr()
        assert main(["inspect", str(plan.parent / segment.compiled_name), "--json"]) == 0
        inspected = json.loads(capsys.readouterr().out)
        assert abs(inspected["streamed_bytes"] - (model.streamed_bytes or 0)) <= rounding_bytes(
            inspected["streamed_bytes"]
        )
        assert abs(inspected["cached_bytes"] - (model.cached_bytes or 0)) <= rounding_bytes(inspected["cached_bytes"])
        assert len(inspected["cpu_ops"]) == model.cpu_ops
        assert segment.reported is not None
        assert segment.reported.streamed_bytes == inspected["streamed_bytes"]


def test_spilling_and_ops_on_the_cpu_are_reported(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = balancer.load_graph(plan.parent / "net.tflite")
    name = graph.tensors[graph.ops[2].outputs[0]].name
    status = "Operation is working on an unsupported data type"
    program = edgetpu_compiler.install(tmp_path / "bin", room_per_million=400_000, on_cpu={name: status})
    arguments = ["compile", str(plan), "--edgetpu_compiler_binary", str(program), "--cache", str(tmp_path / "cache")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert f"2 {graph.ops[2].type}: {status}" in " ".join(out.split())
    assert status in out
    reports = [s.reported for s in balancer.load_plan(plan).segments if s.reported]
    assert sum(r.streamed_bytes for r in reports) > 1 << 20
    named = [op for r in reports for op in r.not_mapped]
    assert (2, status) in [(op.op, op.reason) for op in named]
    # What stands behind it in its segment follows it, with the compiler's words for that.
    assert all(op.op == 2 or op.reason for op in named)


def test_real_compiled_files(tmp_path: Path) -> None:
    """What the vendor's compiler made of a real model, beside the report that belongs to it."""
    source = MODELS / "mobilenet_v2_1.0_224_quant.tflite"
    real = COMPILED / "mobilenet_v2_1.0_224_quant_edgetpu.tflite"
    balancer.save(balancer.balance(source, 1, options=balancer.Options(stages=1)), tmp_path / "plan")
    name = "mobilenet_v2_1.0_224_quant_segment_0_of_1"
    path = tmp_path / "plan" / "mobilenet_v2_1.0_224_quant_plan_1.json"
    found = balancer.compile_plan(path, _compiler(tmp_path, real={name: str(real)}))
    assert found.doubts == ()
    (segment,) = balancer.load_plan(path).segments
    assert segment.reported is not None
    assert (tmp_path / "plan" / segment.compiled_name).read_bytes() == real.read_bytes()
    package = load_package(real)
    assert segment.reported.streamed_bytes == package.streamed_bytes
    assert abs(segment.reported.cached_bytes - package.cached_bytes) <= rounding_bytes(package.cached_bytes)


test_real_compiled_files = pytest.mark.shared(test_real_compiled_files)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"fails": {SEGMENTS[1]: LARGE}}, "an activation is too large"),
        ({"fails": {SEGMENTS[1]: "Encountered unresolved custom op: Atan."}}, "custom op Atan"),
        ({"fails": {SEGMENTS[1]: ""}}, "the compiler fails"),
        ({"crashes": [SEGMENTS[1]]}, "the compiler"),
        ({"silent": [SEGMENTS[1]]}, "exit code 0 and writes no file"),
        ({"garbage": [SEGMENTS[1]]}, "can't be read"),
    ],
    ids=["large", "custom", "no-reason", "crash", "silent", "garbage"],
)
def test_one_segment_fails_and_the_others_are_kept(
    plan: Path, tmp_path: Path, behaviour: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program = edgetpu_compiler.install(tmp_path / "bin", **behaviour)
    arguments = ["compile", str(plan), "--edgetpu_compiler_binary", str(program), "--cache", str(tmp_path / "cache")]
    assert main([*arguments, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["compiled"] == 2
    (refused,) = document["refused"]
    assert refused["segment"] == SEGMENTS[1]
    assert reason in refused["reason"]
    assert refused["remedy"]
    reports = {s.name: s.reported for s in balancer.load_plan(plan).segments}
    assert [bool(reports[name]) for name in SEGMENTS] == [True, False, True]
    assert (plan.parent / f"{SEGMENTS[1]}_edgetpu.log").exists()
    # The next call, with a compiler that can do it, resumes.
    done = _calls(tmp_path)
    good = find_compiler(edgetpu_compiler.install(tmp_path / "good"), cache=tmp_path / "cache")
    assert not balancer.compile_plan(plan, good).refused
    assert all(s.reported for s in balancer.load_plan(plan).segments)
    assert done.count(SEGMENTS[0]) == 1


def test_a_failure_that_may_pass_is_tried_once_more(plan: Path, tmp_path: Path) -> None:
    found = balancer.compile_plan(plan, _compiler(tmp_path, flaky=["*"]))
    assert not found.refused
    assert sorted(_calls(tmp_path)) == sorted(SEGMENTS * 2)


def test_a_failure_that_stays_is_not_tried_again(plan: Path, tmp_path: Path) -> None:
    found = balancer.compile_plan(plan, _compiler(tmp_path, fails={SEGMENTS[0]: LARGE}))
    assert [r.name for r in found.refused] == SEGMENTS[:1]
    assert _calls(tmp_path).count(SEGMENTS[0]) == 1


def _alive(marker: str) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if marker in line and "ps -eo" not in line]


def test_a_compiler_that_hangs_is_ended_with_its_children(plan: Path, tmp_path: Path) -> None:
    found = balancer.compile_plan(plan, _compiler(tmp_path, seconds=10, hangs=[SEGMENTS[2]]))
    assert [r.name for r in found.refused] == [SEGMENTS[2]]
    assert "it was ended after 11 s" in found.refused[0].reason  # a second for its own limit to speak first
    assert not _alive(str(tmp_path / "bin"))


def test_a_search_may_take_its_time_for_each_try(plan: Path, tmp_path: Path) -> None:
    compiler = _compiler(tmp_path, search_delegate=True)
    assert not balancer.compile_plan(plan, compiler).refused
    assert all("--search_delegate" in call for call in (tmp_path / "bin" / "calls").read_text().splitlines())
    assert all(s.reported and "--search_delegate" in s.reported.options for s in balancer.load_plan(plan).segments)


def test_what_was_compiled_is_not_compiled_again(plan: Path, tmp_path: Path) -> None:
    compiler = _compiler(tmp_path)
    balancer.compile_plan(plan, compiler)
    first = _contents(plan.parent)
    balancer.compile_plan(plan, compiler)
    assert _contents(plan.parent) == first
    assert sorted(_calls(tmp_path)) == SEGMENTS
    for entry in (tmp_path / "cache").iterdir():
        (entry / "compiled.tflite").write_bytes(b"damaged")
    balancer.compile_plan(plan, compiler)
    assert _contents(plan.parent) == first
    assert sorted(_calls(tmp_path)) == sorted(SEGMENTS * 2)


def test_another_version_or_option_compiles_anew(plan: Path, tmp_path: Path) -> None:
    balancer.compile_plan(plan, _compiler(tmp_path))
    balancer.compile_plan(plan, _compiler(tmp_path, version="15.0.340273435"))
    assert len(_calls(tmp_path)) == 6
    assert balancer.load_plan(plan).segments[0].reported.compiler_version == "15.0.340273435"  # type: ignore[union-attr]
    balancer.compile_plan(plan, _compiler(tmp_path, search_delegate=True))
    assert len(_calls(tmp_path)) == 9


def test_a_cache_that_cannot_be_written_costs_nothing_else(plan: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    compiler = find_compiler(edgetpu_compiler.install(tmp_path / "bin"), cache=tmp_path / "file" / "cache")
    assert not balancer.compile_plan(plan, compiler).refused


def test_a_full_disk_is_said(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = _compiler(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    before = _contents(plan.parent)
    with pytest.raises(OutputError, match="No space left on device"):
        balancer.compile_plan(plan, compiler)
    assert _contents(plan.parent) == before


def test_a_compiler_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompilerError, match="edgetpu_compiler: is not installed; install it from"):
        find_compiler()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(CompilerError, match="the vendor has none for aarch64"):
        find_compiler()
    with pytest.raises(CompilerError, match="is not a program that can be run"):
        find_compiler(tmp_path / "nothing")


@pytest.mark.parametrize(
    "content", [b"\x7fELF of another machine", b"#!/bin/sh\necho hello\n", b"#!/no/such/interpreter\n"]
)
def test_a_program_that_is_no_compiler(tmp_path: Path, content: bytes) -> None:
    program = tmp_path / "edgetpu_compiler"
    program.write_bytes(content)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(CompilerError, match=r"cannot be run|does not print its version"):
        find_compiler(program)


def test_a_report_and_a_file_that_disagree_are_doubted(plan: Path, tmp_path: Path) -> None:
    compiler = _compiler(tmp_path)
    data = (plan.parent / f"{SEGMENTS[0]}.tflite").read_bytes()
    outcome = compiler.compile(SEGMENTS[0], data)
    assert isinstance(outcome, Compiled)
    from balancer.compiler.checking import examine

    text = outcome.output.replace("uncached model parameters: 0.00B", "uncached model parameters: 3.00MiB")
    other = examine(SEGMENTS[0], data, outcome.data, text)
    assert isinstance(other, Compiled)
    assert any("bytes stream" in doubt for doubt in other.doubts)
    stranger = examine(SEGMENTS[0], (plan.parent / f"{SEGMENTS[1]}.tflite").read_bytes(), outcome.data, outcome.output)
    assert isinstance(stranger, Refused)
    assert "other inputs or outputs" in stranger.reason
    failed = examine(SEGMENTS[0], data, outcome.data, outcome.output + "\nCompilation failed! ")
    assert isinstance(failed, Refused)
    assert isinstance(examine("another", data, outcome.data, outcome.output), Refused)


def test_moved_files_are_checked_when_they_are_loaded(plan: Path, tmp_path: Path) -> None:
    balancer.compile_plan(plan, _compiler(tmp_path))
    shutil.move(plan.parent, tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / plan.name
    assert balancer.verify(balancer.load_plan(moved), 1).bit_exact
    copied = balancer.save(balancer.load_plan(moved), tmp_path / "third")
    assert _contents(tmp_path / "third") == _contents(moved.parent)
    compiled = moved.parent / f"{SEGMENTS[0]}_edgetpu.tflite"
    compiled.write_bytes(compiled.read_bytes()[:-8] + b"tampered")
    with pytest.raises(PlanError, match="its hash differs"):
        balancer.verify(balancer.load_plan(moved), 1)
    document = json.loads(moved.read_text())
    document["segments"][0]["reported"]["file"] = "model.tflite"
    moved.write_text(json.dumps(document))
    with pytest.raises(PlanError, match="is not the name of a compiled segment"):
        balancer.load_plan(moved)
    assert copied.segments[0].reported


def _script(folder: Path, body: str) -> Path:
    """A compiler of a few lines of shell."""
    folder.mkdir(exist_ok=True)
    program = folder / "edgetpu_compiler"
    version = 'echo "Edge TPU Compiler version 16.0.384591198"; case "$*" in *--version*) exit 0;; esac'
    program.write_text(f"#!/bin/sh\n{version}\n{body}\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("search", [False, True])
def test_one_that_never_stops_printing_is_ended(plan: Path, tmp_path: Path, search: bool) -> None:
    program = _script(tmp_path / "bin", 'yes "WARNING spam"')
    options = CompilerOptions(seconds=60, search_delegate=search)
    found = balancer.compile_plan(plan, find_compiler(program, options, cache=tmp_path / "cache"))
    assert len(found.refused) == 3
    assert all("after printing" in r.reason for r in found.refused)
    assert (plan.parent / f"{SEGMENTS[0]}_edgetpu.log").stat().st_size < 4 << 20


def test_noise_before_the_report_does_not_hide_it(plan: Path, tmp_path: Path) -> None:
    real = edgetpu_compiler.install(tmp_path / "real")
    program = _script(tmp_path / "bin", f'head -c 5000000 /dev/zero | tr "\\0" "x"; echo; exec "{real}" "$@"')
    assert not balancer.compile_plan(plan, find_compiler(program, cache=tmp_path / "cache")).refused


def test_what_was_compiled_stays_where_a_later_try_fails(plan: Path, tmp_path: Path) -> None:
    balancer.compile_plan(plan, _compiler(tmp_path))
    before = _contents(plan.parent)
    failing = find_compiler(edgetpu_compiler.install(tmp_path / "bad", fails={"*": LARGE}), cache=tmp_path / "other")
    assert len(balancer.compile_plan(plan, failing).refused) == 3
    assert _contents(plan.parent) == before


def test_a_compiler_that_goes_away_in_between(plan: Path, tmp_path: Path) -> None:
    program = _script(tmp_path / "bin", 'rm -f "$0"; exit 1')
    with pytest.raises(CompilerError, match="cannot be run"):
        balancer.compile_plan(plan, find_compiler(program, cache=tmp_path / "cache", jobs=1))


def test_a_name_that_looks_like_an_option(tmp_path: Path) -> None:
    (tmp_path / "-m net.tflite").write_bytes(synth.fc(100, output_type="int8"))
    saved = balancer.save(balancer.balance(tmp_path / "-m net.tflite", 1), tmp_path / "plan")
    assert not balancer.compile_plan(saved, _compiler(tmp_path)).refused


def test_a_compilation_that_fails_shows_no_earlier_report_as_its_own(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files of the earlier one are kept, and that is said."""
    refusing = edgetpu_compiler.install(tmp_path / "refusing", fails={SEGMENTS[0]: "Model not quantized"})
    working = edgetpu_compiler.install(tmp_path / "working")
    where = ["compile", str(plan), "--cache", str(tmp_path / "cache"), "--edgetpu_compiler_binary"]
    assert main([*where, str(working)]) == 0
    before = {path.name: path.read_bytes() for path in plan.parent.iterdir()}
    capsys.readouterr()
    assert main([*where, str(refusing)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "0_of_3 none" in said
    assert "1_of_3 none" not in said
    assert f"made of {SEGMENTS[0]} before" in said
    assert "compiled: 2 of 3 segments" in said
    assert main([*where, str(refusing), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["compiled"] == 2
    assert [s["reported"] is None for s in document["segments"]] == [True, False, False]
    assert [s["kept"] is None for s in document["segments"]] == [False, True, True]
    assert {path.name: path.read_bytes() for path in plan.parent.iterdir()} == before


def test_another_plan_in_the_directory_keeps_its_compiled_segments(tmp_path: Path) -> None:
    """Two plans that share a segment share its compiled file."""
    (tmp_path / "net.tflite").write_bytes(synth.fc(100, output_type="int8"))
    first = balancer.save(balancer.balance(tmp_path / "net.tflite", 1), tmp_path / "plan")
    balancer.compile_plan(first, _compiler(tmp_path))
    balancer.save(balancer.balance(tmp_path / "net.tflite", 2), tmp_path / "plan", force=True)
    assert balancer.verify(balancer.load_plan(tmp_path / "plan" / first.file_name), 1).bit_exact


def _start(plan: Path, program: Path, cache: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "balancer",
        "compile",
        str(plan),
        "--edgetpu_compiler_binary",
        str(program),
        "-j",
        "2",
    ]
    return subprocess.Popen(
        [*command, "--cache", str(cache)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_killed_at_any_moment_and_called_again(solved: Path, tmp_path: Path, how: signal.Signals) -> None:
    """The directory is the same, byte for byte, as that of one undisturbed run. BALANCER_KILLS=100 tries it longer."""
    program = edgetpu_compiler.install(tmp_path / "bin")
    shutil.copytree(solved, tmp_path / "whole")
    start = time.monotonic()
    assert _start(tmp_path / "whole" / "net_plan_3.json", program, tmp_path / "cache whole").wait() == 0
    whole, seconds = _contents(tmp_path / "whole"), time.monotonic() - start
    dice = random.Random(how)
    for attempt in range(KILLS if how is signal.SIGKILL else 3):
        folder = tmp_path / f"plan {attempt}"
        shutil.copytree(solved, folder)
        cache = tmp_path / f"cache {attempt}"
        process = _start(folder / "net_plan_3.json", program, cache)
        time.sleep(dice.uniform(0.05, seconds))
        process.send_signal(how)
        process.wait()
        assert _start(folder / "net_plan_3.json", program, cache).wait() == 0
        assert _contents(folder) == whole
        assert not [path for path in folder.iterdir() if path.is_dir()]
    if how is not signal.SIGKILL:
        assert not _alive(str(tmp_path / "bin"))


def test_what_a_killed_writer_left_is_removed(plan: Path, tmp_path: Path) -> None:
    (plan.parent / ".balancer-plan-left").mkdir()
    (plan.parent / ".balancer-plan-left" / "half").write_bytes(b"written")
    balancer.compile_plan(plan, _compiler(tmp_path))
    assert not list(plan.parent.glob(".balancer*"))


def test_interrupted_in_one_process(plan: Path, tmp_path: Path) -> None:
    """Ctrl-C ends what runs; what is done stays in the cache."""
    compiler = _compiler(tmp_path, hangs=[SEGMENTS[2]])

    def interrupt(done: int) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        balancer.compile_plan(plan, compiler, progress=interrupt)
    assert not _alive(str(tmp_path / "bin"))
    assert len([p for p in (tmp_path / "cache").iterdir() if not p.name.startswith(".")]) == 2


def test_the_plan_file_is_what_it_says(plan: Path, tmp_path: Path) -> None:
    balancer.compile_plan(plan, _compiler(tmp_path))
    document = json.loads(plan.read_text())
    keys = [
        "cached_bytes",
        "streamed_bytes",
        "capacity_bytes",
        "cpu_ops",
        "subgraphs",
        "compiler_version",
        "file",
        "sha256",
        "log",
    ]
    reported = document["segments"][0]["reported"]
    assert list(reported)[: len(keys)] == keys
    loaded = balancer.load_plan(plan).segments[0].reported
    assert loaded is not None
    held = {key: value for key, value in asdict(loaded).items() if key != "simulated"}  # never written to the file
    assert json.loads(json.dumps(held)) == reported
    assert str(tmp_path) not in plan.read_text()
