"""Claims of optimality that were once false: one stage with replicas is one pipeline; any replicas are any at all."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import balancer
from balancer.errors import InfeasibleError
from balancer.solve import Cost, Problem, Solution, SolverOptions, check, evaluate, solve
from balancer.solve.periods import MOST_REPLICAS, exact_period, longest_ns
from tests.dags import all_pipelines, best_value, dag_problems
from tests.shared import ZOO
from tests.strategies import all_plans, chain_problems, interval_problem
from tests.test_cpsat import structured


def _solved(problem: Problem, **options: object) -> Solution | None:
    try:
        return solve(problem, SolverOptions(**options))  # type: ignore[arg-type]
    except InfeasibleError:
        return None


@given(dag_problems(most_ops=5, most_devices=4), st.sampled_from(["auto", "downset"]), st.integers(1, 3))
def test_with_any_replicas_and_few_pipelines_the_optimum_is_that_of_brute_force(
    problem: Problem, solver: str, pipelines: int
) -> None:
    solution = _solved(problem, solver=solver, max_pipelines=pipelines)
    best = best_value(problem, pipelines, 4)
    assert (solution is None) == (best is None)
    if solution is not None and best is not None:
        check(problem, solution)
        assert solution.status == "optimal"
        assert solution.value.objective_ns == best.objective_ns
        if pipelines == 1:
            assert solution.value == best


@given(chain_problems(most_ops=5, most_devices=4), st.integers(1, 3))
def test_the_chain_counts_one_stage_with_replicas_as_one_pipeline(problem: Problem, pipelines: int) -> None:
    solution = solve(problem, SolverOptions(solver="chain", max_pipelines=pipelines))
    check(problem, solution, SolverOptions(solver="chain", max_pipelines=pipelines))
    best = min(value for value, _ in all_plans(problem, pipelines, 4))
    assert solution.value.objective_ns == best.objective_ns == solution.bound_ns


@settings(max_examples=max(15, settings().max_examples // 4))
@given(structured(most_ops=4, most_devices=4))
def test_cpsat_counts_one_stage_with_replicas_as_one_pipeline(problem: Problem) -> None:
    solution = _solved(problem, solver="cpsat")
    best = best_value(problem, 1, 4)
    assert (solution is None) == (best is None)
    if solution is not None and best is not None:
        check(problem, solution)
        assert solution.value.objective_ns == best.objective_ns == solution.bound_ns


@pytest.mark.parametrize("solver", ["auto", "chain", "downset"])
def test_any_replicas_are_any_number_of_them(solver: str) -> None:
    """Two ops of 100 and 3,100 ns on 32 devices: 31 replicas of the second keep up with the first."""
    costs = {1: Cost(100, 0), 2: Cost(3100, 0), 3: Cost(6400, 0)}
    solution = solve(interval_problem((0, 1), costs, 32), SolverOptions(solver=solver, max_pipelines=1))
    assert (solution.value.objective_ns, solution.bound_ns) == (100, 100)
    assert [stage.replicas for stage in solution.pipelines[0].stages] == [1, 31]


@given(st.integers(1, longest_ns(MOST_REPLICAS)), st.integers(1, 32), st.integers(1, 32), st.integers(-40, 40))
def test_periods_compare_as_their_fractions_do(time_ns: int, first: int, second: int, off: int) -> None:
    other_ns = min(max(1, time_ns * second // first + off), longest_ns(MOST_REPLICAS))
    a, b = Fraction(time_ns, first), Fraction(other_ns, second)
    assert (time_ns / first < other_ns / second, time_ns / first == other_ns / second) == (a < b, a == b)
    assert exact_period(time_ns / first, MOST_REPLICAS) == a


@pytest.mark.shared
def test_one_pipeline_of_a_model_that_fits_is_its_copies() -> None:
    from balancer import balance

    path = ZOO / "MobileNetV2_int8.tflite"
    one, restricted = (balance(path, 4, options=balancer.Options(pipelines=1, replicas=r)) for r in (None, 4))
    assert one.solver.objective_ns == restricted.solver.objective_ns
    assert [[stage.replicas for stage in p.stages] for p in one.pipelines] == [[4]]


@given(dag_problems(most_ops=4, most_devices=4), st.integers(1, 3), st.integers(1, 30))
def test_forced_stages_under_a_slow_host_are_the_best_of_them(problem: Problem, stages: int, host_ns: int) -> None:
    slow = replace(problem, host_ns=host_ns)
    values = [v for p in all_pipelines(slow, 4) if len(p.stages) == stages and (v := evaluate(slow, [p])) is not None]
    solution = _solved(slow, stages=stages)
    assert (solution is None) == (not values)
    if solution is not None:
        assert solution.value == min(values)
