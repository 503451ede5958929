"""Lowest latency at a rate and highest rate within a latency, against brute force and on real models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import balancer
from balancer import balance
from balancer.errors import ConstraintError, InfeasibleError, NotFoundError
from balancer.solve import Constraints, Cost, Problem, Solution, SolverOptions, Value, check, evaluate, solve
from balancer.solve.auto import solve_auto
from balancer.solve.downset import DEFAULT_WORK
from balancer.solve.shortest_path import PathWork
from tests.dags import all_pipelines, dag_problems
from tests.shared import ZOO
from tests.strategies import interval_problem
from tests.test_cpsat import structured

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_REPLICAS = 4


def worths(problem: Problem, replicas: int = MOST_REPLICAS) -> list[Value]:
    return [v for p in all_pipelines(problem, replicas) if (v := evaluate(problem, [p])) is not None]


def asked(problem: Problem, solver: str = "auto", **held: Any) -> Solution | None:
    try:
        return solve(problem, SolverOptions(solver=solver, constraints=Constraints(**held)))
    except InfeasibleError:
        return None


def some(values: Sequence[int]) -> list[int]:
    """A few of them, the extremes among them, and one that is out of reach."""
    ordered = sorted(set(values))
    return [
        *ordered[:2],
        *ordered[len(ordered) // 2 : len(ordered) // 2 + 2],
        *ordered[-1:],
        *(v - 1 for v in ordered[:1]),
    ]


def check_lowest_latency(problem: Problem, values: list[Value], most_ns: int) -> None:
    """The rate is met, then latency counts, then the plan's worth as everywhere."""
    solution = asked(problem, max_objective_ns=most_ns)
    fit = [value for value in values if value.objective_ns <= most_ns]
    assert (solution is None) == (not fit)
    if solution is not None:
        best = min(fit, key=lambda value: (value.latency_ns, value))
        assert (solution.value, solution.latency_bound_ns) == (best, best.latency_ns)
        assert (solution.status, solution.bound_ns) == ("optimal", best.objective_ns)
        assert evaluate(problem, solution.pipelines) == solution.value


def check_highest_rate(problem: Problem, values: list[Value], most_ns: int) -> None:
    solution = asked(problem, max_latency_ns=most_ns)
    fit = [value for value in values if value.latency_ns <= most_ns]
    assert (solution is None) == (not fit)
    if solution is not None:
        assert solution.value == min(fit)
        assert (solution.status, solution.bound_ns) == ("optimal", min(fit).objective_ns)


@given(dag_problems(most_ops=5, most_devices=4))
def test_every_achievable_rate_and_latency_meets_brute_force(problem: Problem) -> None:
    values = worths(problem)
    for most_ns in some([value.objective_ns for value in values]) if values else ():
        check_lowest_latency(problem, values, most_ns)
    for most_ns in some([value.latency_ns for value in values]) if values else ():
        check_highest_rate(problem, values, most_ns)


@given(dag_problems(most_ops=4, most_devices=2, kinds=2))
def test_two_kinds_of_devices_meet_brute_force(problem: Problem) -> None:
    values = worths(problem, 2)
    for most_ns in some([value.objective_ns for value in values]) if values else ():
        check_lowest_latency(problem, values, most_ns)
    for most_ns in some([value.latency_ns for value in values]) if values else ():
        check_highest_rate(problem, values, most_ns)


@given(dag_problems(most_ops=5, most_devices=3), st.data())
def test_with_both_the_rate_is_met_and_then_the_latency_is_lowest(problem: Problem, data: st.DataObject) -> None:
    values = worths(problem)
    if not values:
        return
    rate, latency = (data.draw(st.sampled_from(sorted({value[k] for value in values}))) for k in (0, 3))
    solution = asked(problem, max_objective_ns=rate, max_latency_ns=latency)
    fit = [value for value in values if value.objective_ns <= rate and value.latency_ns <= latency]
    assert (solution is None) == (not fit)
    if solution is not None:
        assert solution.value == min(fit, key=lambda value: (value.latency_ns, value))


@given(dag_problems(most_ops=5, most_devices=3), st.integers(0, 40), st.integers(1, 8))
def test_a_latency_that_the_optimum_keeps_costs_nothing_however_little_work_is_allowed(
    problem: Problem, pairs: int, down_sets: int
) -> None:
    try:
        free = solve(problem, SolverOptions(max_pipelines=1))
    except InfeasibleError:
        return
    for held in (
        Constraints(max_latency_ns=free.value.latency_ns),
        Constraints(max_objective_ns=free.value.objective_ns),
    ):
        options = SolverOptions(constraints=held)
        within = solve_auto(problem, options, DEFAULT_WORK, PathWork(down_sets=down_sets, pairs=pairs))
        check(problem, within, options)
        if held.max_latency_ns is not None:
            assert (within.value, within.bound_ns) == (free.value, free.bound_ns)
        assert within.value.objective_ns <= free.value.objective_ns


@given(structured(most_ops=5), st.integers(0, 40), st.data())
def test_a_cut_short_search_within_a_latency_states_an_honest_bound(
    problem: Problem, pairs: int, data: st.DataObject
) -> None:
    values = worths(problem)
    if not values:
        return
    most_ns = data.draw(st.sampled_from(sorted({value.latency_ns for value in values})))
    options = SolverOptions(constraints=Constraints(max_latency_ns=most_ns))
    best = min(value for value in values if value.latency_ns <= most_ns)
    try:
        solution = solve_auto(problem, options, DEFAULT_WORK, PathWork(pairs=pairs))
    except NotFoundError:
        return
    check(problem, solution, options)
    assert solution.bound_ns is not None
    assert solution.bound_ns <= best.objective_ns <= solution.value.objective_ns


@settings(max_examples=max(15, settings().max_examples // 4))
@given(structured(most_ops=5), st.data())
def test_cpsat_agrees_with_the_shortest_path(problem: Problem, data: st.DataObject) -> None:
    values = worths(problem)
    if not values:
        return
    rate = data.draw(st.sampled_from(sorted({value.objective_ns for value in values})))
    path, other = (asked(problem, solver, max_objective_ns=rate) for solver in ("shortest-path", "cpsat"))
    assert path is not None
    assert other is not None
    assert path.value.latency_ns == other.value.latency_ns == other.latency_bound_ns


def test_other_constraints_go_to_another_solver() -> None:
    problem = interval_problem((0, 1), {1: Cost(2, 0), 2: Cost(2, 0), 3: Cost(5, 0)}, 2)
    with pytest.raises(ConstraintError, match="no other constraint"):
        solve(problem, SolverOptions(solver="shortest-path", constraints=Constraints(pinned={0: 0})))


@pytest.mark.shared
@pytest.mark.parametrize("n_tpus", [4, pytest.param(8, marks=pytest.mark.wide)])
def test_the_lowest_latency_at_a_camera_rate_is_proven_for_real_models(n_tpus: int) -> None:
    for name in ("ResNet50_int8", "ResNet101_int8", "MobileNetV2_int8"):
        lowest = balance(
            ZOO / f"{name}.tflite",
            n_tpus,
            options=balancer.Options(constraints=Constraints(max_objective_ns=10**9 // 30)),
        )
        assert lowest.solver.status == "optimal"
        assert lowest.predicted.throughput_per_s >= 30
        assert lowest.predicted.latency_ns == lowest.solver.latency_bound_ns
        # No plan that the comparison knows, and that keeps the rate, is quicker.
        rows = [row for row in lowest.comparison if row.throughput_per_s and row.throughput_per_s >= 30]
        assert all(row.latency_ns is not None and row.latency_ns >= lowest.predicted.latency_ns for row in rows)
        held = Constraints(max_latency_ns=lowest.predicted.latency_ns)
        fastest = balance(ZOO / f"{name}.tflite", n_tpus, options=balancer.Options(constraints=held))
        assert fastest.solver.objective_ns == lowest.solver.objective_ns
