"""Properties that other tests leave open. Each fails under a small change of the code that all others let through."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.ground.units import NS_PER_S
from balancer.plan.document import LARGEST
from balancer.planning.options import Options
from balancer.solve import (
    Constraints,
    Cost,
    Kept,
    Problem,
    SolverOptions,
    StageSpec,
    Structure,
    Transfer,
    Value,
    check,
    solve,
    structured_problem,
)
from balancer.solve.allocation import MOST_PARTIAL, Candidate, Supply, TieValues, allocate
from balancer.solve.blocks import blocks_of
from balancer.solve.bounds import cut_reachability
from balancer.solve.budget import Budget
from balancer.solve.cpsat import solve_cpsat
from balancer.solve.enumeration import all_downsets
from balancer.solve.periods import MOST_REPLICAS, longest_ns
from balancer.solve.plan_bounds import PlanBounds, plan_bounds
from balancer.solve.priced_bounds import priced_bounds
from balancer.solve.sizes import CountNumbers
from balancer.tflite import synth
from balancer.tflite.constant_folding import folded
from balancer.tflite.cut import Cutter
from balancer.tflite.decoding import decode_model
from balancer.tflite.flatbuffer import Table
from tests import handmade
from tests.dags import all_pipelines
from tests.strategies import all_plans, chain_problems, interval_problem
from tests.test_cpsat import structured
from tests.test_kinds import mixed_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.ground.arrays import BoolArray
    from balancer.ground.opsets import OpSet

    Fits = Callable[[tuple[int, ...], float, int], BoolArray]


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
    candidates = [Candidate((1,), Fraction(100 - k), (0,), partial(TieValues, count - k, 1)) for k in range(count)]
    allocated = allocate(candidates, Supply((1,)), None)
    assert allocated.complete
    assert allocated.chosen == (0,)


def test_where_nothing_is_missing_but_exactly_enough_any_period_may_do() -> None:
    """Of two pipelines on a device each, one alone has the rate that would improve the plan, to the last bit."""
    wanted = (NS_PER_S / (objective_ns - 1) * (1 - 1e-9) for objective_ns in range(2, 100))
    objective_ns, rate = next((k, rate) for k, rate in enumerate(wanted, 2) if NS_PER_S / (NS_PER_S / rate) == rate)
    least_ns = np.full((3, 3), np.inf)
    least_ns[1, 1] = NS_PER_S / rate
    bounds = PlanBounds(
        stages=CountNumbers((2,)), devices=CountNumbers((2,)), most_pipelines=2, longest_ns=10**9,
        host_ns=np.zeros(3, np.int64), prices=np.zeros(1), least_ns=least_ns,
    )  # fmt: skip
    limits = bounds.limits_to_improve([1], objective_ns)
    assert limits is not None
    assert (limits.most_ns, limits.most_stages) == (10**9, 1)


@pytest.mark.parametrize("most_replicas", range(1, MOST_REPLICAS + 1))
def test_periods_up_to_the_longest_are_below_the_power_of_two_from_which_floats_are_too_far_apart(
    most_replicas: int,
) -> None:
    assert longest_ns(most_replicas) * most_replicas**2 < 1 << 52


def test_a_limit_on_memory_rules_nothing_out_where_ops_take_none() -> None:
    structure = Structure(stage_ns=1, op_ns=(5, 5), limit_bytes=0)
    problem = structured_problem((0, 1), [("tpu", 1)], {"tpu": structure})
    assert problem.exact(0b11, "tpu") == Cost(11, 0)


def test_the_work_that_cpsat_does_is_taken_from_the_budget() -> None:
    """Building a model takes 40 units for each op and stage; solving it takes more on top."""
    pairs = 6
    transfers = tuple(Transfer(i, (i + pairs,), leaves=False, receive_ns=3, send_ns=2) for i in range(pairs))
    structure = Structure(stage_ns=1, op_ns=tuple(range(1, 2 * pairs + 1)), transfers=transfers)
    before = tuple(1 << (i - pairs) if i >= pairs else 0 for i in range(2 * pairs))
    problem = structured_problem(before, [("tpu", 2)], {"tpu": structure})
    options = SolverOptions(solver="cpsat", max_pipelines=1, max_replicas=1)
    budget = Budget(10**9)
    solution = solve_cpsat(problem, options, budget=budget)
    assert solution.statistics["models"] >= 1
    assert budget.spent > 40 * solution.statistics["models"] * problem.n_ops * 2


def test_ties_are_broken_where_the_rate_meets_its_lower_bound_exactly() -> None:
    """The host is the bottleneck of all partitions. Ops 0 and 2 fit one device, 1 and 3 the other: no intervals do."""
    kept = tuple(Kept(i, size, 1) for i, size in enumerate((6, 6, 4, 4)))
    structure = Structure(stage_ns=1, op_ns=(1,) * 4, kept=kept, capacity_bytes=10)
    problem = structured_problem((0,) * 4, [("tpu", 2)], {"tpu": structure}, host_ns={"tpu": 1000})
    solution = solve(problem, SolverOptions(solver="cpsat", stages=2))
    assert solution.value.objective_ns == solution.bound_ns == 2000
    assert solution.value.streamed_bytes == 0


def test_the_last_tie_is_broken_where_nothing_streams() -> None:
    """The host is the bottleneck again. Op 0 feeds 2 and op 1 feeds 3: only {0, 2} and {1, 3} hand nothing over."""
    transfers = tuple(Transfer(i, (i + 2,), leaves=False, receive_ns=5, send_ns=5) for i in range(2))
    structure = Structure(stage_ns=1, op_ns=(1,) * 4, transfers=transfers)
    problem = structured_problem((0, 0, 0b01, 0b10), [("tpu", 2)], {"tpu": structure}, host_ns={"tpu": 1000})
    solution = solve(problem, SolverOptions(solver="cpsat", stages=2))
    assert solution.value == Value(objective_ns=2000, devices=2, reluctant=0, streamed_bytes=0, latency_ns=6)


@given(structured(most_ops=4, most_devices=4), st.integers(1, 3))
def test_no_pipeline_has_a_shorter_period_than_the_bound_for_its_size(problem: Problem, replicas: int) -> None:
    bounds = plan_bounds(problem, 2, replicas, may_replicate_whole=True)
    for pipeline in all_pipelines(problem, replicas):
        costs = [(problem.exact(stage.ops, stage.kind), stage.replicas) for stage in pipeline.stages]
        period_ns = max(cost.time_ns / r for cost, r in costs if cost is not None)
        # The bound is in whole ns, and the host's work counts as if it were part of the period.
        host_ns = sum(problem.host_ns.get(stage.kind, 0) for stage in pipeline.stages)
        period_ns = max(math.ceil(period_ns), host_ns)
        assert bounds.least_ns[len(costs), pipeline.devices] <= period_ns


def test_several_replicated_pipelines_beyond_the_intervals_are_found() -> None:
    """Op 0 feeds 2 and op 1 feeds 3. Two pipelines of {0, 2} and {1, 3} give a result every 2.5 ns."""
    costs = {0b1111: Cost(100, 0), 0b0101: Cost(5, 0), 0b1010: Cost(5, 0)}
    problem = interval_problem((0, 0, 0b01, 0b10), costs, 4)
    solution = solve(problem, SolverOptions(solver="downset", max_pipelines=2))
    assert solution.value.objective_ns == solution.bound_ns == 3


@given(mixed_problems(most_ops=4, most_devices=3))
def test_no_bound_rules_out_a_part_of_a_pipeline(problem: Problem) -> None:
    """The stages before a cut, and those after it, fit their own devices within the longest of their own periods."""
    kinds = [kind for kind, _ in problem.devices]
    sets = all_downsets(blocks_of(problem.before, ()), problem.n_ops, 1000)
    assert sets is not None
    row = {sets.set_of(k): k for k in range(len(sets))}
    priced = priced_bounds(problem)
    assert priced is not None
    reachability = cut_reachability([problem.structures[kind] for kind in kinds], sets, priced.prices)

    def fits(fits_all: Fits, part: Sequence[StageSpec], cut: OpSet) -> bool:
        devices = tuple(sum(stage.replicas for stage in part if stage.kind == kind) for kind in kinds)
        costs = [(problem.exact(stage.ops, stage.kind), stage.replicas) for stage in part]
        period_ns = max(cost.time_ns / replicas for cost, replicas in costs if cost is not None)
        return bool(fits_all(devices, period_ns, len(part))[row[cut]])

    for pipeline in all_pipelines(problem, 2):
        stages, cut = pipeline.stages, 0
        for k, stage in enumerate(stages):
            assert fits(reachability.suffix_fits, stages[k:], cut)
            cut |= stage.ops
            assert fits(reachability.prefix_fits, stages[: k + 1], cut)


# Options


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        (Constraints(), []),
        (Constraints(max_latency_ns=9), ["within that latency"]),
        (Constraints(max_objective_ns=9), ["at that rate"]),
        (Constraints(pinned={0: 0}), ["the constraints"]),
        (Constraints(pinned={0: 0}, max_latency_ns=9), ["within that latency", "the constraints"]),
    ],
)
def test_a_claim_names_the_constraints_that_there_are(constraints: Constraints, words: list[str]) -> None:
    assert constraints.scope == words


def test_limits_that_no_plan_file_can_hold_are_remembered_as_the_largest_that_it_can() -> None:
    limits = [Options(constraints=Constraints(max_latency_ns=ns)).held_to.limits for ns in (5, LARGEST, LARGEST + 1)]
    assert [held and held.max_latency_ns for held in limits] == [5, LARGEST, LARGEST]


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


@pytest.mark.parametrize(("scale", "folded_ops"), [(None, 0b11), (0.5, 0b1)])
def test_what_computes_a_quantised_tensor_is_not_folded(scale: float | None, folded_ops: int) -> None:
    b = handmade.Builder()
    source = b.tensor("in", shape_signature=np.array([-1, 4, 4, 4], np.int32))
    shape, total = b.tensor("shape", (4,), "INT32", scale=None), b.tensor("total", (4,), "INT32", scale=scale)
    made = b.tensor("made")
    b.op("SHAPE", [source], [shape], Table("ShapeOptions", {"out_type": 2}))
    b.op("ADD", [shape, b.ints("nothing", [0] * 4)], [total], Table("AddOptions", {}))
    b.op("RESHAPE", [source, total], [made], Table("ReshapeOptions", {}))
    assert Cutter(b.file([source], [made])).graph.folded == folded_ops


@pytest.mark.parametrize("data", [synth.fc(64), synth.conv(8)])
def test_the_input_of_a_synthetic_model_is_quantised_from_minus_one_to_one(data: bytes) -> None:
    model = decode_model(data, "synthetic")
    (quantised,) = model.operators[0]["outputs"]
    (scale,) = model.tensors[int(quantised)]["quantization"]["scale"]
    assert scale * 255 == pytest.approx(2)
