"""Orders of execution, the cuts of an order, and the costs of all its intervals.

An order is a list of op sets, its parts, which are executed one after the other. Its cuts are the prefixes of that list.
"""

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

_AT_ONCE = 1 << 18  # segments that are costed in one call


def prefixes(parts: Iterable[OpSet]) -> list[OpSet]:
    """The cuts of an order: the union of its first 0, 1, 2 ... parts.

    >>> [bin(cut) for cut in prefixes([0b001, 0b110])]
    ['0b0', '0b1', '0b111']
    """
    cuts = [0]
    for ops in parts:
        cuts.append(cuts[-1] | ops)
    return cuts


def thinned(problem: Problem, cuts: Sequence[OpSet], most: int) -> Sequence[OpSet]:
    """At most `most` of the cuts of an order, with similar work between neighbours. The first and the last are among them.

    The best pipelines between these cuts are a good start for a search among all cuts.
    """
    if len(cuts) <= most:
        return cuts
    structure = problem.structures.get(problem.devices[0][0])
    op_ns = [ns or 0 for ns in structure.op_ns] if structure else [1] * problem.n_ops
    done = np.cumsum([0, *(sum(op_ns[i] for i in members(b & ~a)) for a, b in pairwise(cuts))])
    # Half of them spread by work and half by number: the latter give cuts among ops that take no time.
    by_work = np.searchsorted(done, np.linspace(0, done[-1], most // 2))
    by_number = np.linspace(0, len(cuts) - 1, most // 2).astype(np.int64)
    return [cuts[k] for k in np.union1d(np.minimum(by_work, len(cuts) - 1), by_number).tolist()]


def file_order(problem: Problem) -> list[OpSet]:
    """The order in which the ops are numbered. Ops that no cut may separate are one part."""
    return [block.ops for block in blocks_of(problem.before, problem.together)]


def order_table(problem: Problem, cuts: Sequence[OpSet], kind: Kind) -> CostColumns:
    """Costs of all segments between the cuts of an order, as arrays of shape (len(cuts), len(cuts)).

    Entry [a, b] is the segment from cut a to cut b. It is allowed only where a < b.
    """
    n = len(cuts)
    between = problem.batch(NestedSets.of(cuts, problem.n_ops), kind)
    tables = [np.zeros((n, n), dtype) for dtype in (np.int64, np.int64, bool)]
    at_once = max(1, _AT_ONCE // n)
    for first in range(0, n - 1, at_once):
        rows = np.arange(first, min(first + at_once, n - 1))
        inners = np.repeat(rows, n - 1 - rows)
        outers = np.concatenate([np.arange(row + 1, n) for row in rows.tolist()])
        costs = between(inners, outers)
        for table, values in zip(tables, (costs.time_ns, costs.streamed_bytes, costs.allowed), strict=True):
            table[inners, outers] = values
    return CostColumns(*tables)


def depth_first_order(before: Sequence[OpSet]) -> list[int]:
    """A topological order that keeps branches together: after each op comes a successor of it, where one is ready.

    It uses a stack, as libcoral's partitioners and Tarnawski et al. 2020 (`-linearize`) do.

    >>> depth_first_order([0b0000, 0b0001, 0b0001, 0b0010])  # op 0 feeds 1 and 2, op 1 feeds 3
    [0, 1, 3, 2]
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
    """The problem's blocks, sorted by where an order of ops reaches their first op. A block waits for what it depends on."""
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
    """The ops of each depth. An op's depth is the number of ops on the longest path that leads to it.

    >>> [bin(ops) for ops in levels([0b000, 0b001, 0b001])]
    ['0b1', '0b110']
    """
    depth = [0] * len(before)
    for i, ops in enumerate(before):
        depth[i] = max((depth[j] + 1 for j in members(ops)), default=0)
    sets = [0] * (max(depth, default=-1) + 1)
    for i, d in enumerate(depth):
        sets[d] |= 1 << i
    return sets
