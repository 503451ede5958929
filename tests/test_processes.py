"""What is left of balancer when it is killed: no process, and after the next start no folder. What its children import."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

import balancer
from balancer.cli.main import main
from balancer.compiler import Compiled, CompilerOptions, Refused, find_compiler
from balancer.compiler.report import MAPPED
from balancer.directory.writing import result_folder, write_file
from balancer.errors import CompilerError, DeviceError
from balancer.processes.children import Child, python_command, python_environment
from balancer.processes.scratch import held, scratch, sweep
from balancer.runtime.devices import device_names
from balancer.tflite import synth
from tests import edgetpu_compiler

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[1]
FAKE = Path(__file__).parent / "fake_edgetpu"
SWEEP = "import sys; from pathlib import Path; from balancer.processes.scratch import sweep; sweep(Path(sys.argv[1])"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A saved plan with three segments."""
    (tmp_path / "net.tflite").write_bytes(synth.fc(200, layers=6, output_type="int8"))
    saved = balancer.save(
        balancer.balance(tmp_path / "net.tflite", 3, options=balancer.Options(stages=3)), tmp_path / "plan"
    )
    return tmp_path / "plan" / saved.file_name


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of the programs that are started."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def _start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "balancer", *map(str, arguments)], cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _await(what: str, found: Any) -> None:
    end = time.monotonic() + 120
    while not found():
        assert time.monotonic() < end, f"no {what}"
        time.sleep(0.02)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _assert_all_end(processes: Iterable[psutil.Process]) -> None:
    _await("end of all children", lambda: not any(map(_lives, processes)))


def _named(marker: Path) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if str(marker) in " ".join(p.info["cmdline"] or [])]


def _kill_with_children(process: subprocess.Popen[bytes]) -> None:
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    process.wait()
    _assert_all_end(children)


def test_no_compiler_outlives_a_killed_balancer(plan: Path, temporary: Path, tmp_path: Path) -> None:
    """The compiler is a wrapper with children of its own, as the vendor's is, and hangs."""
    program = edgetpu_compiler.install(tmp_path / "bin", hangs=["*"])
    process = _start("compile", plan, "--edgetpu_compiler_binary", program, "--cache", tmp_path / "cache", "-j", 2)
    _await("hanging compilers", lambda: len([p for p in _children(process) if p.name() == "sleep"]) == 2)
    _kill_with_children(process)
    assert list(temporary.glob("balancer-compile-*"))
    assert _start("inspect", tmp_path / "net.tflite").wait() == 0
    assert not list(temporary.iterdir())


def _children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children(recursive=True) if _lives(p)]


def test_killed_at_any_moment(plan: Path, temporary: Path, tmp_path: Path) -> None:
    program = edgetpu_compiler.install(tmp_path / "bin", seconds=0.2)
    dice = random.Random(5)
    for k in range(6):
        process = _start("compile", plan, "--edgetpu_compiler_binary", program, "--cache", tmp_path / f"cache {k}")
        _await("folder", lambda: list(temporary.iterdir()))
        time.sleep(dice.uniform(0, 1.5))
        process.kill()
        process.wait()
        _assert_all_end(_named(tmp_path / "bin"))
    assert _start("compile", plan, "--edgetpu_compiler_binary", program, "--cache", tmp_path / "cache").wait() == 0
    assert not list(temporary.iterdir())


def test_a_killed_tune_leaves_no_folder(plan: Path, temporary: Path, tmp_path: Path) -> None:
    process = _start("tune", plan, "--devices", "sim", "--processes", "--seconds", 60, "-o", tmp_path / "tuned")
    _await("devices' processes", lambda: len(_children(process)) == 3)
    _kill_with_children(process)
    assert not list(temporary.iterdir())


HANGING = {
    "simulated": (
        "from balancer import Pipeline, RunOptions\nfrom balancer.inputs import random_items\n"
        "from balancer.runtime.recipes import Simulation\nfrom balancer.runtime.simulated import Behaviour\n"
        "plan = balancer.load_plan(sys.argv[1])\n"
        "truth = {s.name: Behaviour(stage_ns=1, hanging=1_000_000) for s in plan.segments}\n"
        "with Pipeline(plan, 'sim', RunOptions(processes=True, simulation=Simulation(behaviours=truth))) as p:\n"
        "    p.push(random_items(p.interface.inputs, 1)[0])\n    time.sleep(3600)\n"
    ),
    "opening": (
        "from balancer.runtime.executors import Recipe\nfrom balancer.runtime.remote import RemoteExecutor\n"
        "from balancer.runtime.tensors import SharedFrames, layout\n"
        "frames = SharedFrames(layout([{}]), 1)\n"
        "recipe = Recipe(segment='s', device='usb:0', model=b'')\n"
        "RemoteExecutor(recipe, frames, seconds=1, restarts=0).open()\n"
    ),
    "probe": (
        "from balancer.runtime.devices import Device\nfrom balancer.runtime.probe import probed\n"
        "probed(Device(name='usb:0', type='usb', path=''), 3600)\n"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HANGING)
def test_no_child_outlives_a_killed_parent_whatever_it_hangs_in(
    what: str, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An item that never ends; a driver that never comes back, with the interpreter's lock held."""
    (tmp_path / "truth.json").write_text(json.dumps({"hang": "load"}))
    monkeypatch.setenv("FAKE_EDGETPU", str(tmp_path / "truth.json"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKE), str(ROOT)]))
    code = f"import sys, time\nimport balancer\n{HANGING[what]}"
    process = subprocess.Popen([sys.executable, "-c", code, str(plan)], cwd=ROOT, stdin=subprocess.DEVNULL)
    _await("children", lambda: _children(process))
    time.sleep(2)  # into what hangs; earlier they end, too
    assert process.poll() is None
    _kill_with_children(process)


def test_a_child_is_refused_as_popen_does_it_and_leaves_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "no program").write_bytes(b"\x7fELF of another machine")
    (tmp_path / "no program").chmod(0o755)
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone
    for program, error in ((tmp_path / "nothing", FileNotFoundError), (tmp_path / "no program", OSError)):
        with pytest.raises(error):
            Child([str(program)])
    child = Child(["sh", "-c", "exit 7"])
    assert child.wait() == 7
    killed = Child(["sh", "-c", "kill -9 $$"])
    assert killed.wait() == -signal.SIGKILL
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_children_import_nothing_from_the_working_folder(plan: Path, tmp_path: Path) -> None:
    """But all that PYTHONPATH names."""
    here, more = tmp_path / "here", tmp_path / "more"
    here.mkdir()
    more.mkdir()
    for name in ("balancer", "numpy", "pickle", "runpy"):
        (here / f"{name}.py").write_text("raise SystemExit('the wrong one')")
    (more / "added.py").write_text("")
    (tmp_path / "script.py").write_text(
        "import os, subprocess, sys\nfrom balancer import Pipeline, RunOptions\nfrom balancer.inputs import random_items\n"
        "from balancer.processes.children import python_command, python_environment\n"
        "os.environ['PYTHONPATH'] += os.pathsep + sys.argv[2]\n"
        "with Pipeline(sys.argv[1], 'cpu', RunOptions(processes=True)) as p:\n"
        "    assert len(p.run(random_items(p.interface.inputs, 2))) == 2\n"
        "for module in ('added', 'balancer.runtime.probe'):\n"
        "    done = subprocess.run(python_command(module, 'usb:0'), env=python_environment(), check=True)\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(plan), str(more)], cwd=here, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "wrong one" not in done.stderr + done.stdout


def test_children_find_a_balancer_that_was_imported_from_the_working_folder(tmp_path: Path) -> None:
    """Also once the working folder is another one."""
    code = (
        f"import os, subprocess\nfrom balancer.processes import children\nos.chdir({str(tmp_path)!r})\n"
        "subprocess.run(children.python_command('balancer', '--version'), env=children.python_environment(), check=True)"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)


def test_arguments_reach_a_module_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "says.py").write_text("import sys\nprint(__name__, sys.argv[1:])")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run(
        python_command("says", "-m", "", "two words"),
        env=python_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "__main__ ['-m', '', 'two words']\n"


def test_what_lives_or_is_not_ours_is_not_swept(tmp_path: Path) -> None:
    """Whatever its age, and whatever its name begins with."""
    (tmp_path / "balancer-results").mkdir()
    (tmp_path / "balancer-results" / "kept").write_text("")
    (tmp_path / "balancer-elsewhere.lock").symlink_to(tmp_path / "balancer-results" / "kept")
    with scratch(tmp_path, "balancer-") as folder:
        (folder / "work").write_text("")
        os.utime(folder, (0, 0))
        subprocess.run([sys.executable, "-c", f"{SWEEP}, 'balancer-')", str(tmp_path)], check=True, cwd=ROOT)
        sweep(tmp_path, "balancer-")
        assert (folder / "work").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["balancer-elsewhere.lock", "balancer-results"]
    assert (tmp_path / "balancer-results" / "kept").exists()


def test_a_folder_is_made_while_others_sweep(tmp_path: Path) -> None:
    """Neither a folder that is being made nor one in use is taken for a dead one."""
    code = SWEEP.replace("sweep(Path", "\nwhile True: sweep(Path") + ", 'x-')"
    sweepers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT) for _ in range(2)]
    try:
        for _ in range(500):
            with scratch(tmp_path, "x-") as folder:
                (folder / "work").write_text("there")
                assert (folder / "work").read_text() == "there"
    finally:
        for sweeper in sweepers:
            sweeper.kill()
            sweeper.wait()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_beside_a_file_goes_with_the_next_one(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from balancer.processes.scratch import scratch\n"
        "with scratch(Path(sys.argv[1]), '.balancer-') as folder:\n"
        "    (folder / 'half').write_text('written'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, cwd=ROOT)
    assert len(list(tmp_path.iterdir())) == 2
    write_file(tmp_path / "whole", b"written")
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]
    assert (tmp_path / "whole").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_one_run_at_a_time_writes_into_a_folder(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    np.save(tmp_path / "x.npy", np.zeros((2, 64), np.float32))
    command = ["run", str(plan), "--inputs", str(tmp_path / "x.npy"), "--outputs", str(out), "--devices", "cpu"]
    with result_folder(out):
        for more in ([], ["--force"]):
            assert main([*command, *more]) == 1
            assert "another run writes its results there; wait for its end" in capsys.readouterr().err
        assert not list(out.glob("*.npz"))
    assert main(command) == 0
    assert sorted(p.name for p in out.iterdir()) == ["x_000000.npz", "x_000001.npz"]


def test_a_killed_run_does_not_keep_its_folder(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    np.save(tmp_path / "x.npy", np.zeros((20_000, 64), np.float32))
    command = ["run", str(plan), "--inputs", str(tmp_path / "x.npy"), "--outputs", str(out), "--devices", "cpu"]
    process = _start(*command)
    _await("result", lambda: list(out.glob("*.npz")))
    process.kill()
    process.wait()
    assert (out / ".balancer-run.lock").exists()
    np.save(tmp_path / "x.npy", np.zeros((2, 64), np.float32))
    assert main([*command, "--force"]) == 0
    assert not list(out.glob(".balancer*"))


def test_the_lock_of_the_dead_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("")
    with held(tmp_path / "lock") as is_ours, held(tmp_path / "lock") as is_ours_again:
        assert (is_ours, is_ours_again) == (True, False)
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("ends", ["HUP", "TERM"])
def test_what_ignores_a_signal_goes_on_under_it(ends: str, plan: Path, tmp_path: Path) -> None:
    """As under `nohup`."""
    program = edgetpu_compiler.install(tmp_path / "bin", seconds=1)
    command = f'trap "" {ends}; exec "$0" -m balancer compile "$@"'
    process = subprocess.Popen(
        ["sh", "-c", command, sys.executable, str(plan), "--edgetpu_compiler_binary", str(program), "--cache",
         str(tmp_path / "cache")], cwd=ROOT, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _await("compiler", (tmp_path / "bin" / "calls").exists)
    process.send_signal(signal.Signals[f"SIG{ends}"])
    assert process.wait() == 0


def test_a_compiler_that_hangs_on_its_version_has_no_more_than_its_time_limit(tmp_path: Path) -> None:
    program = tmp_path / "edgetpu_compiler"
    program.write_text("#!/bin/sh\nsleep 3600\n")
    program.chmod(0o755)
    with pytest.raises(CompilerError, match="does not answer --version: ended after 4 s"):
        find_compiler(program, CompilerOptions(seconds=3))
    assert not _named(program)


def test_a_model_that_is_handed_back_uncompiled_is_no_success(plan: Path, tmp_path: Path) -> None:
    """The report says that all is well."""
    compiler = find_compiler(edgetpu_compiler.install(tmp_path / "bin", plain=True), cache=tmp_path / "cache")
    found = balancer.compile_plan(plan, compiler)
    assert len(found.refused) == 3
    assert all("holds nothing for the Edge TPU" in r.reason for r in found.refused)
    assert not any(s.reported for s in balancer.load_plan(plan).segments)
    assert not (tmp_path / "cache").exists()


def test_a_report_that_says_that_nothing_was_mapped_is_believed(plan: Path, tmp_path: Path) -> None:
    """But for one that contradicts itself."""
    from balancer.compiler.checking import examine

    graph = balancer.load_graph(plan.parent / "net.tflite")
    status = "Operation is working on an unsupported data type"
    on_cpu = {graph.tensors[op.outputs[0]].name: status for op in graph.ops}
    compiler = find_compiler(edgetpu_compiler.install(tmp_path / "bin", on_cpu=on_cpu), cache=tmp_path / "cache")
    found = balancer.compile_plan(plan, compiler)
    assert not found.refused
    assert {doubt for _, doubt in found.doubts} == {"nothing was mapped to the Edge TPU"}
    segment = found.plan.segments[0]
    source = (plan.parent / f"{segment.name}.tflite").read_bytes()
    data, output = ((plan.parent / name).read_bytes() for name in (segment.compiled_name, segment.log_name))
    said = output.decode()
    assert "Number of Edge TPU subgraphs: 0\n" in said
    assert isinstance(examine(segment.name, source, data, said), Compiled)
    for true, lie in (
        ("subgraphs: 0\n", "subgraphs: 1\n"),
        ("run on Edge TPU: 0\n", "run on Edge TPU: 1\n"),
        ("caching model parameters: 0.00B", "caching model parameters: 1.00KiB"),
        (status, MAPPED),
    ):
        assert true in said
        assert isinstance(examine(segment.name, source, data, said.replace(true, lie)), Refused)


@pytest.mark.parametrize("names", ["pci:0,pci:00", "usb:1,usb:001", ":0,:00"])
def test_a_device_is_one_however_its_number_is_written(names: str) -> None:
    with pytest.raises(DeviceError, match="a device is named twice"):
        device_names(names, 2)
    assert device_names("pci:01,usb:000,:02", 3) == ["pci:1", "usb:0", ":2"]
    with pytest.raises(DeviceError, match="is not the name of a device"):
        device_names("pci:٣", 1)


def test_nothing_is_left_where_a_folder_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"), scratch(tmp_path / "missing", "x-"):
        pass
    shutil.rmtree(tmp_path)
    assert not list(tmp_path.parent.glob(f"{tmp_path.name}*"))
