"""Orders of execution, and the costs of all their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from balancer.solve.downsets import DownSets
from balancer.solve.problem import Costs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.solve.problem import Kind, OpSet, Problem


def prefixes(order: Sequence[int]) -> list[OpSet]:
    """What is done after none, one, two ... ops of an order."""
    found = [0]
    for i in order:
        found.append(found[-1] | 1 << i)
    return found


def order_table(problem: Problem, order: Sequence[int], kind: Kind) -> Costs:
    """Costs of all intervals of an order: entry [a, b] for its positions a to b - 1. Nothing is allowed elsewhere."""
    n = len(order)
    inners, outers = np.triu_indices(n + 1, 1)
    costs = problem.batch(DownSets.of(prefixes(order), problem.n_ops), kind)(inners, outers)
    tables = [np.zeros((n + 1, n + 1), dtype) for dtype in (np.int64, np.int64, bool)]
    for table, values in zip(tables, costs, strict=True):
        table[inners, outers] = values
    return Costs(*tables)
