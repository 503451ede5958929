"""What each block adds to a stage, and to the stages after it: a cost's structure, block by block, for `growing`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

import numpy as np

from balancer.ground.downsets import words_of
from balancer.ground.opsets import members
from balancer.solve.blocks import blocks_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from balancer.ground.arrays import FloatArray
    from balancer.ground.downsets import Words
    from balancer.ground.opsets import OpSet
    from balancer.solve.problem import Problem
    from balancer.solve.structure import Structure, Transfer


@dataclass(frozen=True, slots=True)
class Crossing:
    """A tensor that a block reads and does not make. maker: the op that makes it, empty for an input of the whole.
    earlier: the ops of earlier blocks that read it. send_ns: 0 where it is sent in any case.
    """

    maker: Words
    earlier: Words
    receive_ns: int
    send_ns: int


@dataclass(frozen=True, slots=True)
class BlockTerms:
    """What a block adds to a stage. dependents: its own ops, and all that depend on them.

    fixed_ns: of its ops where nothing is handed to the host, and the sending of outputs of the whole, which take leaving_ns.
    handed_ns: for each op that may be handed over, what it then takes more (or less). late_ns: what the ops take more, at
    least, that the block hands over where it stands in the last stage. crossings: tensors that enter it. kept_bytes, streams:
    of its parameters, as in `Structure`.
    """

    ops: Words
    dependents: Words
    fixed_ns: int
    leaving_ns: int
    late_ns: int
    handed_ns: tuple[tuple[Words, int], ...]
    crossings: tuple[Crossing, ...]
    kept_bytes: int
    streams: bool


def least_within(before: Sequence[OpSet], structure: Structure, longest_ns: int) -> list[int]:
    """For each op the least ns that it adds to a segment that takes at most longest_ns.

    Where an op is handed to the host, so is all that stands between it and the op that hands it over: they are in one
    segment, since no tensor flows backwards. Where that takes too long, the op runs on the device.
    """
    least = [ns or 0 for ns in structure.op_ns]
    if not structure.handoffs:
        return least
    usual = [ns or 0 for ns in structure.usual_ns]
    handed_ns = np.array(structure.handed_ns, float)
    ancestors = _ancestors(before)
    shortest = np.full(len(least), np.inf)
    for handoff in structure.handoffs:
        followers = np.zeros(len(least), bool)
        followers[list(members(handoff.followers))] = True
        between_ns = ancestors @ np.where(followers, handed_ns, 0) + handed_ns
        shortest = np.where(followers, np.minimum(shortest, between_ns), shortest)
    return [
        usual[i] if span_ns > longest_ns and np.isfinite(span_ns) else least[i] for i, span_ns in enumerate(shortest)
    ]


def _ancestors(before: Sequence[OpSet]) -> FloatArray:
    """[op, other]: 1 where the op depends on the other, directly or not."""
    matrix = np.zeros((len(before), len(before)))
    for i, reads in enumerate(before):
        for j in members(reads):
            np.maximum(matrix[i], matrix[j], out=matrix[i])
            matrix[i, j] = 1
    return matrix


def block_terms(problem: Problem, structure: Structure, least_ns: Sequence[int]) -> list[BlockTerms]:
    """The blocks in topological order, with their terms. least_ns: of each op (`least_within`)."""
    blocks = blocks_of(problem.before, problem.together)
    number = {i: b for b, block in enumerate(blocks) for i in members(block.ops)}
    tensors = _Tensors(structure, number)
    ops_ns = _OpTimes(structure, least_ns)
    sizes = {kept.op: kept.size_bytes for kept in structure.kept}
    made = []
    for b, block in enumerate(blocks):
        ops = list(members(block.ops))
        leaving_ns = sum(tensors.leaving_ns.get(i, 0) for i in ops)
        dependents = reduce(or_, (other.ops for other in blocks[b + 1 :] if other.before & block.ops), block.ops)
        made.append(
            BlockTerms(
                ops=words_of(block.ops),
                dependents=words_of(dependents),
                fixed_ns=sum(ops_ns.usual[i] for i in ops) + leaving_ns,
                leaving_ns=leaving_ns,
                late_ns=ops_ns.late_ns(block.ops),
                handed_ns=tuple((words_of(1 << i), more) for i in ops if (more := ops_ns.handed[i] - ops_ns.usual[i])),
                crossings=tensors.crossings(b, ops),
                kept_bytes=sum(sizes.get(i, 0) for i in ops),
                streams=any(i in structure.streaming for i in ops),
            )
        )
    return made


class _OpTimes:
    """The ns of ops: where they are not handed over (usual), and where they are (handed)."""

    def __init__(self, structure: Structure, least_ns: Sequence[int]) -> None:
        self.usual = [ns or 0 for ns in structure.usual_ns or structure.op_ns]
        self.handed = list(structure.handed_ns or self.usual)
        self._handoffs = structure.handoffs
        self._late_ns = [max(0, handed - least) for handed, least in zip(self.handed, least_ns, strict=True)]

    def late_ns(self, ops: OpSet) -> int:
        """See `BlockTerms`. The last stage holds all that depends on these ops."""
        late = reduce(or_, (handoff.followers for handoff in self._handoffs if handoff.after & ops), 0)
        return sum(self._late_ns[i] for i in members(late))


class _Tensors:
    """The transfers of a structure by the ops that read and make them. number: of each op's block."""

    def __init__(self, structure: Structure, number: Mapping[int, int]) -> None:
        self._number = number
        self._reads: dict[int, list[Transfer]] = {}
        self.leaving_ns: dict[int, int] = {}  # to send what an op makes for the outside
        for transfer in structure.transfers:
            for reader in transfer.readers:
                self._reads.setdefault(reader, []).append(transfer)
            if transfer.producer is not None and transfer.leaves:
                self.leaving_ns[transfer.producer] = self.leaving_ns.get(transfer.producer, 0) + transfer.send_ns

    def crossings(self, block: int, ops: Sequence[int]) -> tuple[Crossing, ...]:
        """The tensors that a block of these ops reads and does not make."""
        read = {id(t): t for i in ops for t in self._reads.get(i, ())}
        return tuple(
            self._crossing(t, block) for t in read.values() if t.producer is None or self._number[t.producer] != block
        )

    def _crossing(self, transfer: Transfer, block: int) -> Crossing:
        return Crossing(
            maker=[] if transfer.producer is None else words_of(1 << transfer.producer),
            earlier=words_of(sum(1 << reader for reader in transfer.readers if self._number[reader] < block)),
            receive_ns=transfer.receive_ns,
            send_ns=0 if transfer.leaves else transfer.send_ns,
        )
