"""Blocks of ops that some best plan keeps together: with them as one, a graph has fewer down-sets and the same optimum.

*The rule.* Let B and C be blocks, and C come before all else that B does not directly follow: every block that B reads
from is C, or comes before C (C is the last one before B). B is folded into C where, on every kind of device,

    work(B) + what B sends on + what B takes from outside C that C does not take itself
        <= what C sends to B alone                                                      (the stage that B joins)
    what B hands on, received
        <= work(B) + what C hands to B alone, received                                  (the stage that B leaves)

and B needs no memory where that is limited, keeps no parameters, and runs everywhere. The mirror image: D is the first
block after B (all that reads from B is D, or comes after D), and B is folded into D where

    work(B) + what B sends beyond D + what B takes that D does not take itself  <=  what B hands to D, received
    what B takes that is then sent to it by its former stage  <=  work(B) + what B sends

So ops that take no time and hang on a single neighbour always go; so do ops that take little and hand on less than they
take, and those whose tensors cost nothing.

*Proof.* Take any pipeline, with B in stage p and C in stage q != p. B follows C, so q is earlier. Move B into stage q:
whatever B reads from is C or before C, so in q or earlier; what reads from B was in p or later, so after q: each prefix
is a down-set as before. Stage q gains B's work, sends what of B's tensors is read elsewhere or leaves, and receives
what it did not hold or take already; it no longer sends those tensors of C's that B alone read, which it did before,
since B stood elsewhere. Stage p loses B's work and no longer receives those tensors, and receives what of B's it reads.
No other stage changes: what q's new tensors' readers after p received they receive still, and what B reads from a
stage before q that stage sent already. By the two inequalities neither p nor q takes longer, on whatever kinds they
are; spilling is untouched, no memory limit is broken. If p is empty it goes, with its devices and its host work. So no
pipeline of the plan becomes slower, none needs more devices, streams more, or has a higher latency: as good a plan
keeps B with C. All blocks before B being C or before C, no path leads from C over a third block to B, so that the
folded blocks make no cycle. The mirror image moves B to the later stage: its readers are there or later, and its former
stage must send what B took of it, unless D takes that too, or it leaves. Folding goes on with the blocks so made: the
argument holds for them, and plans are only ever replaced by plans that are as good.

It holds for plans of any number of pipelines and replicas, not where the number of stages is given (one may vanish) or
other constraints are set, and only where `exact` is the structures' formula.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.ground.opsets import members
from balancer.solve.blocks import blocks_of
from balancer.solve.structured import TensorSets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.ground.opsets import OpSet
    from balancer.solve.problem import Problem, SolverOptions
    from balancer.solve.structure import Structure


def folded(problem: Problem, options: SolverOptions) -> Problem:
    """The problem with what can be folded kept together: as good a plan, and a solution of it is one of the problem."""
    structures = [problem.structures.get(kind) for kind, _ in problem.devices]
    known = [structure for structure in structures if structure is not None and not structure.relaxed]
    if options.stages is not None or options.constraints or len(known) < len(structures):
        return problem
    return replace(problem, together=tuple(folded_blocks(problem.before, known, problem.together)))


def folded_blocks(before: Sequence[OpSet], structures: Sequence[Structure], together: Sequence[OpSet]) -> list[OpSet]:
    """The groups of more than one op, after folding as often as the rule allows."""
    blocks = _Blocks(before, together)
    kinds = [_Kind(structure) for structure in structures]
    waiting = list(blocks.ops)
    while waiting:
        name = waiting.pop()
        ops = blocks.ops.get(name)
        if ops is None or not all(kind.can_move(ops) for kind in kinds):
            continue
        last, first = blocks.last_before(name), blocks.first_after(name)
        if last is not None and all(kind.gains_earlier(ops, blocks.ops[last]) for kind in kinds):
            waiting += blocks.fold(name, last)
        elif first is not None and all(kind.gains_later(ops, blocks.ops[first]) for kind in kinds):
            waiting += blocks.fold(name, first)
    return [ops for ops in blocks.ops.values() if ops.bit_count() > 1]


class _Blocks:
    """The graph of blocks, by name. above: all ops that a block depends on, directly or not."""

    def __init__(self, before: Sequence[OpSet], together: Sequence[OpSet]) -> None:
        found = blocks_of(before, together)
        self.ops = {name: block.ops for name, block in enumerate(found)}
        self.above = {name: block.before for name, block in enumerate(found)}
        of = {i: name for name, ops in self.ops.items() for i in members(ops)}
        self.before = {
            name: {of[j] for i in members(ops) for j in members(before[i])} - {name} for name, ops in self.ops.items()
        }
        self.after: dict[int, set[int]] = {name: set() for name in self.ops}
        for name, others in self.before.items():
            for other in others:
                self.after[other].add(name)

    def last_before(self, name: int) -> int | None:
        """The block that the block depends on directly, and that depends on all others that it does; None for none."""
        others = self.before[name]
        return next((c for c in others if all(d == c or self.ops[d] & self.above[c] for d in others)), None)

    def first_after(self, name: int) -> int | None:
        """The block that depends on the block, and that all others that do depend on; None for none."""
        others = self.after[name]
        return next((c for c in others if all(d == c or self.ops[c] & self.above[d] for d in others)), None)

    def fold(self, name: int, into: int) -> list[int]:
        """Make one block of two. Returns those to look at again."""
        self.ops[into] |= self.ops.pop(name)
        self.above[into] = (self.above[into] | self.above.pop(name)) & ~self.ops[into]
        for side, other_side in ((self.before, self.after), (self.after, self.before)):
            side[into] = (side[into] | side.pop(name)) - {name, into}
            for other in side[into]:
                other_side[other] = (other_side[other] - {name}) | {into}
        for other, above in self.above.items():
            if above & self.ops[into]:
                self.above[other] = above | self.ops[into] | self.above[into]
        return [into, *sorted(self.before[into] | self.after[into])]


class _Kind:
    """What moving a block from stage to stage changes on one kind of device."""

    def __init__(self, structure: Structure) -> None:
        self.op_ns = structure.op_ns
        kept = sum(1 << i for i in {*(kept.op for kept in structure.kept), *structure.streaming})
        barred = sum(1 << i for i, ns in enumerate(structure.op_ns) if ns is None)
        limit = structure.limit_bytes
        sized = sum(1 << i for i, size in enumerate(structure.op_bytes) if size)
        roomy = limit is None or sum(structure.op_bytes) <= limit
        self.bound = kept | barred | (0 if roomy else sized)
        self.touching: list[list[TensorSets]] = [[] for _ in structure.op_ns]
        for transfer in structure.transfers:
            tensor = TensorSets(transfer)
            for i in members(tensor.made | tensor.readers):
                self.touching[i].append(tensor)

    def can_move(self, ops: OpSet) -> bool:
        return not ops & self.bound

    def gains_earlier(self, ops: OpSet, into: OpSet) -> bool:
        """Whether no stage takes longer once the ops stand with the last block before them."""
        joined = sum(self.op_ns[i] or 0 for i in members(ops))  # ns that the stage takes longer that they come to
        left = -joined  # ns that the stage takes longer that they come from
        for tensor in self._tensors(ops):
            beyond = bool(tensor.readers & ~ops)
            if tensor.made & ops:
                joined += tensor.send_ns * (tensor.leaves or beyond)
                left += tensor.receive_ns * beyond - tensor.send_ns * tensor.leaves
            elif tensor.made & into:
                alone = not tensor.leaves and not tensor.readers & ~(ops | into)
                joined -= tensor.send_ns * alone
                left -= tensor.receive_ns * alone
            else:
                joined += tensor.receive_ns * (not tensor.readers & into)
        return joined <= 0 and left <= 0

    def gains_later(self, ops: OpSet, into: OpSet) -> bool:
        """Whether no stage takes longer once the ops stand with the first block after them."""
        joined = sum(self.op_ns[i] or 0 for i in members(ops))
        left = -joined
        for tensor in self._tensors(ops):
            if tensor.made & ops:
                joined += tensor.send_ns * bool(tensor.leaves or tensor.readers & ~(ops | into))
                joined -= tensor.receive_ns * bool(tensor.readers & into)
                left -= tensor.send_ns * bool(tensor.leaves or tensor.readers & ~ops)
            elif not tensor.readers & into:
                joined += tensor.receive_ns
                left += tensor.send_ns * (tensor.made != 0 and not tensor.leaves)
        return joined <= 0 and left <= 0

    def _tensors(self, ops: OpSet) -> list[TensorSets]:
        """Those that the ops make or read, once each."""
        found = {id(tensor): tensor for i in members(ops) for tensor in self.touching[i]}
        return list(found.values())
