"""Solve, compile, correct, solve again: with compilers whose truth is known."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import balancer
from balancer.cli.main import main
from balancer.compiler import Compiler, find_compiler
from balancer.cost.profile import OpCosts, Profile
from balancer.cost.segment import SegmentCosts
from balancer.errors import CompilerError, InfeasibleError
from balancer.ground.opsets import members
from balancer.learning.correcting import Evidence, contradicts, corrected, overruns
from balancer.loops.refining import ROUNDS, RefineRound
from balancer.plan import OpOnCpu, SegmentReport
from balancer.planning.costed_model import CostedModel, open_costed_model
from balancer.solve import solve
from balancer.tflite import synth
from tests import edgetpu_compiler
from tests.shared import ZOO

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LESS = 800_000  # of each million bytes of room


def _compiler(folder: Path, **behaviour: Any) -> Compiler:
    return find_compiler(edgetpu_compiler.install(folder / "bin", **behaviour), cache=folder / "cache")


def _refined(
    model: Path,
    n_tpus: int,
    compiler: Compiler,
    on_round: Callable[[RefineRound], None] = lambda done: None,
    options: balancer.Options | None = None,
    rounds: int = ROUNDS,
) -> balancer.Plan:
    plan = balancer.balance(model, n_tpus, options=options)
    return balancer.refine(plan, compiler, rounds=rounds, options=options, on_round=on_round).plan


def _overflow(plan: balancer.Plan) -> int:
    return sum(s.reported.streamed_bytes for s in plan.segments if s.reported)


def _fits(model: Path, n_tpus: int, profile: Profile) -> bool:
    """Whether there is a plan that streams nothing, under costs that are the compiler's truth."""
    costed = replace(open_costed_model(model, "pcie"), profile=profile)
    try:
        solve(costed.on(n_tpus).problem(overflow="error"))
    except InfeasibleError:
        return False
    return True


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "n_tpus"),
    [
        ("ResNet50", 4),
        pytest.param("ResNet50", 8, marks=pytest.mark.wide),
        pytest.param("ResNet101", 4, marks=pytest.mark.wide),
        pytest.param("ResNet101", 8, marks=pytest.mark.wide),
        pytest.param("InceptionV3", 4, marks=pytest.mark.wide),
        pytest.param("InceptionV3", 8, marks=pytest.mark.wide),
    ],
)
def test_less_room_than_predicted(name: str, n_tpus: int, tmp_path: Path) -> None:
    """In at most four rounds: a plan that streams nothing wherever there is one."""
    model, rounds = ZOO / f"{name}_int8.tflite", list[RefineRound]()
    plan = _refined(model, n_tpus, compiler=_compiler(tmp_path, room_per_million=LESS), on_round=rounds.append)
    assert len(rounds) <= ROUNDS == 4
    assert all(s.reported for s in plan.segments)
    assert (_overflow(plan) == 0) == _fits(model, n_tpus, Profile("truth", {}, LESS))
    assert rounds[-1].reported_per_s >= rounds[0].reported_per_s
    # What is predicted in the end is what was reported.
    for segment in plan.segments:
        assert segment.reported is not None
        assert abs(segment.predicted.streamed_bytes - segment.reported.streamed_bytes) <= 16 << 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "net.tflite"
    path.write_bytes(synth.fc(1800, layers=7, output_type="int8"))
    return path


def test_a_compiler_that_agrees_ends_it_at_once(model: Path, tmp_path: Path) -> None:
    rounds: list[RefineRound] = []
    plan = _refined(model, 3, compiler=_compiler(tmp_path), on_round=rounds.append)
    assert [r.contradicted for r in rounds] == [()]
    plain = balancer.balance(model, 3)
    assert [s.ops for s in plan.segments] == [s.ops for s in plain.segments]
    assert plan.predicted == plain.predicted
    assert plan.hardware == plain.hardware
    assert plan.solver.status == "optimal"


def test_ops_that_the_compiler_does_not_take(model: Path, tmp_path: Path) -> None:
    """The op moves to where it holds nothing back, or the fewest others."""
    graph = balancer.load_graph(model)
    op = len(graph.ops) // 2
    status = "Operation not supported"
    rounds: list[RefineRound] = []
    compiler = _compiler(tmp_path, on_cpu={graph.tensors[graph.ops[op].outputs[0]].name: status})
    plan = _refined(model, 4, compiler=compiler, on_round=rounds.append)
    assert rounds[0].contradicted
    assert rounds[-1].reported_per_s >= rounds[0].reported_per_s
    named = {o.op: o.reason for s in plan.segments if s.reported for o in s.reported.not_mapped}
    assert named[op] == status
    first = min(named)
    assert first == op


def test_the_rate_alone_counts_where_that_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(synth.fc(1800, layers=7, output_type="int8"))
    plans = {
        how: _refined(
            path,
            3,
            compiler=_compiler(tmp_path / str(how), room_per_million=700_000),
            options=balancer.Options(overflow=how),
        )
        for how in (None, "stream")
    }
    assert plans["stream"].predicted.throughput_per_s >= plans[None].predicted.throughput_per_s
    assert _overflow(plans[None]) <= _overflow(plans["stream"])
    with pytest.raises(InfeasibleError):
        _refined(
            path,
            2,
            compiler=_compiler(tmp_path / "two", room_per_million=500_000),
            options=balancer.Options(overflow="error"),
        )


def test_nothing_that_compiles_is_an_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InfeasibleError, match=r"cannot be compiled: each plan has a segment .*an activation is too large"
    ):
        _refined(model, 3, compiler=_compiler(tmp_path, fails={"*": "large activation tensors"}))
    with pytest.raises(CompilerError, match=r"cannot be compiled in any of the 2 ways that were tried"):
        _refined(model, 3, compiler=_compiler(tmp_path / "unknown", fails={"*": "for no reason"}), rounds=2)


REFUSED = {f"ResNet50_int8_segment_{k}_of_5": "large activation tensors" for k in range(5)}


@pytest.mark.shared
def test_a_later_plan_that_does_not_compile_leaves_the_earlier_one_and_others_are_tried(tmp_path: Path) -> None:
    """And is shown as a round."""
    rounds: list[RefineRound] = []
    compiler = _compiler(tmp_path, room_per_million=LESS, fails=REFUSED)
    plan = _refined(ZOO / "ResNet50_int8.tflite", 8, compiler=compiler, on_round=rounds.append)
    assert [bool(r.refused) for r in rounds][:2] == [False, True]
    assert "too large" in rounds[1].refused[0].reason
    assert all(s.reported for s in plan.segments)
    assert not {s.ops for s in plan.segments} & {r.ops for done in rounds for r in done.refused}
    assert plan.predicted.throughput_per_s >= 0.99 * rounds[0].reported_per_s


def test_solve_compile_writes_a_directory_that_verifies(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a short path: lines that name it are as long as users see them
    program = edgetpu_compiler.install(tmp_path / "bin", room_per_million=600_000)
    chosen = ["--compile", "--edgetpu_compiler_binary", str(program), "--cache", str(tmp_path / "cache")]
    assert main(["solve", str(model), "-n", "4", "-o", "plan", *chosen]) == 0
    out = capsys.readouterr().out
    assert "round 1: " in out
    assert "round 2: " in out
    assert "reported by edgetpu_compiler 16.0.384591198" in out
    assert not [line for line in out.splitlines() if len(line) > 120]
    loaded = balancer.load_plan(tmp_path / "plan" / "net_plan_4.json")
    assert all(s.reported and s.reported.file for s in loaded.segments)
    assert balancer.verify(loaded, 1).bit_exact
    assert loaded.costs_label == "pcie + compiler reports"
    assert main(["solve", str(model), "-n", "4", "--json", *chosen]) == 0
    captured = capsys.readouterr()
    assert [s["ops"] for s in json.loads(captured.out)["segments"]] == [s.op_ranges for s in loaded.segments]
    assert "round 1: " in captured.err


def test_the_same_input_gives_the_same_plan(model: Path, tmp_path: Path) -> None:
    plans = [_refined(model, 4, compiler=_compiler(tmp_path / x, room_per_million=650_000)) for x in "ab"]
    assert plans[0].to_json() == plans[1].to_json()
    assert plans[0].made == plans[1].made


def test_compare_shows_the_compilers_own_split(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = edgetpu_compiler.install(tmp_path / "bin")
    chosen = ["--compile", "--edgetpu_compiler_binary", str(program), "--cache", str(tmp_path / "cache")]
    assert main(["compare", str(model), "-n", "3", "--json", *chosen]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["comparison"]}
    really, stand_in = rows["edgetpu_compiler -n"], rows["compiler default"]
    assert (really["stand_in"], stand_in["stand_in"]) == (False, True)
    # This compiler cuts by the rule that the stand-in follows.
    for key in ("throughput_per_s", "streamed_bytes"):
        assert really[key] == pytest.approx(stand_in[key], rel=0.02)
    assert really["speedup_over_default"] == 1


def test_a_crash_of_the_compilers_own_split_is_reported_as_its_own(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = edgetpu_compiler.install(tmp_path / "bin", segmenter="crash")
    arguments = ["compare", str(model), "-n", "3", "--compile", "--edgetpu_compiler_binary", str(program)]
    assert main([*arguments, "--cache", str(tmp_path / "cache")]) == 0
    out = capsys.readouterr().out
    assert "edgetpu_compiler -n: failed in the compiler: " in out
    assert "ended by signal" in out
    assert re.search(r"edgetpu_compiler -n +none", out)


@pytest.mark.shared
def test_room_is_not_made_by_leaving_ops_on_the_cpu(tmp_path: Path) -> None:
    """Parameters of ops on the CPU do not stream; that is no reason to leave them there."""
    path = ZOO / "ResNet50_int8.tflite"
    graph = balancer.load_graph(path)
    name = graph.tensors[graph.ops[33].outputs[0]].name
    rounds: list[RefineRound] = []
    compiler = _compiler(tmp_path, room_per_million=LESS, on_cpu={name: "Operation not supported"})
    plan = _refined(path, 4, compiler=compiler, on_round=rounds.append)
    assert sum(s.reported.cpu_ops for s in plan.segments if s.reported) == 1
    assert plan.predicted.throughput_per_s > 5 * rounds[0].reported_per_s


@pytest.mark.shared
def test_an_op_that_hides_behind_another_is_found(tmp_path: Path) -> None:
    """A worse round that teaches something is no reason to end."""
    path = ZOO / "ResNet50_int8.tflite"
    graph = balancer.load_graph(path)
    hidden = {graph.tensors[graph.ops[k].outputs[0]].name: "Operation not supported" for k in (30, 33)}
    rounds: list[RefineRound] = []
    plan = _refined(
        path,
        4,
        options=balancer.Options(pipelines=1),
        compiler=_compiler(tmp_path, on_cpu=hidden),
        on_round=rounds.append,
    )
    assert plan.predicted.throughput_per_s == pytest.approx(max(r.reported_per_s for r in rounds), rel=0.01)
    assert plan.predicted.throughput_per_s > 3 * rounds[0].reported_per_s


@pytest.mark.shared
def test_a_round_that_is_refused_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = edgetpu_compiler.install(tmp_path / "bin", room_per_million=LESS, fails=REFUSED)
    chosen = ["--compile", "--edgetpu_compiler_binary", str(program), "--cache", str(tmp_path / "cache")]
    assert main(["solve", str(ZOO / "ResNet50_int8.tflite"), "-n", "8", *chosen]) == 0
    assert "not compiled: ResNet50_int8_segment_0_of_5: an activation is too large" in capsys.readouterr().out


def test_compare_without_a_compiled_plan(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = edgetpu_compiler.install(tmp_path / "bin", fails={"*": "large activation tensors"})
    arguments = ["compare", str(model), "-n", "4", "--compile", "--edgetpu_compiler_binary", str(program)]
    assert main([*arguments, "--cache", str(tmp_path / "cache"), "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["comparison"]}
    assert "cannot be compiled" in rows["ours"]["note"]


def _setting(data: bytes, folder: Path) -> CostedModel:
    (folder / "net.tflite").write_bytes(data)
    return open_costed_model(folder / "net.tflite", "pcie")


def _report(costs: SegmentCosts, ops: int) -> SegmentReport:
    terms, on_cpu = costs.terms(ops), costs.on_cpu(ops)
    return SegmentReport(
        cached_bytes=terms.cached_bytes, streamed_bytes=terms.streamed_bytes, capacity_bytes=terms.capacity_bytes,
        cpu_ops=on_cpu.bit_count(), subgraphs=1, compiler_version="", file=None, sha256="", log=None,
        not_mapped=tuple(OpOnCpu(op=i, type="", reason="") for i in members(on_cpu)),
    )  # fmt: skip


@settings(max_examples=30)
@given(data=st.data())
def test_what_was_seen_is_predicted_afterwards(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is true of room, bytes and ops: no segment that was compiled is promised more than it had."""
    width = data.draw(st.sampled_from([700, 1500]))
    costed = _setting(synth.fc(width, layers=6, output_type="int8"), tmp_path_factory.mktemp("model"))
    n = len(costed.graph.ops)
    ops = {i: OpCosts(mapped=False) for i in data.draw(st.sets(st.integers(1, n - 1), max_size=2))}
    room = data.draw(st.sampled_from([(LESS, 0), (1_000_000, -(1 << 20)), (600_000, 0), (1_100_000, 0)]))
    truth = SegmentCosts(costed.graph, costed.hardware, Profile("truth", ops, *room))
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1), min_size=1, max_size=3)))
    edges = [0, *cuts, n]
    found = [Evidence(s, _report(truth, s)) for s in ((1 << b) - (1 << a) for a, b in pairwise(edges))]
    learnt = SegmentCosts(costed.graph, costed.hardware, corrected(costed, found))
    for each in found:
        assert not overruns(learnt, each)
        assert learnt.on_cpu(each.ops) == truth.on_cpu(each.ops)
    assert all(not contradicts(truth, each) for each in found)


def test_correcting_is_quick(tmp_path: Path) -> None:
    costed = _setting(synth.fc(200, layers=60, output_type="int8"), tmp_path)
    costs = costed.costs
    n = len(costed.graph.ops)
    found = [Evidence(1 << i, _report(costs, 1 << i)) for i in range(n)]
    start = time.process_time()
    corrected(costed, found)
    assert time.process_time() - start < 20  # a hundredfold of what it takes
