"""The baselines: valid, what their publications say, and never better than the best."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import BalancerError
from balancer.ground.opsets import interval_set
from balancer.solve import Problem, SolverOptions, Structure, check, evaluate, solve, structured_problem
from balancer.solve.baselines import BASELINES
from balancer.solve.bisection import bisect_cuts
from balancer.solve.depth_balanced import balanced_cuts, depth_balanced
from balancer.solve.orders import depth_first_order, levels
from tests.dags import dag_problems, graphs, ops_of

if TYPE_CHECKING:
    from balancer.ground.opsets import OpSet
    from balancer.solve import Value


@pytest.mark.parametrize("name", sorted(BASELINES))
@given(problem=dag_problems(most_ops=6))
def test_a_baseline_is_a_valid_pipeline_and_never_better_than_the_best(name: str, problem: Problem) -> None:
    try:
        solution = solve(problem, SolverOptions(solver=name))
    except BalancerError:
        return
    assert solution.value == evaluate(problem, solution.pipelines)
    check(problem, solution)
    assert [stage.replicas for stage in solution.pipelines[0].stages] == [1] * len(solution.pipelines[0].stages)
    best = solve(problem, SolverOptions(solver="downset", max_pipelines=1, max_replicas=1))
    assert best.value.objective_ns <= solution.value.objective_ns


@given(dag_problems(most_ops=6))
def test_exhaustive_is_what_the_chain_finds(problem: Problem) -> None:
    assert _value(problem, "exhaustive") == _value(problem, "chain")


def _value(problem: Problem, solver: str) -> Value | None:
    try:
        return solve(problem, SolverOptions(solver=solver, max_pipelines=1, max_replicas=1)).value
    except BalancerError:
        return None


@given(graphs(8))
def test_orders_are_topological_and_levels_are_depths(before: tuple[OpSet, ...]) -> None:
    order = depth_first_order(before)
    assert sorted(order) == list(range(len(before)))
    done = 0
    for i in order:
        assert not before[i] & ~done
        done |= 1 << i
    parts = levels(before)
    assert sum(parts) == (1 << len(before)) - 1
    for d, ops in enumerate(parts):
        for i in ops_of(ops):
            above = [k for k, part in enumerate(parts) if part & before[i]]
            assert max(above, default=-1) == d - 1


@given(st.lists(st.integers(0, 20), min_size=1, max_size=9), st.integers(1, 5))
def test_balanced_cuts_make_the_largest_segment_smallest(sizes: list[int], segments: int) -> None:
    segments = min(segments, len(sizes))
    cuts = balanced_cuts(sizes, segments)
    assert len(cuts) == segments - 1
    assert all(a < b for a, b in pairwise([0, *cuts, len(sizes)]))

    def largest(inner: tuple[int, ...]) -> int:
        return max(sum(sizes[a:b]) for a, b in pairwise([0, *inner, len(sizes)]))

    every = combinations(range(1, len(sizes)), segments - 1)
    assert largest(tuple(cuts)) == min(largest(inner) for inner in every)


@given(graphs(8), st.data())
def test_refinement_never_ends_with_more_streaming_segments(before: tuple[OpSet, ...], data: st.DataObject) -> None:
    sizes = [data.draw(st.integers(0, 9)) for _ in before]
    room, segments = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 4))

    def streams(ops: OpSet) -> bool:
        return sum(sizes[i] for i in ops_of(ops)) > room

    plain = depth_balanced(before, sizes, segments, lambda ops: False)
    refined = depth_balanced(before, sizes, segments, streams)
    assert len(refined) == len(plain)
    assert sum(map(streams, refined)) <= sum(map(streams, plain))


@given(st.lists(st.integers(1, 50), min_size=2, max_size=9), st.integers(2, 4), st.integers(1, 8))
def test_bisection_comes_within_its_tolerance_where_longer_takes_longer(
    times: list[int], segments: int, tolerance: int
) -> None:
    n, segments = len(times), min(segments, len(times))
    asked: list[tuple[int, int]] = []

    def latency(start: int, end: int) -> int:
        asked.append((start, end))
        return sum(times[start:end])

    first = tuple(range(1, segments))
    found = bisect_cuts(n, segments, latency, first, tolerance_ns=tolerance)
    assert len(asked) == len(set(asked)) == found.measured

    def slowest(cuts: tuple[int, ...]) -> int:
        return max(sum(times[a:b]) for a, b in pairwise([0, *cuts, n]))

    assert found.slowest_ns == slowest(found.cuts) <= slowest(first)
    best = min(slowest(cuts) for cuts in combinations(range(1, n), segments - 1))
    fastest = min(sum(times[a:b]) for a, b in pairwise([0, *first, n]))
    if slowest(first) - fastest > tolerance:
        # Its lower bound is the fastest first segment, which proves nothing where that is above the optimum.
        assert found.slowest_ns <= max(best, fastest) + max(times) + tolerance
    else:
        assert (found.cuts, found.improved, found.rounds) == (first, False, 0)


def test_too_many_partitions_are_refused_by_name() -> None:
    before = tuple((1 << i) >> 1 for i in range(60))
    problem = structured_problem(before, [("tpu", 8)], {"tpu": Structure(stage_ns=0, op_ns=(1,) * 60)})
    with pytest.raises(BalancerError, match="use the solver chain"):
        solve(problem, SolverOptions(solver="exhaustive"))
    assert interval_set(0, 2) == 3
