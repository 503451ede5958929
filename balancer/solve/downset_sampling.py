"""Some down-sets of a graph that has too many: the prefixes of several orders of execution.

A search among them is a heuristic: it claims nothing about the other down-sets.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from balancer.ground.downsets import DownSets
from balancer.ground.opsets import members
from balancer.solve.blocks import blocks_of
from balancer.solve.orders import prefixes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balancer.ground.opsets import OpSet
    from balancer.solve.blocks import Block
    from balancer.solve.problem import Problem

MOST_ORDERS = 64
_SEED = 1


def sampled_downsets(problem: Problem, most: int) -> DownSets:
    """The prefixes of several topological orders, each before those that contain it.

    They are the blocks' own order, two depth-first orders, and random depth-first orders for as long as there are no
    more than `most` sets in all; the blocks' own order is always there. The seed is fixed.
    """
    blocks = blocks_of(problem.before, problem.together)
    sets = set(prefixes(block.ops for block in blocks))
    for order in _orders(blocks):
        more = sets.union(prefixes(order))
        if len(more) > most:
            break
        sets = more
    return DownSets.of(sorted(sets, key=lambda ops: (ops.bit_count(), ops)), problem.n_ops)


def _orders(blocks: Sequence[Block]) -> Iterator[list[OpSet]]:
    """Depth-first topological orders: of the blocks that the last one made ready, the one with the lowest rank is next.

    A block's rank is its number, the negative of its number, or random.
    """
    chance = random.Random(_SEED)
    numbers = range(len(blocks))
    rankings = [list(numbers), [-k for k in numbers]]
    rankings += [chance.sample(numbers, len(blocks)) for _ in range(MOST_ORDERS - 2)]
    of = {i: k for k, block in enumerate(blocks) for i in members(block.ops)}
    needs = [{of[i] for i in members(block.before)} for block in blocks]
    after: list[list[int]] = [[] for _ in blocks]
    for k, earlier in enumerate(needs):
        for other in earlier:
            after[other].append(k)
    for ranks in rankings:
        missing = [len(earlier) for earlier in needs]
        ready = sorted((k for k in numbers if not missing[k]), key=lambda k: -ranks[k])
        order = []
        while ready:
            last = ready.pop()
            order.append(blocks[last].ops)
            freed = []
            for k in after[last]:
                missing[k] -= 1
                if not missing[k]:
                    freed.append(k)
            ready += sorted(freed, key=lambda k: -ranks[k])
        yield order
