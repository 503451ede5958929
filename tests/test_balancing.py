"""The main job: predictions that agree, refusals, and what more TPUs may never do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import balancer
from balancer.cost.hardware import load_hardware
from balancer.errors import BalancerError, InfeasibleError, MeasurementError, PlanError, ProfileError
from balancer.ground.opsets import members
from balancer.learning.calibrating import calibrate, hardware_document
from balancer.learning.measurements import StageRow, read_measurements
from balancer.learning.profiling import profile_document
from balancer.planning.predicting import cut_segments
from balancer.tflite import synth
from tests import handmade
from tests.shared import MODELS, SHARED, ZOO

if TYPE_CHECKING:
    from pathlib import Path

SPILLING = synth.fc(2350)
NAMES = [
    "one TPU", "copies", "compiler default", "equal op counts", "depth balanced", "profiling bisection",
    "DFS + interval DP", "ours, one pipeline", "ours",
]  # fmt: skip


def test_predicting_a_plans_own_partition_gives_its_own_figures() -> None:
    plan = balancer.balance(SPILLING, 3, options=balancer.Options(pipelines=1))
    again = balancer.predict(SPILLING, [list(members(s.ops)) for s in plan.segments])
    assert again.segments == plan.segments
    assert again.pipelines == plan.pipelines
    assert again.predicted == plan.predicted


def test_cuts_are_the_first_ops_of_segments() -> None:
    assert cut_segments([12, 57], 100) == [range(12), range(12, 57), range(57, 100)]
    for cuts in ([0], [100], [5, 5], [7, 3], [-1]):
        with pytest.raises(PlanError, match="do not ascend"):
            cut_segments(cuts, 100)


@pytest.mark.parametrize(
    ("segments", "what"),
    [
        ([[0, 1]], "op 2 is in no segment"),
        ([[0, 1, 2], [2]], "op 2 is listed twice"),
        ([[0, 1, 7]], "op 7 does not exist"),
        ([[1, 2], [0]], "op 1 reads from op 0 of a later segment"),
        ([[0, 1, 2], []], "cannot|computes nothing"),
    ],
)
def test_segments_that_are_no_partition_are_refused(segments: list[list[int]], what: str) -> None:
    with pytest.raises(PlanError, match=what):
        balancer.predict(handmade.conv_chain(3), segments)


def test_segments_may_interleave_branches() -> None:
    plan = balancer.predict(handmade.outputs_against_execution_order(), [[0], [1, 2]])
    assert [t.source for t in plan.segments[1].inputs] == [None, "model_segment_0_of_2"]
    assert balancer.verify(plan, 1).bit_exact


def test_state_is_never_torn_apart() -> None:
    with pytest.raises(PlanError, match="separates ops that share state"):
        balancer.predict(handmade.shared_state(), [[0, 1], [2, 3]])
    plan = balancer.balance(handmade.shared_state(), 2, options=balancer.Options(stages=2))
    assert [s.ops for s in plan.segments] == [0b1, 0b1110]


def test_overflow_error_refuses_what_must_stream_and_finds_what_need_not() -> None:
    with pytest.raises(InfeasibleError) as caught:
        balancer.balance(SPILLING, 1, options=balancer.Options(overflow="error"))
    assert caught.value.exit_code == 3
    plan = balancer.balance(SPILLING, 4, options=balancer.Options(overflow="error"))
    assert all(s.predicted.overflow_bytes == 0 for s in plan.segments)
    assert plan.solver.status == "optimal"


def test_forced_stages_make_one_pipeline_of_so_many() -> None:
    plan = balancer.balance(SPILLING, 5, options=balancer.Options(stages=5))
    assert [len(p.stages) for p in plan.pipelines] == [5]
    assert plan.predicted.tpus_used == 5


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_the_comparison_has_its_rows_and_ours_is_never_below_another(n: int) -> None:
    plan = balancer.balance(SPILLING, n)
    assert [row.name for row in plan.comparison if row.name != "exhaustive"] == NAMES
    rates = [row.throughput_per_s for row in plan.comparison]
    assert all(rate is not None and rate <= rates[-1] for rate in rates)  # type: ignore[operator]
    assert plan.comparison[0].speedup_over_one_tpu == 1.0
    assert plan.comparison[-1].speedup_over_one_tpu == pytest.approx(rates[-1] / rates[0], rel=1e-3)  # type: ignore[operator]
    assert balancer.compare(SPILLING, n) == plan.comparison


def test_k_copies_are_k_pipelines_of_one_stage() -> None:
    data = synth.conv(32, size=32)
    plan = balancer.balance(data, 3)
    assert [len(p.stages) for p in plan.pipelines] == [1, 1, 1]
    assert [s.name for s in plan.segments] == ["model_segment_0_of_1"]
    assert [p.stages[0].tpus for p in plan.pipelines] == [(0,), (1,), (2,)]
    held = balancer.balance(data, 3, options=balancer.Options(pipelines=1))
    assert len(held.pipelines) == 1


@pytest.mark.parametrize("n", [0, -1, 33, True, 1.5])
def test_what_is_no_number_of_tpus_is_a_value_error(n: Any) -> None:
    with pytest.raises(ValueError, match="n_tpus"):
        balancer.balance(SPILLING, n)


@pytest.mark.parametrize("options", [{"pipelines": 0}, {"stages": 0}, {"stages": 5}, {"overflow": "maybe"}])
def test_options_out_of_range_are_value_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        balancer.balance(SPILLING, 4, options=balancer.Options(**options))


@pytest.mark.shared
@pytest.mark.parametrize("name", ["ResNet50", pytest.param("InceptionV3", marks=pytest.mark.wide), "MobileNetV2"])
def test_more_tpus_are_never_slower(name: str) -> None:
    rates = [balancer.balance(ZOO / f"{name}_int8.tflite", n).solver.objective_ns for n in range(1, 9)]
    assert rates == sorted(rates, reverse=True)


def _document(**changes: Any) -> dict[str, Any]:
    return profile_document(handmade.conv_chain(3)) | changes


def _write(path: Path, document: dict[str, Any]) -> Path:
    import json

    path.write_text(json.dumps(document))
    return path


def test_an_unedited_profile_changes_nothing(tmp_path: Path) -> None:
    plan = balancer.balance(SPILLING, 3)
    profile = _write(tmp_path / "p.json", profile_document(SPILLING))
    again = balancer.balance(SPILLING, 3, profile=profile)
    assert again.segments == plan.segments
    assert again.costs_label == "pcie + p.json"


def test_a_measured_value_counts_before_the_predicted_one(tmp_path: Path) -> None:
    document = _document()
    data = handmade.conv_chain(3)
    before = balancer.balance(data, 1).segments[0].predicted
    document["ops"][1]["measured_ns"] = document["ops"][1]["predicted_ns"] + 5_000_000
    after = balancer.balance(data, 1, profile=_write(tmp_path / "p.json", document)).segments[0].predicted
    assert after.compute_ns == before.compute_ns + 5_000_000
    document["ops"][1]["parameter_bytes"] += 640
    wider = balancer.balance(data, 1, profile=_write(tmp_path / "p.json", document)).segments[0].predicted
    assert wider.parameter_bytes == before.parameter_bytes + 640


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda d: d.update(format="x"), "not a profile"),
        (lambda d: d.update(version=9), "version 9 is unknown"),
        (lambda d: d["model"].update(sha256="0"), "another model"),
        (lambda d: d["ops"].pop(1), "op 1 CONV_2D is missing"),
        (lambda d: d["ops"].append({"index": 44, "type": "ADD"}), "op 44 is not in the model"),
        (lambda d: d["ops"][0].update(type="ADD"), "op 0 is CONV_2D, not ADD"),
        (lambda d: d["ops"][0].update(measured_ns=1.5), "measured_ns is 1.5"),
        (lambda d: d["ops"][0].update(predicted_ns=None), "predicted_ns is None"),
        (lambda d: d["ops"].append(dict(d["ops"][0])), "listed twice"),
    ],
)
def test_a_profile_that_does_not_fit_names_what_is_wrong(tmp_path: Path, change: Any, what: str) -> None:
    document = _document()
    change(document)
    with pytest.raises(ProfileError, match=what):
        balancer.balance(handmade.conv_chain(3), 1, profile=_write(tmp_path / "p.json", document))


def test_calibration_finds_the_constants_that_made_the_measurements(tmp_path: Path) -> None:
    """Stage times of plans on a machine whose link is half as fast and whose array is a third slower."""
    truth = load_hardware("pcie")
    truth = truth.changed(
        {"stream_ns_per_mib": 2 * truth.link.stream_ns_per_mib, "mac_ns_per_gmac": truth.chip.mac_ns_per_gmac * 4 // 3}
    )
    lines = ["plan,stage,measured_ms"]
    for name, data in (("fc", synth.fc(2350)), ("conv", synth.conv(560, size=32))):
        model = tmp_path / f"{name}.tflite"
        model.write_bytes(data)
        for n in (1, 2, 3):
            plan = balancer.save(
                balancer.balance(model, n, options=balancer.Options(stages=n)), tmp_path / f"{name}{n}"
            )
            actual = balancer.predict(model, [list(members(s.ops)) for s in plan.segments], hardware=truth)
            where = f"{name}{n}/{plan.file_name}"
            lines += [f"{where},{s.name},{s.predicted.stage_ns / 1e6}" for s in actual.segments]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    rows = read_measurements(tmp_path / "m.csv")
    assert len(rows) == 12
    assert isinstance(rows[0], StageRow)
    found = calibrate(rows, load_hardware("pcie"))
    assert found.error_after < 0.02 < found.error_before
    assert found.hardware.link.stream_ns_per_mib == pytest.approx(truth.link.stream_ns_per_mib, rel=0.05)
    document = hardware_document(found, "mine", "m.csv")
    written = _write(tmp_path / "hw.json", document)
    assert load_hardware(written).constants == found.hardware.constants


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a,b\n1,2\n", "neither format's columns"),
        ("plan,stage,measured_ms\nnowhere.json,s,1\n", "cannot be read"),
        ("", "not a CSV file of measured times but an empty file"),
    ],
)
def test_a_bad_file_of_measurements_is_refused(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(BalancerError, match=what):
        read_measurements(tmp_path / "m.csv")
    with pytest.raises(MeasurementError, match="cannot be read"):
        read_measurements(tmp_path / "absent.csv")


@pytest.mark.shared
def test_the_published_measurements_are_read_where_they_can_be_predicted() -> None:
    rows = read_measurements(SHARED / "data" / "measurements" / "synthetic_fc_conv_pcie.csv")
    assert len(rows) > 1000
    hardware = load_hardware("pcie-python")
    for row in rows[::200]:
        assert row.predicted_ns(hardware) > 0


@pytest.mark.shared
def test_a_plan_that_pycoral_cannot_run_says_why() -> None:
    from balancer.plan import pycoral_obstacle

    plan = balancer.predict(ZOO / "multi_io_int8.tflite", [range(15), range(15, 21)])
    assert pycoral_obstacle(plan) == "" or "model output" in pycoral_obstacle(plan)
    late = balancer.predict(MODELS / "split_concat.tflite", [[0], [1], [2]])
    assert "leaves before the last stage" in pycoral_obstacle(late)
