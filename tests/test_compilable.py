"""The option `compilable` from end to end: what a plan remembers, what is printed, what is refused; published outcomes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import balancer
from balancer.cli.main import main
from balancer.cli.plan_verbs import draw_plan
from balancer.cost.compilable import LEVELS, Compilable
from balancer.errors import ConstraintError, PlanError
from balancer.ground.downsets import NestedSets
from balancer.ground.opsets import interval_set
from balancer.loops.aiming import narrowed
from balancer.loops.tuning import truth_of
from balancer.plan import load_plan
from balancer.plan.records import COMPILE_LEVELS
from balancer.planning.comparing import OURS_ONE
from balancer.planning.costed_model import COMPILABLE as LEVEL_OF
from balancer.planning.costed_model import open_costed_model
from balancer.planning.options import options_of
from balancer.planning.predicting import cut_segments, predict
from balancer.planning.solving import bounded_by, solve_costed_model
from balancer.solve import PipelineSpec, StageSpec, evaluate
from tests import edgetpu_compiler
from tests.handmade import Builder

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from balancer.plan import Plan

ROOT = Path(__file__).resolve().parents[1]


@cache
def nested_skips(depth: int = 9) -> bytes:
    """Convolutions of which each result is read again at the end, the last one first. What waits takes 20,736 bytes of each
    tile for each of them: 8 of them and two more at the deepest op exceed 196,608, half of them don't.
    """
    shape = (1, 64, 64, 64)
    b = Builder()
    source = b.tensor("picture", shape)
    made = [source]
    for k in range(depth):
        made.append(b.conv(made[-1], f"down_{k}", shape=shape))
    out = made[-1]
    for k, earlier in enumerate(reversed(made[1:-1])):
        out = b.add(out, earlier, f"up_{k}", shape=shape)
    return b.file([source], [out])


@cache
def solved(compilable: str | None) -> Plan:
    return balancer.balance(nested_skips(), 2, options=balancer.Options(compilable=compilable))


def levels(plan: Plan) -> set[str]:
    return {segment.compiles.level for segment in plan.segments if segment.compiles}


def test_the_words_of_plans_and_options_are_those_of_the_judgement() -> None:
    assert tuple(level.value for level in LEVELS) == COMPILE_LEVELS
    assert set(LEVEL_OF.values()) == set(Compilable)


def test_the_fastest_plan_is_passed_over_for_one_that_surely_compiles() -> None:
    fastest, chosen, sure = solved("any"), solved(None), solved("sure")
    assert levels(fastest) == {"perhaps"}
    assert levels(chosen) == levels(sure) == {"surely"}
    assert chosen.segments == sure.segments
    assert chosen.solver.passed_over_ns == fastest.solver.objective_ns < chosen.solver.objective_ns
    assert fastest.solver.passed_over_ns is sure.solver.passed_over_ns is None
    assert chosen.solver.over.endswith("of segments that surely compile")
    assert "compile" not in fastest.solver.over
    assert solved("likely").segments == fastest.segments


def test_nothing_changes_where_the_fastest_plan_surely_compiles() -> None:
    free, held = (balancer.balance(nested_skips(3), 2, options=balancer.Options(compilable=c)) for c in (None, "any"))
    assert free.segments == held.segments
    assert free.solver == held.solver


def test_a_plan_remembers_the_option_and_what_was_passed_over(tmp_path: Path) -> None:
    saved = balancer.save(solved(None), tmp_path)
    read = load_plan(tmp_path)
    assert read.solver.passed_over_ns == saved.solver.passed_over_ns is not None
    assert [s.compiles for s in read.segments] == [s.compiles for s in saved.segments]
    assert all(s.predicted.activation_bytes for s in read.segments)
    for word in (None, *LEVEL_OF):
        held = balancer.Options(compilable=word)
        assert options_of(held.held_to) == held
    assert narrowed(solved("sure"), None).compilable == "sure"
    with pytest.raises(ConstraintError, match="compilable 'any'"):
        narrowed(solved("sure"), balancer.Options(compilable="any"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["segments"][0]["compiles"].update(level="maybe"), "compiles.level is 'maybe'"),
        (lambda d: d["held_to"].update(compilable="maybe"), "compilable is 'maybe'"),
        (lambda d: d["solver"].update(passed_over_ns=-1), "passed_over_ns"),
    ],
)
def test_a_forged_plan_is_refused_in_one_line(tmp_path: Path, change: object, said: str) -> None:
    balancer.save(solved(None), tmp_path)
    (file,) = tmp_path.glob("*_plan_*.json")
    document = json.loads(file.read_text(encoding="utf-8"))
    assert callable(change)
    change(document)
    file.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(PlanError, match=said):
        load_plan(file)


def test_a_plan_without_judgements_still_loads(tmp_path: Path) -> None:
    balancer.save(solved(None), tmp_path)
    (file,) = tmp_path.glob("*_plan_*.json")
    document = json.loads(file.read_text(encoding="utf-8"))
    del document["solver"]["passed_over_ns"], document["held_to"]["compilable"]
    for segment in document["segments"]:
        del segment["compiles"]
        for key in ("activation_bytes", "scratch_bytes", "scratch_ns"):
            del segment["predicted"][key]
    file.write_text(json.dumps(document), encoding="utf-8")
    plan = load_plan(file)
    assert [s.compiles for s in plan.segments] == [None] * len(plan.segments)
    assert [s.predicted.activation_bytes for s in plan.segments] == [None] * len(plan.segments)


def test_what_was_given_up_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "skips.tflite"
    model.write_bytes(nested_skips())
    assert main(["solve", str(model), "-n", "2"]) == 0
    out = capsys.readouterr().out
    assert "given up for segments that compile more surely:" in out
    assert "compiles perhaps" not in out
    assert main(["solve", str(model), "-n", "2", "--compilable", "any"]) == 0
    out = capsys.readouterr().out
    assert "given up" not in out
    assert "compiles perhaps: skips_segment_0_of_1,\n    since its activations need " in out
    assert " of each tile (surely up to 179 KiB), most for\n    'down_0'" in out
    assert main(["predict", str(model), "--segments", "0-16"]) == 0
    assert "compiles perhaps" in capsys.readouterr().out


def test_what_no_plan_reaches_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = Builder()
    source = b.tensor("picture", (1, 512, 512, 8))
    model = tmp_path / "large.tflite"
    model.write_bytes(b.file([source], [b.conv(source, "only", shape=(1, 512, 512, 8))]))
    assert main(["solve", str(model), "-n", "2", "--compilable", "sure"]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "tensor 'picture': no segment with it surely compiles: what is live there needs " in said
    assert "surely compile up to 179 KiB; use a smaller input, or --compilable likely\n" in said
    assert main(["solve", str(model), "-n", "2"]) == 0
    out = capsys.readouterr().out
    assert "given up" not in out
    assert "no plan on 2 TPUs surely compiles; this one may\n" in out


def cut_in_two(before: int) -> tuple[PipelineSpec, ...]:
    """The small network with these many ops in the first of two stages."""
    first, count = (1 << before) - 1, len(open_costed_model(nested_skips(), "pcie").graph.ops)
    return (PipelineSpec((StageSpec(first, "pcie"), StageSpec((1 << count) - 1 - first, "pcie"))),)


def test_nothing_is_claimed_over_plans_that_the_plan_is_not_among() -> None:
    costed, options = open_costed_model(nested_skips(), "pcie").on(2), balancer.Options()
    optimum, problem = solve_costed_model(costed, options), costed.problem()
    assert "surely" in optimum.over
    claims = set()
    for before in range(1, len(costed.graph.ops)):
        pipelines = cut_in_two(before)
        value = evaluate(problem, pipelines)
        assert value is not None
        given = replace(optimum, pipelines=pipelines, value=value)
        bounded = bounded_by(costed, given, optimum, options)
        surely = all(costed.costs.judgement(s.ops).level is Compilable.SURELY for s in pipelines[0].stages)
        assert (bounded.bound_ns is not None) == surely
        claims.add(surely)
    assert claims == {True, False}


def test_tuning_claims_nothing_for_a_plan_that_compiles_less_surely_than_the_best() -> None:
    plan = predict(nested_skips(), cut_segments([16], 17))
    assert levels(plan) == {"surely", "perhaps"}
    tuned = balancer.tune(plan, truth_of(plan, 1), rounds=1).plan
    assert "perhaps" in levels(tuned)
    assert "surely" in tuned.solver.over
    assert tuned.solver.bound_ns is None


def solved_with_ctrl_c(k: int) -> Plan:
    """Solved with Ctrl-C at the k-th search of a solver."""
    calls = itertools.count(1)

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name == "shortest_periods" and next(calls) == k:
            raise KeyboardInterrupt

    sys.setprofile(watch)
    try:
        return balancer.balance(nested_skips(), 2)
    finally:
        sys.setprofile(None)


def test_ctrl_c_ends_the_whole_solve_with_the_fastest_plan_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    plan = solved_with_ctrl_c(1)
    assert plan.solver.ended == "interrupted"
    row = next(row for row in plan.comparison if row.name == OURS_ONE)
    assert (row.throughput_per_s, row.note) == (None, "not solved: interrupted")
    draw_plan(plan)
    assert "ours, one pipeline: not solved: interrupted" in capsys.readouterr().out


def test_out_of_time_the_comparison_has_no_search_of_its_own() -> None:
    plan = balancer.balance(nested_skips(), 2, options=balancer.Options(seconds=1e-6))
    row = next(row for row in plan.comparison if row.name == OURS_ONE)
    assert row.note == "not solved: out of time"
    assert next(row for row in plan.comparison if row.name == "one TPU").throughput_per_s


def test_the_remedies_are_those_that_are_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Streaming is no remedy where it is allowed already, nor another number of segments where any number is."""
    model = tmp_path / "skips.tflite"
    model.write_bytes(nested_skips())
    assert main(["solve", str(model), "-n", "1", "--compilable", "sure"]) == 3
    said = capsys.readouterr().err
    assert "17 ops on 1 TPU: no partition is allowed if each segment must surely compile" in said
    assert said.endswith("; allow more TPUs, or --compilable likely\n")


def test_what_was_compiled_is_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "skips.tflite"
    model.write_bytes(nested_skips())
    program = edgetpu_compiler.install(tmp_path / "bin")
    chosen = ["--compile", "--edgetpu_compiler_binary", str(program), "--cache", str(tmp_path / "cache")]
    assert main(["solve", str(model), "-n", "2", "--compilable", "any", *chosen]) == 0
    assert "compiles perhaps" not in capsys.readouterr().out


def test_published_outcomes_of_small_networks_contradict_no_judgement() -> None:
    script = [sys.executable, str(ROOT / "benchmarks" / "compilable.py"), "yolov5n", "yolov8n"]
    done = subprocess.run(script, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.endswith(" 0 contradicted\n")
    assert "surely" in done.stdout


def table_behind_a_map() -> bytes:
    """A map that is made a table: too large for the chip, so that the op stays on the CPU. Another branch goes on beside it."""
    b, shape, rows = Builder(), (1, 64, 64, 64), (1, 4096, 64)
    source = b.tensor("picture", shape)
    first = b.conv(source, "first", shape=shape)
    second = b.conv(first, "second", shape=shape)
    table = b.tensor("table", rows)
    b.op("RESHAPE", [first, b.ints("rows", rows)], [table])
    return b.file([source], [b.relu(table, "out", shape=rows), b.conv(second, "third", shape=shape)])


@pytest.mark.parametrize("n_tpus", [2, 3])
def test_an_op_that_is_left_out_begins_a_segment_whichever_solver_cuts(n_tpus: int) -> None:
    made = {
        solver: balancer.balance(
            table_behind_a_map(),
            n_tpus,
            options=balancer.Options(solver=solver, compilable="sure", pipelines=1, replicas=1),
        )
        for solver in ("auto", "cpsat", "downset")
    }
    assert len({plan.solver.objective_ns for plan in made.values()}) == 1
    for plan in made.values():
        assert levels(plan) == {"surely"}
        assert plan.solver.bound_ns == plan.solver.objective_ns
        (holder,) = (s.ops for s in plan.segments if s.ops >> 2 & 1)
        assert not holder & 1  # op 0 makes the map
    assert levels(balancer.balance(table_behind_a_map(), 1)) == {"perhaps"}


@pytest.mark.parametrize("solver", ["auto", "cpsat", "downset"])
@pytest.mark.parametrize(("made", "n_tpus"), [(nested_skips, 2), (table_behind_a_map, 1)])
def test_compiled_segments_may_stand_in_plans_that_surely_compile(
    made: Callable[[], bytes], n_tpus: int, solver: str
) -> None:
    """For one segment and for many alike; and bounds hold for plans with them."""
    costed = open_costed_model(made(), "pcie").on(n_tpus)
    n = len(costed.graph.ops)
    perhaps = [
        ops
        for a, b in combinations(range(n + 1), 2)
        if costed.level(ops := interval_set(a, b)) is not Compilable.SURELY and costed.costs.allowed(ops)
    ]
    free = balancer.Options(compilable="any", pipelines=1, replicas=1, solver=solver)
    fastest = solve_costed_model(costed, free)
    stages = {stage.ops for pipeline in fastest.pipelines for stage in pipeline.stages}
    assert stages & set(perhaps)
    known = replace(costed, compiled=frozenset((*stages, perhaps[0])))
    problem = known.problem(worst=Compilable.SURELY)
    rows, kind = [interval_set(0, k) for k in range(n + 1)], problem.devices[0][0]
    pairs = list(combinations(range(n + 1), 2))
    table = problem.batch(NestedSets.of(rows, n), kind)(*np.transpose(pairs))
    for (a, b), time_ns, allowed in zip(pairs, table.time_ns.tolist(), table.allowed.tolist(), strict=True):
        ops = rows[b] & ~rows[a]
        cost = problem.exact(ops, kind)
        assert allowed == (cost is not None)
        assert cost is None or cost.time_ns == time_ns
        surely = costed.level(ops) is Compilable.SURELY or ops in known.compiled
        assert allowed == (surely and costed.costs.allowed(ops))
    # The fastest plan of all is now one of those that surely compile, and nothing is better.
    sure = solve_costed_model(known, replace(free, compilable="sure"))
    assert sure.value == fastest.value
    assert sure.bound_ns is None or sure.bound_ns <= fastest.value.objective_ns
    assert "surely compile or were compiled" in sure.over or sure.bound_ns is None
    assert solve_costed_model(known, replace(free, compilable=None)).value == fastest.value
