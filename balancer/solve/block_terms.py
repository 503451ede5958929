"""What each block adds to a stage, and to the stages after it: a cost's structure, block by block, for `growing`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from typing import TYPE_CHECKING

import numpy as np

from balancer.ground.downsets import words_of
from balancer.ground.opsets import members
from balancer.solve.blocks import blocks_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from balancer.ground.arrays import FloatArray
    from balancer.ground.downsets import Words
    from balancer.ground.opsets import OpSet
    from balancer.solve.blocks import Block
    from balancer.solve.problem import Problem
    from balancer.solve.structure import Structure, Transfer


@dataclass(frozen=True, slots=True)
class EnteringTensor:
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
    handed_ns: for each op that may be handed over, what it then takes more (or less). late: the ops that are handed
    over where the block stands in the last stage. entering: tensors that enter it. kept_bytes, streams,
    usually_streaming, host_only: of its ops, as in `Structure`. apart: ops that may not share a stage with the block.
    """

    ops: Words
    dependents: Words
    fixed_ns: int
    leaving_ns: int
    late: OpSet
    handed_ns: tuple[tuple[Words, int], ...]
    entering: tuple[EnteringTensor, ...]
    kept_bytes: int
    streams: bool
    usually_streaming: Words
    host_only: Words
    apart: Words


class BlockTable:
    """The blocks of a problem in topological order, with their terms on one kind of device."""

    def __init__(self, problem: Problem, structure: Structure) -> None:
        self.structure, self.n_ops = structure, problem.n_ops
        self._before = problem.before
        self._usual_ns = [ns or 0 for ns in structure.usual_ns or structure.op_ns]
        self._handed_ns = list(structure.handed_ns or self._usual_ns)
        self.kept_bytes = [0] * problem.n_ops  # of each op
        for kept in structure.kept:
            self.kept_bytes[kept.op] = kept.size_bytes
        blocks = blocks_of(problem.before, problem.together)
        transfers = _TransfersByOp(structure, {i: b for b, block in enumerate(blocks) for i in members(block.ops)})
        self.blocks = [self._terms(blocks, b, transfers) for b in range(len(blocks))]

    def _terms(self, blocks: Sequence[Block], number: int, transfers: _TransfersByOp) -> BlockTerms:
        ops = blocks[number].ops
        single = list(members(ops))
        extra = [(words_of(1 << i), self._handed_ns[i] - self._usual_ns[i]) for i in single]
        leaving_ns = sum(transfers.leaving_ns.get(i, 0) for i in single)
        return BlockTerms(
            ops=words_of(ops),
            dependents=words_of(_union(ops, (later.ops for later in blocks[number + 1 :] if later.before & ops))),
            fixed_ns=sum(self._usual_ns[i] for i in single) + leaving_ns,
            leaving_ns=leaving_ns,
            late=_union(0, (handoff.followers for handoff in self.structure.handoffs if handoff.after & ops)),
            handed_ns=tuple((op, more_ns) for op, more_ns in extra if more_ns),
            entering=transfers.entering(number, single),
            kept_bytes=sum(self.kept_bytes[i] for i in single),
            streams=any(i in self.structure.streaming for i in single),
            usually_streaming=words_of(_union(0, (1 << i for i in self.structure.usually_streaming)) & ops),
            host_only=words_of(_union(0, (1 << i for i in self.structure.host_only)) & ops),
            apart=words_of(_union(0, (after for op, after in self.structure.apart if ops >> op & 1))),
        )

    def late_ns(self, least_ns: Sequence[int]) -> list[int]:
        """For each block what the ops that it hands over in the last stage then take more, at least. least_ns: of each op."""
        more_ns = [max(0, handed - least) for handed, least in zip(self._handed_ns, least_ns, strict=True)]
        return [sum(more_ns[i] for i in members(block.late)) for block in self.blocks]

    def least_within(self, longest_ns: int) -> list[int]:
        """For each op the least ns that it adds to a segment that takes at most longest_ns.

        Where an op is handed to the host, so is all that stands between it and the op that hands it over: they are in one
        segment, since no tensor flows backwards. Where that takes too long, the op runs on the device.
        """
        least = [ns or 0 for ns in self.structure.op_ns]
        spans = zip(least, self._usual_ns, self._handed_span_ns.tolist(), strict=True)
        return [usual if longest_ns < span_ns < math.inf else at_least for at_least, usual, span_ns in spans]

    @cached_property
    def _handed_span_ns(self) -> FloatArray:
        """For each op the least ns of a segment in which it is handed to the host; infinite where it never is."""
        handed_ns = np.array(self._handed_ns, float)
        least = np.full(self.n_ops, np.inf)
        ancestors = _ancestors(self._before) if self.structure.handoffs else np.zeros((0, self.n_ops))
        for handoff in self.structure.handoffs:
            followers = np.zeros(self.n_ops, bool)
            followers[list(members(handoff.followers))] = True
            between_ns = ancestors @ np.where(followers, handed_ns, 0) + handed_ns
            least = np.where(followers, np.minimum(least, between_ns), least)
        return least


def _union(first: OpSet, others: Iterable[OpSet]) -> OpSet:
    return reduce(or_, others, first)


def _ancestors(before: Sequence[OpSet]) -> FloatArray:
    """[op, other]: 1 where the op depends on the other, directly or not."""
    matrix = np.zeros((len(before), len(before)))
    for i, reads in enumerate(before):
        for j in members(reads):
            np.maximum(matrix[i], matrix[j], out=matrix[i])
            matrix[i, j] = 1
    return matrix


class _TransfersByOp:
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

    def entering(self, block: int, ops: Sequence[int]) -> tuple[EnteringTensor, ...]:
        """The tensors that a block of these ops reads and does not make."""
        read = {id(t): t for i in ops for t in self._reads.get(i, ())}
        return tuple(
            self._entering(t, block) for t in read.values() if t.producer is None or self._number[t.producer] != block
        )

    def _entering(self, transfer: Transfer, block: int) -> EnteringTensor:
        return EnteringTensor(
            maker=[] if transfer.producer is None else words_of(1 << transfer.producer),
            earlier=words_of(sum(1 << reader for reader in transfer.readers if self._number[reader] < block)),
            receive_ns=transfer.receive_ns,
            send_ns=0 if transfer.leaves else transfer.send_ns,
        )
