"""Orders of execution, and the costs of all their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from balancer.solve.downsets import DownSets, blocks_of
from balancer.solve.problem import Costs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.solve.problem import Kind, OpSet, Problem


def prefixes(parts: Iterable[OpSet]) -> list[OpSet]:
    """What is done after none, one, two ... of the parts that an order takes one after the other."""
    found = [0]
    for ops in parts:
        found.append(found[-1] | ops)
    return found


def file_order(problem: Problem) -> list[OpSet]:
    """The ops as they are numbered, with those that no cut may separate in one part."""
    return [block.ops for block in blocks_of(problem.before, problem.together)]


def order_table(problem: Problem, cuts: Sequence[OpSet], kind: Kind) -> Costs:
    """Costs of all segments between the cuts of an order: entry [a, b] from cut a to cut b. Nothing is allowed elsewhere."""
    n = len(cuts)
    inners, outers = np.triu_indices(n, 1)
    costs = problem.batch(DownSets.of(cuts, problem.n_ops), kind)(inners, outers)
    tables = [np.zeros((n, n), dtype) for dtype in (np.int64, np.int64, bool)]
    for table, values in zip(tables, costs, strict=True):
        table[inners, outers] = values
    return Costs(*tables)
