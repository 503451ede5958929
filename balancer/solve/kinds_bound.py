"""A lower bound on the period of a pipeline on devices of several kinds, from the structures of the costs.

With a price on each kind's time, p[k] for each ns, no pipeline on n[k] devices of each kind has a period below

    sum over ops of  min over k of (p[k] * ns of the op on kind k)
    --------------------------------------------------------------
                   sum over k of  p[k] * n[k]

because the stages on kind k take at most n[k] periods together, and each op stands on some kind. This is the dual of the
linear program that divides each op among the kinds in any parts. Any prices give a bound, the best prices its optimum;
coordinate ascent looks for good ones.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from balancer.ground.opsets import members

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.ground.arrays import FloatArray
    from balancer.ground.opsets import OpSet
    from balancer.solve.problem import Problem
    from balancer.solve.structure import Structure

_ROUNDING = 1e-9  # far above the rounding of the sums
_MOST_PRICES = 512  # of one kind that are tried in one step
_ROUNDS = 3  # of coordinate ascent over all kinds
_NEVER_NS = 1 << 62  # where there is no pipeline


def mixed_bound_ns(problem: Problem, stages: int, devices: int, most_replicas: int) -> int:
    """ns per inference: a lower bound for pipelines of this number of stages on this number of devices of any kinds.

    0 where the structure of some kind's cost is not known, or some op can run on no kind.
    """
    structures = [problem.structures[kind] for kind, _ in problem.devices if kind in problem.structures]
    if len(structures) < len(problem.devices):
        return 0
    work = _work(structures, _units(problem.n_ops, problem.together))
    if np.isinf(work).all(axis=0).any():
        return 0  # an op that can stand nowhere: there is no pipeline
    starts = np.array([structure.stage_ns for structure in structures], float)
    counts = [count for _, count in problem.devices]
    mixes = [mix for mix in product(*(range(n + 1) for n in counts)) if sum(mix) == min(devices, sum(counts))]
    return min(_bound_ns(work, starts * stages, mix, most_replicas) for mix in mixes)


def _units(n_ops: int, together: Sequence[OpSet]) -> list[OpSet]:
    """A partition of the ops into sets that must stand together; where groups overlap, the larger one is kept, and the
    others are broken into single ops."""
    units, left = [], (1 << n_ops) - 1
    for group in sorted(together, key=lambda group: -group.bit_count()):
        if group and not group & ~left:
            units.append(group)
            left &= ~group
    return [*units, *(1 << i for i in members(left))]


def _work(structures: Sequence[Structure], units: Sequence[OpSet]) -> FloatArray:
    """[kind, unit]: ns that the unit takes in any stage on the kind; infinite where it cannot run there.

    Those are its ops, the outputs of the model that it makes, and the inputs of the model that it alone reads.
    """
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


def _bound_ns(work: FloatArray, starts: FloatArray, counts: Sequence[int], most_replicas: int) -> int:
    """The bound for exactly these counts of devices of each kind.

    work: [kind, unit] in ns. starts: for each kind the ns of all stages' starts, if they all stood on it.
    """
    here = [k for k, count in enumerate(counts) if count]
    work, starts, numbers = work[here], starts[here], np.array(counts, float)[here]
    # Whichever unit takes longest has to stand somewhere, on at most most_replicas devices of one kind.
    alone = float((work / np.minimum(numbers, most_replicas)[:, None]).min(axis=0).max(initial=0))
    if not math.isfinite(alone):
        return _NEVER_NS  # these kinds alone cannot run everything
    # A unit that cannot run on a kind counts as very long there: infinity times a price of 0 would be no number.
    work = np.where(np.isinf(work), 1e18, work)
    prices = 1 / np.maximum(work.sum(axis=1), 1)
    best = max(_period_ns(work, starts, numbers, row) for row in (prices, np.ones(len(here))))
    for _ in range(_ROUNDS):
        for k in range(len(here)):
            tried = _tried(work, prices, k)
            periods = [_period_ns(work, starts, numbers, row) for row in tried]
            at = int(np.argmax(periods))
            if periods[at] >= best:
                best, prices = periods[at], tried[at]
    return math.ceil(max(best, alone) * (1 - _ROUNDING))


def _period_ns(work: FloatArray, starts: FloatArray, counts: FloatArray, prices: FloatArray) -> float:
    """The bound at these prices, in ns."""
    return float((work * prices[:, None]).min(axis=0).sum() + (starts * prices).min()) / float((prices * counts).sum())


def _tried(work: FloatArray, prices: FloatArray, k: int) -> FloatArray:
    """[trial, kind]: the prices with others for kind k: those at which a unit costs as much there as at best elsewhere.

    The bound is a quotient of a concave piecewise linear function and a linear one of this price: it is largest at one
    of these corners.
    """
    others = np.delete(work * prices[:, None], k, axis=0)
    corners = [0.0, float(prices[k])]
    if len(others):
        takes = work[k] > 0
        corners = [*corners, *np.unique(others[:, takes].min(axis=0) / work[k][takes]).tolist()]
    step = -(-len(corners) // _MOST_PRICES)
    tried = np.repeat(prices[None, :], len(corners[::step]), axis=0)
    tried[:, k] = corners[::step]
    return tried[(tried > 0).any(axis=1)]
