"""Devices of several kinds: plans of several pipelines, shared resources, and CP-SAT against brute force; bounds."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.errors import InfeasibleError
from balancer.ground.programs import highest_gain
from balancer.ground.rates import shared_rates
from balancer.ground.units import NS_PER_S
from balancer.solve import (
    Constraints,
    Problem,
    Solution,
    SolverOptions,
    Value,
    check,
    evaluate,
    solve,
    structured_problem,
)
from balancer.solve.bounds import pipeline_bound_ns
from balancer.solve.downset import DownSetWork, solve_downset
from balancer.solve.plan_bounds import plan_bounds
from balancer.solve.priced_bounds import priced_bounds
from balancer.solve.sizes import stage_classes
from tests.dags import all_pipelines, best_value, dag_problems, graphs, structures
from tests.test_folding import cheap_structures

if TYPE_CHECKING:
    from collections.abc import Callable

FEWER = settings(max_examples=max(15, settings().max_examples // 4))


@st.composite
def mixed_problems(draw: Callable[[Any], Any], most_ops: int = 5, most_devices: int = 2, kinds: int = 2) -> Problem:
    before = draw(graphs(most_ops))
    devices = [(f"kind{k}", draw(st.integers(1, most_devices))) for k in range(kinds)]
    known = {}
    for name, _ in devices:
        structure = draw(st.one_of(structures(before), cheap_structures(before)))
        if draw(st.integers(0, 3)) == 0:
            sizes = tuple(draw(st.integers(0, 4)) for _ in before)
            structure = replace(structure, op_bytes=sizes, limit_bytes=draw(st.integers(2, 12)))
        if draw(st.integers(0, 3)) == 0:
            structure = replace(structure, op_ns=(None, *structure.op_ns[1:]))
        known[name] = structure
    if draw(st.integers(0, 4)) == 0:
        known = dict.fromkeys(known, known["kind0"])
    groups = draw(st.lists(st.integers(1, (1 << len(before)) - 1), max_size=1)) if draw(st.booleans()) else []
    return structured_problem(
        before, devices, known, together=groups, host_ns={name: draw(st.sampled_from([0, 0, 3])) for name in known}
    )


def solved(problem: Problem, solver: str, **options: Any) -> Solution | None:
    try:
        return solve(problem, SolverOptions(solver=solver, max_pipelines=1, **options))
    except InfeasibleError:
        return None


def values(problem: Problem, replicas: int = 1) -> list[Value]:
    """Of all pipelines that keep together what must be."""
    found = [
        evaluate(problem, [p])
        for p in all_pipelines(problem, replicas)
        if all(s.ops & group in (0, group) for s in p.stages for group in problem.together)
    ]
    return [value for value in found if value is not None]


@FEWER
@given(mixed_problems(), st.sampled_from(["auto", "downset", "cpsat"]))
def test_on_two_kinds_every_solver_meets_brute_force(problem: Problem, solver: str) -> None:
    solution, found = solved(problem, solver, max_replicas=1), values(problem)
    assert (solution is None) == (not found)
    if solution is not None:
        assert solution.value == evaluate(problem, solution.pipelines)
        assert solution.value.objective_ns == min(found).objective_ns == solution.bound_ns


@FEWER
@given(mixed_problems(most_ops=4, most_devices=3), st.integers(2, 3))
def test_on_two_kinds_with_replicas_cpsat_meets_brute_force(problem: Problem, most: int) -> None:
    solution = solved(problem, "cpsat", max_replicas=most)
    found = values(problem, most)
    assert (solution is None) == (not found)
    if solution is not None:
        assert solution.value.objective_ns == min(found).objective_ns == solution.bound_ns


@FEWER
@given(mixed_problems(most_ops=4, most_devices=1, kinds=3))
def test_on_three_kinds_cpsat_meets_brute_force(problem: Problem) -> None:
    solution, found = solved(problem, "cpsat", max_replicas=1), values(problem)
    assert (solution is None) == (not found)
    if solution is not None:
        assert solution.value.objective_ns == min(found).objective_ns == solution.bound_ns


@FEWER
@given(mixed_problems(), st.data())
def test_on_two_kinds_constraints_are_kept_and_the_best_is_found(problem: Problem, data: st.DataObject) -> None:
    op, stage = data.draw(st.integers(0, problem.n_ops - 1)), data.draw(st.integers(0, 2))
    solution = solved(problem, "cpsat", max_replicas=1, constraints=Constraints(pinned={op: stage}))
    kept = [
        evaluate(problem, [p])
        for p in all_pipelines(problem)
        if len(p.stages) > stage
        and p.stages[stage].ops >> op & 1
        and all(s.ops & group in (0, group) for s in p.stages for group in problem.together)
    ]
    found = [value for value in kept if value is not None]
    assert (solution is None) == (not found)
    if solution is not None:
        assert solution.pipelines[0].stages[stage].ops >> op & 1
        assert solution.value.objective_ns == min(found).objective_ns == solution.bound_ns


@FEWER
@given(dag_problems(most_ops=4, most_devices=2, kinds=2))
def test_where_costs_are_above_the_structures_the_bound_stays_honest(problem: Problem) -> None:
    if problem.structures:
        solution, found = solved(problem, "cpsat", max_replicas=1), values(problem)
        if solution is not None:
            assert (solution.bound_ns or 0) <= min(found).objective_ns <= solution.value.objective_ns


@given(st.one_of(mixed_problems(), mixed_problems(most_ops=4, most_devices=1, kinds=3)), st.integers(1, 3))
def test_no_pipeline_is_faster_than_the_bound_for_its_stages_and_devices(problem: Problem, replicas: int) -> None:
    for pipeline in all_pipelines(problem, replicas):
        if all(s.ops & group in (0, group) for s in pipeline.stages for group in problem.together):
            value = evaluate(problem, [pipeline])
            assert value is not None
            bound = pipeline_bound_ns(problem, len(pipeline.stages), pipeline.devices, replicas)
            assert bound <= value.objective_ns


@st.composite
def fleets(draw: Callable[[Any], Any]) -> tuple[Problem, SolverOptions]:
    """Problems on two or three kinds with host work, hand-overs and reluctant kinds of their own, in half of them with shared
    resources; with how many pipelines and replicas a plan may have.
    """
    ops, most, kinds = draw(st.sampled_from([(4, 2, 2), (3, 4, 2), (3, 2, 3), (2, 3, 3)]))
    problem = draw(dag_problems(most_ops=ops, most_devices=most, kinds=kinds, sharing=draw(st.sampled_from([0, 2]))))
    pipelines, replicas = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return problem, SolverOptions(max_pipelines=pipelines, max_replicas=replicas)


def meets_brute_force(problem: Problem, options: SolverOptions) -> None:
    best = best_value(problem, options.max_pipelines or 1, options.max_replicas or 1)
    try:
        solution = solve(problem, options)
    except InfeasibleError:
        assert best is None
        return
    assert best is not None
    check(problem, solution, options)
    assert (solution.value, solution.bound_ns) == (best, best.objective_ns)


@settings(max_examples=max(60, settings().max_examples))
@given(fleets())
def test_plans_on_several_kinds_meet_brute_force_in_every_tie(drawn: tuple[Problem, SolverOptions]) -> None:
    meets_brute_force(*drawn)


@pytest.mark.wide
@settings(max_examples=1000)
@given(fleets())
def test_a_thousand_plans_on_several_kinds_meet_brute_force(drawn: tuple[Problem, SolverOptions]) -> None:
    meets_brute_force(*drawn)


@FEWER
@given(dag_problems(most_ops=4, most_devices=3, sharing=2), st.integers(1, 3))
def test_what_devices_of_one_kind_share_limits_them_as_brute_force_says(problem: Problem, pipelines: int) -> None:
    if problem.shared:
        meets_brute_force(problem, SolverOptions(max_pipelines=pipelines, max_replicas=2))


@FEWER
@given(fleets(), st.sampled_from([0, 4, 40, 400]))
def test_a_spent_budget_leaves_a_valid_plan_on_several_kinds_and_an_honest_bound(
    drawn: tuple[Problem, SolverOptions], pairs: int
) -> None:
    problem, options = drawn
    best = best_value(problem, options.max_pipelines or 1, options.max_replicas or 1)
    try:
        solution = solve_downset(problem, options, DownSetWork(pairs=pairs))
    except InfeasibleError:
        return
    assert best is not None
    check(problem, solution, options)
    assert (solution.bound_ns or 0) <= best.objective_ns <= solution.value.objective_ns


@FEWER
@given(mixed_problems(most_ops=4, most_devices=3), st.integers(1, 3))
def test_no_pipeline_has_a_shorter_period_than_the_bound_for_its_devices(problem: Problem, replicas: int) -> None:
    bounds = plan_bounds(problem, 2, replicas, may_replicate_whole=True, priced=priced_bounds(problem))
    classes = stage_classes(problem)
    for pipeline in all_pipelines(problem, replicas):
        costs = [(problem.exact(stage.ops, stage.kind), stage.replicas) for stage in pipeline.stages]
        period_ns = max(cost.time_ns / r for cost, r in costs if cost is not None)
        kinds = [kind for kind, _ in problem.devices]
        stages = classes.counts(tuple(sum(s.kind == kind for s in pipeline.stages) for kind in kinds))
        devices = tuple(sum(s.replicas for s in pipeline.stages if s.kind == kind) for kind in kinds)
        # The host's work counts as if it were part of the period, in whole ns.
        period_ns = max(math.ceil(period_ns), classes.work_ns(stages))
        assert bounds.least_ns[bounds.stages.number(stages), bounds.devices.number(devices)] <= period_ns


RATES = st.lists(st.integers(1, 40).map(lambda ns: Fraction(NS_PER_S, ns)), min_size=1, max_size=5)


@given(RATES, st.lists(st.integers(1, 3), min_size=1, max_size=3), st.data())
def test_shared_resources_are_used_in_full_before_the_rate_is_lowered(
    rates: list[Fraction], capacities: list[int], data: st.DataObject
) -> None:
    """Strong duality: prices of the resources prove that no rates with a higher sum keep the limits."""
    takes = st.lists(st.sampled_from([0, 1, 5, 9, 20]), min_size=len(capacities), max_size=len(capacities))
    work = [data.draw(takes) for _ in rates]
    served = shared_rates(rates, work, capacities)
    assert all(0 <= own <= most for own, most in zip(served, rates, strict=True))
    limits = [Fraction(capacity * NS_PER_S) for capacity in capacities]
    for k, limit in enumerate(limits):
        assert sum(rate * own[k] for rate, own in zip(served, work, strict=True)) <= limit
    n = len(rates)
    rows = [[Fraction(own[k]) for own in work] for k in range(len(capacities))]
    rows += [[Fraction(i == j) for j in range(n)] for i in range(n)]
    prices = highest_gain([Fraction(1)] * n, rows, [*limits, *rates]).prices
    assert all(price >= 0 for price in prices)
    assert all(sum(p * row[j] for p, row in zip(prices, rows, strict=True)) >= 1 for j in range(n))
    assert sum(served) == sum(p * limit for p, limit in zip(prices, [*limits, *rates], strict=True))
