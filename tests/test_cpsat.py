"""CP-SAT on structured costs, with constraints, against brute force; and the structured costs themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.errors import InfeasibleError
from balancer.solve import (
    Constraints,
    PipelineSpec,
    Problem,
    Solution,
    SolverOptions,
    Structure,
    Transfer,
    check,
    evaluate,
    solve,
    structured_problem,
)
from balancer.solve.blocks import blocks_of
from balancer.solve.enumeration import all_downsets
from tests.dags import all_pipelines, dag_problems, graphs, ops_of, structured_ns, structures
from tests.strategies import looped_batch

if TYPE_CHECKING:
    from collections.abc import Callable

# A model is built and solved for each number of stages: fewer examples than elsewhere.
FEWER = settings(max_examples=max(15, settings().max_examples // 4))


@st.composite
def structured(draw: Callable[[Any], Any], most_ops: int = 6, most_devices: int = 3) -> Problem:
    before = draw(graphs(most_ops))
    known = draw(structures(before))
    if draw(st.booleans()):
        sizes = tuple(draw(st.integers(0, 4)) for _ in before)
        known = replace(known, op_bytes=sizes, limit_bytes=draw(st.integers(2, 12)))
    if draw(st.integers(0, 4)) == 0:
        known = replace(known, op_ns=(None, *known.op_ns[1:]))
    devices = draw(st.integers(1, most_devices))
    problem = structured_problem(before, [("tpu", devices)], {"tpu": known}, host_ns=draw(st.sampled_from([0, 0, 4])))
    return replace(
        problem, op_bytes=tuple(draw(st.integers(0, 5)) for _ in before), handover_ns=draw(st.sampled_from([0, 3]))
    )


@st.composite
def constraints(draw: Callable[[Any], Any], n: int, stages: int) -> Constraints:
    maybe = st.none() | st.integers(0, 3)
    op, stage = st.integers(0, n - 1), st.integers(0, stages - 1)
    return Constraints(
        pinned=draw(st.dictionaries(op, stage, max_size=1)),
        kept_from=frozenset(draw(st.sets(st.tuples(op, stage), max_size=2))),
        together=tuple(draw(st.lists(st.integers(1, (1 << n) - 1), max_size=1))),
        max_boundary_tensors=draw(maybe),
        max_segment_bytes=draw(st.none() | st.integers(3, 15)),
        max_latency_ns=draw(st.none() | st.integers(10, 200)),
    )


def keeps(problem: Problem, pipeline: PipelineSpec, held: Constraints) -> bool:
    """The constraints by their words."""
    sets = [stage.ops for stage in pipeline.stages]
    at = {i: j for j, ops in enumerate(sets) for i in ops_of(ops)}
    value = evaluate(problem, [pipeline])
    assert value is not None
    crossing = [
        [t for t in problem.structures["tpu"].transfers if t.producer is not None
         and at[t.producer] <= j and any(at[r] > j for r in t.readers)]
        for j in range(len(sets) - 1)
    ]  # fmt: skip
    return (
        all(at[i] == j for i, j in held.pinned.items())
        and all(at[i] != j for i, j in held.kept_from)
        and all(len({at[i] for i in ops_of(group)}) == 1 for group in held.together)
        and (held.max_boundary_tensors is None or all(len(c) <= held.max_boundary_tensors for c in crossing))
        and (held.max_boundary_bytes is None
             or all(sum(t.size_bytes for t in c) <= held.max_boundary_bytes for c in crossing))
        and (held.max_segment_bytes is None
             or all(sum(problem.op_bytes[i] for i in ops_of(s)) <= held.max_segment_bytes for s in sets))
        and (held.max_latency_ns is None or value.latency_ns <= held.max_latency_ns)
        and (held.max_objective_ns is None or value.objective_ns <= held.max_objective_ns)
    )  # fmt: skip


def cpsat(problem: Problem, **options: Any) -> Solution | None:
    try:
        return solve(problem, SolverOptions(solver="cpsat", **options))
    except InfeasibleError:
        return None


@FEWER
@given(structured())
def test_without_constraints_it_meets_brute_force_and_the_search_over_downsets(problem: Problem) -> None:
    solution = cpsat(problem, max_replicas=1)
    values = [v for p in all_pipelines(problem) if (v := evaluate(problem, [p])) is not None]
    assert (solution is None) == (not values)
    if solution is not None:
        check(problem, solution)
        assert solution.value == min(values)
        assert solution.bound_ns == min(values).objective_ns
        downset = solve(problem, SolverOptions(solver="downset", max_pipelines=1, max_replicas=1))
        assert downset.value.objective_ns == solution.value.objective_ns


@FEWER
@given(structured(most_ops=5, most_devices=4), st.integers(2, 3))
def test_replicated_stages_meet_brute_force(problem: Problem, replicas: int) -> None:
    solution = cpsat(problem, max_replicas=replicas)
    values = [v for p in all_pipelines(problem, replicas) if (v := evaluate(problem, [p])) is not None]
    assert (solution is None) == (not values)
    if solution is not None:
        check(problem, solution)
        assert solution.value == min(values)
        assert solution.bound_ns == min(values).objective_ns


@FEWER
@given(st.data(), structured())
def test_under_constraints_it_meets_brute_force(data: st.DataObject, problem: Problem) -> None:
    held = data.draw(constraints(problem.n_ops, problem.devices[0][1]))
    solution = cpsat(problem, max_replicas=1, constraints=held)
    kept = [p for p in all_pipelines(problem) if keeps(problem, p, held)]
    assert (solution is None) == (not kept)
    if solution is not None:
        assert keeps(problem, solution.pipelines[0], held)
        best = min(v for p in kept if (v := evaluate(problem, [p])) is not None)
        assert solution.value == best
        assert solution.bound_ns == best.objective_ns


@FEWER
@given(structured(), st.integers(20, 120))
def test_the_lowest_latency_at_a_given_rate_meets_brute_force(problem: Problem, most_ns: int) -> None:
    held = Constraints(max_objective_ns=most_ns)
    solution = cpsat(problem, max_replicas=1, constraints=held)
    latencies = [
        v.latency_ns
        for p in all_pipelines(problem)
        if (v := evaluate(problem, [p])) is not None and v.objective_ns <= most_ns
    ]
    assert (solution is None) == (not latencies)
    if solution is not None:
        assert solution.value.latency_ns == min(latencies) == solution.latency_bound_ns
        assert (solution.bound_ns or 0) <= solution.value.objective_ns <= most_ns


@FEWER
@given(dag_problems(most_ops=5, most_devices=3))
def test_where_costs_are_above_the_structure_the_bound_stays_honest(problem: Problem) -> None:
    if not problem.structures:
        return
    solution = cpsat(problem, max_replicas=1)
    values = [v for p in all_pipelines(problem) if (v := evaluate(problem, [p])) is not None]
    if solution is not None:
        check(problem, solution)
        assert (solution.bound_ns or 0) <= min(values).objective_ns <= solution.value.objective_ns
        if solution.status == "optimal":
            assert solution.value.objective_ns == min(values).objective_ns


@FEWER
@given(structured())
def test_the_same_problem_has_the_same_solution(problem: Problem) -> None:
    assert cpsat(problem) == cpsat(problem)


@given(structured(most_ops=7))
def test_structured_costs_are_their_formula_alone_and_in_batches(problem: Problem) -> None:
    structure = problem.structures["tpu"]
    for ops in range(1, 1 << problem.n_ops):
        time, cost = structured_ns(structure, ops), problem.exact(ops, "tpu")
        assert (time is None) == (cost is None)
        assert cost is None or cost.time_ns == time
        assert cost is None or problem.lower(ops, "tpu") <= cost.time_ns
    sets = all_downsets(blocks_of(problem.before, []), problem.n_ops, 1000)
    assert sets is not None
    later = [(a, np.arange(a + 1, len(sets))) for a in range(len(sets))]
    inner, outer = np.transpose([(a, b) for a, rows in later for b in sets.containing(sets.set_of(a), rows)])
    fast = problem.batch(sets, "tpu")(inner, outer)
    slow = looped_batch(problem.exact)(sets, "tpu")(inner, outer)
    assert fast.allowed.tolist() == slow.allowed.tolist()
    for column in (0, 1):
        assert fast[column][fast.allowed].tolist() == slow[column][slow.allowed].tolist()


def test_a_graph_too_large_to_enumerate_is_solved_and_proven_all_the_same() -> None:
    # 21 independent pairs, first all producers, then all readers: 3^21 down-sets, and an order that is no help.
    pairs = 21
    structure = Structure(
        stage_ns=10,
        op_ns=(100,) * (2 * pairs),
        transfers=tuple(Transfer(i, (i + pairs,), leaves=False, receive_ns=30, send_ns=20) for i in range(pairs)),
    )
    before = tuple(1 << (i - pairs) if i >= pairs else 0 for i in range(2 * pairs))
    problem = structured_problem(before, [("tpu", 3)], {"tpu": structure})
    for pipelines in (1, None):
        options = SolverOptions(max_pipelines=pipelines, max_replicas=1)
        solution = solve(problem, options)
        check(problem, solution)
        assert solution.status == "optimal"
        chain = solve(problem, replace(options, solver="chain"))
        assert solution.value.objective_ns <= chain.value.objective_ns
        limited = solve(problem, replace(options, solver="downset"))
        assert limited.statistics["down_sets_left_out"] == 1
        assert (limited.bound_ns or 0) <= solution.value.objective_ns <= limited.value.objective_ns
    alone = solve(problem, SolverOptions(max_pipelines=1, max_replicas=1))
    assert (alone.solver, alone.value.objective_ns) == ("cpsat", 10 + 14 * 100)
