"""Ops that no cut separates, as blocks in a topological order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.ground.opsets import members

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.ground.opsets import OpSet


class Block:
    """Ops that no cut separates. before: all ops that it depends on, directly or not, outside itself."""

    __slots__ = ("before", "ops")

    def __init__(self, ops: OpSet, before: OpSet) -> None:
        self.ops = ops
        self.before = before


def blocks_of(before: Sequence[OpSet], together: Iterable[OpSet]) -> list[Block]:
    """The ops in blocks, in a topological order: groups that must stay together, with what lies on cycles between them.

    Blocks are as fine as possible; among those that may come next, that with the smallest op does.
    """
    label = _merged(len(before), together)
    while True:
        blocks = _gather(label)
        order = _topological(blocks, before, label)
        if order is not None:
            break
        label = _merge_cycles(blocks, before, label)
    found, ancestors = [], dict[int, int]()
    for name in order:
        direct = _outside(blocks[name], before)
        everything = direct
        for parent in {label[i] for i in members(direct)}:
            everything |= ancestors[parent] | blocks[parent]
        ancestors[name] = everything
        found.append(Block(blocks[name], everything))
    return found


def _merged(n: int, groups: Iterable[OpSet]) -> list[int]:
    """For each op the smallest op that it is grouped with, where groups that meet are one."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for group in groups:
        first, *others = [root(i) for i in members(group)] or [0]
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low
    return [root(i) for i in range(n)]


def _gather(label: Sequence[int]) -> dict[int, OpSet]:
    blocks: dict[int, OpSet] = {}
    for i, name in enumerate(label):
        blocks[name] = blocks.get(name, 0) | 1 << i
    return blocks


def _outside(ops: OpSet, before: Sequence[OpSet]) -> OpSet:
    direct = 0
    for i in members(ops):
        direct |= before[i]
    return direct & ~ops


def _topological(blocks: dict[int, OpSet], before: Sequence[OpSet], label: Sequence[int]) -> list[int] | None:
    """Blocks' names in order; None where they depend on each other in a cycle."""
    waiting = {name: {label[i] for i in members(_outside(ops, before))} for name, ops in blocks.items()}
    order: list[int] = []
    placed: set[int] = set()
    while waiting:
        ready = next((name for name in sorted(waiting) if waiting[name] <= placed), None)
        if ready is None:
            return None
        order.append(ready)
        placed.add(ready)
        del waiting[ready]
    return order


def _merge_cycles(blocks: dict[int, OpSet], before: Sequence[OpSet], label: Sequence[int]) -> list[int]:
    import networkx

    drawn = networkx.DiGraph()
    drawn.add_nodes_from(blocks)
    drawn.add_edges_from((label[i], name) for name, ops in blocks.items() for i in members(_outside(ops, before)))
    cycles = (sum(blocks[name] for name in part) for part in networkx.strongly_connected_components(drawn))
    return _merged(len(label), [*blocks.values(), *cycles])
