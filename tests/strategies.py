"""Random problems for solvers: small DAGs and costs that neither grow nor shrink with the segment."""

from __future__ import annotations

from itertools import combinations_with_replacement, pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from balancer.solve import Cost, Intervals, Kind, Pipeline, Problem, Stage, Value, evaluate, interval_set

if TYPE_CHECKING:
    from collections.abc import Callable

    from balancer.solve.problem import OpSet

KIND = "tpu"


def interval_problem(before: tuple[OpSet, ...], costs: dict[OpSet, Cost], devices: int, host_ns: int = 0) -> Problem:
    """A problem whose segments are the intervals that `costs` lists; others may not stand."""

    def exact(ops: OpSet, kind: Kind) -> Cost | None:
        return costs.get(ops)

    def intervals(order: Any, kind: Kind) -> Intervals:
        n = len(before)
        time, streamed = np.zeros((n + 1, n + 1), np.int64), np.zeros((n + 1, n + 1), np.int64)
        allowed = np.zeros((n + 1, n + 1), bool)
        for a in range(n):
            for b in range(a + 1, n + 1):
                cost = costs.get(interval_set(a, b))
                if cost is not None:
                    time[a, b], streamed[a, b], allowed[a, b] = cost.time_ns, cost.streamed_bytes, True
        return Intervals(time, streamed, allowed)

    return Problem(
        before=before,
        devices=((KIND, devices),),
        exact=exact,
        lower=lambda ops, kind: min((c.time_ns for s, c in costs.items() if ops & ~s == 0), default=0),
        intervals=intervals,
        host_ns=host_ns,
    )


@st.composite
def chain_problems(draw: Callable[[Any], Any], most_ops: int = 7, most_devices: int = 4) -> Problem:
    """Few different times, so that ties are frequent; in half of them some intervals are forbidden, the whole never."""
    n = draw(st.integers(1, most_ops))
    times = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    cost = st.builds(Cost, st.sampled_from(times), st.integers(0, 2))
    maybe = draw(st.sampled_from([cost, st.none() | cost]))
    costs = {}
    for a in range(n):
        for b in range(a + 1, n + 1):
            found = draw(cost if (a, b) == (0, n) else maybe)
            if found is not None:
                costs[interval_set(a, b)] = found
    before = tuple((1 << i) >> 1 for i in range(n))
    return interval_problem(before, costs, draw(st.integers(1, most_devices)), draw(st.sampled_from([0, 0, 1, 3])))


def all_partitions(problem: Problem, most_replicas: int = 1) -> list[Pipeline]:
    """Every partition into allowed intervals with every choice of replicas, as a pipeline."""
    n, found = problem.n_ops, []
    for cuts in product([False, True], repeat=n - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), n]
        sets = [interval_set(a, b) for a, b in pairwise(edges)]
        if any(problem.exact(ops, KIND) is None for ops in sets) or len(sets) > problem.devices[0][1]:
            continue
        choices = product(range(1, most_replicas + 1), repeat=len(sets))
        affordable = (replicas for replicas in choices if sum(replicas) <= problem.devices[0][1])
        found += [Pipeline(tuple(map(Stage, sets, [KIND] * len(sets), replicas))) for replicas in affordable]
    return found


def all_plans(
    problem: Problem, most_pipelines: int | None = None, most_replicas: int = 1
) -> list[tuple[Value, tuple[Pipeline, ...]]]:
    """Every multiset of partitions on at most the devices there are, with its worth."""
    devices = problem.devices[0][1]
    partitions = all_partitions(problem, most_replicas)
    found = []
    for count in range(1, min(devices, most_pipelines or devices) + 1):
        for plan in combinations_with_replacement(partitions, count):
            if sum(p.devices for p in plan) <= devices:
                value = evaluate(problem, plan)
                assert value is not None
                found.append((value, plan))
    return found
