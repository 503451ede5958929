"""The doors through which files of text come in, and what stands behind them: plans, hardware, tables of times."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import balancer
from balancer.compiler.cache import Cache, Entry
from balancer.cost.hardware import Hardware, load_hardware
from balancer.cost.profile import load_profile
from balancer.documents import DocumentKind, Refusal, read_document, read_json, read_table
from balancer.errors import BalancerError, HardwareError, MeasurementError, PlanError
from balancer.learning.measurements import read_measurements
from balancer.loops.sources import RecordedTimes
from balancer.plan import load_plan, plan_text
from balancer.planning.costed_model import costed_model_of
from balancer.runtime.options import RunOptions
from balancer.runtime.pipeline import Pipeline
from balancer.runtime.simulated import Behaviour
from balancer.tflite import synth
from balancer.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REFUSAL = Refusal(MeasurementError, "mend it", "a made-up file")
DEEP = "[" * 100_000 + "]" * 100_000
PUBLISHED = (
    "family,width,n_layers,input,n_tpus,batch,partitioner,layers_per_segment,ms_per_inference,timing,off_chip_mib,use\n"
)


@pytest.fixture
def plan(tmp_path: Path) -> balancer.Plan:
    (tmp_path / "net.tflite").write_bytes(synth.fc(40, layers=4))
    return balancer.save(
        balancer.balance(tmp_path / "net.tflite", 2, options=balancer.Options(stages=2)), tmp_path / "plan"
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (DEEP, "deep"),
        ("[" * 40 + "]" * 40, "32 levels deep"),
        ("[1e400]", "not a finite number"),
        ("[NaN]", "not a finite number"),
        ("[-Infinity]", "not a finite number"),
        ("[9223372036854775808]", "too large a number"),
        (f"[{'9' * 100_000}]", "too large a number"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' stands twice"),
        ("\xff", "not JSON"),
        (" " * (17 << 20), "larger than 16 MiB"),
    ],
)
def test_json_that_no_reader_could_take_is_refused_at_the_door(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    with pytest.raises(MeasurementError, match=what):
        read_json(tmp_path / "x.json", REFUSAL)


def test_json_is_read_as_it_was_written_with_and_without_a_byte_order_mark(tmp_path: Path) -> None:
    value = {"a": [1, -1.5, None, True, "ä", (1 << 63) - 1], "b": {}}
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "x.json").write_text(json.dumps(value), encoding=encoding)
        assert read_json(tmp_path / "x.json", REFUSAL) == value


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a,b\n1,2\n3\n", "line 3: has 1 fields, the first line 2"),
        ("a,b\n1,2,3\n", "line 2: has 3 fields"),
        ("a,a\n1,2\n", "names a column twice"),
        ("\xff", "not a CSV file"),
    ],
)
def test_a_table_has_all_columns_in_each_row(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "x.csv").write_text(text, encoding="latin-1")
    with pytest.raises(MeasurementError, match=what):
        read_table(tmp_path / "x.csv", REFUSAL)


def test_rows_of_a_table_know_their_lines(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('a,b\n\n1,"two\nlines"\n3,4\n', encoding="utf-8-sig")
    assert read_table(tmp_path / "x.csv", REFUSAL).rows == (
        (4, {"a": "1", "b": "two\nlines"}),
        (5, {"a": "3", "b": "4"}),
    )


def test_a_path_that_no_file_can_have_is_one_that_cannot_be_read() -> None:
    with pytest.raises(MeasurementError, match="cannot be read"):
        read_table("a\0b", REFUSAL)


def test_nested_documents_are_refused_by_each_reader(plan: balancer.Plan, tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text(DEEP)
    graph = balancer.load_graph(synth.fc(8, layers=2))
    readers: list[Callable[[Path], object]] = [load_plan, load_hardware, lambda path: load_profile(path, graph, "")]
    for reader in readers:
        with pytest.raises(BalancerError, match="not JSON"):
            reader(tmp_path / "deep.json")


KIND = DocumentKind("made-up", (2, 3), REFUSAL, version_remedy="update")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "not a made-up file \\(no format 'made-up'\\); mend it"),
        ({}, "not a made-up file"),
        ({"format": "balancer-plan", "version": 2}, "not a made-up file but a plan file; mend it; `balancer run`"),
        ({"format": "made-up"}, "version None is unknown; update"),
        ({"format": "made-up", "version": 1}, "version 1 is unknown"),
        ({"format": "made-up", "version": 4}, "version 4 is unknown"),
        ({"format": "made-up", "version": [2]}, "version \\[2\\] is unknown"),
    ],
)
def test_a_document_of_another_format_or_version_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps(value))
    with pytest.raises(MeasurementError, match=message):
        read_document(tmp_path / "x.json", KIND)


@pytest.mark.parametrize("version", [2, 3])
def test_each_version_that_a_kind_names_is_read(tmp_path: Path, version: int) -> None:
    value = {"format": "made-up", "version": version, "more": [1]}
    (tmp_path / "x.json").write_text(json.dumps(value))
    assert read_document(tmp_path / "x.json", KIND) == value


def _written(path: Path, **document: Any) -> Path:
    path.write_text(json.dumps({"format": "balancer-hardware", "version": 1} | document))
    return path


def test_hardware_takes_from_its_base_what_it_does_not_say_itself(tmp_path: Path) -> None:
    path = _written(tmp_path / "mine.json", base="usb", constants={"op_ns": {"value": 7}})
    assert load_hardware(path) == Hardware.with_constants("mine", load_hardware("usb").constants | {"op_ns": 7})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "has no constants"),
        ({"constants": []}, "has no constants"),
        ({"constants": {}, "base": "absent"}, "its base 'absent' is not a preset; name one of: .*usb"),
        ({"constants": {}, "base": ["usb"]}, "is not a preset"),
        ({"constants": {}}, "constant '.*' is not an integer"),
        ({"constants": {}, "base": "usb", "name": 3}, "its name is not a text"),
        ({"constants": {}, "version": 9}, "version 9 is unknown; update balancer"),
        ({"format": "balancer-plan"}, "not a hardware file but a plan file; give a preset, or a hardware file"),
    ],
)
def test_a_hardware_file_that_lacks_something_is_refused(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        load_hardware(_written(tmp_path / "mine.json", **document))


def test_hardware_that_is_neither_a_preset_nor_a_file_names_the_presets() -> None:
    with pytest.raises(
        HardwareError, match=r"absent: no such preset, nor a readable file .*; use one of: .*pcie.*, or a file"
    ):
        load_hardware("absent")


def test_a_cache_whose_hashes_are_nested_without_end_counts_as_none(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.keep("key", Entry(b"compiled", "output"))
    assert cache.find("key") is not None
    (tmp_path / "key" / "sha256.json").write_text(DEEP)
    assert cache.find("key") is None


@pytest.mark.parametrize("read", [read_measurements, RecordedTimes])
@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("{plan}", "line 2: has 1 fields"),
        ("{plan},{stage}", "line 2: has 2 fields"),
        ("{plan},{stage},nan", "line 2: 'nan' is not a time"),
        ("{plan},{stage},inf", "line 2: 'inf' is not a time"),
        ("{plan},{stage},-1", "line 2: '-1' is not a time"),
        ("{plan},{stage},1e-9", "line 2: '1e-9' is not a time"),
        ("{plan},{stage},1e300", "line 2: '1e300' is not a time"),
        ("{plan},{stage},fast", "line 2: 'fast' is not a time"),
        ("{plan},nobody,1", "line 2: the plan has no segment 'nobody'"),
        ("absent.json,{stage},1", "cannot be read"),
    ],
)
def test_recorded_times_name_the_row_that_is_none(
    plan: balancer.Plan, tmp_path: Path, read: Callable[[Path], object], row: str, what: str
) -> None:
    path = tmp_path / "plan" / "times.csv"
    path.write_text("plan,stage,measured_ms\n" + row.format(plan=plan.file_name, stage=plan.segments[0].name))
    with pytest.raises(BalancerError, match=what):
        read(path)


@pytest.mark.parametrize(
    "row",
    [
        "fc,8,3,4,1,1,single,3,nan,invoke_median,0,1",
        "fc,8,3,4,1,0,single,3,0.4,invoke_median,0,1",
        "fc,8,3,4,0,1,single,3,0.4,invoke_median,0,1",
        "fc,100000,3,4,1,1,single,3,0.4,invoke_median,0,1",
        "fc,8,3,many,1,1,single,3,0.4,invoke_median,0,1",
        "fc,8,3,4,1,1,single,3,0.4,invoke_median,nan,1",
        "oak,8,3,4,1,1,single,3,0.4,invoke_median,0,1",
        "conv,8,3,4,1,1,single,3,0.4,invoke_median,0,1",
        "fc,8,3,4,1,1,single,3",
        f"fc,8,3,4,1,1,single,²-3,{'9' * 5000},invoke_median,0,1",
    ],
)
def test_published_rows_name_what_cannot_be(tmp_path: Path, row: str) -> None:
    (tmp_path / "m.csv").write_text(f"{PUBLISHED}{row}\n", encoding="utf-8")
    with pytest.raises(MeasurementError, match="line 2"):
        read_measurements(tmp_path / "m.csv")


def _forged(plan: balancer.Plan, place: tuple[Any, ...], value: Any) -> Path:
    document = json.loads(plan_text(plan))
    parent = document
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    assert plan.directory is not None
    path = plan.directory / "forged.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("place", "value", "what"),
    [
        (("hardware", "constants", "op_ns"), -1, "not a valid value here"),
        (("hardware", "constants", "op_ns"), 10**11, "constant 'op_ns' is"),
        (("n_tpus",), 10**15, "TPUs is impossible"),
        (("n_tpus",), 0, "TPUs is impossible"),
        (("predicted", "latency_ns"), -5, "not a valid value here"),
        (("predicted", "throughput_per_s"), 1e300, "not a valid value here"),
        (("model", "ops"), 10**6, "ops is impossible"),
        (("model", "ops"), 0, "ops is impossible"),
        (("segments", 0, "name"), "../../evil", "not a bare file name"),
        (("solver", "name"), "\ud800", "not a valid value here"),
    ],
)
def test_a_plan_file_with_impossible_numbers_is_refused(
    plan: balancer.Plan, place: tuple[Any, ...], value: Any, what: str
) -> None:
    with pytest.raises(PlanError, match=what):
        load_plan(_forged(plan, place, value))


def test_a_segment_that_no_pipeline_runs_is_refused(plan: balancer.Plan) -> None:
    document = json.loads(plan_text(plan))
    left_over = document["segments"][0] | {"name": "left_over", "ops": "0"}
    with pytest.raises(PlanError, match="stands in no pipeline"):
        load_plan(_forged(plan, ("segments",), [*document["segments"], left_over]))


@pytest.mark.parametrize(
    ("key", "value"), [("shape", [1, 41]), ("shape", None), ("dtype", "float32"), ("bytes", 1), ("tensor", "other")]
)
@pytest.mark.parametrize(("segment", "side"), [(0, "inputs"), (0, "outputs"), (1, "inputs")])
@pytest.mark.parametrize("processes", [False, True])
def test_a_plan_whose_tensors_are_not_its_models_is_not_run(
    plan: balancer.Plan, segment: int, side: str, key: str, value: Any, processes: bool
) -> None:
    true = json.loads(plan_text(plan))["segments"][segment][side][0][key]
    path = _forged(plan, ("segments", segment, side, 0, key), "int8" if value == true else value)
    with pytest.raises(PlanError, match="not as the model has them"):
        Pipeline(path, "sim", RunOptions(processes=processes))


def test_a_plan_that_speaks_of_other_ops_than_its_model_has_is_refused(plan: balancer.Plan) -> None:
    n = plan.model.ops
    document = json.loads(plan_text(plan))
    last = len(document["segments"]) - 1
    path = _forged(plan, ("segments", last, "ops"), f"{document['segments'][last]['ops']},{n}")
    document = json.loads(path.read_text())
    document["model"]["ops"] = n + 1
    path.write_text(json.dumps(document))
    forged = load_plan(path)
    for use in (costed_model_of, balancer.verify, lambda p: Pipeline(p, "sim")):
        with pytest.raises(PlanError, match=f"is for {n + 1} ops"):
            use(forged)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1, 10**30, 1.5, True])
def test_hardware_constants_are_whole_numbers_of_a_size_that_sums_can_take(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="op_ns must be a whole number"):
        Hardware.with_constants("mine", load_hardware("pcie").constants | {"op_ns": value})
    document = {"format": "balancer-hardware", "version": 1, "base": "pcie", "constants": {"op_ns": {"value": value}}}
    (tmp_path / "hw.json").write_text(json.dumps(document))
    with pytest.raises(HardwareError):
        load_hardware(tmp_path / "hw.json")


def test_hardware_that_is_changed_stays_within_what_a_file_may_hold() -> None:
    hardware = load_hardware("pcie").changed({"op_ns": 1e300, "invoke_ns": 12.4})
    assert (hardware.chip.op_ns, hardware.link.invoke_ns) == (10**10, 12)


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 1e300, 0, -1])
def test_times_that_nobody_can_wait_are_refused_in_the_api(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        RunOptions(seconds=seconds)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1])
def test_simulated_times_are_finite(value: float) -> None:
    for name in ("stage_ns", "first_ns", "jitter"):
        with pytest.raises(ValueError, match=name):
            replace(Behaviour(stage_ns=1), **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_solver_is_given_some_time(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        balancer.balance(synth.fc(8, layers=2), 1, options=balancer.Options(seconds=seconds))


@pytest.mark.parametrize("timeout", [float("inf"), 1e300])
def test_whoever_waits_for_ever_gets_the_result(timeout: float) -> None:
    workers = Workers([[[lambda value: value + 1]]], depth=1, most=1)
    try:
        workers.put(1, timeout)
        assert workers.get(timeout) == 2
    finally:
        workers.stop()
        workers.join()


@pytest.mark.parametrize("limit", [float("inf"), 10**30, -1])
def test_limits_of_constraints_are_numbers_that_solvers_can_take(limit: Any) -> None:
    for name in ("max_latency_ns", "max_objective_ns", "max_segment_bytes"):
        with pytest.raises(ValueError, match=name):
            balancer.balance(
                synth.fc(8, layers=2), 1, options=balancer.Options(constraints=balancer.Constraints(**{name: limit}))
            )


def test_a_latency_beyond_all_numbers_is_no_limit() -> None:
    model = synth.fc(8, layers=2)
    assert balancer.size(model, max_tpus=1, max_latency_ns=1e300).rows == balancer.size(model, max_tpus=1).rows
