"""The search over all down-sets against brute force, its bounds, and what must not happen when conditions improve."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.errors import InfeasibleError
from balancer.ground.downsets import DownSets
from balancer.solve import Problem, Solution, SolverOptions, check, evaluate, solve
from balancer.solve.blocks import blocks_of
from balancer.solve.bounds import cut_bounds
from balancer.solve.downset import DownSetWork, solve_downset
from balancer.solve.enumeration import all_downsets
from tests.dags import all_pipelines, best_value, chains, cheapest_ns, dag_problems, graphs, ops_of, structures

if TYPE_CHECKING:
    from balancer.ground.opsets import OpSet


def downset(problem: Problem, **options: object) -> Solution | None:
    try:
        return solve(problem, SolverOptions(solver="downset", **options))  # type: ignore[arg-type]
    except InfeasibleError:
        return None


@given(dag_problems())
def test_one_pipeline_meets_brute_force_over_all_chains_of_downsets_in_every_tie(problem: Problem) -> None:
    solution = downset(problem, max_pipelines=1, max_replicas=1)
    best = best_value(problem, 1, 1)
    assert (solution is None) == (best is None)
    if solution is not None:
        check(problem, solution)
        assert solution.value == best
        assert solution.status == "optimal"


@given(dag_problems(most_ops=5, most_devices=4), st.integers(2, 4))
def test_replicated_stages_meet_brute_force(problem: Problem, replicas: int) -> None:
    solution = downset(problem, max_pipelines=1, max_replicas=replicas)
    best = best_value(problem, 1, replicas)
    assert (solution is None) == (best is None)
    if solution is not None:
        check(problem, solution)
        assert solution.value == best


@given(dag_problems(most_ops=4, most_devices=4), st.integers(2, 4), st.integers(1, 3))
def test_pipelines_side_by_side_meet_brute_force(problem: Problem, pipelines: int, replicas: int) -> None:
    solution = downset(problem, max_pipelines=pipelines, max_replicas=replicas)
    best = best_value(problem, pipelines, replicas)
    assert (solution is None) == (best is None)
    if solution is not None and best is not None:
        check(problem, solution)
        assert solution.value.objective_ns == best.objective_ns
        assert solution.bound_ns == best.objective_ns


@given(dag_problems(most_ops=5, most_devices=2, kinds=2))
def test_devices_of_two_kinds_meet_brute_force(problem: Problem) -> None:
    solution = downset(problem, max_pipelines=1, max_replicas=1)
    best = best_value(problem, 1, 1)
    assert (solution is None) == (best is None)
    if solution is not None and best is not None:
        assert solution.value == best
        assert solution.bound_ns == best.objective_ns


@given(dag_problems(most_ops=5), st.integers(1, 3))
def test_forced_stages_are_exactly_so_many_and_the_best_of_them(problem: Problem, stages: int) -> None:
    roomy = replace(problem, devices=((problem.devices[0][0], stages),))
    values = [evaluate(roomy, [p]) for p in all_pipelines(roomy) if len(p.stages) == stages]
    solution = downset(roomy, stages=stages, max_replicas=1)
    assert (solution is None) == (not values)
    if solution is not None:
        assert solution.value == min(v for v in values if v is not None)
        assert [len(p.stages) for p in solution.pipelines] == [stages]


@given(dag_problems(most_ops=6, most_devices=3))
def test_it_is_never_worse_than_the_chain_nor_with_one_more_device(problem: Problem) -> None:
    kind, count = problem.devices[0]
    here = downset(problem)
    more = downset(replace(problem, devices=((kind, count + 1),)))
    try:
        chain = solve(problem, SolverOptions(solver="chain"))
    except InfeasibleError:
        chain = None
    if chain is not None:
        assert here is not None
        assert here.value.objective_ns <= chain.value.objective_ns
    if here is not None:
        assert more is not None
        assert more.value.objective_ns <= here.value.objective_ns


@given(dag_problems())
def test_the_same_problem_has_the_same_solution(problem: Problem) -> None:
    assert downset(problem) == downset(problem)


@given(graphs(7), st.lists(st.integers(0, 127), max_size=2))
def test_every_downset_is_found_once_after_those_that_it_contains(before: tuple[OpSet, ...], groups: list[int]) -> None:
    n = len(before)
    together = [g & ((1 << n) - 1) for g in groups]
    found = all_downsets(blocks_of(before, together), n, 1000)
    assert found is not None
    sets = [found.set_of(row) for row in range(len(found))]
    whole = [
        s
        for s in range(1 << n)
        if all(not before[i] & ~s for i in ops_of(s)) and all(s & g in (0, g) for g in together)
    ]
    assert sorted(sets) == whole
    assert not any(later & ~earlier == 0 for i, earlier in enumerate(sets) for later in sets[i + 1 :])
    assert sets[0] == 0
    assert sets[-1] == (1 << n) - 1
    assert all_downsets(blocks_of(before, together), n, len(sets) - 1) is None


@given(st.data())
def test_what_is_left_before_and_after_a_cut_takes_at_least_what_the_bounds_say(data: st.DataObject) -> None:
    before = data.draw(graphs(6))
    structure = data.draw(structures(before, relaxed=True))
    for chain in chains(before, 3):
        times = [cheapest_ns(structure, ops) for ops in chain]
        cuts = [sum(chain[:k]) for k in range(len(chain) + 1)]
        bounds = cut_bounds(structure, DownSets.of(cuts, len(before)))
        for k in range(len(cuts)):
            done = sum(t for t in times[:k] if t is not None)
            rest = sum(t for t in times[k:] if t is not None)
            assert k == 0 or bounds.prefix_ns(k)[k] <= done
            assert k == len(chain) or bounds.suffix_ns(len(chain) - k)[k] <= rest


@given(st.lists(st.integers(0, (1 << 130) - 1), min_size=1, max_size=5), st.integers(0, (1 << 130) - 1))
def test_rows_answer_as_the_sets_do(sets: list[int], ops: int) -> None:
    rows = DownSets.of(sets, 130)
    weights = [random.Random(1).randint(0, 1 << 40) for _ in range(130)]
    assert [rows.set_of(k) for k in range(len(sets))] == sets
    assert rows.holds_any(ops).tolist() == [bool(s & ops) for s in sets]
    assert rows.holds_all(ops).tolist() == [not ops & ~s for s in sets]
    assert rows.containing(ops, np.arange(len(sets))).tolist() == [k for k, s in enumerate(sets) if not ops & ~s]
    assert rows.total(weights).tolist() == [sum(weights[i] for i in ops_of(s)) for s in sets]


def test_ops_on_a_cycle_of_groups_become_one_block() -> None:
    # 0 -> 1, 2 -> 3; together {0, 3} and {1, 2}: each group reads from the other.
    blocks = blocks_of((0, 1, 0, 4), [0b1001, 0b0110])
    assert [block.ops for block in blocks] == [0b1111]


@settings(max_examples=30)
@given(dag_problems(most_ops=6))
def test_a_spent_budget_leaves_a_valid_plan_and_an_honest_bound(problem: Problem) -> None:
    best = best_value(problem, 1, 1)
    for work in (0, 5, 20):
        try:
            options = SolverOptions(max_pipelines=1, max_replicas=1)
            solution = solve_downset(problem, options, DownSetWork(pairs=work))
        except InfeasibleError:
            solution = None
        if solution is not None and best is not None:
            check(problem, solution)
            assert (solution.bound_ns or 0) <= best.objective_ns <= solution.value.objective_ns
