"""Stages grown from given cuts, block by block, as long as lower bounds leave hope for the pipelines that they belong to.

A stage that starts at a down-set J ends at a down-set I that contains J. The blocks outside J are decided in topological
order: a block joins the stage, or it is left to later stages, and with it all that depends on it. So each I is met once,
as a leaf of a binary tree. What is decided bounds the rest: the time of the stage itself, and the time of all stages
after it. A branch in which the two need more devices than there are is cut off, with all its leaves.

All starts and branches are rows of the same arrays, so that numpy decides one block for all of them at once.

The bound of one stage follows the cost's structure closely. Where it starts says which of its ops are handed to the host:
the ancestors of an op of the stage stand before its end, so those that the start lacks are in the stage. The bound of all
that is left over is looser. It knows the cut between, but no later one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from balancer.ground.downsets import ByteSums, DownSets, hold_all, hold_any, put, words_of
from balancer.solve.bounds import spilled_ns
from balancer.solve.budget import BudgetSpent

if TYPE_CHECKING:
    from balancer.ground.arrays import BoolArray, IndexArray, IntArray, WordArray
    from balancer.solve.block_terms import BlockTable, BlockTerms
    from balancer.solve.budget import Budget

_BLOCKS_A_SWEEP = 8  # rows in which nothing is open any more are put aside after so many blocks


class _TooManyRows(Exception):
    """More branches are open at once than memory is meant for."""


class GrownStages(NamedTuple):
    """Stages as columns: the number of the start, and the ops before the end as a row of words."""

    start: IndexArray
    ends: WordArray


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthLimits:
    """Which pipelines stages are grown for. most_ns: of the period. devices: of all stages. most_replicas: of a stage.
    most_rows: branches that may be open at once. Where there are more, the starts are taken in parts.
    """

    most_ns: int
    devices: int
    most_replicas: int
    most_rows: int = 1 << 18  # about 60 MiB


class _Rows(NamedTuple):
    """Open branches. held, left: the ops before the stage's end, and those left to later stages, as words.

    numbers[row, column], where the columns are: the number of the start; ns and kept bytes of the stage so far, and whether
    it streams; the least ns of what is left, its kept bytes, and whether it streams; ns of later stages to receive what is
    known to cross the stage's end or to enter from outside; ns that all of `left` takes more in a single stage.
    """

    held: WordArray
    left: WordArray
    numbers: IntArray

    def take(self, chosen: IndexArray | BoolArray) -> _Rows:
        return _Rows(self.held[chosen], self.left[chosen], self.numbers[chosen])

    @property
    def start(self) -> IndexArray:
        return self.numbers[:, _START]


_START, _STAGE_NS, _KEPT, _STREAMS, _LEFT_NS, _LEFT_KEPT, _LEFT_STREAMS, _CROSSING_NS, _HANDED_NS = range(9)


def _together(*parts: _Rows) -> _Rows:
    filled = [part for part in parts if len(part.held)] or parts[:1]
    return (
        filled[0] if len(filled) == 1 else _Rows._make(np.concatenate(columns) for columns in zip(*filled, strict=True))
    )


class StageGrowth:
    """Grows stages of pipelines within limits, for one kind of device."""

    def __init__(self, table: BlockTable, limits: GrowthLimits) -> None:
        self.table, self.structure, self.limits = table, table.structure, limits
        least_ns = table.least_within(limits.most_ns * min(limits.most_replicas, limits.devices))
        self._late_ns = table.late_ns(least_ns)
        self._left_ns = ByteSums(least_ns)
        # Where all parameters fit into one device, nothing ever spills.
        may_spill = sum(table.kept_bytes) > table.structure.capacity_bytes
        self._left_kept = ByteSums(table.kept_bytes if may_spill else [0] * table.n_ops)
        self._streaming = words_of(sum(1 << i for i in table.structure.streaming))
        self._apart = [block for block in table.blocks if block.apart]
        self._all_words = DownSets.of([(1 << table.n_ops) - 1], table.n_ops).words

    def grown(self, starts: WordArray, used: IntArray, budget: Budget) -> GrownStages:
        """All stages that start at these cuts and may belong to a pipeline within the limits.

        starts: down-sets as rows of words. used: for each the devices before it. Raises BudgetSpent, also where a single
        start has too many branches open at once.
        """
        try:
            return self._grown(starts, used, budget)
        except _TooManyRows:
            if len(starts) == 1:
                raise BudgetSpent from None
        half = len(starts) // 2
        first, second = self.grown(starts[:half], used[:half], budget), self.grown(starts[half:], used[half:], budget)
        return GrownStages(
            np.concatenate([first.start, second.start + half]), np.concatenate([first.ends, second.ends])
        )

    def _grown(self, starts: WordArray, used: IntArray, budget: Budget) -> GrownStages:
        """The same for all starts at once. Raises _TooManyRows where too many branches are open, and BudgetSpent."""
        rows, handed = self._at(starts), self._handed_over(starts)
        done = rows.take(np.zeros(len(starts), bool))
        for number, block in enumerate(self.table.blocks):
            rows = self._decided(rows, number, starts, handed, used)
            if number % _BLOCKS_A_SWEEP == 0 or block is self.table.blocks[-1]:
                whole = ((rows.held | rows.left) == self._all_words).all(axis=1)
                done, rows = _together(done, rows.take(whole)), rows.take(~whole)
            if len(rows.held) > self.limits.most_rows:
                raise _TooManyRows
            budget.spend(len(rows.held))
        holds_some = (done.held != starts[done.start]).any(axis=1)
        return GrownStages(done.start[holds_some], done.held[holds_some])

    def _at(self, starts: WordArray) -> _Rows:
        """One row for each start, in which nothing is decided yet."""
        numbers = np.zeros((len(starts), 9), np.int64)
        numbers[:, _START] = np.arange(len(starts))
        numbers[:, _STAGE_NS] = self.structure.stage_ns
        return _Rows(starts, np.zeros_like(starts), numbers)

    def _handed_over(self, starts: WordArray) -> WordArray:
        """For each start, the ops that are handed to the host in any stage from there that holds them."""
        handed = np.zeros_like(starts)
        for handoff in self.structure.handoffs:
            triggered = ~hold_any(starts, words_of(1 << handoff.op)) & ~hold_all(starts, words_of(handoff.after))
            handed[triggered] = put(handed[triggered], words_of(handoff.followers))
        return handed

    def _decided(self, rows: _Rows, number: int, starts: WordArray, handed: WordArray, used: IntArray) -> _Rows:
        """The rows in which this block is decided and that may still fit: those that hold it from the start, leave it, and
        take it.
        """
        block = self.table.blocks[number]
        is_left, is_held = hold_any(rows.left, block.ops), hold_any(rows.held, block.ops)
        if is_held.all():
            return rows
        opened = rows.take(~is_left & ~is_held)
        late = self._crossed(
            _together(rows.take(is_left), self._leaving(opened, block, self._late_ns[number])), block, starts
        )
        taken = self._taking(opened, block, starts, handed)
        changed = _together(late, taken)
        return _together(rows.take(is_held), changed.take(self._fits(changed, used)))

    def _taking(self, rows: _Rows, block: BlockTerms, starts: WordArray, handed: WordArray) -> _Rows:
        """The rows with the block in the stage."""
        if block.apart:  # ancestors, which the stage holds wherever they do not stand before its start
            rows = rows.take(hold_all(starts[rows.start], block.apart))
        if block.host_only:
            rows = rows.take(hold_all(handed[rows.start], block.host_only))
        numbers, begun = rows.numbers.copy(), starts[rows.start]
        stage_ns = numbers[:, _STAGE_NS]
        stage_ns += block.fixed_ns
        for op, more_ns in block.handed_ns:
            stage_ns += hold_any(handed[rows.start], op) * more_ns
        for tensor in block.entering:
            enters = hold_any(begun, tensor.maker) if tensor.maker else True
            if tensor.earlier:
                enters = enters & ~hold_any(rows.held & ~begun, tensor.earlier)
            stage_ns += enters * tensor.receive_ns
        numbers[:, _KEPT] += block.kept_bytes
        numbers[:, _STREAMS] |= block.streams
        if block.usually_streaming:
            numbers[:, _STREAMS] |= ~hold_all(handed[rows.start], block.usually_streaming)
        return _Rows(put(rows.held, block.ops), rows.left, numbers)

    def _leaving(self, rows: _Rows, block: BlockTerms, late_ns: int) -> _Rows:
        """The rows with the block left to later stages, and with it all that depends on it."""
        left, numbers = put(rows.left, block.dependents), rows.numbers.copy()
        numbers[:, _LEFT_NS] = self._left_ns.of(left)
        numbers[:, _LEFT_KEPT] = self._left_kept.of(left)
        numbers[:, _LEFT_STREAMS] = hold_any(left, self._streaming)
        np.maximum(numbers[:, _HANDED_NS], late_ns, out=numbers[:, _HANDED_NS])
        return _Rows(rows.held, left, numbers)

    def _crossed(self, rows: _Rows, block: BlockTerms, starts: WordArray) -> _Rows:
        """The rows, which all leave the block, with what it has cross the stage's end. Changes them."""
        numbers = rows.numbers
        numbers[:, _CROSSING_NS] += block.leaving_ns
        for tensor in block.entering:
            crosses = hold_any(rows.held, tensor.maker) if tensor.maker else np.ones(len(numbers), bool)
            if tensor.earlier:
                crosses &= ~hold_any(rows.left, tensor.earlier)
            numbers[:, _CROSSING_NS] += crosses * tensor.receive_ns
            if tensor.maker:  # what was made before the start was sent before
                crosses &= ~hold_any(starts[rows.start], tensor.maker)
                numbers[:, _STAGE_NS] += crosses * tensor.send_ns
        return rows

    def _fits(self, rows: _Rows, used: IntArray) -> BoolArray:
        """For each row, whether the devices may be enough for the stage and for all that is left."""
        structure, limits, columns = self.structure, self.limits, rows.numbers.T
        stage_ns = columns[_STAGE_NS] + spilled_ns(structure, columns[_KEPT], columns[_STREAMS], 1)
        replicas = np.maximum(1, -(-stage_ns // limits.most_ns))
        free = limits.devices - used[rows.start] - replicas
        spilled = spilled_ns(structure, columns[_LEFT_KEPT], columns[_LEFT_STREAMS], np.maximum(1, free))
        rest_ns = columns[_LEFT_NS] + columns[_CROSSING_NS] + spilled + structure.stage_ns
        one = rest_ns + columns[_HANDED_NS] <= limits.most_ns * np.minimum(free, limits.most_replicas)
        several = (free >= 2) & (rest_ns + structure.stage_ns <= limits.most_ns * free)
        for block in self._apart:  # what is left cannot be a single stage
            one &= ~(hold_any(rows.left, block.ops) & hold_any(rows.left, block.apart))
        ends = ~rows.left.any(axis=1)
        fits: BoolArray = (replicas <= limits.most_replicas) & (free >= 0) & (ends | one | several)
        return fits
