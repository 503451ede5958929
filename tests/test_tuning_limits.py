"""Tuning keeps to what the plan was held to, and what was measured by the time it is ended."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import pytest

import balancer
from balancer.cli.main import main
from balancer.compiler import find_compiler
from balancer.directory.compiling import compile_plan
from balancer.errors import ConstraintError, InfeasibleError
from balancer.loops.aiming import Achieved, Aim
from balancer.loops.simulating import perturbed
from balancer.loops.sources import Seen, TrueCosts
from balancer.loops.tuning import Tuned, tune
from balancer.plan.remembered import check_remembered
from balancer.planning.costed_model import costed_model_of
from balancer.planning.options import Options, options_of
from balancer.planning.solving import solve_costed_model
from balancer.runtime.measuring import measure
from balancer.solve import Constraints, Ended
from balancer.tflite import synth
from tests import edgetpu_compiler

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from balancer.loops.tuning import TuneRound
    from balancer.plan import Plan
    from balancer.solve import Solution

SMALL = synth.conv(96, layers=8, size=32)  # fits one TPU: copies are the best plan
LARGE = synth.fc(1800, layers=8, output_type="int8")  # needs a pipeline


@dataclass
class Watched:
    """A source that keeps the plans that it was asked for. interrupt: at this call."""

    truth: TrueCosts
    interrupt: int | None = None
    asked: list[Plan] = field(default_factory=list)

    def __call__(self, plan: Plan) -> Seen:
        self.asked.append(plan)
        if len(self.asked) == self.interrupt:
            raise KeyboardInterrupt
        return self.truth(plan)


def _watched(plan: Plan, seed: int = 1) -> Watched:
    return Watched(TrueCosts(perturbed(costed_model_of(plan), seed)))


def _tuned(plan: Plan, keeps: Callable[[Plan], bool]) -> Tuned:
    """Over a few truths; whatever was measured, and came out, keeps what it must."""
    for seed in range(2):
        source = _watched(plan, seed)
        found = tune(plan, source)
        assert all(keeps(asked) for asked in source.asked)
        assert keeps(found.plan)
        assert found.plan.held_to == plan.held_to
        first = found.rounds[0]
        assert found.gain == pytest.approx(found.best.measured_per_s / first.measured_per_s)
    return found


def test_constraints_come_back_from_a_plan_as_they_were() -> None:
    """All of them: a new one that is not stored fails here."""
    constraints = Constraints(
        pinned={3: 1, 0: 0}, kept_from=frozenset({(2, 1)}), together=(0b11, 0b1100), max_boundary_tensors=2,
        max_boundary_bytes=10**6, max_segment_bytes=10**7, max_latency_ns=10**8, max_objective_ns=10**9,
    )  # fmt: skip
    assert all(getattr(constraints, f.name) != getattr(Constraints(), f.name) for f in fields(Constraints))
    options = Options(pipelines=2, replicas=3, overflow="error", constraints=constraints)
    assert options_of(options.held_to) == options
    assert options_of(Options(stages=3).held_to) == Options(stages=3)
    endless = Options(constraints=Constraints(max_latency_ns=10**20)).held_to
    check_remembered(None, endless, 5, 2, "plan")
    assert (options_of(endless).constraints.max_latency_ns or 0) > 10**15


def test_one_pipeline_stays_one() -> None:
    plan = balancer.balance(SMALL, 4, options=balancer.Options(pipelines=1, replicas=1))
    assert len(balancer.balance(SMALL, 4).pipelines) > 1
    _tuned(plan, lambda p: len(p.pipelines) == 1 and all(s.replicas == 1 for s in p.pipelines[0].stages))


def test_a_number_of_stages_is_kept() -> None:
    _tuned(
        balancer.balance(SMALL, 4, options=balancer.Options(stages=3)),
        lambda p: [len(q.stages) for q in p.pipelines] == [3],
    )


def test_ops_that_are_kept_together_stay_together() -> None:
    """In the middle of the slowest part: no free plan keeps them together."""
    group = sum(1 << i for i in range(2, 8))
    plan = balancer.balance(SMALL, 3, options=balancer.Options(constraints=Constraints(together=(group,))))

    def keeps(asked: Plan) -> bool:
        return all(ops & group in (0, group) for ops in [s.ops for s in asked.segments]) and len(asked.pipelines) == 1

    assert keeps(plan)
    _tuned(plan, keeps)


def test_a_plan_that_must_not_stream_never_does() -> None:
    """Though a plan that streams would be faster, as predicted and as measured."""
    model = synth.conv(500, layers=5, size=32)
    plan = balancer.balance(model, 3, options=balancer.Options(overflow="error"))
    free = balancer.balance(model, 3)
    assert sum(s.predicted.overflow_bytes for s in free.segments) > 0
    assert free.predicted.throughput_per_s > 1.02 * plan.predicted.throughput_per_s
    for source in (Watched(TrueCosts(costed_model_of(plan))), _watched(plan)):
        found = tune(plan, source)
        for asked in (*source.asked, found.plan):
            assert asked.held_to is not None
            assert asked.held_to.overflow == "error"
        assert not any(s.predicted.overflow_bytes for asked in source.asked for s in asked.segments)


def test_no_plan_within_the_limits_any_more_leaves_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from balancer.loops import tuning

    def none(*_: object) -> None:
        raise InfeasibleError("there is no partition", "4 TPUs", "allow more TPUs")

    plan = balancer.balance(SMALL, 3)
    monkeypatch.setattr(tuning, "solve_costed_model", none)
    found = tune(plan, _watched(plan))
    assert "no plan keeps the limits" in found.ended
    assert [s.ops for s in found.plan.segments] == [s.ops for s in plan.segments]
    assert found.gain == 1


def test_a_rate_that_must_be_met_is_met_before_latency_counts() -> None:
    fast = balancer.balance(LARGE, 2, options=balancer.Options(pipelines=1))
    wanted = int(1.3 * fast.solver.objective_ns)
    plan = balancer.balance(LARGE, 2, options=balancer.Options(constraints=Constraints(max_objective_ns=wanted)))
    for seed in range(3):
        found = tune(plan, _watched(plan, seed))
        met = [r for r in found.rounds if r.measured_per_s * 1.01 >= 1e9 / wanted]
        assert [r.broken == "" for r in found.rounds] == [r in met for r in found.rounds]
        assert found.best.measured_latency_ns == min(r.measured_latency_ns for r in met or found.rounds)
        assert found.gain == found.rounds[0].measured_latency_ns / found.best.measured_latency_ns


@pytest.mark.parametrize(
    ("constraints", "best"),
    [
        (Constraints(), 3),
        (Constraints(max_latency_ns=20), 2),
        (Constraints(max_objective_ns=10_000_000), 1),
        (Constraints(max_latency_ns=20, max_objective_ns=10_000_000), 1),
    ],
)
def test_the_best_keeps_the_limits_first(constraints: Constraints, best: int) -> None:
    found = [Achieved(90.0, 9), Achieved(101.0, 10), Achieved(110.0, 20), Achieved(200.0, 30)]
    aim = Aim(Options(constraints=constraints))
    assert min(range(4), key=lambda k: aim.key(found[k])) == best
    assert not aim.broken(found[best])


def test_a_latency_that_must_be_kept_is_kept() -> None:
    free = balancer.balance(LARGE, 4, options=balancer.Options(pipelines=1))
    most = free.predicted.latency_ns
    plan = balancer.balance(LARGE, 4, options=balancer.Options(constraints=Constraints(max_latency_ns=most)))
    for seed in range(3):
        found = tune(plan, _watched(plan, seed))
        kept = [r for r in found.rounds if r.measured_latency_ns <= 1.01 * most]
        assert found.best.measured_per_s == max(r.measured_per_s for r in kept or found.rounds)
        assert found.best in (kept or found.rounds)


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        (Options(pipelines=2), "solved for at most 1"),
        (Options(replicas=2), "solved for at most 1"),
        (Options(stages=2), "2 stages"),
        (Options(constraints=Constraints(max_boundary_tensors=1)), "solved with others"),
    ],
)
def test_dropping_or_changing_a_limit_is_refused(asked: Options, what: str) -> None:
    plan = balancer.balance(SMALL, 3, options=balancer.Options(pipelines=1, replicas=1))
    source = _watched(plan)
    with pytest.raises(ConstraintError, match=what):
        tune(plan, source, options=asked)
    assert not source.asked


def test_a_limit_that_the_plan_does_not_keep_is_refused() -> None:
    plan = balancer.balance(SMALL, 3)
    assert len(plan.pipelines) == 3
    with pytest.raises(ConstraintError, match="the plan has 3"):
        tune(plan, _watched(plan), options=Options(pipelines=1))


def test_a_limit_that_the_plan_keeps_anyway_may_come_on_top() -> None:
    plan = balancer.balance(LARGE, 3)
    most = max(s.replicas for p in plan.pipelines for s in p.stages)
    source = _watched(plan)
    found = tune(plan, source, options=Options(pipelines=len(plan.pipelines), replicas=most))
    assert found.plan.held_to is not None
    assert (found.plan.held_to.pipelines, found.plan.held_to.replicas) == (len(plan.pipelines), most)
    assert all(len(p.pipelines) <= len(plan.pipelines) for p in source.asked)


def _saved(folder: Path, model: bytes, n_tpus: int, pipelines: int | None = None) -> str:
    path = folder / "net.tflite"
    path.write_bytes(model)
    plan = balancer.save(balancer.balance(path, n_tpus, options=balancer.Options(pipelines=pipelines)), folder / "plan")
    return str(folder / "plan" / plan.file_name)


SIM = ["--devices", "sim", "--sim-errors", "1", "--seconds", "0.3"]


def test_the_command_refuses_to_drop_a_limit_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _saved(tmp_path, SMALL, 3, pipelines=1)
    assert main(["tune", path, *SIM, "--pipelines", "3"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "the plan was solved for at most 1" in captured.err
    assert "round" not in captured.out
    assert not (tmp_path / "plan_tuned").exists()


def test_an_output_in_the_way_is_named_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _saved(tmp_path, SMALL, 2)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for output in ("file", "file/below", "gone", "x" * 300, "plan"):
        for force in ([], ["--force"]) if output != "plan" else ([],):
            assert main(["tune", path, *SIM, "-o", str(tmp_path / output), *force]) == 1
            captured = capsys.readouterr()
            assert captured.err.count("\n") == 1
            assert captured.err.startswith(f"balancer: {tmp_path}")
            assert "round" not in captured.out
    assert (tmp_path / "file").read_text() == "mine"


def _interrupted_second(rounds: list[TuneRound]) -> Callable[[TuneRound], None]:
    def told(found: TuneRound) -> None:
        rounds.append(found)
        if len(rounds) == 2:
            raise KeyboardInterrupt

    return told


def _moving() -> tuple[Plan, Watched]:
    """A plan that takes a second round."""
    plan = balancer.balance(LARGE, 4)
    for seed in range(9):
        if len(tune(plan, _watched(plan, seed)).rounds) > 1:
            return plan, _watched(plan, seed)
    raise AssertionError("no seed takes a second round")


def test_ctrl_c_keeps_the_best_round_so_far() -> None:
    plan, source = _moving()
    found = tune(plan, replace(source, interrupt=2, asked=[]))
    assert len(found.rounds) == 1
    assert "interrupted after round 1" in found.ended
    assert [s.ops for s in found.plan.segments] == [s.ops for s in plan.segments]
    assert all(s.measured for s in found.plan.segments)
    assert found.plan.solver.bound_ns is None  # nothing is proven in a hurry
    rounds: list[TuneRound] = []
    whole = tune(plan, source)
    found = tune(plan, replace(source, asked=[]), on_round=_interrupted_second(rounds))
    assert len(found.rounds) == 2
    assert found.best == min(whole.rounds[:2], key=lambda r: -r.measured_per_s)
    with pytest.raises(KeyboardInterrupt):
        tune(plan, replace(source, interrupt=1, asked=[]))


def test_a_compiled_plan_that_stays_the_best_keeps_its_compiled_files(tmp_path: Path) -> None:
    plan = balancer.save(balancer.balance(SMALL, 3, options=balancer.Options(stages=3)), tmp_path / "plan")
    compiler = find_compiler(edgetpu_compiler.install(tmp_path / "bin"), cache=tmp_path / "cache")
    plan = compile_plan(plan, compiler).plan
    truth = TrueCosts(costed_model_of(plan))

    def source(asked: Plan) -> Seen:
        times = {s.name: s.measured for s in truth(asked).plan.segments}
        return Seen(replace(asked, segments=tuple(replace(s, measured=times[s.name]) for s in asked.segments)))

    saved = balancer.save(tune(plan, source).plan, tmp_path / "tuned")
    assert plan.directory is not None
    assert saved.directory is not None
    for segment in saved.segments:
        assert segment.reported is not None
        for name in (segment.compiled_name, segment.log_name):
            assert (saved.directory / name).read_bytes() == (plan.directory / name).read_bytes()
    assert balancer.verify(saved, 1).bit_exact


def test_ctrl_c_while_solving_ends_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Solvers take Ctrl-C for themselves, and say so in what they give back."""
    from balancer.loops import tuning

    plan, source = _moving()

    def interrupted(*given: Any) -> Solution:
        return replace(solve_costed_model(*given), ended=Ended.INTERRUPTED)

    monkeypatch.setattr(tuning, "solve_costed_model", interrupted)
    source = replace(source, asked=[])
    found = tune(plan, source)
    assert len(source.asked) == len(found.rounds) == 1
    assert "interrupted" in found.ended


def test_what_was_measured_before_ctrl_c_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from balancer.loops import sources

    path = _saved(tmp_path, LARGE, 4)
    plan = balancer.load_plan(path)
    seed = next(k for k in range(9) if len(tune(plan, _watched(plan, k)).rounds) > 1)
    calls = []

    def interrupted(*given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*given, **more)

    monkeypatch.setattr(sources, "measure", interrupted)
    arguments = ["tune", path, "--devices", "sim", "--sim-errors", str(seed), "--seconds", "0.3", "--json"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert (len(document["rounds"]), len(calls)) == (1, 2)
    assert "interrupted" in document["ended"]
    tuned = balancer.load_plan(tmp_path / "plan_tuned" / "net_plan_4.json")
    assert all(s.measured for s in tuned.segments)
