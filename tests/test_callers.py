"""What a caller in Python may get wrong, and what plans do that travel."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import balancer
from balancer.cli.main import main
from balancer.loops.sources import TrueCosts
from balancer.planning.costed_model import costed_model_of
from balancer.solve import SolverOptions, check, solve
from balancer.solve.problem import evaluate
from tests import handmade

if TYPE_CHECKING:
    from pathlib import Path

MODEL = handmade.conv_chain(4)


@pytest.mark.parametrize("wrong", [{"solver": "nope"}, {"solver": None}, {"constraints": None}, {"constraints": 5}])
def test_options_out_of_range_are_refused_where_they_are_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        balancer.Options(**wrong)


@pytest.mark.parametrize("rounds", [0, -1, 1.5, True])
def test_rounds_are_counted_from_one(rounds: Any) -> None:
    plan = balancer.balance(MODEL, 2)
    with pytest.raises(ValueError, match="rounds must be a whole number"):
        balancer.tune(plan, TrueCosts(costed_model_of(plan)), rounds=rounds)
    with pytest.raises(ValueError, match="rounds must be a whole number"):
        balancer.refine(plan, rounds=rounds)


@pytest.mark.parametrize("plan", [None, 5, b"plan", {}, []])
def test_what_is_no_plan_is_a_type_error_that_says_so(plan: Any) -> None:
    for use in (balancer.verify, balancer.open_plan, balancer.Pipeline, lambda p: balancer.save(p, "nowhere")):
        with pytest.raises(TypeError, match="plan must be a Plan, an OpenedPlan or a path"):
            use(plan)


def test_a_plan_travels_with_the_bytes_of_its_model_once() -> None:
    plan = balancer.balance(MODEL, 2)
    pickled = pickle.dumps(plan)
    assert len(pickled) < len(MODEL) + 20_000
    again = pickle.loads(pickled)
    assert again == plan
    assert balancer.verify(again, 1).bit_exact


def test_an_op_that_is_listed_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.tflite").write_bytes(MODEL)
    assert main(["solve", str(tmp_path / "net.tflite"), "-n", "2", "--keep-together", "3,0-1,0"]) == 1
    assert "lists an op twice" in capsys.readouterr().err


def test_constraints_allow_one_pipeline() -> None:
    problem = costed_model_of(balancer.balance(MODEL, 2)).on(2).problem()
    solution = solve(problem, SolverOptions(max_replicas=1))
    assert len(solution.pipelines) == 2
    held = SolverOptions(max_replicas=1, constraints=balancer.Constraints(max_boundary_tensors=99))
    with pytest.raises(balancer.InvalidSolutionError, match="constraints allow one"):
        check(problem, solution, held)
    one = solution.pipelines[:1]
    value = evaluate(problem, one)
    assert value is not None
    check(problem, replace(solution, pipelines=one, value=value, bound_ns=0), held)
