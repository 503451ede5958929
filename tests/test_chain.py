"""The chain solver against brute force, its certificates, and what must not happen when conditions improve."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.errors import InfeasibleError
from balancer.solve import Cost, Problem, SolverOptions, check, solve
from tests.strategies import all_partitions, all_plans, chain_problems, interval_problem


def _key(pipeline: object) -> list[int]:
    return [stage.ops for stage in pipeline.stages]  # type: ignore[attr-defined]


@given(chain_problems())
def test_the_best_plan_is_as_good_as_brute_force_over_all_plans(problem: Problem) -> None:
    solution = solve(problem, SolverOptions(max_replicas=1))
    check(problem, solution, SolverOptions(max_replicas=1))
    best = min(value for value, _ in all_plans(problem))
    assert solution.value.objective_ns == best.objective_ns
    assert solution.value.devices == best.devices
    assert solution.bound_ns == best.objective_ns


# Ties in the last respects are rare: more examples, whatever the profile.
@settings(max_examples=5 * settings().max_examples)
@given(chain_problems(most_ops=7, most_devices=4))
def test_one_pipeline_meets_brute_force_in_every_tie(problem: Problem) -> None:
    solution = solve(problem, SolverOptions(max_pipelines=1, max_replicas=1))
    check(problem, solution, SolverOptions(max_pipelines=1, max_replicas=1))
    plans = all_plans(problem, most_pipelines=1)
    best = min(value for value, _ in plans)
    assert solution.value == best
    # Ops are compared as lists of indices: a segment that ends earlier comes first.
    ties = [plan[0] for value, plan in plans if value == best]
    first = min(ties, key=lambda p: [[i for i in range(problem.n_ops) if s >> i & 1] for s in _key(p)])
    assert _key(solution.pipelines[0]) == _key(first)


def test_of_equally_fast_partitions_the_one_that_streams_least_wins_and_only_then_the_one_of_least_latency() -> None:
    costs = {1: Cost(9, 5), 0b110: Cost(2, 0), 0b011: Cost(9, 1), 0b100: Cost(7, 0), 0b111: Cost(30, 0)}
    solution = solve(interval_problem((0, 1, 2), costs, 2), SolverOptions(max_pipelines=1))
    assert _key(solution.pipelines[0]) == [0b011, 0b100]
    less = interval_problem((0, 1, 2), costs | {1: Cost(9, 1)}, 2)
    assert _key(solve(less, SolverOptions(max_pipelines=1)).pipelines[0]) == [1, 0b110]


def test_of_partitions_equal_in_all_respects_the_one_cut_earliest_wins() -> None:
    costs = dict.fromkeys([1, 0b110, 0b011, 0b100], Cost(9, 1)) | {0b111: Cost(30, 0)}
    solution = solve(interval_problem((0, 1, 2), costs, 2), SolverOptions(max_pipelines=1))
    assert _key(solution.pipelines[0]) == [1, 0b110]


@given(chain_problems(most_ops=6), st.integers(1, 6))
def test_forced_stages_are_exactly_so_many_and_the_best_of_them(problem: Problem, stages: int) -> None:
    roomy = replace(problem, devices=(("tpu", stages),))
    partitions = [p for p in all_partitions(roomy) if len(p.stages) == stages]
    if not partitions:
        with pytest.raises(InfeasibleError):
            solve(roomy, SolverOptions(stages=stages, max_replicas=1))
        return
    solution = solve(roomy, SolverOptions(stages=stages, max_replicas=1))
    check(roomy, solution, SolverOptions(stages=stages, max_replicas=1))
    assert [len(p.stages) for p in solution.pipelines] == [stages]
    plans = [v for v, plan in all_plans(roomy, 1) if len(plan[0].stages) == stages]
    assert solution.value == min(plans)


@given(chain_problems())
def test_one_more_device_never_lowers_the_rate(problem: Problem) -> None:
    kind, count = problem.devices[0]
    more = replace(problem, devices=((kind, count + 1),))
    assert solve(more).value.objective_ns <= solve(problem).value.objective_ns


@given(chain_problems(), st.integers(1, 3))
def test_a_limit_on_pipelines_is_kept_and_used_well(problem: Problem, most: int) -> None:
    solution = solve(problem, SolverOptions(max_pipelines=most, max_replicas=1))
    check(problem, solution, SolverOptions(max_pipelines=most, max_replicas=1))
    assert len(solution.pipelines) <= most
    assert solution.value.objective_ns == min(v for v, _ in all_plans(problem, most)).objective_ns


@given(chain_problems())
def test_the_same_problem_has_the_same_solution(problem: Problem) -> None:
    assert solve(problem) == solve(problem)


def test_a_problem_without_allowed_segments_is_infeasible() -> None:
    with pytest.raises(InfeasibleError, match="no partition is allowed"):
        solve(interval_problem((0, 1), {}, 2))


@given(chain_problems(most_ops=4, most_devices=5), st.integers(1, 3), st.sampled_from([None, 1, 2]))
def test_replicas_and_pipelines_are_as_good_as_brute_force_over_all_allocations(
    problem: Problem, replicas: int, pipelines: int | None
) -> None:
    solution = solve(problem, SolverOptions(max_replicas=replicas, max_pipelines=pipelines))
    check(problem, solution, SolverOptions(max_replicas=replicas, max_pipelines=pipelines))
    assert all(stage.replicas <= replicas for p in solution.pipelines for stage in p.stages)
    best = min(value for value, _ in all_plans(problem, pipelines, replicas))
    assert solution.value.objective_ns == best.objective_ns
    assert solution.value.devices == best.devices
    if pipelines == 1:
        assert solution.value == best


@given(chain_problems(most_ops=5, most_devices=6))
def test_one_replicated_pipeline_meets_brute_force_in_every_tie(problem: Problem) -> None:
    solution = solve(problem, SolverOptions(max_pipelines=1, max_replicas=6))
    check(problem, solution, SolverOptions(max_pipelines=1, max_replicas=6))
    assert solution.value == min(value for value, _ in all_plans(problem, 1, 6))


@given(chain_problems(most_devices=5))
def test_copies_are_pipelines_never_one_replicated_stage(problem: Problem) -> None:
    for pipeline in solve(problem).pipelines:
        assert len(pipeline.stages) > 1 or pipeline.stages[0].replicas == 1
