"""Folding: merge blocks of ops that some best plan keeps together. It leaves fewer down-sets, and the same optimum.

It applies where the cost is exactly a `Structure`: other accelerators, published instances. The cost of a TFLite model on Edge
TPUs is only bounded by one, and is left as it is.

The rule
--------
Let B be a block whose parameters are not kept on chip, that needs no memory where memory is limited, and that runs on
every kind of device.

Earlier: let C be the last block before B, which means that every block from which B reads is C or an ancestor of C. B is
folded into C where both of these hold on every kind of device:

    (1)  work(B) + sending what B makes and others read, or that leaves
                 + receiving what B reads and neither B nor C makes, unless C reads it as well
         <=  sending what C makes for B alone

    (2)  receiving what B makes and others read
         <=  work(B) + sending what B makes that leaves + receiving what C makes for B alone

Later: let D be the first block after B, which means that every block that reads from B is D or a descendant of D. B is
folded into D where both of these hold on every kind of device:

    (3)  work(B) + sending what B makes and others than D read, or that leaves
                 + receiving what B reads and does not make, unless D reads it as well
         <=  receiving what B makes and D reads

    (4)  sending what B reads and does not make, unless D reads it as well, or it leaves
         <=  work(B) + sending what B makes and others read, or that leaves

So ops that take no time and hang on a single neighbour are always folded. So are ops that take little time and hand on
less than they take, and ops whose tensors cost nothing.

The proof
---------
Claim: for every plan there is a plan that keeps B with C, and that is as good by all that plans are compared by.

Take any pipeline of the plan, with B in stage p and C in stage q, where q is not p. B depends on C, so q is earlier than
p. Move B into stage q.

a. *It is still a partition.* All that B reads from is C or an ancestor of C, so it stands in stage q or earlier. All that
   reads from B stands in stage p or later, so after q. Hence each prefix is a down-set, as before.
b. *Stage q does not take longer.* It gains B's work; it sends those of B's tensors that are read elsewhere or leave; it
   receives what B reads, unless it held or received that already. It no longer sends those of C's tensors that B alone
   read, which it did send before, since B stood elsewhere. By (1), its time does not grow.
c. *Stage p does not take longer.* It loses B's work, the sending of those of B's tensors that leave, and the receiving of
   those of C's tensors that B alone read. It receives those of B's tensors that its other ops read. By (2), its time
   does not grow.
d. *No other stage changes.* A later stage that received a tensor of B's receives it still. A stage before q that made
   what B reads sent it already, because B stood in another stage.
e. *Nothing else gets worse.* (1) and (2) hold on every kind, so the kinds of p and q do not matter. B keeps no parameters
   and needs no limited memory: spilling is untouched, and no limit is broken. Where p is left empty, it goes, together
   with its devices and its host work. So no pipeline becomes slower, needs more devices, streams more, or has a higher
   latency.
f. *Folded blocks make no cycle.* Every block from which B reads is C or an ancestor of C, so no path leads from C through
   a third block to B.

Folding into D is the mirror image. B moves to the later stage, and all that reads from B stands there or later. By (3),
the stage that B joins does not take longer. The stage that B leaves must now send what B took of it, unless D takes that
as well, or it leaves the model: by (4), it does not take longer either.

Folding goes on with the merged blocks. The argument holds for them as for any blocks, and each step replaces plans by
plans that are as good.

The claim is about plans with any number of pipelines and replicas. It does not hold where the number of stages is given
(one may vanish), where segments take of shared resources, nor under other constraints, and it needs an `exact` that is the
structures' formula.
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
    """The problem with more ops kept together. Its best plan is one of the given problem's best plans.

    The problem itself where the rule does not apply.
    """
    structures = [problem.structures.get(kind) for kind, _ in problem.devices]
    known = [structure for structure in structures if structure is not None and not structure.relaxed]
    if options.stages is not None or options.constraints or problem.shared or len(known) < len(structures):
        return problem
    return replace(problem, together=tuple(folded_blocks(problem.before, known, problem.together)))


def folded_blocks(before: Sequence[OpSet], structures: Sequence[Structure], together: Sequence[OpSet]) -> list[OpSet]:
    """The blocks of more than one op, after folding as often as the rule allows."""
    blocks = _BlockGraph(before, together)
    kinds = [_MoveCosts(structure) for structure in structures]
    waiting = list(blocks.ops)  # blocks to look at: a fold may allow others nearby
    while waiting:
        name = waiting.pop()
        ops = blocks.ops.get(name)
        if ops is None or not all(kind.can_move(ops) for kind in kinds):
            continue
        last, first = blocks.last_before(name), blocks.first_after(name)
        if last is not None and all(kind.no_loss_earlier(ops, blocks.ops[last]) for kind in kinds):
            waiting += blocks.fold(name, last)
        elif first is not None and all(kind.no_loss_later(ops, blocks.ops[first]) for kind in kinds):
            waiting += blocks.fold(name, first)
    return [ops for ops in blocks.ops.values() if ops.bit_count() > 1]


class _BlockGraph:
    """The graph of blocks, which are numbered, as they are folded.

    ops, above: the ops of each block, and those of its ancestors. before, after: the blocks from which it reads, and
    those that read from it.
    """

    def __init__(self, before: Sequence[OpSet], together: Sequence[OpSet]) -> None:
        blocks = blocks_of(before, together)
        self.ops = {name: block.ops for name, block in enumerate(blocks)}
        self.above = {name: block.before for name, block in enumerate(blocks)}
        of = {i: name for name, ops in self.ops.items() for i in members(ops)}
        self.before = {
            name: {of[j] for i in members(ops) for j in members(before[i])} - {name} for name, ops in self.ops.items()
        }
        self.after: dict[int, set[int]] = {name: set() for name in self.ops}
        for name, others in self.before.items():
            for other in others:
                self.after[other].add(name)

    def last_before(self, name: int) -> int | None:
        """Of the blocks from which a block reads, the one that descends from all others (C in the rule); None for none."""
        others = self.before[name]
        return next((c for c in others if all(d == c or self.ops[d] & self.above[c] for d in others)), None)

    def first_after(self, name: int) -> int | None:
        """Of the blocks that read from a block, the one from which all others descend (D in the rule); None for none."""
        others = self.after[name]
        return next((c for c in others if all(d == c or self.ops[c] & self.above[d] for d in others)), None)

    def fold(self, name: int, into: int) -> list[int]:
        """Merge a block into another. Returns the blocks to look at again: the merged one and its neighbours."""
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


class _MoveCosts:
    """What moving a block from stage to stage changes on one kind of device: the inequalities of the rule.

    fixed: ops that may not be moved. touching: for each op the tensors that it makes or reads.
    """

    def __init__(self, structure: Structure) -> None:
        self.op_ns = structure.op_ns
        kept = sum(1 << i for i in {*(kept.op for kept in structure.kept), *structure.streaming})
        barred = sum(1 << i for i, ns in enumerate(structure.op_ns) if ns is None)
        limit = structure.limit_bytes
        sized = sum(1 << i for i, size in enumerate(structure.op_bytes) if size)
        unlimited = limit is None or sum(structure.op_bytes) <= limit
        self.fixed = kept | barred | (0 if unlimited else sized)
        self.touching: list[list[TensorSets]] = [[] for _ in structure.op_ns]
        for transfer in structure.transfers:
            tensor = TensorSets(transfer)
            for i in members(tensor.made | tensor.readers):
                self.touching[i].append(tensor)

    def can_move(self, ops: OpSet) -> bool:
        """Whether the rule may be applied to a block of these ops."""
        return not ops & self.fixed

    def no_loss_earlier(self, ops: OpSet, into: OpSet) -> bool:
        """Whether (1) and (2) hold: no stage takes longer once the ops stand with the last block before them."""
        joined = sum(self.op_ns[i] or 0 for i in members(ops))  # by how many ns the stage that they join gets longer
        left = -joined  # by how many ns the stage that they leave gets longer
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

    def no_loss_later(self, ops: OpSet, into: OpSet) -> bool:
        """Whether (3) and (4) hold: no stage takes longer once the ops stand with the first block after them."""
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
        """The tensors that the ops make or read, once each."""
        return list({id(tensor): tensor for i in members(ops) for tensor in self.touching[i]}.values())
