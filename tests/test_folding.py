"""Folding of blocks: the optimum with it is that without it, over all down-sets, replicas, pipelines and kinds."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.solve import Cost, Kept, Kind, Problem, SolverOptions, Structure, Transfer, Value, structured_problem
from balancer.solve.block_folding import folded
from balancer.solve.blocks import blocks_of
from balancer.solve.enumeration import all_downsets
from tests.dags import best_value, chains, graphs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.ground.opsets import OpSet

_FREE = st.sampled_from([0, 0, 0, 1, 2])


@st.composite
def cheap_structures(draw: Callable[[Any], Any], before: Sequence[OpSet]) -> Structure:
    """Many ops and tensors that cost nothing, some parameters that spill, some memory that binds, some ops barred."""
    n = len(before)
    readers = [tuple(r for r in range(n) if before[r] >> i & 1) for i in range(n)]
    few = st.sampled_from([0, 1, 1, 2, 3, 5])
    transfers = [Transfer(i, readers[i], draw(st.integers(0, 5)) == 0, draw(few), draw(few)) for i in range(n)]
    transfers += [Transfer(None, (i,), False, draw(_FREE), 0) for i in range(n) if draw(st.integers(0, 5)) == 0]
    ops = st.integers(0, n - 1)
    kept = [Kept(i, draw(st.integers(1, 4)), draw(few)) for i in draw(st.sets(ops, max_size=2))]
    limited = draw(st.integers(0, 2)) == 0
    times: list[int | None] = [draw(_FREE) for _ in range(n)]
    if draw(st.integers(0, 4)) == 0:
        times[draw(ops)] = None
    return Structure(
        stage_ns=draw(st.integers(0, 2)),
        op_ns=tuple(times),
        transfers=tuple(transfers) if draw(st.integers(0, 4)) else (),
        kept=tuple(kept),
        capacity_bytes=draw(st.integers(0, 4)),
        spill_start_ns=draw(st.integers(0, 2)),
        streaming=tuple(draw(st.sets(ops, max_size=1))),
        op_bytes=tuple(draw(st.sampled_from([0, 0, 1, 2])) for _ in range(n)) if limited else (),
        limit_bytes=draw(st.integers(2, 7)) if limited else None,
    )


@st.composite
def cheap_problems(draw: Callable[[Any], Any], most_ops: int = 6, most_devices: int = 3, kinds: int = 1) -> Problem:
    before = draw(graphs(most_ops))
    names = [f"kind{k}" for k in range(kinds)]
    groups = draw(st.lists(st.integers(0, (1 << len(before)) - 1), max_size=1)) if draw(st.booleans()) else []
    devices = [(name, draw(st.integers(1, most_devices))) for name in names]
    structures = {name: draw(cheap_structures(before)) for name in names}
    problem = structured_problem(
        before,
        devices,
        structures,
        together=groups,
        host_ns={name: draw(st.sampled_from([0, 0, 1, 2])) for name in names},
    )
    return replace(problem, handover_ns={name: draw(st.sampled_from([0, 1])) for name in names})


def downset_count(problem: Problem) -> int:
    found = all_downsets(blocks_of(problem.before, problem.together), problem.n_ops, 1 << 20)
    assert found is not None
    return len(found)


def best(problem: Problem, most_pipelines: int, most_replicas: int) -> Value | None:
    """What the best of all plans is worth that keep together what the problem says."""

    def exact(ops: OpSet, kind: Kind) -> Cost | None:
        cut = any(0 < (ops & group) < group for group in problem.together)
        return None if cut else problem.exact(ops, kind)

    return best_value(replace(problem, exact=exact), most_pipelines, most_replicas)


@given(cheap_problems(most_ops=7))
def test_folding_keeps_the_best_pipeline_in_every_tie(problem: Problem) -> None:
    smaller = folded(problem, SolverOptions())
    assert downset_count(smaller) <= downset_count(problem)
    assert best(smaller, 1, 1) == best(problem, 1, 1)


@given(cheap_problems(most_ops=5, most_devices=2, kinds=2))
def test_folding_keeps_the_best_pipeline_on_two_kinds(problem: Problem) -> None:
    assert best(folded(problem, SolverOptions()), 1, 1) == best(problem, 1, 1)


@given(cheap_problems(most_ops=4, most_devices=4), st.integers(1, 2), st.integers(1, 3))
def test_folding_keeps_the_best_plan_of_several_pipelines_and_replicas(
    problem: Problem, pipelines: int, replicas: int
) -> None:
    found = folded(problem, SolverOptions())
    assert best(found, pipelines, replicas) == best(problem, pipelines, replicas)


def small_problem(chance: random.Random) -> Problem:
    """Three to five ops, half of which take nothing, and tensors that cost more than they do, on two devices or three."""
    n = chance.randint(3, 5)
    before = tuple(sum(1 << j for j in range(i) if chance.random() < 0.45) for i in range(n))
    readers = [tuple(r for r in range(n) if before[r] >> i & 1) for i in range(n)]
    kinds = chance.choice([1, 1, 2])
    structures = {}
    for k in range(kinds):
        transfers = [
            Transfer(i, readers[i], chance.random() < 0.15, chance.choice([0, 1, 2, 3]), chance.choice([0, 1, 2, 3]))
            for i in range(n)
        ]
        transfers += [Transfer(None, (i,), False, chance.randint(0, 2), 0) for i in range(n) if chance.random() < 0.2]
        limited = chance.random() < 0.2
        structures[f"kind{k}"] = Structure(
            stage_ns=0,
            op_ns=tuple(None if chance.random() < 0.03 else chance.choice([0, 0, 0, 1, 3, 5]) for _ in range(n)),
            transfers=tuple(transfers),
            kept=tuple(Kept(i, 2, chance.randint(1, 3)) for i in range(n) if chance.random() < 0.1),
            capacity_bytes=chance.randint(0, 3),
            op_bytes=tuple(chance.choice([0, 1]) for _ in range(n)) if limited else (),
            limit_bytes=chance.randint(1, 3) if limited else None,
        )
    devices = [(kind, chance.randint(1, 2) if kinds > 1 else chance.randint(2, 3)) for kind in structures]
    return structured_problem(before, devices, structures)


def best_of(problem: Problem, together: Sequence[OpSet]) -> Value | None:
    """What the best pipeline is worth that keeps these together, of all chains of down-sets on any kinds."""
    exact, best = cache(problem.exact), None
    for chain in chains(problem.before, sum(count for _, count in problem.devices)):
        if any(0 < (ops & group) < group for group in together for ops in chain):
            continue
        for kinds in product([kind for kind, _ in problem.devices], repeat=len(chain)):
            if all(kinds.count(kind) <= count for kind, count in problem.devices):
                costs = [exact(ops, kind) for ops, kind in zip(chain, kinds, strict=True)]
                if None not in costs:
                    known = [cost for cost in costs if cost is not None]
                    value = Value(
                        max(1, *(cost.time_ns for cost in known)), len(known), 0,
                        sum(cost.streamed_bytes for cost in known), sum(cost.time_ns for cost in known),
                    )  # fmt: skip
                    best = value if best is None else min(best, value)
    return best


@pytest.mark.parametrize("seed", range(4))
def test_folding_keeps_the_best_pipeline_of_many_small_problems(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(250):
        problem = small_problem(chance)
        groups = folded(problem, SolverOptions()).together
        if groups:
            assert best_of(problem, groups) == best_of(problem, ()), problem
