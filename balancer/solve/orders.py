"""Orders of execution, and the costs of all their intervals."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from balancer.ground.downsets import NestedSets
from balancer.ground.opsets import members
from balancer.solve.blocks import blocks_of
from balancer.solve.problem import CostColumns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.ground.opsets import OpSet
    from balancer.solve.problem import Kind, Problem

_AT_ONCE = 1 << 18  # segments


def prefixes(parts: Iterable[OpSet]) -> list[OpSet]:
    """What is done after none, one, two ... of the parts that an order takes one after the other."""
    found = [0]
    for ops in parts:
        found.append(found[-1] | ops)
    return found


def thinned(problem: Problem, cuts: Sequence[OpSet], most: int) -> Sequence[OpSet]:
    """At most so many of the cuts of an order, the first and the last among them, with about as much work between any two.

    The best pipelines between these are a good start for a search among all.
    """
    if len(cuts) <= most:
        return cuts
    structure = problem.structures.get(problem.devices[0][0])
    op_ns = [ns or 0 for ns in structure.op_ns] if structure else [1] * problem.n_ops
    done = np.cumsum([0, *(sum(op_ns[i] for i in members(b & ~a)) for a, b in pairwise(cuts))])
    # Half by work and half by number, so that cuts among ops that take no time are there as well.
    by_work = np.searchsorted(done, np.linspace(0, done[-1], most // 2))
    by_number = np.linspace(0, len(cuts) - 1, most // 2).astype(np.int64)
    return [cuts[k] for k in np.union1d(np.minimum(by_work, len(cuts) - 1), by_number).tolist()]


def file_order(problem: Problem) -> list[OpSet]:
    """The ops as they are numbered, with those that no cut may separate in one part."""
    return [block.ops for block in blocks_of(problem.before, problem.together)]


def order_table(problem: Problem, cuts: Sequence[OpSet], kind: Kind) -> CostColumns:
    """Costs of all segments between the cuts of an order: entry [a, b] from cut a to cut b. Nothing is allowed elsewhere."""
    n = len(cuts)
    between = problem.batch(NestedSets.of(cuts, problem.n_ops), kind)
    tables = [np.zeros((n, n), dtype) for dtype in (np.int64, np.int64, bool)]
    at_once = max(1, _AT_ONCE // n)
    for first in range(0, n - 1, at_once):
        rows = np.arange(first, min(first + at_once, n - 1))
        inners = np.repeat(rows, n - 1 - rows)
        outers = np.concatenate([np.arange(row + 1, n) for row in rows.tolist()])
        for table, values in zip(tables, between(inners, outers), strict=True):
            table[inners, outers] = values
    return CostColumns(*tables)


def depth_first_order(before: Sequence[OpSet]) -> list[int]:
    """A topological order in which branches stay together: of the ops that may come next, a successor of the last one.

    Stack based, as in libcoral's partitioners and in Tarnawski et al. 2020 (`-linearize`).
    """
    n = len(before)
    after = [[j for j in range(n) if before[j] >> i & 1] for i in range(n)]
    missing = [ops.bit_count() for ops in before]
    ready = [i for i in range(n - 1, -1, -1) if not missing[i]]
    order = []
    while ready:
        i = ready.pop()
        order.append(i)
        for j in reversed(after[i]):
            missing[j] -= 1
            if not missing[j]:
                ready.append(j)
    return order


def parts_in_order(problem: Problem, order: Sequence[int]) -> list[OpSet]:
    """The problem's blocks, as an order reaches the first op of each, none before what it depends on."""
    waiting = blocks_of(problem.before, problem.together)
    at = {i: k for k, i in enumerate(order)}
    waiting.sort(key=lambda block: min(at[i] for i in members(block.ops)))
    done, parts = 0, []
    while waiting:
        ready = next(k for k, block in enumerate(waiting) if not block.before & ~done)
        block = waiting.pop(ready)
        done |= block.ops
        parts.append(block.ops)
    return parts


def levels(before: Sequence[OpSet]) -> list[OpSet]:
    """The ops by depth: the number of ops on the longest path that leads to each."""
    depth = [0] * len(before)
    for i, ops in enumerate(before):
        depth[i] = max((depth[j] + 1 for j in members(ops)), default=0)
    found = [0] * (max(depth, default=-1) + 1)
    for i, d in enumerate(depth):
        found[d] |= 1 << i
    return found
