"""What the verbs say is true whatever they are given: rows, footnotes, targets, constraints."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import balancer
from balancer.cli import drawing, drawing_compiling, drawing_runs
from balancer.cli.main import main
from balancer.cli.plan_verbs import _say_verified
from balancer.cli.solver_options import SOLVERS
from balancer.errors import ConstraintError, InputError
from balancer.loops.refining import RefineRound
from balancer.plan import SegmentReport, pycoral_obstacle
from balancer.planning.comparing import row_of
from balancer.planning.sizing import SizeRow, Sizing, _no_worse
from balancer.runtime.devices import Device
from balancer.solve import Constraints
from balancer.solve.baselines import BASELINES
from balancer.verification import Mismatch, Verification
from tests import handmade
from tests.plans import WIDE

if TYPE_CHECKING:
    from pathlib import Path


def _rows(plan: Any) -> dict[str, Any]:
    return {row.name: row for row in plan.comparison}


# Rows of a comparison


@pytest.mark.parametrize("solver", sorted(BASELINES))
def test_the_row_of_a_baseline_is_named_after_it_and_claims_nothing(
    solver: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = balancer.balance(model, 2, options=balancer.Options(solver=solver))
    names = [row.name for row in plan.comparison]
    assert names[-1] == row_of(solver)
    assert "ours" not in names
    assert len(set(names)) == len(names)
    assert plan.comparison[-1].throughput_per_s == plan.predicted.throughput_per_s
    assert main(["solve", str(model), "-n", "2", "--solver", solver]) == 0
    said = capsys.readouterr().out
    assert f"no proof: the cuts are those of {solver}, which claims nothing" in said
    assert "optim" not in said


@pytest.mark.parametrize("solver", sorted(set(SOLVERS) - set(BASELINES)))
def test_the_row_of_a_solver_is_ours(solver: str) -> None:
    assert row_of(solver) == "ours"


def test_rows_that_break_the_constraints_are_marked(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["solve", str(model), "-n", "3", "--keep-together", "3-8"]
    assert main([*arguments, "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["comparison"]}
    assert rows["equal op counts"]["breaks_limits"] is True
    assert rows["ours, one pipeline"]["breaks_limits"] is True
    assert rows["one TPU"]["breaks_limits"] is False
    assert rows["ours"]["breaks_limits"] is False
    # What is faster than the best plan within the constraints is not within them.
    best = rows["ours"]["throughput_per_s"]
    assert all(row["breaks_limits"] for row in rows.values() if (row["throughput_per_s"] or 0) > best * (1 + 1e-9))
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "ours, one pipeline+ " in said
    assert "compiler default *+" in said
    assert "+   breaks the limits or constraints that were asked for" in said
    assert all(len(line) <= 80 for line in said.splitlines())


@pytest.mark.parametrize(
    ("limits", "breaking"),
    [
        ({}, set()),
        ({"pipelines": 1}, set()),  # copies are one stage with as many replicas
        ({"pipelines": 1, "replicas": 1}, {"copies"}),
        ({"replicas": 1}, set()),
        ({"stages": 3}, {"one TPU", "copies"}),
    ],
)  # fmt: skip
def test_rows_that_break_a_limit_are_marked(limits: dict[str, int], breaking: set[str]) -> None:
    rows = _rows(balancer.balance(WIDE, 3, options=balancer.Options(**limits)))  # type: ignore[arg-type]
    marked = {name for name, row in rows.items() if row.breaks_limits}
    assert marked - {"ours, one pipeline", "depth balanced"} == breaking


def test_rows_that_stream_are_marked_where_that_is_refused() -> None:
    rows = _rows(balancer.balance(WIDE, 4, options=balancer.Options(overflow="error")))
    assert rows["one TPU"].breaks_limits
    assert rows["copies"].breaks_limits
    assert not rows["ours"].breaks_limits


def test_a_marked_table_of_very_fast_plans_fits(capsys: pytest.CaptureFixture[str]) -> None:
    rows = balancer.balance(WIDE, 3).comparison
    drawing.comparison("3 TPUs", [replace(row, breaks_limits=True, throughput_per_s=12345.6) for row in rows])
    said = capsys.readouterr().out
    assert "profiling bisection+ " in said
    assert "x default" in said
    assert all(len(line) <= 80 for line in said.splitlines())


def test_a_plan_file_without_the_mark_is_read(model: Path, tmp_path: Path) -> None:
    saved = balancer.save(balancer.balance(model, 2), tmp_path / "plan")
    path = tmp_path / "plan" / saved.file_name
    document = json.loads(path.read_text())
    for row in document["comparison"]:
        del row["breaks_limits"]
    path.write_text(json.dumps(document))
    assert balancer.load_plan(path) == saved


# How many TPUs


def _sizing(*overflow: int, rates: tuple[float, ...] = (), **found: int | None) -> Sizing:
    rates = rates or tuple(10.0 * n for n in range(1, len(overflow) + 1))
    rows = (SizeRow(n, rate, 1, o, n) for n, (rate, o) in enumerate(zip(rates, overflow, strict=True), 1))
    return Sizing(tuple(rows), **{"fits_at_n": None, "knee_n": None, "target_n": None, **found})


def test_sizing_tells_a_plan_without_overflow_from_the_fastest_one(capsys: pytest.CaptureFixture[str]) -> None:
    drawing.sizing(_sizing(9, 7, 0, 5, 0, 5, fits_at_n=3), ())
    said = capsys.readouterr().out
    assert "a plan without overflow exists: from 3 TPUs on" in said
    assert "the fastest one has some:   on 4,6 TPUs" in said
    drawing.sizing(_sizing(9, 7, 0, 0, fits_at_n=3), ())
    assert "the fastest one has some" not in capsys.readouterr().out
    drawing.sizing(_sizing(9, 7), ())
    said = capsys.readouterr().out
    assert "exists: nowhere up to 2 TPUs" in said
    assert "the fastest one has some" not in said


def test_a_knee_is_known_only_as_far_as_was_looked(capsys: pytest.CaptureFixture[str]) -> None:
    drawing.sizing(_sizing(0, 0, 0, fits_at_n=1, knee_n=2), ())
    said = capsys.readouterr().out
    assert "adds less than 5 %: from 2 TPUs on, up to 3" in said
    assert "exists: from 1 TPU on" in said


@pytest.mark.parametrize(
    ("target", "words", "code"),
    [
        ([], None, 0),
        (["--target-fps", "50"], "50 inferences/s: from ", 0),
        (["--target-fps", "1e6"], "1e+06 inferences/s: nowhere up to 2 TPUs", 3),
        (["--max-latency", "0.001"], "a latency of 0.001 ms: nowhere up to 2 TPUs", 3),
        (["--target-fps", "50", "--max-latency", "0.001"], "50 inferences/s at a latency of 0.001 ms: nowhere", 3),
    ],
)
def test_a_target_is_named_where_there_is_one_and_missing_it_is_exit_code_3(
    target: list[str], words: str | None, code: int, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["size", str(model), "--max-tpus", "2", *target]) == code
    said = capsys.readouterr().out
    assert words is None or words in said
    assert "asked for" not in said
    if words is None:
        assert said.rstrip().splitlines()[-1].startswith("another TPU adds")
    assert main(["size", str(model), "--max-tpus", "2", "--json", *target]) == code
    assert (json.loads(capsys.readouterr().out)["target_n"] is None) == (not target or code == 3)


def test_one_more_tpu_never_lowers_the_rate_within_a_latency() -> None:
    slower = SizeRow(3, 5.0, 1, 0, 3)
    rows = _sizing(0, 0).rows
    assert _no_worse(slower, rows) == SizeRow(3, 20.0, 1, 0, 2)
    assert _no_worse(SizeRow(3, None, None, None, None), rows).throughput_per_s == 20.0
    assert _no_worse(slower, ()) == slower


# Constraints that contradict each other


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--pin", "3:1", "--pin", "3:0"], ("op 3", "stage 1", "stage 0")),
        (["--pin", "3:1", "--keep-from", "3:1"], ("op 3", "stage 1")),
        (["--pin", "3:0", "--pin", "5:1", "--keep-together", "3-5"], ("op 3", "op 5", "stage 0", "stage 1")),
        (
            ["--pin", "3:0", "--keep-from", "6:0", "--keep-together", "3-4", "--keep-together", "4-6"],
            ("op 3", "op 6", "stage 0"),
        ),
        (["--keep-from", "3:0", "--keep-from", "3:1", "--keep-from", "3:2"], ("op 3", "stage 0", "stage 1", "stage 2")),
    ],
)  # fmt: skip
def test_constraints_that_contradict_each_other_are_named(
    arguments: list[str], named: tuple[str, ...], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", str(model), "-n", "3", *arguments]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(name in said for name in named), said


def test_constraints_that_agree_are_no_contradiction(model: Path) -> None:
    agreeing = ["--pin", "3:0", "--pin", "3:0", "--keep-from", "3:1", "--keep-together", "2-3", "--keep-from", "7:0"]
    assert main(["solve", str(model), "-n", "3", *agreeing]) == 0


def test_contradictions_are_refused_in_python_too(model: Path) -> None:
    with pytest.raises(ConstraintError, match="op 3 pinned to stage 1, op 3 kept from stage 1"):
        balancer.balance(
            model, 3, options=balancer.Options(constraints=Constraints(pinned={3: 1}, kept_from=frozenset({(3, 1)})))
        )


# Other sentences that some input could make a lie


@pytest.fixture(scope="module")
def small() -> balancer.Plan:
    """One pipeline of two stages."""
    return balancer.balance(handmade.conv_chain(4), 2, options=balancer.Options(stages=2))


def _remarks(plan: balancer.Plan, capsys: pytest.CaptureFixture[str], **solver: Any) -> str:
    capsys.readouterr()
    drawing.remarks(replace(plan, solver=replace(plan.solver, **solver)))
    return capsys.readouterr().out


def test_a_plan_one_nanosecond_above_its_bound_is_not_called_optimal(
    small: balancer.Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    objective = 50_000_000
    said = _remarks(small, capsys, objective_ns=objective, bound_ns=objective - 1, gap=0.0, status="feasible")
    assert "proof: within 0.01 % of the optimum over" in said
    assert "proof: optimal over" in _remarks(small, capsys, objective_ns=objective, bound_ns=objective, gap=0.0)


def test_a_latency_gap_is_a_share_of_the_optimum(small: balancer.Plan, capsys: pytest.CaptureFixture[str]) -> None:
    latency = small.predicted.latency_ns
    said = _remarks(small, capsys, latency_bound_ns=-(-latency // 2))
    assert "latency at most 100.00 % above the optimum" in said
    assert "latency optimal" in _remarks(small, capsys, latency_bound_ns=latency)


def test_a_solver_without_a_bound_is_not_called_a_baseline(
    small: balancer.Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _remarks(small, capsys, bound_ns=None, gap=1.0, over="all down-sets")
    assert "no proof: " in said
    assert "baseline" not in said
    assert "claims nothing" not in said


def test_a_stage_is_no_bottleneck_where_the_host_is(small: balancer.Plan, capsys: pytest.CaptureFixture[str]) -> None:
    drawing.stages(replace(small, predicted=replace(small.predicted, host_ns=0)))
    assert "bottleneck: model_segment" in capsys.readouterr().out
    busy = replace(small.predicted, host_ns=1_000_000, throughput_per_s=1000.0)
    drawing.stages(replace(small, predicted=busy))
    said = capsys.readouterr().out
    assert "bottleneck" not in said
    assert "slowest stage: model_segment" in said


def test_a_segment_without_a_report_has_not_failed(small: balancer.Plan, capsys: pytest.CaptureFixture[str]) -> None:
    report = SegmentReport(
        cached_bytes=0, streamed_bytes=0, capacity_bytes=0, cpu_ops=0, subgraphs=1, compiler_version="16.0",
        file=None, sha256="", log=None,
    )  # fmt: skip
    first, *others = small.segments
    drawing_compiling.reported(replace(small, segments=(replace(first, reported=report), *others)))
    said = capsys.readouterr().out
    assert "failed" not in said
    assert "none" in said


def test_a_round_within_the_tolerance_is_not_called_as_predicted() -> None:
    found = RefineRound(
        number=1, segments=2, predicted_streamed_bytes=0, reported_streamed_bytes=9000, cpu_ops=0, predicted_per_s=9.0,
        reported_per_s=8.0, contradicted=(),
    )  # fmt: skip
    assert "as predicted" not in drawing_compiling.round_line(found)
    assert drawing_compiling.round_line(found).endswith("nothing to correct")
    assert "costs corrected by 1 segment" in drawing_compiling.round_line(replace(found, contradicted=("s",)))


def test_the_stand_in_is_not_said_to_be_the_only_thing_that_the_compiler_did(
    small: balancer.Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing.comparison("2 TPUs", small.comparison)
    said = capsys.readouterr().out
    assert "*   a stand-in" in said
    assert "has not run" not in said
    assert all(len(line) <= 80 for line in said.splitlines())


def test_what_was_not_opened_is_not_said_to_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(name="pci:0", type="pci", path="/dev/apex_0")
    monkeypatch.setattr("balancer.runtime.devices.list_devices", lambda: [device])
    assert main(["devices", "--no-open"]) == 0
    said = capsys.readouterr().out
    assert "works" not in said
    assert "not opened" in said
    drawing_runs.devices([], "works")
    assert "no /sys/class/apex" not in capsys.readouterr().out


@pytest.mark.parametrize(("verb", "offered"), [("run", False), ("bench", True)])
def test_help_offers_only_what_can_be_chosen(verb: str, offered: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    about = said[said.rindex("--sim-outputs") : said.rindex("--sim-errors")]
    assert ("none" in about) == offered


def test_what_no_interpreter_runs_is_neither_exact_nor_inexact(capsys: pytest.CaptureFixture[str]) -> None:
    found = Verification(
        items=1, compared_tensors=1, runtime="r", verified_segments=(), mismatch=None, stopped_by=("op 3 CUSTOM",)
    )
    _say_verified(found)
    assert "bit-exact: not shown" in capsys.readouterr().out
    _say_verified(replace(found, mismatch=Mismatch("s", "t", 0, 1, 1.0)))
    assert "bit-exact: no\n" in capsys.readouterr().out


def test_nothing_compared_is_nothing_shown(small: balancer.Plan) -> None:
    with pytest.raises(InputError, match="at least one"):
        balancer.verify(small, [])


def test_a_shared_stage_is_nothing_for_pycoral(small: balancer.Plan) -> None:
    assert pycoral_obstacle(small) == ""
    (pipeline,) = small.pipelines
    first = replace(pipeline.stages[0], replicas=2, tpus=(0, 2))
    shared = replace(small, n_tpus=3, pipelines=(replace(pipeline, stages=(first, *pipeline.stages[1:])),))
    assert "2 TPUs share a stage" in pycoral_obstacle(shared)


def test_one_thing_has_no_plural(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, plan = tmp_path / "one.tflite", tmp_path / "plan"
    b = handmade.Builder()
    source = b.tensor("picture", (1, 8, 8, 8))
    model.write_bytes(b.file([source], [b.conv(source, "only", shape=(1, 8, 8, 8))]))
    assert main(["inspect", str(model)]) == 0
    assert main(["solve", str(model), "-n", "1", "-o", str(plan)]) == 0
    assert main(["verify", str(plan), "--random", "1"]) == 0
    assert main(["solve", str(model), "-n", "1", "--min-fps", "1e9"]) == 3
    said = "".join(capsys.readouterr())
    assert re.findall(r"(?<![\d.])1 [A-Za-z]+s\b", said) == []
    assert "1 op on 1 TPU" in said
