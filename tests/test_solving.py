"""Choosing solvers, constraints and sizes as a user does, and what is left when a search is cut short."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import balancer
from balancer.cli.main import main
from balancer.cli.solver_options import SOLVERS as NAMES
from balancer.errors import ConstraintError, InfeasibleError
from balancer.ground.downsets import NestedSets
from balancer.ground.opsets import members, parse_op_ranges
from balancer.planning.costed_model import open_costed_model
from balancer.solve import SOLVERS, Ended, Problem, SolverOptions, Structure, check, solve, structured_problem
from balancer.solve.cpsat import PipelineSearch
from balancer.solve.structured import StructuredCosts
from tests import handmade
from tests.shared import SOURCES, many_ops_wide, stem

if TYPE_CHECKING:
    from pathlib import Path

    from balancer.ground.downsets import DownSets
    from balancer.solve import Between, CostColumns, Kind


def _solved(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["solve", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_line_knows_the_solvers() -> None:
    assert list(NAMES) == list(SOLVERS)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "auto"])
def test_every_solver_can_be_chosen_and_none_beats_the_proven_one(
    name: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ["--pipelines", "1", "--replicas", "1"]
    if name == "shortest-path":  # its highest rate within a latency that forbids nothing
        one += ["--max-latency", "1000"]
    best = _solved(capsys, str(model), "-n", "3", *one)["solver"]
    found = _solved(capsys, str(model), "-n", "3", "--solver", name, *one)["solver"]
    assert found["name"] == name
    assert found["objective_ns"] >= best["objective_ns"] >= best["bound_ns"] == best["objective_ns"]
    assert (found["bound_ns"] or 0) <= best["objective_ns"]
    assert main(["solve", str(model), "-n", "3", "--solver", name, *one]) == 0
    said = capsys.readouterr().out
    assert ("no proof: " if found["bound_ns"] is None else "proof: ") in said


def test_constraints_are_kept(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n_ops = len(balancer.load_graph(model).ops)
    plan = _solved(
        capsys, str(model), "-n", "3", "--pin", "0:0", "--keep-from", f"{n_ops - 1}:1", "--keep-together", "1-3",
        "--max-boundary-tensors", "1",
    )  # fmt: skip
    segments = [set(parse_op_ranges(segment["ops"], n_ops)) for segment in plan["segments"]]
    assert len(plan["pipelines"]) == 1
    assert 0 in segments[0]
    assert len(segments) < 2 or n_ops - 1 not in segments[1]
    assert sum({1, 2, 3} <= ops for ops in segments) == 1
    assert "constraints" in plan["solver"]["over"]


def test_latency_and_rate_can_be_traded(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fastest = _solved(capsys, str(model), "-n", "4", "--solver", "cpsat", "--replicas", "1")
    objective = fastest["solver"]["objective_ns"]
    slow = _solved(capsys, str(model), "-n", "4", "--min-fps", str(1e9 / (3 * objective)), "--replicas", "1")
    assert slow["predicted"]["latency_ns"] <= fastest["predicted"]["latency_ns"]
    assert slow["solver"]["objective_ns"] <= 3 * objective
    limit = slow["predicted"]["latency_ns"] / 1e6 + 0.01
    held = _solved(capsys, str(model), "-n", "4", "--max-latency", str(limit), "--replicas", "1")
    assert held["predicted"]["latency_ns"] <= limit * 1e6
    assert held["solver"]["objective_ns"] <= slow["solver"]["objective_ns"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--pin", "99:0"], 1),
        (["--pin", "0:7"], 1),
        (["--keep-together", "1-99"], 1),
        (["--keep-together", "x"], 1),
        (["--solver", "chain", "--pin", "0:0"], 1),
        (["--max-latency", "0.001"], 3),
        (["--pin", "0:1", "--pin", "1:0"], 3),
        (["--pin", "zero"], 2),
        (["--solver", "best"], 2),
        (["--time-limit", "0"], 2),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    arguments: list[str], code: int, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", str(model), "-n", "2", *arguments]) == code
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err


def test_sizing_says_how_many_tpus_are_worth_having(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", str(model), "--max-tpus", "5", "--target-fps", "50", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rates = [row["throughput_per_s"] for row in found["rows"]]
    assert rates == sorted(rates)
    assert len(rates) == 5
    for n in range(1, 6):
        plan = balancer.balance(model, n)
        assert rates[n - 1] == pytest.approx(1e9 / plan.solver.objective_ns, rel=1e-6)
    first = next(n for n in range(1, 6) if _streams_nothing(model, n))
    assert found["fits_at_n"] == first
    assert found["target_n"] == next((n for n, rate in enumerate(rates, 1) if rate >= 50), None)
    assert main(["size", str(model), "--max-tpus", "2"]) == 0
    assert "nowhere up to 2 TPUs" in capsys.readouterr().out


def _streams_nothing(model: Path, n: int) -> bool:
    try:
        balancer.balance(model, n, options=balancer.Options(overflow="error"))
    except InfeasibleError:
        return False
    return True


def test_sizing_within_a_latency(model: Path) -> None:
    free = balancer.size(model, max_tpus=4)
    limit = min(row.latency_ns for row in free.rows if row.latency_ns) / 1e6 + 0.05
    held = balancer.size(model, max_tpus=4, max_latency_ns=limit * 1e6)
    for row, other in zip(held.rows, free.rows, strict=True):
        if row.throughput_per_s is not None:
            assert row.latency_ns is not None
            assert row.latency_ns <= limit * 1e6
            assert other.throughput_per_s is not None
            assert row.throughput_per_s <= other.throughput_per_s
    assert held.target_n == next(row.n_tpus for row in held.rows if row.throughput_per_s)
    assert balancer.size(model, max_tpus=2, max_latency_ns=1000).target_n is None
    with pytest.raises(ValueError, match="target_per_s"):
        balancer.size(model, target_per_s=-1)


def _hard() -> Problem:
    """Uneven independent ops for three devices: bin packing, far from proven in no time."""
    structure = Structure(stage_ns=10, op_ns=tuple(1000 + 137 * (i * i % 31) for i in range(40)))
    return structured_problem((0,) * 40, [("tpu", 3)], {"tpu": structure})


def test_a_clock_leaves_the_best_so_far_and_an_honest_bound() -> None:
    problem = _hard()
    chain = solve(problem, SolverOptions(solver="chain", max_pipelines=1, max_replicas=1))
    solution = solve(problem, SolverOptions(max_pipelines=1, max_replicas=1, seconds=0.3))
    check(problem, solution, SolverOptions(max_pipelines=1, max_replicas=1, seconds=0.3))
    assert solution.value.objective_ns <= chain.value.objective_ns
    assert (
        (solution.bound_ns or 0)
        <= -(-sum(1000 + 137 * (i * i % 31) for i in range(40)) // 3) + 10
        <= solution.value.objective_ns
    )


def _interrupting_downsets(problem: Problem) -> Problem:
    """Costs segments of the execution order; Ctrl-C comes when segments between other down-sets are to be costed."""

    def batch(sets: DownSets, kind: Kind) -> Between:
        def interrupted(inners: object, outers: object) -> CostColumns:
            raise KeyboardInterrupt

        return problem.batch(sets, kind) if isinstance(sets, NestedSets) else interrupted

    return replace(problem, batch=batch)


@pytest.mark.parametrize("where", ["cpsat", "downset"])
def test_an_interrupted_search_gives_the_best_so_far(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    problem = _hard() if where == "cpsat" else open_costed_model(handmade.conv_chain(6), "pcie").on(3).problem()
    chain = solve(problem, SolverOptions(solver="chain", max_pipelines=1, max_replicas=1))
    if where == "cpsat":
        monkeypatch.setattr(PipelineSearch, "run", interrupted)
    else:
        problem = _interrupting_downsets(problem)
    solution = solve(problem, SolverOptions(max_pipelines=1, max_replicas=1))
    assert solution.ended is Ended.INTERRUPTED
    assert solution.statistics["interrupted"] == 1
    assert solution.value == chain.value
    assert (solution.bound_ns or 0) <= solution.value.objective_ns
    check(problem, solution)


def test_constraints_need_a_solver_that_takes_them(model: Path) -> None:
    held = balancer.Constraints(pinned={0: 0})
    with pytest.raises(ConstraintError, match="takes no constraints"):
        balancer.balance(model, 2, options=balancer.Options(solver="downset", constraints=held))
    assert balancer.balance(model, 2, options=balancer.Options(constraints=held)).solver.name == "cpsat"


@pytest.mark.shared
@pytest.mark.parametrize("path", many_ops_wide(SOURCES), ids=stem)
def test_no_segment_of_a_real_model_is_below_the_structure_of_its_cost(path: Path) -> None:
    """What bounds and CP-SAT rely on, over random segments between down-sets."""
    costed = open_costed_model(path, "pcie")
    problem, draw = costed.on(2).problem(), random.Random(3)
    known = replace(problem.structures["pcie"], kept=(), limit_bytes=None)
    costs = StructuredCosts(known, problem.n_ops)
    for _ in range(60):
        cuts = [0, 0]
        for k in range(2):
            done, ready_for = 0, draw.randint(0, problem.n_ops)
            while done.bit_count() < ready_for:
                ready = [i for i in range(problem.n_ops) if not done >> i & 1 and not problem.before[i] & ~done]
                done |= 1 << draw.choice(ready)
            cuts[k] = done
        ops = (cuts[0] | cuts[1]) & ~(cuts[0] & cuts[1] if draw.random() < 0.7 else 0)
        exact, least = problem.exact(ops, "pcie"), costs.exact(ops)
        if exact is not None and least is not None:
            assert least.time_ns <= exact.time_ns, list(members(ops))
