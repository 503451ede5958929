"""Every down-set of a graph, as long as there are not too many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.ground.downsets import DownSets, word_count, words_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.ground.opsets import OpSet
    from balancer.solve.blocks import Block


def all_downsets(blocks: Sequence[Block], n_ops: int, most: int) -> DownSets | None:
    """Every down-set of the blocks, the empty one first and that of all ops last; None where there are more than `most`.

    Each has one parent: itself without its last block. So block by block, in topological order, the sets that hold all
    that the block depends on are copied with it; sets that lack what all later blocks depend on are done.
    """
    needed = _needed_by_all_later(blocks)
    active = np.zeros((1, word_count(n_ops)), np.uint64)
    done, count = [active], 1
    for block, required in zip(blocks, needed, strict=True):
        active = active[_hold_all(active, required)]
        grown = active[_hold_all(active, block.before)].copy()
        for k, word in words_of(block.ops):
            grown[:, k] |= word
        count += len(grown)
        if count > most:
            return None
        done.append(grown)
        active = np.concatenate([active, grown])
    return DownSets(np.concatenate(done), n_ops)


def _needed_by_all_later(blocks: Sequence[Block]) -> list[OpSet]:
    """For each block what it and all later ones depend on."""
    found, common = [], -1
    for block in reversed(blocks):
        common &= block.before
        found.append(common)
    return found[::-1]


def _hold_all(words: Any, ops: OpSet) -> Any:
    held = np.ones(len(words), bool)
    for k, word in words_of(ops):
        held &= (words[:, k] & word) == word
    return held
