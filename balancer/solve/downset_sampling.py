"""Down-sets of a graph that has too many: those of several orders of execution, for a search that claims nothing of the
others.
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
    """The prefixes of the blocks' own order, of two that stay close to it depth first, and of random ones while there
    are no more than `most` sets in all. Each set stands before those that contain it.
    """
    blocks = blocks_of(problem.before, problem.together)
    found = set(prefixes(block.ops for block in blocks))
    for order in _orders(blocks):
        more = found.union(prefixes(order))
        if len(more) > most:
            break
        found = more
    return DownSets.of(sorted(found, key=lambda ops: (ops.bit_count(), ops)), problem.n_ops)


def _orders(blocks: Sequence[Block]) -> Iterator[list[OpSet]]:
    """Depth first: what the last block made possible comes first, the earliest, the latest, or any of it."""
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
