"""The search that finds its cuts one from another: no pipeline within its limits is lost, and its answers are optimal."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

import detectors
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.cost.hardware import load_hardware
from balancer.cost.segment import SegmentCosts
from balancer.errors import InfeasibleError
from balancer.planning.costed_model import CostedModel, open_costed_model
from balancer.planning.problem import problem_of, structure
from balancer.solve import Ended, Problem, Solution, SolverOptions, check, solve
from balancer.solve.block_terms import BlockTable
from balancer.solve.blocks import blocks_of
from balancer.solve.budget import Budget, BudgetSpent
from balancer.solve.downset import DownSetWork, search_reached
from balancer.solve.downset_dp import PipelineLimits
from balancer.solve.enumeration import all_downsets
from balancer.solve.growing import GrowthLimits, StageGrowth
from balancer.solve.reaching import CutFinder
from tests.dags import all_pipelines, best_value, dag_problems, kept_apart, structured_ns
from tests.test_handed_ops import mixed_graphs

if TYPE_CHECKING:
    from balancer.graph import Graph
    from balancer.ground.opsets import OpSet
    from balancer.solve import PipelineSpec


def reaching(problem: Problem, **options: object) -> Solution | None:
    """Solved as if every graph had too many down-sets to list, and CP-SAT ended without a proof."""
    try:
        return search_reached(problem, SolverOptions(**options)).solution("downset")  # type: ignore[arg-type]
    except InfeasibleError:
        return None


def cuts(pipeline: PipelineSpec) -> list[OpSet]:
    done = [0]
    for stage in pipeline.stages:
        done.append(done[-1] | stage.ops)
    return done


@given(dag_problems(most_ops=6, most_devices=4, structured=True), st.integers(1, 60), st.integers(1, 3))
def test_all_segments_of_pipelines_within_the_limits_are_found(problem: Problem, most_ns: int, replicas: int) -> None:
    finder = CutFinder(problem, most_replicas=replicas, may_replicate_whole=True)
    ((kind, devices),) = problem.devices
    lattice = finder.lattice(PipelineLimits((devices,), most_ns, devices), Budget(1 << 20))
    assert lattice.segments is not None
    row = {lattice.sets.set_of(k): k for k in range(len(lattice.sets))}
    for pipeline in all_pipelines(problem, replicas):
        costs = [(problem.exact(stage.ops, kind), stage.replicas) for stage in pipeline.stages]
        if max(Fraction(cost.time_ns, r) for cost, r in costs if cost) > most_ns:
            continue
        for (start, end), (cost, _) in zip(pairwise(cuts(pipeline)), costs, strict=True):
            (segments,) = lattice.segments.after(row[start], (), Budget(0))
            (at,) = (segments.end == row[end]).nonzero()[0]
            assert (segments.time_ns[at], segments.streamed_bytes[at]) == cost


@given(
    dag_problems(most_ops=6, most_devices=4, structured=True), st.integers(1, 5), st.integers(0, 63), st.integers(1, 3)
)
def test_ops_that_must_stay_apart_leave_the_best_pipeline(problem: Problem, op: int, after: int, replicas: int) -> None:
    problem = kept_apart(problem, op, after)
    solution, best = reaching(problem, max_pipelines=1, max_replicas=replicas), best_value(problem, 1, replicas)
    assert (solution is None) == (best is None)
    if solution is not None:
        check(problem, solution)
        assert (solution.value, solution.status) == (best, "optimal")


@given(dag_problems(most_ops=6, most_devices=3, structured=True), st.integers(1, 60), st.integers(1, 9))
def test_stages_grown_in_parts_are_those_grown_at_once(problem: Problem, most_ns: int, most_rows: int) -> None:
    ((kind, devices),) = problem.devices
    starts = all_downsets(blocks_of(problem.before, ()), problem.n_ops, 1 << 9)
    assert starts is not None
    begun = starts.words[: len(starts) - 1]
    used = np.zeros(len(begun), np.int64)
    limits = GrowthLimits(most_ns=most_ns, devices=devices, most_replicas=2)
    table = BlockTable(problem, problem.structures[kind])
    at_once = StageGrowth(table, limits).grown(begun, used, Budget(1 << 20))
    try:
        parts = StageGrowth(table, replace(limits, most_rows=most_rows)).grown(begun, used, Budget(1 << 20))
    except BudgetSpent:
        return  # a single start has more branches
    alike = [sorted(zip(g.start.tolist(), map(bytes, g.ends), strict=True)) for g in (at_once, parts)]
    assert alike[0] == alike[1]


@given(dag_problems(most_ops=6, most_devices=4, structured=True), st.integers(1, 4))
def test_one_pipeline_meets_brute_force_in_every_tie(problem: Problem, replicas: int) -> None:
    solution, best = reaching(problem, max_pipelines=1, max_replicas=replicas), best_value(problem, 1, replicas)
    assert (solution is None) == (best is None)
    if solution is not None:
        check(problem, solution)
        assert (solution.value, solution.status) == (best, "optimal")


@given(dag_problems(most_ops=4, most_devices=3, structured=True), st.integers(2, 3), st.integers(1, 3))
def test_pipelines_side_by_side_meet_brute_force(problem: Problem, pipelines: int, replicas: int) -> None:
    solution = reaching(problem, max_pipelines=pipelines, max_replicas=replicas)
    best = best_value(problem, pipelines, replicas)
    assert (solution is None) == (best is None)
    if solution is not None and best is not None:
        check(problem, solution)
        assert solution.value.objective_ns == best.objective_ns == solution.bound_ns


@given(dag_problems(most_ops=5, structured=True), st.integers(1, 3))
def test_forced_stages_give_the_plan_that_listing_all_down_sets_gives(problem: Problem, stages: int) -> None:
    roomy = replace(problem, devices=((problem.devices[0][0], stages),))
    found = reaching(roomy, stages=stages)
    try:
        listed = solve(roomy, SolverOptions(stages=stages))
    except InfeasibleError:
        listed = None
    assert (found is None) == (listed is None)
    if found is not None and listed is not None:
        assert (found.pipelines, found.bound_ns) == (listed.pipelines, listed.bound_ns)


@given(mixed_graphs(), st.integers(1, 4))
def test_graphs_with_ops_on_the_cpu_get_the_plan_that_listing_all_down_sets_gives(graph: Graph, devices: int) -> None:
    problem = problem_of({"usb": SegmentCosts(graph, load_hardware("usb"))}, (("usb", devices),), may_overflow=True)
    found, listed = reaching(problem), solve(problem)
    assert found is not None
    assert (found.value.objective_ns, found.bound_ns) == (listed.value.objective_ns, listed.bound_ns)


@pytest.fixture(scope="module")
def detector() -> CostedModel:
    """A detector with millions of down-sets, in whose backbone ops run on the CPU."""
    return open_costed_model(detectors.yolo11("n", 320), "pcie")


def test_a_detector_with_millions_of_down_sets_is_proven_with_little_work(detector: CostedModel) -> None:
    problem = detector.on(4).problem()
    solution = solve(problem)
    check(problem, solution)
    assert (solution.status, solution.solver) == ("optimal", "downset")
    assert solution.statistics["pairs"] < 1 << 20


def test_a_spent_budget_leaves_an_honest_bound(detector: CostedModel) -> None:
    problem = detector.on(4).problem()
    best = solve(problem)
    stopped = search_reached(problem, SolverOptions(), DownSetWork(reached=1000))
    assert stopped.ended is Ended.LIMIT_REACHED
    solution = stopped.solution("downset")
    assert (solution.bound_ns or 0) <= best.value.objective_ns <= solution.value.objective_ns


@given(data=st.data())
def test_no_segment_of_a_detector_takes_less_than_its_structure_says(
    detector: CostedModel, data: st.DataObject
) -> None:
    costs = detector.costs
    known = replace(structure(costs), kept=(), streaming=(), spill_start_ns=0)
    below = [data.draw(st.integers(0, len(costs.ancestors) - 1)) for _ in range(4)]
    sets = [0] + [costs.ancestors[i] | 1 << i for i in below]
    inner, outer = sets[0] | sets[1], sets[1] | sets[2] | sets[3] | sets[4]
    segment = outer & ~inner
    if costs.allowed(segment):
        time_ns = structured_ns(known, segment)
        assert time_ns is not None
        assert time_ns <= costs.terms(segment).stage_ns
