"""Blocks: sets of ops that no cut separates, in a topological order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.ground.opsets import members

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.ground.opsets import OpSet


@dataclass(frozen=True, slots=True)
class Block:
    """Ops that no cut separates. before: its ancestors, which are all other ops that it depends on, directly or not."""

    ops: OpSet
    before: OpSet


def blocks_of(before: Sequence[OpSet], together: Iterable[OpSet]) -> list[Block]:
    """The finest blocks that keep each group of `together` in one, in topological order.

    before: for each op the ops that it reads from. Groups that overlap are one block. So are blocks that depend on each
    other in a cycle, since no cut can separate them. Of the blocks that may come next in the order, the one with the
    smallest op does.
    """
    label = _merged(len(before), together)
    while True:
        blocks = _gather(label)
        order = _topological(blocks, before, label)
        if order is not None:
            break
        label = _merge_cycles(blocks, before, label)
    ordered: list[Block] = []
    ancestors: dict[int, OpSet] = {}
    for name in order:
        above = 0
        for parent in {label[i] for i in members(_parents(blocks[name], before))}:
            above |= ancestors[parent] | blocks[parent]
        ancestors[name] = above
        ordered.append(Block(blocks[name], above))
    return ordered


def _merged(n: int, groups: Iterable[OpSet]) -> list[int]:
    """For each op its label: the smallest op that it is grouped with, where groups that overlap are one (union-find)."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]  # path halving
            i = parent[i]
        return i

    for group in groups:
        first, *others = [root(i) for i in members(group)] or [0]
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low
    return [root(i) for i in range(n)]


def _gather(label: Sequence[int]) -> dict[int, OpSet]:
    """The ops of each label."""
    blocks: dict[int, OpSet] = {}
    for i, name in enumerate(label):
        blocks[name] = blocks.get(name, 0) | 1 << i
    return blocks


def _parents(ops: OpSet, before: Sequence[OpSet]) -> OpSet:
    """The ops outside a set that its ops read from."""
    direct = 0
    for i in members(ops):
        direct |= before[i]
    return direct & ~ops


def _topological(blocks: dict[int, OpSet], before: Sequence[OpSet], label: Sequence[int]) -> list[int] | None:
    """The labels of the blocks in order; None where blocks depend on each other in a cycle."""
    waiting = {name: {label[i] for i in members(_parents(ops, before))} for name, ops in blocks.items()}
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
    """New labels, with the blocks of each cycle as one."""
    import networkx

    graph = networkx.DiGraph()
    graph.add_nodes_from(blocks)
    graph.add_edges_from((label[i], name) for name, ops in blocks.items() for i in members(_parents(ops, before)))
    cycles = (sum(blocks[name] for name in part) for part in networkx.strongly_connected_components(graph))
    return _merged(len(label), [*blocks.values(), *cycles])
