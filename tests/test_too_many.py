"""Graphs with too many down-sets: what is found stands, bounds are honest, and `auto` goes on with CP-SAT."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.cost.batch import SegmentBatch
from balancer.cost.hardware import load_hardware
from balancer.cost.segment import SegmentCosts
from balancer.errors import InfeasibleError
from balancer.ground.downsets import DownSets
from balancer.solve import Problem, Solution, SolverOptions, check, evaluate, solve
from balancer.solve.auto import solve_auto
from balancer.solve.block_folding import folded
from balancer.solve.blocks import blocks_of
from balancer.solve.downset import DownSetWork, solve_downset
from balancer.solve.downset_sampling import sampled_downsets
from balancer.solve.enumeration import all_downsets
from balancer.solve.structure import Structure, Transfer
from balancer.solve.structured import structured_problem
from balancer.tflite import synth
from balancer.tflite.read import read_graph
from tests.dags import best_value, dag_problems, graphs, ops_of
from tests.test_kinds import FEWER, mixed_problems, values


def with_few_allowed(problem: Problem, options: SolverOptions) -> Solution | None:
    """Solved as if more than three down-sets were too many to enumerate."""
    solver = solve_downset if options.solver == "downset" else solve_auto
    try:
        return solver(problem, options, DownSetWork(down_sets=3, sampled_down_sets=4))
    except InfeasibleError:
        return None


@given(dag_problems(most_ops=4, most_devices=4), st.integers(1, 3))
def test_the_bound_of_a_search_that_left_down_sets_out_is_honest(problem: Problem, pipelines: int) -> None:
    options = SolverOptions(solver="downset", max_pipelines=pipelines, max_replicas=1)
    solution, best = with_few_allowed(problem, options), best_value(problem, pipelines, 1)
    if solution is not None and best is not None:
        check(problem, solution)
        assert (solution.bound_ns or 0) <= best.objective_ns <= solution.value.objective_ns


@FEWER
@given(mixed_problems())
def test_on_two_kinds_auto_proves_the_best_all_the_same(problem: Problem) -> None:
    solution, found = with_few_allowed(problem, SolverOptions(max_pipelines=1, max_replicas=1)), values(problem)
    assert (solution is None) == (not found)
    if solution is not None:
        assert solution.value == evaluate(problem, solution.pipelines)
        assert solution.value.objective_ns == min(found).objective_ns == solution.bound_ns


@given(graphs(8), st.integers(1, 40))
def test_sampled_sets_are_down_sets_in_order(before: tuple[int, ...], most: int) -> None:
    problem = structured_problem(before, [("tpu", 1)], {"tpu": Structure(stage_ns=0, op_ns=(1,) * len(before))})
    rows = sampled_downsets(problem, most)
    sets = [rows.set_of(row) for row in range(len(rows))]
    assert len(sets) == len(set(sets)) <= max(most, len(before) + 1)
    assert all(not before[i] & ~s for s in sets for i in ops_of(s))
    assert (sets[0], sets[-1]) == (0, (1 << len(before)) - 1)
    assert not any(later & ~earlier == 0 for i, earlier in enumerate(sets) for later in sets[i + 1 :])


def test_no_segments_cost_nothing() -> None:
    problem = structured_problem((0, 1), [("tpu", 1)], {"tpu": Structure(stage_ns=0, op_ns=(1, 1))})
    none = np.zeros(0, np.int64)
    costs = problem.batch(DownSets.of([0, 1, 3], 2), "tpu")(none, none)
    assert [len(column) for column in costs if column is not None] == [0, 0, 0]


def decoder(steps: int) -> Problem:
    """Recurrent cells in two rows under one attention, after the shape of a translation network (`gnmt` of Tarnawski et
    al. 2020): each cell gives a state that nobody reads, and takes tensors that cost nothing. On accelerators and a CPU.
    """
    before: list[int] = []
    times: list[int] = []

    def op(ns: int, *reads: int) -> int:
        before.append(sum(1 << i for i in reads))
        times.append(ns)
        return len(before) - 1

    mask, start = op(0), op(0)
    cell = op(14_000, start)
    for _ in range(steps):
        state, hidden = op(0, cell), op(0, cell)
        cell = op(7_000 + state, op(120, hidden))
    attention = op(0, cell)
    for _ in range(steps):
        state, hidden, masked = op(0, cell), op(0, cell), op(0, mask)
        cell = op(10_000 + state, op(0, op(110, hidden), attention), masked)
    n = len(before)
    send = [0 if i in (mask, start) or before[i] == 1 << mask else 6 for i in range(n)]
    readers = [tuple(r for r in range(n) if before[r] >> i & 1) for i in range(n)]
    transfers = tuple(Transfer(i, readers[i], False, send[i], send[i]) for i in range(n) if readers[i])
    accelerator = Structure(stage_ns=0, op_ns=tuple(times), transfers=transfers, op_bytes=(1,) * n, limit_bytes=10 * n)
    cpu = Structure(stage_ns=0, op_ns=tuple(10 * ns for ns in times))
    return structured_problem(before, [("accelerator", 3), ("cpu", 1)], {"accelerator": accelerator, "cpu": cpu})


def test_a_graph_with_more_than_two_million_down_sets_folds_to_few_and_is_proven() -> None:
    problem = decoder(12)
    count = all_downsets(blocks_of(problem.before, problem.together), problem.n_ops, 2_000_000)
    assert count is None
    smaller = folded(problem, SolverOptions())
    few = all_downsets(blocks_of(smaller.before, smaller.together), problem.n_ops, 17_914)
    assert few is not None
    by_downsets = solve(problem, SolverOptions(max_pipelines=1, max_replicas=1))
    # Each on its own: what is folded is enumerated, what is not goes to CP-SAT.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("balancer.solve.auto.folded", lambda problem, options: problem)
        patch.setattr("balancer.solve.cpsat.folded", lambda problem, options: problem)
        by_cpsat = solve(problem, SolverOptions(max_pipelines=1, max_replicas=1))
    assert (by_downsets.solver, by_cpsat.solver) == ("downset", "cpsat")
    assert by_downsets.status == by_cpsat.status == "optimal"
    assert by_downsets.value.objective_ns == by_cpsat.value.objective_ns


def test_what_is_left_open_has_a_bound_that_means_something() -> None:
    # 21 producers, then their readers, on two kinds: 3^21 down-sets, nothing to fold; and no work allowed for CP-SAT.
    pairs = 21
    transfers = tuple(Transfer(i, (i + pairs,), leaves=False, receive_ns=30, send_ns=20) for i in range(pairs))
    accelerator = Structure(stage_ns=10, op_ns=(100,) * (2 * pairs), transfers=transfers)
    cpu = Structure(stage_ns=0, op_ns=(1000,) * (2 * pairs))
    before = tuple(1 << (i - pairs) if i >= pairs else 0 for i in range(2 * pairs))
    problem = structured_problem(before, [("accelerator", 3), ("cpu", 1)], {"accelerator": accelerator, "cpu": cpu})
    options = SolverOptions(max_pipelines=1, max_replicas=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("balancer.solve.cpsat.MOST_WORK", 0.0)
        stopped = solve(problem, options)
    sampled = solve(problem, replace(options, solver="downset"))
    good_ns = 10 + 14 * 100  # seven pairs on each accelerator
    for solution in (stopped, sampled):
        assert (solution.bound_ns or 0) <= good_ns
        assert solution.value.objective_ns <= good_ns
        assert solution.gap < 0.1


def test_no_segments_of_a_model_cost_nothing() -> None:
    graph = read_graph(synth.fc(64), name="made")
    none = np.zeros(0, np.int64)
    sets = DownSets.of([0, graph.all_ops], len(graph.ops))
    table = SegmentBatch(SegmentCosts(graph, load_hardware("pcie")), sets)(none, none)
    assert [len(column) for column in table] == [0, 0, 0, 0]
