"""The CSV file of measured times: what `bench --csv` writes, `tune --recorded` and `calibrate` read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import balancer
from balancer.cli.main import main
from balancer.errors import MeasurementError
from balancer.learning.recorded import file_with_times, read_stage_times
from balancer.loops.simulating import perturbed
from balancer.loops.sources import Seen, TrueCosts
from balancer.plan import Plan, SegmentMeasurement
from balancer.planning.costed_model import costed_model_of
from balancer.tflite import synth

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "plan,stage,measured_ms\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan with three stages, in the folder `plan`."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "net.tflite").write_bytes(synth.fc(1800, layers=5))
    plan = balancer.balance(folder / "net.tflite", 3, options=balancer.Options(stages=3))
    return balancer.save(plan, folder / "plan")


def _measured(plan: Plan, times: list[int], source: str = "device") -> dict[str, SegmentMeasurement]:
    return {
        s.name: SegmentMeasurement(stage_ns=ns, runs=1, device="usb:0", source=source)
        for s, ns in zip(plan.segments, times, strict=True)
    }


@given(
    st.lists(st.integers(1, 10**12), min_size=3, max_size=3), st.sampled_from(["device", "mixed: cpu; simulated", "a, \"b\""])
)  # fmt: skip
def test_what_is_written_is_read_again(saved: Plan, times: list[int], source: str) -> None:
    path = saved.directory.parent / "times.csv"  # type: ignore[union-attr]
    path.unlink(missing_ok=True)
    path.write_bytes(file_with_times(path, saved, _measured(saved, times, source)))
    read = read_stage_times(path)
    assert [(t.segment, t.ns, t.source) for t in read] == [
        (s.name, ns, source) for s, ns in zip(saved.segments, times, strict=True)
    ]
    assert path.read_bytes() == file_with_times(path, saved, _measured(saved, times, source))


def test_rows_of_other_plans_stay_and_those_of_the_plan_are_replaced(saved: Plan) -> None:
    path = saved.directory.parent / "more.csv"  # type: ignore[union-attr]
    path.write_text(f"note,{HEAD}first,plan,0,1\nsecond,plan/{saved.file_name},1,2\nthird,elsewhere,0,3\n")
    rows = file_with_times(path, saved, _measured(saved, [5, 6, 7])).decode().splitlines()
    assert rows[0] == "note,plan,stage,measured_ms,ops,source"
    assert rows[1] == "third,elsewhere,0,3,,"
    assert [row.split(",")[2] for row in rows[2:]] == [s.name for s in saved.segments]


def test_stages_may_be_numbers_and_plans_their_directories(saved: Plan) -> None:
    path = saved.directory.parent / "numbers.csv"  # type: ignore[union-attr]
    path.write_text("plan, stage, measured_ms\nplan,0,1.5\n" + f"plan/{saved.file_name}, 2 ,2.5\n")
    assert [(t.segment, t.ns, t.source) for t in read_stage_times(path)] == [
        (saved.segments[0].name, 1_500_000, "recorded"), (saved.segments[2].name, 2_500_000, "recorded"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            HEAD + "plan,3,1",
            r"line 2: the plan has no segment '3'; name one of the stages 0 to 2, or of net_segment_0_of_3",
        ),
        (HEAD + "plan,0,1\n\nplan,x,1", "line 4: the plan has no segment 'x'"),
        (HEAD + "nowhere,0,1", "line 2: its plan .*nowhere cannot be read"),
        (HEAD + "plan,0,soon", "line 2: 'soon' is not a time in milliseconds"),
        ("plan,stage,measured_ms,ops\nplan,0,1,0-99", "line 2: stage 0 of the plan has ops .* now, not 0-99; measure"),
        ("plan,stage,measured_ms,source\nplan,0,1,\x1b[2J", "line 2: its source is not a short text"),
        ("plan,stage,ms\nplan,0,1", "line 1 names no column measured_ms; give a CSV file"),
        ("", "not a CSV file of measured times but an empty file"),
    ],
)
def test_an_error_names_file_and_line(saved: Plan, text: str, what: str) -> None:
    path = saved.directory.parent / "wrong.csv"  # type: ignore[union-attr]
    path.write_text(text)
    with pytest.raises(MeasurementError, match=rf"wrong\.csv.*{what}"):
        read_stage_times(path)


def test_a_stage_number_that_could_mean_two_segments_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.tflite").write_bytes(synth.fc(100, layers=4))
    n = len(balancer.load_graph(tmp_path / "net.tflite").ops)
    one, two = (balancer.predict(tmp_path / "net.tflite", [range(cut), range(cut, n)]) for cut in (3, 4))
    renamed = tuple(replace(s, name=f"other_{s.name}") for s in two.segments)
    line = replace(
        two.pipelines[0],
        stages=tuple(
            replace(s, segment=f"other_{s.segment}", tpus=(2 + k,)) for k, s in enumerate(two.pipelines[0].stages)
        ),
    )
    four = tuple(replace(devices, count=4) for devices in one.devices)
    pipelines = (*one.pipelines, line)
    both = replace(one, segments=(*one.segments, *renamed), pipelines=pipelines, n_tpus=4, devices=four)
    balancer.save(both, tmp_path / "plan")
    path = tmp_path / "times.csv"
    path.write_text(f"{HEAD}plan,other_{one.segments[0].name},1\n")
    assert read_stage_times(path)[0].segment == renamed[0].name
    path.write_text(f"{HEAD}plan,0,1\n")
    with pytest.raises(MeasurementError, match=r"cut differently.*; name one of net_segment_0_of_2, "):
        read_stage_times(path)


def test_tuning_with_recorded_times_writes_each_plan_that_is_to_be_measured_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Followed step by step as the command says, it takes the plans that tuning takes with the same times at hand."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.tflite").write_bytes(synth.fc(1300, layers=5))
    first = balancer.save(balancer.balance("net.tflite", 2, options=balancer.Options(stages=2)), "plan")
    truth = TrueCosts(perturbed(costed_model_of(first), 4))

    def source(plan: Plan) -> Seen:
        """What a file can tell: no reports of a compiler."""
        seen = truth(plan).plan
        return Seen(replace(seen, segments=tuple(replace(s, reported=None) for s in seen.segments)))

    expected = balancer.tune(first, source, rounds=3)
    times, plans = tmp_path / "times.csv", ["plan"]
    for done in range(1, 4):
        plan = balancer.load_plan(plans[-1])
        seen = {s.name: s.measured for s in source(plan).plan.segments if s.measured}
        times.write_bytes(file_with_times(times, plan, seen))
        assert main(["tune", "plan", "--recorded", "times.csv", "--rounds", "3", "--force", "-q", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert len(document["rounds"]) == done
        assert {r["source"] for r in document["rounds"]} == {"simulated"}
        if document["next"] is None:
            break
        assert document["next"] == f"plan_round_{done + 1}"
        plans.append(document["next"])
    assert len(plans) > 1
    assert [r["measured_per_s"] for r in document["rounds"]] == [r.measured_per_s for r in expected.rounds]


def test_the_next_plan_is_named_with_what_to_do_and_kept_once_it_is_there(
    saved: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    balancer.save(saved, "plan")
    seen = {
        s.name: s.measured for s in TrueCosts(perturbed(costed_model_of(saved), 4))(saved).plan.segments if s.measured
    }
    times = tmp_path / "times.csv"
    times.write_bytes(file_with_times(times, balancer.load_plan("plan"), seen))
    assert main(["tune", "plan", "--recorded", "times.csv"]) == 0
    said = capsys.readouterr().out
    for command in (
        "compile plan_round_2",
        "bench plan_round_2 --csv times.csv",
        "tune plan --recorded times.csv --force",
    ):
        assert f"balancer {command}\n" in said
    assert [line for line in said.splitlines() if len(line) > 80 and str(tmp_path) not in line] == []
    old = (tmp_path / "plan_round_2" / saved.file_name).stat().st_mtime_ns
    assert main(["tune", "plan", "--recorded", "times.csv", "--force"]) == 0
    assert (tmp_path / "plan_round_2" / saved.file_name).stat().st_mtime_ns == old


def test_bench_writes_the_file_and_refuses_one_that_it_cannot_continue_before_measuring(
    saved: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = ["bench", str(saved.directory), "--devices", "sim", "--seconds", "0.2", "--csv"]
    assert main([*bench, str(tmp_path / "times.csv")]) == 0
    assert "times of the segments: " in capsys.readouterr().out
    read = read_stage_times(tmp_path / "times.csv")
    assert {t.source for t in read} == {"simulated"}
    assert [t.segment for t in read] == [s.name for s in saved.segments]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert main([*bench, str(tmp_path / "other.csv")]) == 1
    assert "line 1 names no column plan" in capsys.readouterr().err
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


def test_constants_learnt_from_simulated_times_say_so_wherever_they_are_used(
    saved: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times, mine = tmp_path / "times.csv", tmp_path / "mine.json"
    times.write_bytes(file_with_times(times, saved, _measured(saved, [10**6, 10**6, 10**6], "simulated")))
    assert main(["calibrate", "--data", str(times), "-o", str(mine)]) == 0
    printed = capsys.readouterr()
    assert "fitted to measured times (simulated)" in printed.out
    assert "not measured on Edge TPUs (simulated)" in printed.err
    assert "fewer rows (3) than constants" in printed.err
    document = json.loads(mine.read_text())
    fitted = [c["source"] for c in document["constants"].values() if c["known"] == "fitted"]
    assert fitted
    assert all("(simulated)" in source for source in fitted)
    model = str(saved.directory / "net.tflite")  # type: ignore[operator]
    assert main(["predict", model, "--cuts", "3", "--hardware", str(mine)]) == 0
    assert "(mine, fitted to simulated times)" in " ".join(capsys.readouterr().out.split())
    times.write_bytes(file_with_times(times, saved, _measured(saved, [10**6, 10**6, 10**6], "device")))
    assert main(["calibrate", "--data", str(times), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "pcie-calibrated"


def test_streamed_parameters_have_a_reason(saved: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(saved.directory / "net.tflite")  # type: ignore[operator]
    assert main(["predict", model, "--cuts", "1"]) == 0
    said = capsys.readouterr().out
    assert "streamed, beyond the room for parameters: stage 1 " in said
