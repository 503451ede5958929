"""Models with state: variable tensors are reset before each input, or kept over the sequence as the plain interpreter
keeps them. Said wherever such a model is solved, verified or run.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

import balancer
from balancer.cli.main import main
from balancer.errors import PlanError, StageError
from balancer.inputs import model_interface, random_items
from balancer.interpreter import open_interpreter
from balancer.plan import STATE_WORDS
from balancer.planning.costed_model import costed_model_of
from balancer.runtime.options import RunOptions
from balancer.runtime.recipes import Simulation
from balancer.tflite.flatbuffer import Table
from balancer.workers import Failure
from tests import handmade
from tests.shared import MODELS

if TYPE_CHECKING:
    from pathlib import Path

    from balancer.plan import Plan

UNITS, MEMORY = 4, 5
# So small a model keeps the host busy; without it more TPUs give more.
FREE_HOST = balancer.load_hardware("pcie").changed({"host_ns_per_stage": 0})
RESETS, KEEPS = STATE_WORDS["reset"], STATE_WORDS["kept"]


def _svdf(b: handmade.Builder, source: int, name: str) -> int:
    """An op that remembers its last MEMORY inputs."""
    time = b.random.integers(-20000, 20000, (UNITS, MEMORY)).astype(np.int16)
    weights = b.tensor(f"{name}/time", (UNITS, MEMORY), "INT16", scale=0.0001, zero=0, data=time)
    state = b.tensor(f"{name}/state", (1, UNITS * MEMORY), "INT16", scale=0.001, zero=0, is_variable=1)
    made = b.tensor(name, (1, UNITS))
    bias = b.bias(f"{name}/b", UNITS, scale=0.001 * 0.0001)
    inputs = [source, b.weights(f"{name}/w", (UNITS, UNITS)), weights, bias, state]
    b.op("SVDF", inputs, [made], Table("SVDFOptions", {"rank": 1, "fused_activation_function": 1}))
    b.operators[-1] = b.operators[-1].changed(mutating_variable_inputs=np.array([0, 0, 0, 0, 1], np.bool_))
    return made


def _dense(b: handmade.Builder, source: int, name: str) -> int:
    made = b.tensor(name, (1, UNITS))
    b.op(
        "FULLY_CONNECTED",
        [source, b.weights(f"{name}/w", (UNITS, UNITS)), -1],
        [made],
        Table("FullyConnectedOptions", {}),
    )
    return made


def remembering() -> bytes:
    """Dense, SVDF, dense, SVDF, dense."""
    b = handmade.Builder()
    source = b.tensor("in", (1, UNITS))
    at = _svdf(b, _dense(b, source, "dense_0"), "svdf_0")
    at = _svdf(b, _dense(b, at, "dense_1"), "svdf_1")
    return b.file([source], [_dense(b, at, "dense_2")])


def _items(data: bytes, count: int = 12) -> list[dict[str, Any]]:
    return random_items(model_interface(balancer.load_graph(data)).inputs, count)


def _expected(data: bytes, items: list[dict[str, Any]], *, kept: bool) -> list[bytes]:
    whole = open_interpreter(data)
    infer = whole.run_next if kept else whole.run
    found = []
    for item in items:
        infer([item[name] for name in whole.input_names])
        found.append(b"".join(value.tobytes() for value in whole.outputs()))
    return found


def _saved(data: bytes, folder: Path, n: int = 3, stages: int | None = None, **more: Any) -> Plan:
    model = folder / "state.tflite"
    model.write_bytes(data)
    options = balancer.Options(stages=stages)
    return balancer.save(balancer.balance(model, n, options=options, **more), folder / "plan")


def _bytes(result: Any) -> bytes:
    assert not isinstance(result, Failure), result
    return b"".join(value.tobytes() for value in result.values())


def test_keeping_state_differs_from_resetting_it() -> None:
    data = remembering()
    items = _items(data)
    assert _expected(data, items, kept=True) != _expected(data, items, kept=False)
    assert _expected(data, items[:1], kept=True) == _expected(data, items[:1], kept=False)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("processes", [False, True])
def test_results_over_a_sequence_are_those_of_the_plain_interpreter(
    tmp_path: Path, *, kept: bool, processes: bool
) -> None:
    data = remembering()
    items = _items(data)
    plan = _saved(data, tmp_path, stages=3, keep_state=kept)
    for devices in ("cpu", "sim"):
        simulation = Simulation(outputs="live")
        options = RunOptions(keep_state=kept, processes=processes, simulation=simulation)
        with balancer.Pipeline(plan, devices, options) as pipeline:
            assert pipeline.state == ("kept" if kept else "reset")
            assert [_bytes(result) for result in pipeline.map(items)] == _expected(data, items, kept=kept)


@pytest.mark.parametrize("kept", [False, True])
def test_both_sides_of_a_verification_keep_state_or_neither(tmp_path: Path, *, kept: bool) -> None:
    plan = _saved(remembering(), tmp_path, stages=3, keep_state=kept)
    found = balancer.verify(plan, 6, keep_state=kept)
    assert found.bit_exact
    assert found.state == ("kept" if kept else "reset")


def test_a_plan_that_keeps_state_has_one_pipeline_without_replicas() -> None:
    data = remembering()
    free = balancer.balance(data, 4, hardware=FREE_HOST)
    assert len(free.pipelines) > 1 or any(s.replicas > 1 for p in free.pipelines for s in p.stages)
    assert free.state == "reset"
    kept = balancer.balance(data, 4, hardware=FREE_HOST, keep_state=True)
    (pipeline,) = kept.pipelines
    assert all(stage.replicas == 1 for stage in pipeline.stages)
    assert kept.state == "kept"
    assert "1 pipeline, 1 replica a stage" in kept.solver.over
    assert "kept state" in kept.solver.over
    notes = {row.name: row.note for row in kept.comparison}
    assert notes["copies"] == "does not keep state"
    assert notes["ours"] is None


def test_a_model_without_state_is_solved_as_ever() -> None:
    data = handmade.conv_chain()
    free, kept = balancer.balance(data, 4), balancer.balance(data, 4, keep_state=True)
    assert free == kept
    assert free.state is None


def test_a_plan_with_copies_of_a_stage_with_state_is_refused_in_one_line(tmp_path: Path) -> None:
    plan = _saved(remembering(), tmp_path, n=4, hardware=FREE_HOST)
    refusal = r"cannot keep state: .* (pipelines|replicas); solve with --keep-state"
    with pytest.raises(PlanError, match=refusal):
        balancer.Pipeline(plan, "cpu", RunOptions(keep_state=True))
    with pytest.raises(PlanError, match=refusal):
        balancer.verify(plan, 2, keep_state=True)


def test_replicas_before_the_state_are_refused_and_behind_it_are_not(tmp_path: Path) -> None:
    """Replicas hand items on in the order in which they get ready."""
    b = handmade.Builder()
    source = b.tensor("in", (1, UNITS))
    data = b.file([source], [_dense(b, _svdf(b, _dense(b, source, "before"), "svdf"), "behind")])
    plan = _saved(data, tmp_path, stages=3, keep_state=True)

    def doubled(k: int) -> Plan:
        (pipeline,) = plan.pipelines
        stages = list(pipeline.stages)
        stages[k] = replace(stages[k], replicas=2, tpus=(*stages[k].tpus, 3))
        return replace(plan, pipelines=(replace(pipeline, stages=tuple(stages)),))

    for k in (0, 1):
        with pytest.raises(PlanError, match="2 replicas; solve with --keep-state"):
            balancer.Pipeline(doubled(k), "cpu", RunOptions(keep_state=True))
    items = _items(data)
    with balancer.Pipeline(doubled(2), "cpu", RunOptions(keep_state=True)) as pipeline:
        assert [_bytes(result) for result in pipeline.map(items)] == _expected(data, items, kept=True)


def test_a_process_that_held_state_and_is_lost_is_reported_not_started_anew(tmp_path: Path) -> None:
    data = remembering()
    plan = _saved(data, tmp_path, n=1, keep_state=True)
    items = _items(data, 6)
    options = RunOptions(keep_state=True, processes=True, on_error="continue")
    with balancer.Pipeline(plan, "cpu", options) as pipeline:
        first = []
        for item in items[:3]:
            pipeline.push(item)
            first.append(_bytes(pipeline.pop()))
        assert first == _expected(data, items, kept=True)[:3]
        (process,) = psutil.Process().children()
        process.kill()
        for item in items[3:]:
            pipeline.push(item)
            failure = pipeline.pop()
            assert isinstance(failure, Failure)
            assert isinstance(failure.error, StageError)
            assert "the state that it held is lost" in str(failure.error)


def test_the_command_line_says_what_happens_to_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = remembering()
    model, inputs = tmp_path / "state.tflite", tmp_path / "in.npy"
    model.write_bytes(data)
    items = _items(data)
    np.save(inputs, np.concatenate([item["in"] for item in items]))
    for kept, line in ((False, RESETS), (True, KEEPS)):
        folder, out = tmp_path / f"plan_{kept}", tmp_path / f"out_{kept}"
        keep = ["--keep-state"] if kept else []
        assert main(["solve", str(model), "-n", "3", "-o", str(folder), *keep]) == 0
        assert line in capsys.readouterr().out
        plan = str(folder / "state_plan_3.json")
        assert json.loads((folder / "state_plan_3.json").read_text())["state"] == ("kept" if kept else "reset")
        assert main(["verify", plan, *keep]) == 0
        assert line in capsys.readouterr().out
        run = ["run", plan, "--inputs", str(inputs), "--outputs", str(out), "--devices", "cpu", *keep]
        assert main(run) == 0
        assert line in capsys.readouterr().out
        found = [np.load(path)["dense_2"].tobytes() for path in sorted(out.glob("*.npz"))]
        assert found == _expected(data, items, kept=kept)
        assert main(["bench", plan, "--devices", "cpu", "--seconds", "0.2", "--json", *keep]) == 0
        assert json.loads(capsys.readouterr().out)["state"] == ("kept" if kept else "reset")


def test_recorded_outputs_keep_state_too(tmp_path: Path) -> None:
    data = remembering()
    model, inputs, out = tmp_path / "state.tflite", tmp_path / "in.npy", tmp_path / "out"
    model.write_bytes(data)
    items = _items(data)
    np.save(inputs, np.concatenate([item["in"] for item in items]))
    plan = _saved(data, tmp_path, stages=3, keep_state=True)
    run = ["run", str((plan.directory or tmp_path) / plan.file_name), "--inputs", str(inputs), "--outputs", str(out)]
    assert main([*run, "--devices", "sim", "--sim-outputs", "recorded", "--keep-state"]) == 0
    found = [np.load(path)["dense_2"].tobytes() for path in sorted(out.glob("*.npz"))]
    assert found == _expected(data, items, kept=True)


def test_a_plan_file_that_names_another_state_is_refused(tmp_path: Path) -> None:
    plan = _saved(remembering(), tmp_path, keep_state=True)
    path = (plan.directory or tmp_path) / plan.file_name
    assert balancer.load_plan(path).state == "kept"
    path.write_text(path.read_text().replace('"state": "kept"', '"state": "gone"'))
    with pytest.raises(PlanError, match="state 'gone' is not one of reset, kept; solve again"):
        balancer.load_plan(path)


def test_the_api_says_what_happens_to_state_in_its_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        plan = _saved(remembering(), tmp_path)
        balancer.verify(plan, 1)
        balancer.Pipeline(plan, "cpu")
    assert [RESETS in message for message in caplog.messages] == [True] * 3


def test_tuning_a_plan_that_keeps_state_gives_one_that_does(tmp_path: Path) -> None:
    from balancer.loops.sources import TrueCosts
    from balancer.loops.tuning import tune

    plan = _saved(remembering(), tmp_path, n=4, keep_state=True)
    found = tune(plan, TrueCosts(costed_model_of(plan)), rounds=2, options=balancer.Options())
    assert found.plan.state == "kept"
    assert len(found.plan.pipelines) == 1


@pytest.mark.shared
def test_an_lstm_keeps_its_state_over_a_sequence(tmp_path: Path) -> None:
    data = (MODELS / "keras_lstm_mnist_ptq.tflite").read_bytes()
    items = _items(data, 4)
    plan = _saved(data, tmp_path, n=2, keep_state=True)
    assert balancer.verify(plan, items, keep_state=True).bit_exact
    with balancer.Pipeline(plan, "cpu", RunOptions(keep_state=True)) as pipeline:
        assert [_bytes(result) for result in pipeline.map(items)] == _expected(data, items, kept=True)
