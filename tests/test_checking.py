"""The judge of solutions: what the solvers find passes, and each thing that can be wrong is named."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.errors import BalancerError, InvalidSolutionError
from balancer.solve import (
    Constraints,
    Kept,
    PipelineSpec,
    Problem,
    Solution,
    SolverOptions,
    StageSpec,
    Structure,
    Transfer,
    Value,
    check,
    solve,
    structured_problem,
)
from tests.test_kinds import mixed_problems

if TYPE_CHECKING:
    from collections.abc import Sequence

# Four ops in a row; the tensors between them have 10, 20 and 30 bytes.
STRUCTURE = Structure(
    stage_ns=5, op_ns=(40, 30, 20, 10),
    transfers=tuple(Transfer(i, (i + 1,), leaves=False, receive_ns=1, send_ns=1, size_bytes=10 * (i + 1)) for i in range(3)),
    kept=(Kept(0, 8, 4),), capacity_bytes=4,
)  # fmt: skip
PROBLEM = replace(
    structured_problem(
        (0b0000, 0b0001, 0b0010, 0b0100), [("fast", 3), ("slow", 1)],
        {"fast": STRUCTURE, "slow": replace(STRUCTURE, op_ns=(80, 60, 40, 20))}, host_ns=7,
    ),
    op_bytes=(8, 1, 1, 1), handover_ns=2, together=(0b0110,),
)  # fmt: skip


def _pipeline(*stages: tuple[int, str, int]) -> PipelineSpec:
    return PipelineSpec(tuple(StageSpec(*stage) for stage in stages))


def _solution(*pipelines: PipelineSpec, **changes: Any) -> Solution:
    """One of two stages, by default, with a value worked out by hand: ops 0 to 2 take 5 + 90 + 1 + 4 ns."""
    fields: dict[str, Any] = {
        "solver": "given", "pipelines": pipelines or (_pipeline((0b0111, "fast", 2), (0b1000, "slow", 1)),),
        "value": Value(50, 3, 16, 100 + 26 + 2 * 2), "bound_ns": 40, "over": "nothing",
    }  # fmt: skip
    return Solution(**{**fields, **changes})


def test_a_solution_worked_out_by_hand_passes() -> None:
    check(PROBLEM, _solution(), SolverOptions(stages=2, max_replicas=2))


@pytest.mark.parametrize(
    ("pipelines", "complaint"),
    [
        ([], "no pipeline"),
        ([[(0b1111, "fast", 1), (0, "fast", 1)]], "holds no op"),
        ([[(0b0111, "fast", 1), (0b1100, "fast", 1)]], "op 2 a second time"),
        ([[(0b1000, "fast", 1), (0b0111, "fast", 1)]], "reads from a later stage"),
        ([[(0b0111, "fast", 1)]], "no stage holds op 3"),
        ([[(0b11111, "fast", 1)]], "there is no op 4"),
        ([[(0b0011, "fast", 1), (0b1100, "fast", 1)]], "a cut separates the ops"),
        ([[(0b1111, "fast", 0)]], "0 replicas"),
        ([[(0b1111, "fast", 4)]], "4 devices of kind fast, of 3"),
        ([[(0b1111, "slow", 1)], [(0b1111, "slow", 1)]], "2 devices of kind slow, of 1"),
    ],
)
def test_pipelines_that_cannot_be_are_refused(pipelines: Sequence[Any], complaint: str) -> None:
    solution = replace(_solution(), pipelines=tuple(_pipeline(*stages) for stages in pipelines))
    with pytest.raises(InvalidSolutionError, match=complaint):
        check(PROBLEM, solution)


def test_a_segment_that_may_not_stand_and_a_bound_above_its_cost_are_refused() -> None:
    barred = replace(PROBLEM, exact=lambda ops, kind: None)
    with pytest.raises(InvalidSolutionError, match="may not stand on a fast"):
        check(barred, _solution())
    with pytest.raises(InvalidSolutionError, match="below its lower bound"):
        check(replace(PROBLEM, lower=lambda ops, kind: 101), _solution())


@pytest.mark.parametrize("wrong", [(49, 3, 16, 130), (50, 2, 16, 130), (50, 3, 8, 130), (50, 3, 16, 126)])
def test_a_wrong_value_is_refused(wrong: tuple[int, int, int, int]) -> None:
    with pytest.raises(InvalidSolutionError, match="stated value"):
        check(PROBLEM, _solution(value=Value(*wrong)))


def test_bounds_above_what_was_reached_are_refused() -> None:
    with pytest.raises(InvalidSolutionError, match="above the objective"):
        check(PROBLEM, _solution(bound_ns=51))
    with pytest.raises(InvalidSolutionError, match="above the latency"):
        check(PROBLEM, _solution(latency_bound_ns=131))
    check(PROBLEM, _solution(bound_ns=None))


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"max_replicas": 1}, "2 replicas, more than 1"),
        ({"stages": 3}, "not one of 3"),
        ({"max_latency_ns": 129}, "latency of 130 ns"),
        ({"max_objective_ns": 49}, "objective of 50 ns"),
        ({"pinned": {2: 1}}, "op 2 stands in stage 0, not in 1"),
        ({"kept_from": frozenset([(3, 1)])}, "op 3 stands in stage 1"),
        ({"together": (0b1100,)}, "a cut separates"),
        ({"max_segment_bytes": 9}, "10 bytes of parameters"),
        ({"max_boundary_tensors": 0}, "cut 1 is crossed by 1 tensor"),
        ({"max_boundary_bytes": 29}, "cut 1 is crossed by 30 bytes"),
    ],
)
def test_limits_and_constraints_that_are_broken_are_named(asked: dict[str, Any], complaint: str) -> None:
    options = {name: asked[name] for name in asked if name in ("max_replicas", "stages")}
    held = Constraints(**{name: asked[name] for name in asked if name not in options})
    check(PROBLEM, _solution())
    with pytest.raises(InvalidSolutionError, match=complaint):
        check(PROBLEM, _solution(), SolverOptions(**options, constraints=held))


def test_more_pipelines_than_allowed_are_refused() -> None:
    whole = _pipeline((0b1111, "fast", 1))
    two = _solution(whole, whole, value=Value(55, 2, 16, 111))
    with pytest.raises(InvalidSolutionError, match="2 pipelines, more than 1"):
        check(PROBLEM, two, SolverOptions(max_pipelines=1))


@settings(max_examples=max(15, settings().max_examples // 4))
@given(mixed_problems(), st.sampled_from(["auto", "downset", "cpsat"]), st.data())
def test_solutions_for_several_kinds_of_devices_pass(problem: Problem, solver: str, data: st.DataObject) -> None:
    held = Constraints()
    if solver != "downset" and data.draw(st.booleans()):
        held = Constraints(
            pinned={data.draw(st.integers(0, problem.n_ops - 1)): data.draw(st.integers(0, 2))},
            max_latency_ns=data.draw(st.none() | st.integers(20, 90)),
            max_boundary_tensors=data.draw(st.none() | st.integers(0, 3)),
        )
    options = SolverOptions(solver=solver, max_replicas=data.draw(st.none() | st.just(1)), constraints=held)
    try:
        solution = solve(problem, options)
    except BalancerError:
        return
    check(problem, solution, options)
