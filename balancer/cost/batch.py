"""The costs of many segments at once: those between pairs of down-sets, as numpy arrays. Equal to `SegmentCosts.terms`.

A segment holds the ops of an outer set J2 that an inner one J1 does not. Sums over its ops are differences of sums over
the two sets. What it hands on is what J2 hands on, less what J1 made of that; what it takes is what J1 hands on and
some op of the segment reads. Which ops stay on the CPU depends on J1 alone, since J2 holds all that its ops depend on.
Only where the parameters do not all stay on chip is it worked out which do (see `filling`).
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from balancer.cost.crossings import Crossings
from balancer.cost.filling import Fillings
from balancer.cost.timing import input_ns
from balancer.ground.opsets import members, op_set

if TYPE_CHECKING:
    from balancer.cost.segment import SegmentCosts
    from balancer.ground.downsets import DownSets
    from balancer.ground.opsets import OpSet

_STATUSES = 8  # sums kept for so many choices of what is on the CPU; inner sets come in order, so few are in use


class SegmentTable(NamedTuple):
    """int64 arrays, and where a segment may stand; numbers elsewhere mean nothing."""

    time_ns: Any
    streamed_bytes: Any
    overflow_bytes: Any
    allowed: Any


class _SetSums(NamedTuple):
    """Over the ops of each set: ns of computing, starting and always streaming; bytes to keep; bytes that always stream;
    bytes that dense ops take in the tiles.
    """

    time_ns: Any
    kept_bytes: Any
    always_bytes: Any
    dense_bytes: Any


class SegmentBatch:
    """Costs of the segments between down-sets of the graph."""

    def __init__(self, costs: SegmentCosts, sets: DownSets) -> None:
        self.costs = costs
        self.graph = costs.graph
        self.sets = sets
        self.crossings = Crossings(costs)
        self.sums = lru_cache(_STATUSES)(self._sums)
        self.on_tpu = lru_cache(_STATUSES)(self._on_tpu)
        self.on_tpu_members = lru_cache(_STATUSES)(self._on_tpu_members)
        self.fillings = lru_cache(1)(self._fillings)
        graph = self.graph
        # Then a segment always gives something: the last of its ops is read outside, or final.
        given = set(graph.outputs) | set(graph.readers)
        self.all_used = all(op.folded or any(t in given for t in op.outputs) for op in graph.ops)
        self.scratch = np.array([costs.scratch[i] * (costs.mapped >> i & 1) for i in range(len(graph.ops))], np.int64)
        most = max(int(self.scratch.max(initial=0)), int(self.crossings.scratch.max(initial=0)))
        self.least_room = costs.room(most)

    def __call__(self, inners: Any, outers: Any) -> SegmentTable:
        """inners, outers: row numbers, one inner row or as many as outer ones, ascending; each outer set contains its
        inner one.
        """
        inners, outers = (np.ravel(a) for a in np.broadcast_arrays(inners, outers))
        time, streamed, overflow = (np.zeros(len(outers), np.int64) for _ in range(3))
        allowed = np.zeros(len(outers), bool)
        starts = np.nonzero(np.diff(inners, prepend=-1))[0].tolist()  # none, where there are no segments
        tight: dict[OpSet, list[_Tight]] = {}
        for start, end in pairwise([*starts, len(inners)]):
            here = slice(start, end)
            row = _Inner(self, int(inners[start]), outers[here])
            time[here], streamed[here], allowed[here] = row.time_ns, row.always_bytes, row.allowed
            found = row.tight()
            if len(found.at):
                tight.setdefault(row.ending, []).append(found._replace(at=found.at + start))
        for ending, parts in tight.items():
            at, room, dense_fit = (np.concatenate(part) for part in zip(*parts, strict=True))
            overflow[at], waiting = self.fillings(ending).spilled(inners[at], outers[at], room, dense_fit)
            time[at] += waiting
        streamed += overflow
        time += np.where(streamed > 0, self.costs.hardware.link.stream_start_ns, 0) + self.costs.hardware.link.invoke_ns
        return SegmentTable(time, streamed, overflow, allowed)

    @cached_property
    def handed_on(self) -> tuple[Any, Any, Any]:
        """For each set: ns to send what leaves it, how many tensors these are, and how many of no known shape."""
        time, count, unknown = (np.zeros(len(self.sets), np.int64) for _ in range(3))
        for crossing in self.crossings.tensors:
            if crossing.made:
                made = self.sets.holds_any(crossing.made)
                read_outside = made & ~self.sets.holds_all(crossing.readers)
                leaves = made if crossing.final else read_outside
                time += leaves * crossing.output_ns
                count += leaves
                unknown += read_outside & (not crossing.known)
        return time, count, unknown

    @cached_property
    def computed(self) -> Any:
        """For each set how many of its ops are computed."""
        return self.sets.total([not op.folded for op in self.graph.ops])

    def _sums(self, ending: OpSet) -> _SetSums:
        """Where these unmapped ops end the Edge TPU's part of a segment: they and what depends on them is on the CPU."""
        costs, on_tpu = self.costs, self.on_tpu(ending)
        chip = [on_tpu >> i & 1 for i in range(len(self.graph.ops))]
        busy = [costs.compute[i] + costs.start[i] + costs.always[i] for i in range(len(chip))]
        cpu = [0 if op.folded else costs.cpu[op.index] for op in self.graph.ops]
        return _SetSums(
            self.sets.total([busy[i] if on else cpu[i] for i, on in enumerate(chip)]),
            self.sets.total([costs.layout[i].cached * on for i, on in enumerate(chip)]),
            self.sets.total([costs.layout[i].always_streamed * on for i, on in enumerate(chip)]),
            self.sets.total([costs.caching.dense_bytes.get(i, 0) * on for i, on in enumerate(chip)]),
        )

    def _on_tpu_members(self, ending: OpSet) -> Any:
        on_tpu = self.on_tpu(ending)
        return np.array([on_tpu >> i & 1 for i in range(len(self.graph.ops))], bool)

    def _fillings(self, ending: OpSet) -> Fillings:
        return Fillings(self.costs, self.sets, self.on_tpu(ending))

    def _on_tpu(self, ending: OpSet) -> OpSet:
        ancestors = self.costs.ancestors
        return op_set(i for i in members(self.costs.mapped) if not ancestors[i] & ending)

    def ending(self, inner: OpSet) -> OpSet:
        """Unmapped ops outside the inner set that depend on a mapped one outside it."""
        ancestors, mapped = self.costs.ancestors, self.costs.mapped & ~inner
        return op_set(u for u in members(self.costs.unmapped & ~inner) if ancestors[u] & mapped)


class _Tight(NamedTuple):
    """Segments whose parameters may not all stay. at: which; room: bytes for parameters; dense_fit: whether the dense ops
    fit into the tiles for sure.
    """

    at: Any
    room: Any
    dense_fit: Any


class _Inner:
    """The segments between one inner set and several outer ones, but for what does not stay on chip.

    ending: what ends the Edge TPU's part in each of them.
    """

    def __init__(self, batch: SegmentBatch, inner: int, outers: Any) -> None:
        self.batch, self.outers = batch, outers
        self.inner, self.ops = inner, batch.sets.set_of(inner)
        self.held = batch.sets.members(inner)
        self.ending = batch.ending(self.ops)
        self.sums = batch.sums(self.ending)
        self.always_bytes = self.sums.always_bytes[outers] - self.sums.always_bytes[inner]
        self.time_ns = self.sums.time_ns[outers] - self.sums.time_ns[inner]
        self.allowed = self._together() & (batch.computed[outers] > batch.computed[inner])
        self.waiting = batch.crossings.waiting(self.held)
        self._transfers()
        self._give()
        self._unread_inputs()

    def _weigh(self, any_weights: Any, all_weights: Any) -> Any:
        """Weights of what enters, and of what was handed on and is no longer read outside, by tensors."""
        tensors, groups = self.waiting
        return self.batch.sets.weigh(groups, any_weights[tensors], all_weights[tensors], self.outers)

    def _transfers(self) -> None:
        """Adds the ns of tensors in and out."""
        crossings = self.batch.crossings
        # Handed on by the outer set as well, unless the segment holds all its readers; made by neither.
        made, still = crossings.made_in(self.held), self.waiting.tensors
        handed_on = crossings.output_ns[made & crossings.final].sum() + crossings.passed_ns[still].sum()
        self.time_ns += self.batch.handed_on[0][self.outers] - handed_on
        self.time_ns += self._weigh(crossings.input_ns, crossings.passed_ns)

    def _give(self) -> None:
        """Where a segment takes or hands on a tensor of no known shape, or gives nothing, it may not stand."""
        batch, crossings = self.batch, self.batch.crossings
        if not crossings.all_known:
            self.allowed &= self._weigh(crossings.unknown, crossings.nothing) == 0
        if not (crossings.all_known and batch.all_used):
            made, still = crossings.made_in(self.held), self.waiting.tensors
            count = batch.handed_on[1][self.outers] - (made & crossings.final).sum() - crossings.passed[still].sum()
            unknown = batch.handed_on[2][self.outers] - crossings.unknown_made[still].sum()
            self.allowed &= count + self._weigh(crossings.nothing, crossings.passed) > 0
            self.allowed &= unknown + self._weigh(crossings.nothing, crossings.unknown_made) == 0

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

    def tight(self) -> _Tight:
        """Those of the allowed ones where room or tiles may not do."""
        batch, sums, caching = self.batch, self.sums, self.batch.costs.caching
        kept = sums.kept_bytes[self.outers] - sums.kept_bytes[self.inner]
        dense_fit = sums.dense_bytes[self.outers] - sums.dense_bytes[self.inner] <= caching.dense_sure_bytes
        at = np.nonzero(self.allowed & ((kept > batch.least_room) | ~dense_fit))[0]
        if not len(at):
            return _Tight(at, at, at)
        room = batch.costs.room.each(batch.sets.largest(self._scratch(), self.outers[at]))
        here = (kept[at] > room) | ~dense_fit[at]
        return _Tight(at[here], room[here], dense_fit[at][here])

    def _scratch(self) -> Any:
        """For each op of the segments bytes a tile, its own or those of what enters."""
        batch, crossings = self.batch, self.batch.crossings
        chip = batch.on_tpu_members(self.ending) & ~self.held
        scratch = batch.scratch * chip
        entering = crossings.waiting_pairs(self.held)
        readers = crossings.readers[entering]
        np.maximum.at(scratch, readers, crossings.scratch[entering] * chip[readers])
        return scratch
