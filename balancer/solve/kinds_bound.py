"""How fast a pipeline on devices of several kinds can be at most, from the structures of the costs.

With a price on each kind's time, p[k] for each ns, no pipeline on n[k] devices of each kind has a period below

    (the sum over ops of the least of p[k] * ns on kind k) / (the sum of p[k] * n[k]):

the stages on kind k take at most n[k] periods together, and each op stands on some kind. The best prices make this the
optimum of sharing the ops out in any parts; any prices give a bound.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.ground.opsets import members

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.ground.opsets import OpSet
    from balancer.solve.problem import Problem
    from balancer.solve.structure import Structure

_ROUNDING = 1e-9
_MOST_PRICES = 512  # of one kind to try
_ROUNDS = 3


def mixed_bound_ns(problem: Problem, stages: int, devices: int, most_replicas: int) -> int:
    """No pipeline of so many stages on so many devices, of the kinds that there are, has fewer ns per inference.

    0 where a cost's structure is not known.
    """
    structures = [problem.structures[kind] for kind, _ in problem.devices if kind in problem.structures]
    if len(structures) < len(problem.devices):
        return 0
    work = _work(structures, _units(problem.n_ops, problem.together))
    if np.isinf(work).all(axis=0).any():
        return 0  # an op that can stand nowhere: there is no pipeline
    starts = np.array([structure.stage_ns for structure in structures], float)
    counts = [count for _, count in problem.devices]
    chosen = [v for v in product(*(range(n + 1) for n in counts)) if sum(v) == min(devices, sum(counts))]
    return min(_bound_ns(work, starts * stages, v, most_replicas) for v in chosen)


def _units(n_ops: int, together: Sequence[OpSet]) -> list[OpSet]:
    """Sets of ops that stand together, every op in one."""
    found, left = [], (1 << n_ops) - 1
    for group in sorted(together, key=lambda group: -group.bit_count()):
        if group and not group & ~left:
            found.append(group)
            left &= ~group
    return [*found, *(1 << i for i in members(left))]


def _work(structures: Sequence[Structure], units: Sequence[OpSet]) -> Any:
    """For each kind and unit the ns that it takes wherever it stands: its ops, and what leaves or comes for it alone."""
    work = np.zeros((len(structures), len(units)))
    of = {i: u for u, unit in enumerate(units) for i in members(unit)}
    for k, structure in enumerate(structures):
        for i, ns in enumerate(structure.op_ns):
            work[k, of[i]] += math.inf if ns is None else ns
        for transfer in structure.transfers:
            readers = {of[r] for r in transfer.readers}
            if transfer.producer is not None:
                work[k, of[transfer.producer]] += transfer.send_ns * transfer.leaves
            elif len(readers) == 1:
                work[k, readers.pop()] += transfer.receive_ns
    return work


def _bound_ns(work: Any, starts: Any, counts: Sequence[int], most_replicas: int) -> int:
    """The same with just so many devices of each kind."""
    here = [k for k, count in enumerate(counts) if count]
    work, starts, numbers = work[here], starts[here], np.array(counts, float)[here]
    alone = float((work / np.minimum(numbers, most_replicas)[:, None]).min(axis=0).max(initial=0))
    if not math.isfinite(alone):
        return 1 << 62  # these kinds alone cannot run everything
    # Prices are only tried where work is finite; what a kind cannot run counts as very long there.
    work = np.where(np.isinf(work), 1e18, work)
    prices = 1 / np.maximum(work.sum(axis=1), 1)
    best = max(_worth(work, starts, numbers, row) for row in (prices, np.ones(len(here))))
    for _ in range(_ROUNDS):
        for k in range(len(here)):
            tried = _tried(work, prices, k)
            worth = [_worth(work, starts, numbers, row) for row in tried]
            at = int(np.argmax(worth))
            if worth[at] >= best:
                best, prices = worth[at], tried[at]
    return math.ceil(max(best, alone) * (1 - _ROUNDING))


def _worth(work: Any, starts: Any, counts: Any, prices: Any) -> float:
    """The bound at these prices."""
    return float((work * prices[:, None]).min(axis=0).sum() + (starts * prices).min()) / float((prices * counts).sum())


def _tried(work: Any, prices: Any, k: int) -> Any:
    """The prices with others for one kind: those at which an op costs as much there as at best elsewhere."""
    others = np.delete(work * prices[:, None], k, axis=0)
    found = [0.0, float(prices[k])]
    if len(others):
        takes = work[k] > 0
        found = [*found, *np.unique(others[:, takes].min(axis=0) / work[k][takes]).tolist()]
    step = -(-len(found) // _MOST_PRICES)
    tried = np.repeat(prices[None, :], len(found[::step]), axis=0)
    tried[:, k] = found[::step]
    return tried[(tried > 0).any(axis=1)]
