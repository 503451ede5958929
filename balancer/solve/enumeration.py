"""Every down-set of a graph, as long as there are not too many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from balancer.ground.downsets import DownSets, hold_all, put, word_count, words_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.ground.opsets import OpSet
    from balancer.solve.blocks import Block


def all_downsets(blocks: Sequence[Block], n_ops: int, most: int) -> DownSets | None:
    """Every down-set of the blocks, each before those that contain it; None where there are more than `most`.

    blocks: in topological order. Each down-set but the empty one has one parent: itself without its last block in this
    order. So every set is made once when, block by block, the block is added to all sets that hold what it depends on.
    """
    active = np.zeros((1, word_count(n_ops)), np.uint64)  # sets that may still be parents
    made, count = [active], 1
    for block, required in zip(blocks, _needed_by_all_later(blocks), strict=True):
        # A set that lacks what all later blocks depend on can have no more children: it is dropped from the loop.
        active = active[hold_all(active, words_of(required))]
        children = put(active[hold_all(active, words_of(block.before))], words_of(block.ops))
        count += len(children)
        if count > most:
            return None
        made.append(children)
        active = np.concatenate([active, children])
    return DownSets(np.concatenate(made), n_ops)


def _needed_by_all_later(blocks: Sequence[Block]) -> list[OpSet]:
    """For each block, what it and all later ones depend on: the intersection of their ancestors."""
    needed, common = [], -1  # -1 holds every op
    for block in reversed(blocks):
        common &= block.before
        needed.append(common)
    return needed[::-1]
