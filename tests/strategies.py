"""Random problems for solvers: small DAGs and costs that neither grow nor shrink with the segment."""

from __future__ import annotations

from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from balancer.ground.opsets import interval_set
from balancer.solve import Between, Cost, CostColumns, Kind, PipelineSpec, Problem, StageSpec, Value, evaluate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from balancer.ground.downsets import DownSets
    from balancer.ground.opsets import OpSet

KIND = "tpu"


def looped_batch(exact: Callable[[OpSet, Kind], Cost | None]) -> Callable[[DownSets, Kind], Between]:
    """The batch form of any cost, one segment after the other."""

    def batch(sets: DownSets, kind: Kind) -> Between:
        ops = [sets.set_of(row) for row in range(len(sets))]

        def between(inners: Any, outers: Any) -> CostColumns:
            pairs = zip(*(a.tolist() for a in np.broadcast_arrays(inners, outers)), strict=True)
            found = [exact(ops[outer] & ~ops[inner], kind) for inner, outer in pairs]
            known = [cost or Cost(0, 0) for cost in found]
            time, streamed = (np.array([c[k] for c in known], np.int64) for k in (0, 1))
            allowed = np.array([cost is not None for cost in found], bool)
            shared = max((len(cost.shared_ns) for cost in known), default=0)
            takes = (
                np.array([cost.shared_ns or (0,) * shared for cost in known], np.int64).reshape(len(known), shared).T
            )
            return CostColumns(time, streamed, allowed, takes if shared else None)

        return between

    return batch


def interval_problem(before: tuple[OpSet, ...], costs: dict[OpSet, Cost], devices: int, host_ns: int = 0) -> Problem:
    """A problem whose segments are the intervals that `costs` lists; others may not stand."""

    def exact(ops: OpSet, kind: Kind) -> Cost | None:
        return costs.get(ops)

    return Problem(
        before=before,
        devices=((KIND, devices),),
        exact=exact,
        lower=lambda ops, kind: min((c.time_ns for s, c in costs.items() if ops & ~s == 0), default=0),
        batch=looped_batch(exact),
        host_ns={KIND: host_ns},
    )


@st.composite
def chain_problems(draw: Callable[[Any], Any], most_ops: int = 7, most_devices: int = 4) -> Problem:
    """Few different times, so that ties are frequent; in half of them some intervals are forbidden, the whole never."""
    n = draw(st.integers(1, most_ops))
    times = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    cost = st.tuples(st.sampled_from(times), st.integers(0, 2)).map(lambda found: Cost(*found))
    maybe = draw(st.sampled_from([cost, st.none() | cost]))
    costs = {}
    for a in range(n):
        for b in range(a + 1, n + 1):
            found = draw(cost if (a, b) == (0, n) else maybe)
            if found is not None:
                costs[interval_set(a, b)] = found
    before = tuple((1 << i) >> 1 for i in range(n))
    return interval_problem(before, costs, draw(st.integers(1, most_devices)), draw(st.sampled_from([0, 0, 1, 3])))


def all_partitions(problem: Problem, most_replicas: int = 1) -> list[PipelineSpec]:
    """Every partition into allowed intervals with every choice of replicas, as a pipeline."""
    n, found = problem.n_ops, []
    for cuts in product([False, True], repeat=n - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), n]
        sets = [interval_set(a, b) for a, b in pairwise(edges)]
        if any(problem.exact(ops, KIND) is None for ops in sets) or len(sets) > problem.devices[0][1]:
            continue
        choices = product(range(1, most_replicas + 1), repeat=len(sets))
        affordable = (replicas for replicas in choices if sum(replicas) <= problem.devices[0][1])
        found += [PipelineSpec(tuple(map(StageSpec, sets, [KIND] * len(sets), replicas))) for replicas in affordable]
    return found


def all_plans(
    problem: Problem, most_pipelines: int | None = None, most_replicas: int = 1
) -> list[tuple[Value, tuple[PipelineSpec, ...]]]:
    """Every multiset of partitions on at most the devices there are, with its worth."""
    devices = problem.devices[0][1]
    partitions = [(pipeline, pipeline.devices) for pipeline in all_partitions(problem, most_replicas)]

    def extended(first: int, free: int, left: int) -> Iterator[tuple[PipelineSpec, ...]]:
        """Multisets of the partitions from `first` on, none of them empty."""
        for k in range(first, len(partitions)) if left else ():
            pipeline, used = partitions[k]
            if used <= free:
                yield (pipeline,)
                yield from ((pipeline, *rest) for rest in extended(k, free - used, left - 1))

    found = []
    for plan in extended(0, devices, most_pipelines or devices):
        value = evaluate(problem, plan)
        assert value is not None
        found.append((value, plan))
    return found
