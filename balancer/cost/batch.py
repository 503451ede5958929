"""The costs of many segments at once: those between pairs of down-sets, as numpy arrays. Equal to `SegmentCosts.terms`.

A segment holds the ops of an outer set J2 that an inner one J1 does not. Sums over its ops are differences of sums over
the two sets. What it hands on is what J2 hands on, less what J1 made of that; what it takes is what J1 hands on and
some op of the segment reads. Which ops stay on the CPU depends on J1 alone, since J2 holds all that its ops depend on.
Only where the parameters may not all stay on chip is the cache filled, op by op for all such segments at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from balancer.cost.timing import input_ns, output_ns
from balancer.graph import members, op_set

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.cost.segment import SegmentCosts
    from balancer.graph import OpSet

WORD = 64
_STATUSES = 8  # sums kept for so many choices of what is on the CPU; inner sets come in order, so few are in use


class SegmentTable(NamedTuple):
    """int64 arrays, and where a segment may stand; numbers elsewhere mean nothing."""

    time_ns: Any
    streamed_bytes: Any
    overflow_bytes: Any
    allowed: Any


class _Sums(NamedTuple):
    """Over the ops of each set: ns of computing, starting and always streaming; bytes to keep; bytes that always stream."""

    time_ns: Any
    kept_bytes: Any
    always_bytes: Any


@dataclass(frozen=True, slots=True)
class _Crossing:
    """An activation that a cut may cross. made: bit of its producer, 0 for a model input. readers: as a set."""

    made: OpSet
    readers: OpSet
    final: bool
    input_ns: int
    output_ns: int
    known: bool
    scratch: tuple[tuple[int, int], ...]  # (reader, bytes a tile where the tensor enters the reader's segment)


class Sets(Protocol):
    """Down-sets of the graph, by row numbers."""

    words: Any  # uint64: op i is bit i % 64 of word i // 64 of a row

    def __len__(self) -> int: ...

    def set_of(self, row: int) -> OpSet: ...

    def holds_any(self, ops: OpSet, rows: Any = ...) -> Any:
        """Which of the rows hold one of the ops."""

    def holds_all(self, ops: OpSet, rows: Any = ...) -> Any:
        """Which of the rows hold all the ops."""

    def total(self, weights: Sequence[int]) -> Any:
        """For each set the sum of its ops' weights, int64."""


class SegmentBatch:
    """Costs of the segments between down-sets of the graph."""

    def __init__(self, costs: SegmentCosts, sets: Sets) -> None:
        self.costs = costs
        self.graph = costs.graph
        self.sets = sets
        self.crossings = _crossings(costs)
        self.sums = lru_cache(_STATUSES)(self._sums)
        self.on_tpu = lru_cache(_STATUSES)(self._on_tpu)
        graph = self.graph
        self.all_known = all(crossing.known for crossing in self.crossings)
        # Then a segment always gives something: the last of its ops is read outside, or final.
        given = set(graph.outputs) | set(graph.readers)
        self.all_used = all(op.folded or any(t in given for t in op.outputs) for op in graph.ops)

    def __call__(self, inners: Any, outers: Any) -> SegmentTable:
        """inners, outers: row numbers, one inner row or as many as outer ones, ascending; each outer set contains its
        inner one.
        """
        inners, outers = (np.ravel(a) for a in np.broadcast_arrays(inners, outers))
        time, streamed, kept, scratch = (np.zeros(len(outers), np.int64) for _ in range(4))
        allowed = np.zeros(len(outers), bool)
        starts = np.nonzero(np.diff(inners, prepend=-1))[0].tolist()  # none, where there are no segments
        groups = []
        for start, end in pairwise([*starts, len(inners)]):
            here = slice(start, end)
            row = _Inner(self, int(inners[start]), outers[here])
            time[here], streamed[here], kept[here] = row.time_ns, row.always_bytes, row.kept_bytes
            scratch[here], allowed[here] = row.scratch, row.allowed
            groups.append((here, row.on_tpu))
        overflow = np.zeros(len(outers), np.int64)
        tight = self._tight(kept, scratch, allowed)
        if len(tight):
            tpu = self._on_tpu_words(groups, outers)[tight]
            filled = _Caches(self.costs, tpu, self._room(tpu, scratch[tight]))
            overflow[tight] = filled.overflow_bytes
            time[tight] += filled.waiting_ns
        streamed += overflow
        time += np.where(streamed > 0, self.costs.hardware.stream_start_ns, 0) + self.costs.hardware.invoke_ns
        return SegmentTable(time, streamed, overflow, allowed)

    def _tight(self, kept: Any, scratch: Any, allowed: Any) -> Any:
        """Numbers of the segments whose parameters may not all stay."""
        caching, most = self.costs.caching, max(self._scratch_of_ops, default=(0, 0))[0]
        least_room = self.costs.room(max(most, int(scratch.max(initial=0))))
        all_dense_fit = not caching.dense or caching.dense_fit(caching.dense)
        return np.nonzero(allowed & ((kept > least_room) | ((kept > 0) & (not all_dense_fit))))[0]

    def _on_tpu_words(self, groups: Sequence[tuple[slice, OpSet]], outers: Any) -> Any:
        """The ops of each segment on the TPU, as words."""
        found = np.zeros((len(outers), self.sets.words.shape[1]), np.uint64)
        for here, chip in groups:
            for k, word in _words_of(chip):
                found[here, k] = self.sets.words[outers[here], k] & word
        return found

    @cached_property
    def handed_on(self) -> tuple[Any, Any, Any]:
        """For each set: ns to send what leaves it, how many tensors these are, and how many of no known shape."""
        time, count, unknown = (np.zeros(len(self.sets), np.int64) for _ in range(3))
        for crossing in self.crossings:
            if crossing.made:
                made = self.sets.holds_any(crossing.made)
                read_outside = made & ~self.sets.holds_all(crossing.readers)
                leaves = made if crossing.final else read_outside
                time += leaves * crossing.output_ns
                count += leaves
                unknown += read_outside & (not crossing.known)
        return time, count, unknown

    def _sums(self, ending: OpSet) -> _Sums:
        """Where these unmapped ops end the Edge TPU's part of a segment: they and what depends on them is on the CPU."""
        costs, on_tpu = self.costs, self.on_tpu(ending)
        chip = [on_tpu >> i & 1 for i in range(len(self.graph.ops))]
        busy = [costs.compute[i] + costs.start[i] + costs.always[i] for i in range(len(chip))]
        cpu = [0 if op.folded else costs.cpu[op.index] for op in self.graph.ops]
        return _Sums(
            self.sets.total([busy[i] if on else cpu[i] for i, on in enumerate(chip)]),
            self.sets.total([costs.layout[i].cached * on for i, on in enumerate(chip)]),
            self.sets.total([costs.layout[i].always_streamed * on for i, on in enumerate(chip)]),
        )

    def _on_tpu(self, ending: OpSet) -> OpSet:
        ancestors = self.costs.ancestors
        return op_set(i for i in members(self.costs.mapped) if not ancestors[i] & ending)

    def ending(self, inner: OpSet) -> OpSet:
        """Unmapped ops outside the inner set that depend on a mapped one outside it."""
        ancestors, mapped = self.costs.ancestors, self.costs.mapped & ~inner
        return op_set(u for u in members(self.costs.unmapped & ~inner) if ancestors[u] & mapped)

    @cached_property
    def _scratch_of_ops(self) -> list[tuple[int, OpSet]]:
        """(bytes a tile, the mapped ops that need so much), most first."""
        found: dict[int, OpSet] = {}
        for i in members(self.costs.mapped):
            found[self.costs.scratch[i]] = found.get(self.costs.scratch[i], 0) | 1 << i
        return sorted(found.items(), reverse=True)

    def _room(self, tpu: Any, scratch: Any) -> Any:
        """Bytes for parameters beside the largest scratch of an op, or of a tensor that enters."""
        worst, open_rows = scratch.copy(), np.arange(len(scratch))
        for needed, ops in self._scratch_of_ops:
            found = _any_bit(tpu[open_rows], ops)
            worst[open_rows[found]] = np.maximum(worst[open_rows[found]], needed)
            open_rows = open_rows[~found]
        return self.costs.room.each(worst)


class _Inner:
    """The segments between one inner set and several outer ones, but for their caches."""

    def __init__(self, batch: SegmentBatch, inner: int, outers: Any) -> None:
        self.batch = batch
        self.inner, self.ops = inner, batch.sets.set_of(inner)
        self.outers = outers
        ending = batch.ending(self.ops)
        sums = batch.sums(ending)
        self.kept_bytes = sums.kept_bytes[outers] - sums.kept_bytes[inner]
        self.always_bytes = sums.always_bytes[outers] - sums.always_bytes[inner]
        chip = batch.on_tpu(ending) & ~self.ops
        self.on_tpu = chip
        self.scratch = np.zeros(len(outers), np.int64)
        self.time_ns = sums.time_ns[outers] - sums.time_ns[inner]
        self.allowed = self._together() & batch.sets.holds_any(
            batch.graph.all_ops & ~batch.graph.folded & ~self.ops, outers
        )
        self._transfers(chip)
        if not (batch.all_known and batch.all_used):
            self._give()
        self._unread_inputs()

    def _transfers(self, chip: OpSet) -> None:
        """Adds the ns of tensors in and out, and finds the room that tensors need as they enter."""
        self.time_ns += self.batch.handed_on[0][self.outers]
        for crossing in self.batch.crossings:
            waiting = crossing.readers & ~self.ops
            if waiting and (not crossing.made or crossing.made & self.ops):
                self._enter(crossing, waiting, chip)
            if crossing.made & self.ops and (waiting or crossing.final):
                # Handed on by the outer set as well, unless the segment holds all its readers; made by neither.
                still = np.True_ if crossing.final else ~self.batch.sets.holds_all(waiting, self.outers)
                self.time_ns -= still * crossing.output_ns

    def _give(self) -> None:
        """Where a segment gives nothing, or hands on a tensor of no known shape, it may not stand."""
        count, unknown = (found[self.outers] for found in self.batch.handed_on[1:])
        for crossing in self.batch.crossings:
            waiting = crossing.readers & ~self.ops
            if crossing.made & self.ops and (waiting or crossing.final):
                still = ~self.batch.sets.holds_all(waiting, self.outers)
                count = count - (still | crossing.final)
                unknown = unknown - (still & (not crossing.known))
        self.allowed &= (count > 0) & (unknown == 0)

    def _enter(self, crossing: _Crossing, waiting: OpSet, chip: OpSet) -> None:
        enters = self.batch.sets.holds_any(waiting, self.outers)
        self.time_ns += enters * crossing.input_ns
        if not crossing.known:
            self.allowed &= ~enters
        for reader, needed in crossing.scratch:
            if needed and chip >> reader & 1:
                read = self.batch.sets.holds_any(1 << reader, self.outers)
                np.maximum(self.scratch, read * needed, out=self.scratch)

    def _unread_inputs(self) -> None:
        """The segment that holds every op also has the model inputs that nobody reads."""
        graph = self.batch.graph
        unread = [t for t in dict.fromkeys(graph.inputs) if t not in graph.readers]
        if unread and not self.ops & ~graph.folded:
            whole = self.batch.sets.holds_all(graph.all_ops & ~graph.folded, self.outers)
            hardware = self.batch.costs.hardware
            self.time_ns = self.time_ns + whole * sum(input_ns(graph.tensors[t].bytes, hardware) for t in unread)
            self.allowed &= ~whole | all(graph.tensors[t].shape is not None for t in unread)

    def _together(self) -> Any:
        """Where no state is torn apart."""
        kept = np.ones(len(self.outers), bool)
        for group in self.batch.graph.together:
            outside = ~self.batch.sets.holds_any(group & ~self.ops, self.outers)
            kept &= outside if group & self.ops else outside | self.batch.sets.holds_all(group, self.outers)
        return kept


class _Caches:
    """What does not stay on chip, of segments given by their ops on the TPU, with so much room each."""

    def __init__(self, costs: SegmentCosts, tpu: Any, room: Any) -> None:
        self.costs = costs
        self.columns = [np.ascontiguousarray(column) for column in tpu.T]
        self.left = room
        self.overflow_bytes, self.waiting_ns = np.zeros(len(room), np.int64), np.zeros(len(room), np.int64)
        self.dense_sets: list[OpSet] = [0]
        self.dense_number: dict[OpSet, int] = {0: 0}
        self.dense_held = np.zeros(len(room), np.int64)
        held = sum(int(np.bitwise_or.reduce(column)) << (WORD * k) for k, column in enumerate(self.columns))
        for i in costs.caching.priority:
            if held >> i & 1:
                self._offer(i)

    def _offer(self, i: int) -> None:
        """Give the op room in the segments that hold it."""
        size, layout = self.costs.caching.size[i], self.costs.layout[i]
        here = np.nonzero(self.columns[i // WORD] & np.uint64(1 << i % WORD))[0]
        fits = self.left[here] >= size
        if self.costs.caching.dense >> i & 1:
            fits[fits] = self._dense_fit(i, here[fits])
        self.left[here[fits]] -= size
        spilled = here[~fits]
        self.overflow_bytes[spilled] += layout.streamed
        self.waiting_ns[spilled] += self.costs.waiting[i]

    def _dense_fit(self, i: int, here: Any) -> Any:
        """Where the op finds room in the tiles; there it is added. Few different sets of dense ops occur: each is tried
        once.
        """
        held = self.dense_held[here]
        fits = np.zeros(len(here), bool)
        for number in np.unique(held).tolist():
            grown = self.dense_sets[number] | 1 << i
            if self.costs.caching.dense_fit(grown):
                if grown not in self.dense_number:
                    self.dense_number[grown] = len(self.dense_sets)
                    self.dense_sets.append(grown)
                fits |= held == number
                self.dense_held[here[held == number]] = self.dense_number[grown]
        return fits


def _crossings(costs: SegmentCosts) -> list[_Crossing]:
    graph, hardware = costs.graph, costs.hardware
    final = set(graph.outputs)
    found = []
    for t in sorted(set(graph.producer) | set(graph.readers)):
        tensor, readers = graph.tensors[t], graph.readers.get(t, ())
        made = 1 << graph.producer[t] if t in graph.producer else 0
        if (made and t in final) or readers:
            found.append(
                _Crossing(
                    made, op_set(readers), t in final, input_ns(tensor.bytes, hardware), output_ns(tensor.bytes, hardware),
                    tensor.shape is not None, tuple((r, costs.input_scratch[t, r]) for r in readers),
                )
            )  # fmt: skip
    return found


def _words_of(ops: OpSet) -> list[tuple[int, Any]]:
    """(number, bits) of the words of a set that are not empty."""
    found, k = [], 0
    while ops:
        word = ops & ((1 << WORD) - 1)
        if word:
            found.append((k, np.uint64(word)))
        ops, k = ops >> WORD, k + 1
    return found


def _any_bit(rows: Any, ops: OpSet) -> Any:
    found = np.zeros(len(rows), bool)
    for k, word in _words_of(ops):
        found |= (rows[:, k] & word) != 0
    return found
