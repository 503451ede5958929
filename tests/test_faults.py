"""Misfortune while items go through: simulated TPUs that fail, hang and die, processes that are killed, pipelines that are
stopped and closed from several threads, items that are none, scripts that just end.

Each test lasts BALANCER_FAULT_SECONDS, 5 s where the variable is not set.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from balancer.errors import InputError, StageError
from balancer.inputs import random_items
from balancer.runtime.options import RunOptions
from balancer.runtime.pipeline import Pipeline
from balancer.runtime.recipes import Simulation
from balancer.runtime.recording import recorded_outputs
from balancer.runtime.simulated import Behaviour
from balancer.tflite import synth
from balancer.workers import Failure
from tests.plans import on_kinds, three_stages, with_replicas

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from balancer.plan import Plan

SECONDS = float(os.environ.get("BALANCER_FAULT_SECONDS", "5"))
KINDS = 7  # different inputs, so that a result out of order is seen
WARM_SECONDS = SECONDS / 4
pytestmark = pytest.mark.timeout(180 + 4 * SECONDS)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Three stages."""
    return three_stages(tmp_path_factory.mktemp("plan"), synth.fc(200, layers=8))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The same model in three stages, the one in the middle on the CPU."""
    return on_kinds(tmp_path_factory.mktemp("mixed"), synth.fc(200, layers=8), ["pcie", "cpu-x86", "pcie"])


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No thread, no process, no shared memory, no open file."""
    threads, memory, me = set(threading.enumerate()), set(Path("/dev/shm").iterdir()), psutil.Process()
    files = me.num_fds()
    yield
    gc.collect()
    assert set(threading.enumerate()) == threads
    assert not me.children(recursive=True)
    assert set(Path("/dev/shm").iterdir()) == memory
    assert me.num_fds() <= files + 1  # a random device or a log, opened for good
    assert not [m.path for m in me.memory_maps() if "memfd:balancer" in m.path]


def _kinds(plan: Plan) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Inputs, and what the model makes of each."""
    items = random_items(Pipeline(plan, "sim").interface.inputs, KINDS)
    last = recorded_outputs(plan, items)[plan.segments[-1].name]
    return items, [next(iter(result.values())).tobytes() for result in last]


def test_failing_hanging_and_dying(plan: Plan) -> None:
    """No input is lost without being reported, no result is out of order, nothing is left, memory stays flat."""
    items, expected = _kinds(plan)
    plan = with_replicas(plan, [[2, 1, 2], [1, 1, 1]])
    behaviours = {
        s.name: Behaviour(stage_ns=2_000_000, jitter=0.3, failing=8000, hanging=600, dying=1500) for s in plan.segments
    }
    options = RunOptions(
        simulation=Simulation(behaviours=behaviours), processes=True, on_error="continue", seconds=0.5,
        restarts=1_000_000,
    )  # fmt: skip
    me, pushed = psutil.Process(), itertools.count()

    def source() -> Iterator[dict[str, Any]]:
        while time.monotonic() - start < SECONDS:
            yield items[next(pushed) % KINDS]

    taken = failed = 0
    memory: list[int] = []
    with Pipeline(plan, "sim", options) as pipeline:
        start = time.monotonic()
        for k, result in enumerate(pipeline.map(source())):
            taken += 1
            if isinstance(result, Failure):
                failed += 1
                assert f"item {k}" in str(result.error)
            else:
                assert next(iter(result.values())).tobytes() == expected[k % KINDS], f"item {k}"
            if k % 200 == 0 and time.monotonic() - start > WARM_SECONDS:
                memory.append(me.memory_info().rss)
    assert taken == next(pushed)
    assert 0 < failed < taken / 5
    half = len(memory) // 2
    if half:
        assert max(memory[half:]) < max(memory[:half]) + (8 << 20)


@dataclass
class _Episode:
    """One pipeline with all that befalls it. From each thread, what was seen that must not be."""

    plan: Plan
    items: list[dict[str, Any]]
    expected: list[bytes]
    dice: random.Random
    wrong: list[str] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)  # of the items that were taken in, by their numbers
    ending: threading.Event = field(default_factory=threading.Event)
    taken: int = 0

    def run(self) -> None:
        dice = self.dice
        lines = dice.choice([[[1, 1, 1]], [[2, 1, 2]], [[1, 2, 1], [1, 1, 1]]])
        share = dice.choice([0, 3000])
        behaviours = {
            s.name: Behaviour(
                stage_ns=300_000, jitter=0.5, failing=share, dying=share, hanging=share // 6, seed=dice.randrange(99)
            )
            for s in self.plan.segments
        }  # fmt: skip
        options = RunOptions(
            depth=dice.choice([1, 2, 4]), processes=dice.random() < 0.7, on_error="continue", seconds=0.3, exact=True,
            restarts=dice.choice([0, 2, 1000]), simulation=Simulation(behaviours=behaviours),
        )  # fmt: skip
        pipeline = Pipeline(with_replicas(self.plan, lines), "sim", options)
        actors = [self._push, self._corrupt, self._map_beside, self._kill, self._kill]
        enders = dice.choice(
            [[], [pipeline.stop], [pipeline.close] * 3, [pipeline.stop, pipeline.close, pipeline.close]]
        )
        delay = dice.choice([0.02, 0.2, 0.6, 1.0])
        with suppress(StageError), pipeline:  # it may be closed while it opens
            self.kinds.clear()
            threads = [threading.Thread(target=self._act, args=(actor, pipeline)) for actor in actors]
            threads += [threading.Thread(target=self._later, args=(end, delay)) for end in enders]
            for thread in threads:
                thread.start()
            if not enders:
                threading.Timer(delay, self.ending.set).start()
            stopped = self._pop(pipeline)
            self.ending.set()
            for thread in threads:
                thread.join(30)
                if thread.is_alive():
                    self.wrong.append(f"{thread.name} has not ended")
            if not stopped and self.taken != len(self.kinds):
                self.wrong.append(f"{len(self.kinds)} items went in, {self.taken} came out")

    def _act(self, actor: Callable[[Pipeline], None], pipeline: Pipeline) -> None:
        try:
            actor(pipeline)
        except StageError as error:
            if "has stopped" not in str(error):
                self.wrong.append(f"{actor.__name__}: {error}")
        except BaseException as error:  # noqa: BLE001 - the thread's edge: judged at the end
            self.wrong.append(f"{actor.__name__}: {error!r}")

    def _later(self, end: Callable[[], None], delay: float) -> None:
        self.ending.wait(delay)
        try:
            end()
        except BaseException as error:  # noqa: BLE001 - the thread's edge: judged at the end
            self.wrong.append(f"ending: {error!r}")

    def _pop(self, pipeline: Pipeline) -> bool:
        """Results until the last one; whether it was stopped before."""
        while True:
            try:
                result = pipeline.pop(30)
            except StageError as error:
                if "has stopped" not in str(error):
                    self.wrong.append(f"pop: {error}")
                return True
            except InputError:  # a map is at work
                continue
            except TimeoutError:
                self.wrong.append(f"item {self.taken} was lost")
                pipeline.stop()
                return True
            if result is None:
                return False
            k, self.taken = self.taken, self.taken + 1
            if isinstance(result, Failure):
                if f"item {k}" not in str(result.error):
                    self.wrong.append(f"item {k}: {result.error}")
            elif next(iter(result.values())).tobytes() != self.expected[self.kinds[k]]:
                self.wrong.append(f"item {k} is another's, or wrong")

    def _push(self, pipeline: Pipeline) -> None:
        for kind in itertools.cycle(range(KINDS)):
            if self.ending.is_set():
                break
            self.kinds.append(kind)  # known before its result can come out
            try:
                number = pipeline.push(self.items[kind], timeout=0.05)
            except BaseException as error:
                self.kinds.pop()
                if isinstance(error, (TimeoutError, InputError)):  # full, or a map is at work
                    continue
                raise
            if number != len(self.kinds) - 1:
                self.wrong.append(f"item {number} is the {len(self.kinds)}th")
        while True:
            with suppress(InputError):
                pipeline.push({})
                break

    def _corrupt(self, pipeline: Pipeline) -> None:
        """Items that are none cost no number."""
        name = next(iter(self.items[0]))
        corrupt = [None, 5, {"other": 1}, {name: None}, {name: np.zeros(3)}, {name: "text"}, {name: [[1], [2, 3]]}]
        while not self.ending.wait(0.005):
            with suppress(InputError):
                pipeline.push(self.dice.choice(corrupt), timeout=1)  # type: ignore[arg-type]
                self.wrong.append("a corrupt item was taken")

    def _map_beside(self, pipeline: Pipeline) -> None:
        """Refused nearly always: items are in flight, and others are at work."""
        while not self.ending.wait(0.01):
            with suppress(InputError):
                if pipeline.run([]):
                    self.wrong.append("a map took others' results")

    def _kill(self, pipeline: Pipeline) -> None:
        while not self.ending.wait(self.dice.uniform(0.01, 0.3)):
            processes = psutil.Process().children()
            if processes:
                with suppress(psutil.NoSuchProcess):
                    self.dice.choice(processes).kill()


def test_killing_stopping_closing_and_corrupt_items(plan: Plan, mixed: Plan) -> None:
    """Nothing is lost unreported, nothing hangs, and nothing is left after any of many short lives. Every other plan has a
    stage on the CPU.
    """
    items, expected = _kinds(plan)
    me, files = psutil.Process(), 0
    end, seed = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        episode = _Episode((plan, mixed)[seed % 2], items, expected, random.Random(seed))
        episode.run()
        assert not episode.wrong, f"seed {seed}: {episode.wrong[:5]}"
        assert not me.children(recursive=True), f"seed {seed}"
        files = files or me.num_fds()
        assert me.num_fds() <= files, f"seed {seed}"
        seed += 1
    assert seed > 1


ENDINGS = (
    "sys.exit(3)", "raise SystemExit(3)", "os.kill(os.getpid(), signal.SIGTERM)", "os.kill(os.getpid(), signal.SIGKILL)",
    "os._exit(3)", "raise RuntimeError('mine')", "del it, p", "p.stop()", "p.close(); p.close()",
    "[threading.Thread(target=p.close).start() for _ in range(3)]", "threading.Timer(0.05, p.stop).start()", "",
)  # fmt: skip
SCRIPT = """
import itertools, os, random, signal, sys, threading, time
from balancer import Pipeline, RunOptions
from balancer.inputs import random_items
from balancer.runtime.recipes import Simulation
from balancer.runtime.simulated import Behaviour

path, seed, ending = sys.argv[1], int(sys.argv[2]), sys.argv[3]
dice = random.Random(seed)
p = Pipeline(path, "sim")
hanging = dice.choice([0, 100_000])
truth = {s.name: Behaviour(stage_ns=100_000, hanging=hanging, dying=dice.choice([0, 10_000])) for s in p.plan.segments}
p = Pipeline(path, "sim", RunOptions(processes=dice.random() < 0.7, on_error="continue", simulation=Simulation(truth)))
item = random_items(p.interface.inputs, 1)[0]
held = open(path)
def results():
    with p:
        yield from p.map(itertools.repeat(item))
if dice.random() < 0.5:
    it = results()
else:
    p.__enter__()
    it = p.map(itertools.repeat(item))
threading.Thread(target=lambda: (time.sleep(dice.random() / 10), next(it)), daemon=True).start()
time.sleep(dice.random() / 5)
exec(ending)
"""


def test_scripts_that_just_end(plan: Plan) -> None:
    """In whatever way, in the middle of work or of opening: in time, and with all that they started gone."""
    path = (plan.directory or Path()) / plan.file_name
    mark = f"BALANCER_FAULT_TEST={os.getpid()}"
    environment = os.environ | dict([mark.split("=")])
    end, endings = time.monotonic() + SECONDS, itertools.cycle(ENDINGS)
    for seed in itertools.count():
        if time.monotonic() > end:
            break
        ending = next(endings)
        command = [sys.executable, "-c", SCRIPT, str(path), str(seed), ending]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=Path(__file__).parents[1],
            env=environment,
        )
        assert done.returncode in (0, 1, 3, -9, -15), f"seed {seed}, {ending!r}: {done.stderr}"
        gone = time.monotonic() + 10
        while (left := _marked(mark)) and time.monotonic() < gone:
            time.sleep(0.05)
        assert not left, f"seed {seed}, {ending!r}"


def _marked(mark: str) -> list[int]:
    """Processes that have this in their environment: what a script started, whoever its parent is now."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            name, _, value = mark.partition("=")
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found
