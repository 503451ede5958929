"""The pipeline: order and bits, errors, stopping, and that nothing is left behind."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

import balancer
from balancer.compiler import find_compiler
from balancer.errors import InputError, PlanError, StageError
from balancer.inputs import random_items
from balancer.interpreter import open_interpreter
from balancer.loops.sources import PipelineTimes
from balancer.loops.tuning import tune
from balancer.runtime.options import RunOptions
from balancer.runtime.pipeline import Pipeline
from balancer.runtime.pycoral_runner import PycoralRunner
from balancer.runtime.recipes import Simulation
from balancer.runtime.recording import recorded_outputs
from balancer.runtime.simulated import Behaviour
from balancer.tflite import synth
from balancer.workers import Failure
from tests import edgetpu_compiler, handmade
from tests.plans import with_replicas
from tests.shared import ZOO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balancer.plan import Plan

FAKE = Path(__file__).parent / "fake_edgetpu"
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No thread, no process, no shared memory, no open file."""
    threads, memory = set(threading.enumerate()), set(Path("/dev/shm").iterdir())
    me = psutil.Process()
    files = me.num_fds()
    yield
    assert set(threading.enumerate()) == threads
    assert not me.children(recursive=True)
    assert set(Path("/dev/shm").iterdir()) == memory
    assert me.num_fds() <= files + 1  # a random device or a log, opened for good


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "net.tflite"
    path.write_bytes(synth.fc(300, layers=8))
    return path


@pytest.fixture(scope="module")
def plan(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Three stages."""
    return balancer.save(
        balancer.balance(model, 3, options=balancer.Options(stages=3)), tmp_path_factory.mktemp("plan") / "plan"
    )


def _expected(plan: Plan, items: list[dict[str, Any]]) -> list[list[bytes]]:
    whole = open_interpreter((plan.directory or Path()).joinpath(str(plan.model.file)).read_bytes())
    found = []
    for item in items:
        whole.run([item[name] for name in whole.input_names])
        found.append([value.tobytes() for value in whole.outputs()])
    return found


def _items(plan: Plan, count: int) -> list[dict[str, Any]]:
    return random_items(Pipeline(plan, "sim").interface.inputs, count)


def _bytes(results: list[Any]) -> list[list[bytes]]:
    return [[value.tobytes() for value in result.values()] for result in results]


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
@pytest.mark.parametrize(
    "replicas", [[[1, 1, 1]], [[3, 1, 2]], [[1, 2, 1], [1, 1, 1]]], ids=["plain", "replicas", "two"]
)
def test_order_and_bits(plan: Plan, replicas: list[list[int]], processes: bool) -> None:
    wanted = with_replicas(plan, replicas)
    items = _items(plan, 40)
    with Pipeline(wanted, "cpu", RunOptions(processes=processes)) as pipeline:
        assert _bytes(pipeline.run(items)) == _expected(plan, items)
        # It goes on after a batch, and one item alone comes through.
        assert _bytes(pipeline.run(items[:1])) == _expected(plan, items[:1])


@pytest.mark.parametrize("how", ["live", "recorded"])
@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_simulated_tpus_give_true_outputs(plan: Plan, how: str, processes: bool) -> None:
    items = _items(plan, 5)
    jitter = {s.name: Behaviour(stage_ns=300_000, jitter=0.5) for s in plan.segments}
    recordings = recorded_outputs(plan, items) if how == "recorded" else None
    simulation = Simulation(behaviours=jitter, outputs=how, recordings=recordings)
    wanted = with_replicas(plan, [[2, 1, 2], [1, 1, 1]])
    with Pipeline(wanted, "sim", RunOptions(simulation=simulation, processes=processes)) as pipeline:
        assert _bytes(pipeline.run(items * 8)) == _expected(plan, items) * 8


def test_push_and_pop_as_in_pycoral(plan: Plan) -> None:
    items = _items(plan, 6)
    with Pipeline(plan, "cpu") as pipeline:
        assert [pipeline.push(item) for item in items] == list(range(6))
        pipeline.push({})
        results = list(iter(pipeline.pop, None))
        assert _bytes(results) == _expected(plan, items)
        assert pipeline.pop() is None
        with pytest.raises(InputError, match="after the end"):
            pipeline.push(items[0])


@pytest.mark.parametrize(
    "made", [handmade.outputs_against_execution_order(), handmade.custom_op(), handmade.shared_state()]
)
def test_models_with_odd_interfaces(made: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.tflite").write_bytes(made)
    try:
        open_interpreter(made)
    except balancer.BalancerError:
        return  # no kernel for its op: nothing to compare with
    plan = balancer.save(balancer.balance(tmp_path / "net.tflite", 3), tmp_path / "plan")
    items = _items(plan, 5)
    with Pipeline(plan, "cpu") as pipeline:
        assert _bytes(pipeline.run(items)) == _expected(plan, items)


@pytest.mark.shared
@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_boundary_tensors_that_skip_stages(processes: bool, tmp_path: Path) -> None:
    plan = balancer.save(
        balancer.balance(ZOO / "multi_io_int8.tflite", 4, options=balancer.Options(stages=4)), tmp_path / "plan"
    )
    items = _items(plan, 6)
    with Pipeline(plan, "cpu", RunOptions(processes=processes)) as pipeline:
        assert _bytes(pipeline.run(items)) == _expected(plan, items)


def test_wrong_inputs_are_refused_and_cost_nothing(plan: Plan) -> None:
    items = _items(plan, 2)
    with Pipeline(plan, "cpu") as pipeline:
        with pytest.raises(InputError, match="input 'input' is missing"):
            pipeline.push({"other": items[0]["input"]})
        with pytest.raises(InputError, match="is float64"):
            pipeline.push({"input": items[0]["input"].astype(np.float64)})
        with pytest.raises(InputError, match=r"float32 \[64\]"):
            pipeline.push({"input": items[0]["input"][0]})
        assert _bytes(pipeline.run(items)) == _expected(plan, items)


def _failing(plan: Plan, share: int, **more: int) -> Simulation:
    behaviours = {s.name: Behaviour(stage_ns=100_000, seed=4) for s in plan.segments}
    name = plan.segments[1].name
    behaviours[name] = Behaviour(stage_ns=100_000, failing=share, seed=4, **more)
    return Simulation(behaviours=behaviours, outputs="live")


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_one_failing_item_stops_or_is_named(plan: Plan, processes: bool) -> None:
    items = _items(plan, 60)
    simulation = _failing(plan, 200_000)
    name = plan.segments[1].name
    with Pipeline(plan, "sim", RunOptions(on_error="continue", simulation=simulation, processes=processes)) as pipeline:
        results = pipeline.run(items)
    failed = [k for k, r in enumerate(results) if isinstance(r, Failure)]
    assert 2 <= len(failed) <= 30
    for k in failed:
        assert f"{name}, item {k}" in str(results[k].error)  # type: ignore[union-attr]
    good = [k for k in range(60) if k not in failed]
    assert _bytes([results[k] for k in good]) == _expected(plan, [items[k] for k in good])
    with Pipeline(plan, "sim", RunOptions(simulation=simulation, processes=processes)) as pipeline:
        taken = 0
        with pytest.raises(StageError, match=f"{name}, item {failed[0]}"):
            for _ in pipeline.map(items):
                taken += 1
        assert taken == failed[0]
        with pytest.raises(StageError, match="has stopped"):
            pipeline.push(items[0])


def test_a_process_that_dies_is_started_anew_and_the_item_tried_again(plan: Plan) -> None:
    items = _items(plan, 30)
    simulation = _failing(plan, 0, dying=150_000)
    options = RunOptions(simulation=simulation, processes=True, restarts=1000, on_error="continue")
    with Pipeline(plan, "sim", options) as pipeline:
        results = pipeline.run(items)
    failed = [k for k, r in enumerate(results) if isinstance(r, Failure)]
    assert len(failed) < 10
    assert all("SIGKILL" in str(results[k].error) for k in failed)  # type: ignore[union-attr]
    good = [k for k in range(30) if k not in failed]
    assert _bytes([results[k] for k in good]) == _expected(plan, [items[k] for k in good])


def test_restarts_have_a_limit_and_another_replica_goes_on(plan: Plan) -> None:
    """Where one of two TPUs of a stage is given up, the other does the work; where the last one is, items fail."""
    items = _items(plan, 20)
    simulation = _failing(plan, 0, dying=1_000_000)
    options = RunOptions(simulation=simulation, processes=True, restarts=1, on_error="continue")
    with Pipeline(plan, "sim", options) as pipeline:
        results = pipeline.run(items[:6])
    assert all(isinstance(r, Failure) for r in results)
    assert "its process ended (SIGKILL)" in str(results[-1].error)  # type: ignore[union-attr]
    wanted = with_replicas(plan, [[2, 2, 2]])
    with Pipeline(wanted, "cpu", RunOptions(processes=True, restarts=0)) as pipeline:
        assert len(pipeline.run(items[:2])) == 2
        psutil.Process().children()[0].kill()  # whichever stage it belongs to, that one has another TPU
        assert _bytes(pipeline.run(items)) == _expected(plan, items)


def test_one_that_hangs_is_ended_in_time(plan: Plan) -> None:
    items = _items(plan, 4)
    simulation = _failing(plan, 0, hanging=1_000_000)
    options = RunOptions(simulation=simulation, processes=True, restarts=10, on_error="continue", seconds=0.3)
    with Pipeline(plan, "sim", options) as pipeline:
        results = pipeline.run(items)
    assert all("did not answer within 0.3 s" in str(r.error) for r in results if isinstance(r, Failure))
    assert all(isinstance(r, Failure) for r in results)


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
@pytest.mark.parametrize("hanging", [0, 1_000_000], ids=["busy", "hanging"])
def test_stop_at_any_moment_from_another_thread(plan: Plan, processes: bool, hanging: int) -> None:
    behaviours = {s.name: Behaviour(stage_ns=3_000_000, hanging=hanging) for s in plan.segments}
    options = RunOptions(simulation=Simulation(behaviours=behaviours), processes=processes)
    with Pipeline(plan, "sim", options) as pipeline:
        item = _items(plan, 1)[0]
        threading.Timer(0.3, pipeline.stop).start()
        with pytest.raises(StageError, match="has stopped"):
            for _ in pipeline.map(itertools.repeat(item)):
                pass
        pipeline.stop()


def test_leaving_the_block_early_gives_all_back(plan: Plan) -> None:
    with Pipeline(plan, "sim", RunOptions(processes=True)) as pipeline:
        for item in _items(plan, 5):
            pipeline.push(item)
    results = None
    with Pipeline(plan, "sim") as pipeline:
        results = pipeline.map(itertools.repeat(_items(plan, 1)[0]))
        next(results)
        results.close()  # type: ignore[attr-defined]


def test_an_error_in_the_items_reaches_the_caller(plan: Plan) -> None:
    def items() -> Iterator[dict[str, Any]]:
        yield from _items(plan, 3)
        raise RuntimeError("the camera is gone")

    taken: list[Any] = []
    with Pipeline(plan, "cpu") as pipeline, pytest.raises(RuntimeError, match="the camera is gone"):
        taken.extend(pipeline.map(items()))
    assert len(taken) == 3


def test_ctrl_c_leaves_nothing(plan: Plan) -> None:
    code = (
        "import itertools, sys\nfrom balancer import Pipeline, RunOptions\n"
        "from balancer.inputs import random_items\n"
        "with Pipeline(sys.argv[1], 'sim', RunOptions(processes=True)) as p:\n"
        "    item = random_items(p.interface.inputs, 1)[0]\n    print('running', flush=True)\n"
        "    for _ in p.map(itertools.repeat(item)): pass\n"
    )
    path = (plan.directory or Path()) / plan.file_name
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    time.sleep(0.3)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 3
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    assert not [c for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]


def test_a_parent_that_is_killed_leaves_no_children(plan: Plan) -> None:
    code = (
        "import sys, time\nfrom balancer import Pipeline, RunOptions\n"
        "with Pipeline(sys.argv[1], 'sim', RunOptions(processes=True)) as p:\n    print('running', flush=True)\n"
        "    time.sleep(60)\n"
    )
    path = (plan.directory or Path()) / plan.file_name
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert len(gone) == 3


def test_back_pressure(plan: Plan) -> None:
    """No more items are taken than there is room for."""
    behaviours = {s.name: Behaviour(stage_ns=50_000_000) for s in plan.segments}
    taken = itertools.count()

    def items() -> Iterator[dict[str, Any]]:
        item = _items(plan, 1)[0]
        while True:
            next(taken)
            yield item

    with Pipeline(plan, "sim", RunOptions(simulation=Simulation(behaviours=behaviours), depth=1)) as pipeline:
        results = pipeline.map(items())
        next(results)
        time.sleep(0.2)
        assert next(taken) <= 14
        results.close()  # type: ignore[attr-defined]


def test_one_dead_pipeline_of_two_costs_no_items(model: Path, tmp_path: Path) -> None:
    """Its first stage is dead, so every item that it took goes to the other pipeline."""
    plan = balancer.save(balancer.balance(model, 1), tmp_path / "plan")
    wanted = with_replicas(plan, [[1], [1]])
    items = _items(plan, 40)
    with Pipeline(wanted, "cpu", RunOptions(processes=True, restarts=0, on_error="continue")) as pipeline:
        psutil.Process().children()[0].kill()
        assert _bytes(pipeline.run(items)) == _expected(plan, items)


def test_an_array_may_be_used_again_after_push(plan: Plan) -> None:
    (spec,) = Pipeline(plan, "cpu").interface.inputs
    kinds = _items(plan, 4)
    expected = _expected(plan, kinds)
    buffer = np.zeros(spec.shape, spec.dtype)

    def source() -> Iterator[dict[str, Any]]:
        for k in range(60):
            buffer[...] = kinds[k % 4][spec.name]
            yield {spec.name: buffer}

    with Pipeline(plan, "cpu") as pipeline:
        assert _bytes(pipeline.run(source())) == expected * 15


@pytest.mark.parametrize(
    "wrong", [{"depth": 0}, {"depth": "a"}, {"seconds": -1}, {"seconds": 0}, {"restarts": -1}, {"on_error": "shrug"}]
)
def test_options_that_no_pipeline_can_have(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RunOptions(**wrong)


@pytest.mark.parametrize("wrong", [None, 5, {}, {"other": 1}])
def test_items_that_are_none(plan: Plan, wrong: Any) -> None:
    items = _items(plan, 1)
    with Pipeline(plan, "cpu") as pipeline, pytest.raises(InputError):
        pipeline.run([*items, wrong, *items])


def test_a_second_map_is_refused(plan: Plan) -> None:
    items = _items(plan, 3)
    with Pipeline(plan, "cpu") as pipeline:
        first = pipeline.map(itertools.repeat(items[0]))
        next(first)
        with pytest.raises(InputError, match="another map or run is going on"):
            pipeline.run(items)
        first.close()  # type: ignore[attr-defined]
    with Pipeline(plan, "cpu") as pipeline:
        pipeline.push(items[0])
        with pytest.raises(InputError, match="results of 1 item are not taken yet"):
            pipeline.run(items)
        pipeline.pop()
        assert len(pipeline.run(items)) == 3


def test_a_source_that_waits_keeps_nobody(plan: Plan) -> None:
    """The feeder is left to its source; it ends with it."""
    gate = threading.Event()

    def source() -> Iterator[dict[str, Any]]:
        yield from _items(plan, 2)
        gate.wait(20)

    start = time.monotonic()
    with Pipeline(plan, "cpu") as pipeline:
        threading.Timer(0.2, pipeline.stop).start()
        with pytest.raises(StageError, match="has stopped"):
            pipeline.run(source())
    assert time.monotonic() - start < 5
    gate.set()
    for thread in threading.enumerate():
        if thread.name == "feeder":
            thread.join(5)


def test_an_exit_in_the_source_reaches_the_caller(plan: Plan) -> None:
    def source() -> Iterator[dict[str, Any]]:
        yield from _items(plan, 1)
        raise SystemExit("the camera is lost")

    with Pipeline(plan, "cpu") as pipeline, pytest.raises(SystemExit, match="the camera is lost"):
        pipeline.run(source())


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2])
def test_stop_while_it_opens(plan: Plan, delay: float) -> None:
    pipeline = Pipeline(plan, "cpu", RunOptions(processes=True))
    timer = threading.Timer(delay, pipeline.stop)
    timer.start()
    if not delay:
        timer.join()
    with pytest.raises(StageError, match="has stopped"), pipeline:
        pipeline.run(_items(plan, 2) * 5000)


def test_ctrl_c_while_it_opens(plan: Plan) -> None:
    """From the fixture: no child, thread or file is left."""
    for delay in (0.05, 0.15, 0.3):
        threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt), Pipeline(plan, "cpu", RunOptions(processes=True)) as pipeline:
            pipeline.run(_items(plan, 1) * 100_000)


def test_a_simulated_tpu_that_hangs_in_a_thread_is_given_up(plan: Plan) -> None:
    options = RunOptions(simulation=_failing(plan, 0, hanging=1_000_000), seconds=0.1, on_error="continue")
    with Pipeline(plan, "sim", options) as pipeline:
        results = pipeline.run(_items(plan, 3))
    assert all("did not answer within 0.1 s" in str(r.error) for r in results if isinstance(r, Failure))
    assert all(isinstance(r, Failure) for r in results)


def test_simulated_tpus_beside_others_compute(plan: Plan) -> None:
    items = _items(plan, 4)
    with Pipeline(plan, ["sim", "cpu", "sim"]) as pipeline:
        assert _bytes(pipeline.run(items)) == _expected(plan, items)


def test_recorded_outputs_are_nobodys_to_change(plan: Plan) -> None:
    items = _items(plan, 2)
    simulation = Simulation(outputs="recorded", recordings=recorded_outputs(plan, items))
    with Pipeline(plan, "sim", RunOptions(simulation=simulation)) as pipeline:
        for result in pipeline.run(items):
            with pytest.raises(ValueError, match="read-only"):
                next(iter(result.values()))[...] = 0  # type: ignore[union-attr]
        assert _bytes(pipeline.run(items)) == _expected(plan, items)


def test_statistics_say_who_is_slow(plan: Plan) -> None:
    times = dict(zip([s.name for s in plan.segments], (1_000_000, 6_000_000, 2_000_000), strict=True))
    behaviours = {name: Behaviour(stage_ns=ns) for name, ns in times.items()}
    with Pipeline(plan, "sim", RunOptions(simulation=Simulation(behaviours=behaviours))) as pipeline:
        pipeline.run(_items(plan, 1) * 40)
        found = pipeline.statistics()
    assert found.bottleneck == plan.segments[1].name
    for stage in found.stages:
        assert stage.items == 40
        assert stage.stage_ns > 0.9 * times[stage.segment]  # how much longer is the machine's affair
    first, slow, last = found.stages
    assert first.blocked_ns > slow.blocked_ns
    assert last.starved_ns > slow.starved_ns


def test_a_plan_that_is_not_saved_runs_and_one_that_is_not_compiled_does_not(model: Path, plan: Plan) -> None:
    for devices in ("cpu", "sim"):
        with Pipeline(balancer.balance(model, 2), devices) as pipeline:
            assert len(pipeline.run(random_items(pipeline.interface.inputs, 3))) == 3
    with pytest.raises(PlanError, match="run `balancer compile`"):
        Pipeline(plan, "usb")
    with pytest.raises(ValueError, match="on_error"):
        Pipeline(plan, "cpu", RunOptions(on_error="shrug"))  # type: ignore[arg-type]


def test_a_device_that_cannot_be_opened_closes_the_others(tmp_path: Path, model: Path) -> None:
    saved = balancer.save(balancer.balance(model, 3, options=balancer.Options(stages=3)), tmp_path / "plan")
    broken = (saved.directory or Path()) / str(saved.segments[2].file)
    data = bytearray(broken.read_bytes())
    data[4:8] = b"XXXX"
    broken.write_bytes(bytes(data))
    spoilt = replace(saved, segments=tuple(replace(s, sha256=None) for s in saved.segments))
    for processes in (False, True):
        with pytest.raises(balancer.BalancerError), Pipeline(spoilt, "cpu", RunOptions(processes=processes)):
            pass


@pytest.fixture
def compiled(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plan with "compiled" segments that the pretended Edge TPUs run, and what is true of these."""
    folder = tmp_path / "plan"
    balancer.save(plan, folder)
    compiler = find_compiler(edgetpu_compiler.install(tmp_path / "bin", runnable=True), cache=tmp_path / "cache")
    done = balancer.compile_plan(folder / plan.file_name, compiler).plan
    monkeypatch.syspath_prepend(str(FAKE))

    def says(**truth: Any) -> Plan:
        (tmp_path / "truth.json").write_text(json.dumps(truth))
        monkeypatch.setenv("FAKE_EDGETPU", str(tmp_path / "truth.json"))
        return done

    return says


USB = ["usb:0", "usb:1", "usb:2"]


def test_edge_tpus_each_in_a_process(compiled: Any) -> None:
    plan = compiled(devices=USB)
    items = _items(plan, 12)
    with Pipeline(plan, "usb") as pipeline:
        assert len(psutil.Process().children()) == 3
        assert _bytes(pipeline.run(items)) == _expected(plan, items)


def test_a_device_that_is_refused_at_first_is_tried_again(compiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = compiled(devices=USB, refusals=2)
    items = _items(plan, 2)
    with Pipeline(plan, "usb") as pipeline:
        assert _bytes(pipeline.run(items)) == _expected(plan, items)


def test_a_driver_that_aborts_costs_a_stage_and_not_the_program(compiled: Any) -> None:
    plan = compiled(devices=USB, abort="invoke", every=9)
    items = _items(plan, 20)
    with Pipeline(plan, "usb", RunOptions(restarts=10)) as pipeline:
        assert _bytes(pipeline.run(items)) == _expected(plan, items)


def test_a_device_that_is_not_there_is_named(compiled: Any) -> None:
    plan = compiled(devices=USB[:2])
    with pytest.raises(StageError, match=r"segment_2_of_3 on usb:2.*another program has it"), Pipeline(plan, "usb"):
        pass


def test_tuning_on_devices(compiled: Any, tmp_path: Path) -> None:
    """Compile, run, measure, solve again: with pretended Edge TPUs, whose times nobody has predicted."""
    plan = compiled(devices=USB)
    compiler = find_compiler(tmp_path / "bin" / "edgetpu_compiler", cache=tmp_path / "cache")
    source = PipelineTimes(devices="usb", seconds=0.3, compiler=lambda: compiler)
    found = tune(plan, source, rounds=2)
    assert all(s.measured and s.measured.source == "device" for s in found.plan.segments)
    assert all(s.reported for s in found.plan.segments)
    saved = balancer.save(found.plan, tmp_path / "tuned")
    items = _items(saved, 3)
    with Pipeline(saved, "usb") as pipeline:
        assert _bytes(pipeline.run(items)) == _expected(saved, items)


def test_what_the_driver_said_last_is_in_the_error(compiled: Any, capfd: pytest.CaptureFixture[str]) -> None:
    plan = compiled(devices=USB, abort="load")
    with (
        pytest.raises(StageError, match=r"ended while it opened \(SIGABRT: .*Deadline exceeded"),
        Pipeline(plan, "usb"),
    ):
        pass
    assert "Deadline" not in capfd.readouterr().err


def test_googles_runner_where_it_is_installed(compiled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = compiled(devices=USB)
    with pytest.raises(balancer.BalancerError, match="Google's pycoral is not installed"):
        PycoralRunner(plan, "usb")
    site = tmp_path / "site" / "pycoral"
    for package in ("", "utils", "pipeline"):
        (site / package).mkdir(parents=True, exist_ok=True)
        (site / package / "__init__.py").write_text("")
    (site / "utils/edgetpu.py").write_text(
        "from balancer.interpreter import open_interpreter\nfrom pathlib import Path\n"
        "class I:\n    def __init__(self, path):\n        data = Path(path).read_bytes()\n"
        "        self.i = open_interpreter(data[-8 - int.from_bytes(data[-8:], 'little') : -8])\n"
        "    def allocate_tensors(self): pass\n"
        "def make_interpreter(path, device): return I(path)\n"
    )
    (site / "pipeline/pipelined_model_runner.py").write_text(
        "import queue\nimport numpy as np\n"
        "class PipelinedModelRunner:\n    def __init__(self, interpreters):\n"
        "        self.i = [x.i for x in interpreters]; self.q = queue.Queue()\n"
        "    def set_input_queue_size(self, n): pass\n"
        "    def push(self, item):\n        t = dict(item)\n"
        "        if not t: self.q.put(None); return\n"
        "        for i in self.i:\n            i.run([t[n] for n in i.input_names])\n"
        "            t.update(zip(i.output_names, i.outputs()))\n"
        "        last = self.i[-1].output_names\n"
        "        self.q.put({n: np.frombuffer(t[n].tobytes(), np.uint8) for n in last})\n"
        "    def pop(self): return self.q.get()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    items = _items(plan, 5)
    with PycoralRunner(plan, "usb") as runner:
        results = list(runner.map(items))
    assert _bytes(results) == _expected(plan, items)
    assert results[0]["output"].dtype == np.float32

    def breaking() -> Iterator[dict[str, Any]]:
        yield from items[:2]
        raise RuntimeError("the camera is gone")

    with PycoralRunner(plan, "usb") as runner:
        before = runner.map(breaking())
        assert _bytes([next(before), next(before)]) == _expected(plan, items[:2])
        with pytest.raises(RuntimeError, match="the camera is gone"):
            next(before)
    two = with_replicas(plan, [[1, 2, 1]])
    with pytest.raises(PlanError, match="TPUs that share a stage"):
        PycoralRunner(two, "usb")
    for name in [m for m in sys.modules if m.split(".")[0] == "pycoral"]:
        sys.modules.pop(name)
