"""CP-SAT on devices of several kinds against brute force and the search over down-sets; bounds; graphs too large."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.errors import InfeasibleError
from balancer.solve import Constraints, Problem, Solution, SolverOptions, Value, evaluate, solve, structured_problem
from balancer.solve.bounds import pipeline_bound_ns
from tests.dags import all_pipelines, dag_problems, graphs, structures
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
    return structured_problem(before, devices, known, together=groups, host_ns=draw(st.sampled_from([0, 0, 3])))


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
