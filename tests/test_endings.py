"""How scripts end that do not end their pipelines, and threads that use or close one at the same time."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import balancer
from balancer.errors import InputError, StageError
from balancer.inputs import random_items
from balancer.runtime.options import RunOptions
from balancer.runtime.pipeline import Pipeline
from balancer.runtime.recipes import Simulation
from balancer.runtime.simulated import Behaviour
from balancer.tflite import synth
from tests.plans import three_stages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balancer.plan import Plan

pytestmark = pytest.mark.timeout(120)
BOTH = pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])

START = """
import atexit, itertools, os, psutil, sys, threading, time
from balancer import Pipeline, RunOptions
from balancer.inputs import random_items
from balancer.runtime.recipes import Simulation
from balancer.runtime.simulated import Behaviour

path, hanging = sys.argv[1], int(sys.argv[3])
pipeline = Pipeline(path, "sim")
truth = {s.name: Behaviour(stage_ns=1000, hanging=hanging) for s in pipeline.plan.segments}
simulation = Simulation(behaviours=truth, outputs="none")
options = RunOptions(processes=sys.argv[2] == "processes", simulation=simulation)
pipeline = Pipeline(path, "sim", options)
item = random_items(pipeline.interface.inputs, 1)[0]

def say():
    print(*(child.pid for child in psutil.Process().children()), flush=True)

def results(items=itertools.repeat(item)):
    with pipeline as p:
        say()
        yield from p.map(items)
"""
SCRIPTS = {
    "generator": "it = results(); next(it)",
    "break": "it = results()\nfor r in it:\n    break",
    "exit": "it = results()\nfor r in it:\n    sys.exit(0)",
    "exit in a function": "def main():\n    for r in results():\n        sys.exit(0)\nmain()",
    "bare enter": "pipeline.__enter__(); say(); pipeline.push(item); pipeline.pop()",
    "bare enter, full": "pipeline.__enter__(); say()\nfor _ in range(3): pipeline.push(item)",
    "map that is left": "pipeline.__enter__(); say(); it = pipeline.map(itertools.repeat(item)); next(it)",
    "source that waits": (
        "def items():\n    yield item\n    threading.Event().wait()\nit = results(items()); next(it)"
    ),
    "daemon": (
        "def use():\n    with pipeline as p:\n        say()\n        next(p.map([item])); ready.set()\n"
        "        time.sleep(1000)\nready = threading.Event()\n"
        "threading.Thread(target=use, daemon=True).start(); ready.wait()"
    ),
    "cycle": "it = results(); next(it)\nclass A: pass\na = A(); a.a, a.it = a, it; del it, a",
    "own atexit": "pipeline.__enter__(); say(); atexit.register(pipeline.close)",
    "forked": (
        "pipeline.__enter__(); say(); pid = os.fork()\n"
        "if pid:\n    assert os.waitpid(pid, 0)[1] == 0; pipeline.push(item); assert pipeline.pop() is not None"
    ),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Three stages."""
    return three_stages(tmp_path_factory.mktemp("plan"), synth.fc(60, layers=4))


def _path(plan: Plan) -> str:
    return str((plan.directory or Path()) / plan.file_name)


def _run(plan: Plan, script: str, processes: bool, hanging: int = 0) -> subprocess.CompletedProcess[str]:
    """To its end within the time limit, with none of its processes left."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", START + script, _path(plan)]
    how = ["processes" if processes else "threads", str(hanging)]
    done = subprocess.run(
        [*command, *how], capture_output=True, text=True, timeout=60, check=False, cwd=Path(__file__).parents[1]
    )
    pids = [int(pid) for pid in done.stdout.split("\n")[0].split()]
    assert len(pids) == (3 if processes else 0)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    return done


IN_PROCESSES = ("generator", "exit", "bare enter, full", "source that waits", "daemon", "forked")


@pytest.mark.parametrize(
    ("name", "processes"), [*((name, False) for name in SCRIPTS), *((name, True) for name in IN_PROCESSES)]
)
def test_a_script_that_just_ends_ends(plan: Plan, name: str, processes: bool) -> None:
    done = _run(plan, SCRIPTS[name], processes)
    assert (done.returncode, done.stderr) == (0, "")


@BOTH
def test_a_script_that_fails_ends_with_its_own_error_alone(plan: Plan, processes: bool) -> None:
    done = _run(plan, "it = results(); next(it); raise RuntimeError('mine')", processes)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "RuntimeError: mine"
    assert done.stderr.count("Error") == 1


@BOTH
def test_a_script_ends_while_devices_hang(plan: Plan, processes: bool) -> None:
    done = _run(plan, "pipeline.__enter__(); say(); pipeline.push(item); time.sleep(0.5)", processes, 1_000_000)
    assert (done.returncode, done.stderr) == (0, "")


@BOTH
def test_a_thread_of_the_users_own_goes_on_to_its_end(plan: Plan, processes: bool) -> None:
    """Python waits for it, and so does the pipeline."""
    script = (
        "def use():\n    with pipeline as p:\n        say(); ready.set(); threading.main_thread().join()\n"
        "        for _ in range(50): p.push(item); assert p.pop() == {}\n        print('done')\n"
        "ready = threading.Event(); threading.Thread(target=use).start(); ready.wait()"
    )
    done = _run(plan, script, processes)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n")[1] == "done"


def test_a_thread_that_opens_a_pipeline_when_the_main_one_has_ended(plan: Plan) -> None:
    """Python 3.12 refuses any new thread by then."""
    script = (
        "def use():\n    threading.main_thread().join(); print()\n    try:\n        with pipeline as p:\n"
        "            print(len(p.run([item] * 50)))\n    except StageError as error:\n        print(error)\n"
        "from balancer.errors import StageError\nthreading.Thread(target=use).start()"
    )
    done = _run(plan, script, processes=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n")[1] == "50" or "can't create new thread" in done.stdout


# Other threads


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    threads, me = set(threading.enumerate()), psutil.Process()
    files = me.num_fds()
    yield
    assert set(threading.enumerate()) == threads
    assert not me.children(recursive=True)
    assert me.num_fds() <= files + 1


def _item(plan: Plan) -> dict[str, Any]:
    return random_items(Pipeline(plan, "sim").interface.inputs, 1)[0]


@pytest.mark.parametrize("other", ["push", "pop", "finish", "end", "iterate"])
def test_nobody_pushes_or_pops_beside_a_map(plan: Plan, other: str) -> None:
    item, refused = _item(plan), list[BaseException]()
    items = random_items(Pipeline(plan, "sim").interface.inputs, 40)

    def interfere(pipeline: Pipeline) -> None:
        calls: dict[str, Any] = {
            "push": lambda: pipeline.push(item), "pop": pipeline.pop, "finish": pipeline.finish,
            "end": lambda: pipeline.push({}), "iterate": lambda: next(iter(pipeline)),
        }  # fmt: skip
        while not over.is_set():
            try:
                calls[other]()
            except InputError as error:  # noqa: PERF203 - each call by itself
                refused.append(error)
            except StageError:
                return  # stopped below

    with Pipeline(plan, "cpu") as pipeline:
        alone = [next(iter(r.values())).tobytes() for r in pipeline.run(items)]  # type: ignore[union-attr]
        over = threading.Event()
        results = pipeline.map(items)
        found = [next(results)]
        thread = threading.Thread(target=interfere, args=(pipeline,))
        thread.start()
        while not refused and thread.is_alive():
            time.sleep(0.001)
        found += results
        # The map is over, and the other one may go on: it is kept from that here.
        over.set()
        pipeline.stop()
        thread.join(10)
        assert not thread.is_alive()
    assert [next(iter(r.values())).tobytes() for r in found] == alone  # type: ignore[union-attr]
    assert "a map or run is going on" in str(refused[0])


@pytest.mark.parametrize("first", ["pop", "push"])
def test_no_map_begins_while_another_thread_waits_in_push_or_pop(plan: Plan, first: str) -> None:
    slow = Simulation(behaviours={s.name: Behaviour(stage_ns=10**12) for s in plan.segments})
    item = _item(plan)

    def wait() -> None:
        with pytest.raises(StageError, match="has stopped"):
            while True:
                if first == "pop":
                    pipeline.pop()
                else:
                    pipeline.push(item)

    with Pipeline(plan, "sim", RunOptions(simulation=slow)) as pipeline:
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.3)
        with pytest.raises(InputError, match="another thread is in push or pop"):
            pipeline.run([item])
        pipeline.stop()
        thread.join(10)


@BOTH
def test_closed_by_many_threads_nothing_is_closed_twice(plan: Plan, processes: bool) -> None:
    """Other threads open files all the time: a descriptor that is closed twice would be one of theirs."""
    over, lost, failed = threading.Event(), list[str](), list[BaseException]()

    def strangers() -> None:
        while not over.is_set():
            files = [os.memfd_create("stranger") for _ in range(20)]
            for fd in files:
                try:
                    os.close(fd)
                except OSError as error:  # noqa: PERF203 - each by itself
                    lost.append(str(error))

    def close(pipeline: Pipeline, start: threading.Barrier) -> None:
        start.wait()
        try:
            pipeline.close()
            if psutil.Process().children() or frames() > before:
                lost.append("close returned before all was given back")
        except BaseException as error:  # noqa: BLE001 - what a thread raises is asked for below
            failed.append(error)

    def frames() -> int:
        return sum("/memfd:balancer " in entry.path for entry in psutil.Process().memory_maps(grouped=False))

    stranger = threading.Thread(target=strangers)
    stranger.start()
    item, before = _item(plan), frames()
    try:
        for _ in range(6):
            with Pipeline(plan, "sim", RunOptions(processes=processes)) as pipeline:
                pipeline.push(item)
                start = threading.Barrier(5)
                closers = [threading.Thread(target=close, args=(pipeline, start)) for _ in range(5)]
                for thread in closers:
                    thread.start()
                for thread in closers:
                    thread.join()
                pipeline.close()
    finally:
        over.set()
        stranger.join()
    assert not lost
    assert not failed


@BOTH
@pytest.mark.parametrize("delay", [0.0, 0.01, 0.1, 0.3])
def test_closed_while_it_opens(plan: Plan, processes: bool, delay: float) -> None:
    for _ in range(3):
        pipeline = Pipeline(plan, "sim", RunOptions(processes=processes))
        timer = threading.Timer(delay, pipeline.close)
        timer.start()
        with pytest.raises(StageError, match="has stopped"), pipeline:
            while True:
                pipeline.push(_item(plan))
                pipeline.pop()
        timer.join()
        assert not psutil.Process().children()


@pytest.mark.parametrize("processes", [True])
def test_closed_while_others_push(plan: Plan, processes: bool) -> None:
    """Whoever copies an item into shared memory is waited for, and learns that it has stopped."""
    item, ends = _item(plan), list[BaseException]()

    def push(pipeline: Pipeline) -> None:
        try:
            while True:
                pipeline.push(item)
        except BaseException as error:  # noqa: BLE001 - asked for below
            ends.append(error)

    for _ in range(3):
        with Pipeline(plan, "sim", RunOptions(processes=processes)) as pipeline:
            pushers = [threading.Thread(target=push, args=(pipeline,)) for _ in range(3)]
            for thread in pushers:
                thread.start()
            for _ in range(20):
                pipeline.pop()
            pipeline.close()
            for thread in pushers:
                thread.join()
    assert len(ends) == 9
    assert all(isinstance(error, StageError) for error in ends)


@BOTH
@pytest.mark.parametrize("where", ["push", "pop", "map"])
def test_a_signals_handler_may_close_what_it_interrupts(plan: Plan, where: str, processes: bool) -> None:
    slow = Simulation(behaviours={s.name: Behaviour(stage_ns=0, hanging=1_000_000) for s in plan.segments})
    item = _item(plan)
    with Pipeline(plan, "sim", RunOptions(simulation=slow, processes=processes)) as pipeline:
        before = signal.signal(signal.SIGALRM, lambda *_: pipeline.close())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(StageError, match="has stopped"):
                if where == "map":
                    pipeline.run(itertools.repeat(item))
                while True:
                    pipeline.pop() if where == "pop" else pipeline.push(item)
        finally:
            signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("what", ["socket.socketpair", "balancer.runtime.remote.Child", "os.memfd_create"])
def test_a_process_that_cannot_be_started_is_one_line_and_leaks_nothing(
    plan: Plan, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(what, refuse)
    options = RunOptions(processes=True)
    with pytest.raises(balancer.BalancerError, match="Too many open files"), Pipeline(plan, "cpu", options):
        pass


def test_a_process_that_cannot_be_started_anew_loses_its_worker_alone(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = _item(plan)
    with Pipeline(plan, "cpu", RunOptions(processes=True, on_error="continue")) as pipeline:
        assert isinstance(pipeline.run([item])[0], dict)
        psutil.Process().children()[0].kill()

        def refuse(*_: Any, **__: Any) -> Any:
            raise OSError(11, "Resource temporarily unavailable")

        monkeypatch.setattr("balancer.runtime.remote.Child", refuse)
        failure = pipeline.run([item])[0]
        assert "cannot be started (Resource temporarily unavailable)" in str(failure.error)  # type: ignore[union-attr]
