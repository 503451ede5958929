"""Small changes of the code that the other tests let through: one property for each, mostly against brute force."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.solve import Cost, Problem, SolverOptions, check, solve
from balancer.solve.allocation import MOST_PARTIAL, Candidate, TieValues, allocate
from balancer.tflite.constant_folding import folded
from balancer.tflite.flatbuffer import Table
from tests.strategies import all_plans, chain_problems, interval_problem


# An interval that misses the period even with the most replicas must not take part in the settling of ties.
@pytest.mark.parametrize("solver", ["chain", "downset"])
@given(chain_problems(most_ops=5, most_devices=4), st.integers(2, 4))
def test_a_replicated_pipeline_of_each_exact_solver_meets_brute_force_in_every_tie(
    solver: str, problem: Problem, replicas: int
) -> None:
    options = SolverOptions(solver=solver, max_pipelines=1, max_replicas=replicas)
    solution = solve(problem, options)
    check(problem, solution, options)
    assert solution.value == min(value for value, _ in all_plans(problem, 1, replicas))


@pytest.mark.parametrize("solver", ["chain", "downset"])
def test_a_segment_that_is_too_slow_does_not_win_a_tie_by_streaming_less(solver: str) -> None:
    costs = {0b1: Cost(6, 9), 0b10: Cost(6, 9), 0b100: Cost(6, 9), 0b11: Cost(12, 9), 0b110: Cost(13, 0)}
    solution = solve(
        interval_problem((0, 1, 2), costs, 3), SolverOptions(solver=solver, max_pipelines=1, max_replicas=2)
    )
    assert solution.value.objective_ns == 6
    assert all(costs[stage.ops].time_ns <= 6 * stage.replicas for stage in solution.pipelines[0].stages)


@pytest.mark.parametrize("stages", [0, -1])
def test_fewer_than_one_stage_is_refused(stages: int) -> None:
    with pytest.raises(ValueError, match="at least one device and one stage"):
        solve(interval_problem((0,), {1: Cost(1, 0)}, 1), SolverOptions(stages=stages))


def test_plans_that_cannot_become_the_fastest_take_no_place_from_others() -> None:
    """Each pipeline streams less than all that are faster, so that none dominates another."""
    count = 2 * MOST_PARTIAL
    candidates = [Candidate(1, Fraction(100 - k), 0, partial(TieValues, count - k, 1)) for k in range(count)]
    allocated = allocate(candidates, 1, None)
    assert allocated.complete
    assert allocated.chosen == (0,)


# Reading and cutting models


@pytest.mark.parametrize(
    ("count", "second", "understood"), [(2, np.int64, True), (3, np.int64, False), (2, np.int32, False)]
)
def test_a_pack_is_folded_if_it_joins_as_many_values_as_it_says_and_all_of_one_type(
    count: int, second: type[np.integer], understood: bool
) -> None:
    values = np.array([1], np.int64), np.array([2], second)
    options = Table("PackOptions", {"values_count": count, "axis": 0})
    made = folded("PACK", values, options, np.dtype(np.int64))
    assert (None if made is None else made.tolist()) == ([[1], [2]] if understood else None)
