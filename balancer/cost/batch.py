"""The costs of many segments at once, as numpy arrays: those between pairs of down-sets. Equal to `SegmentCosts.terms`.

A segment holds the ops of an outer down-set J2 that an inner one, J1, does not hold. J1 is contained in J2. A model in
which op d also reads what op a makes (a skip connection), with J1 = {a} and J2 = {a, b}:

               J1      segment
                  |             |
      x --> a --t-+-> b ---u----+-> d --> y          leaves J2:              t and u, both are read by d
                  |             |   ^                made by J1, still live: t
                  +---t---------+---+                leaves the segment:     u, what is left
                  |             |                    enters the segment:     t, live at J1 and read by b

Each term follows from sums over J1 and J2, which are made once for all sets:

ops       A sum over the segment's ops is the sum over J2 less the sum over J1, because J1 is contained in J2.
leaving   What J2 hands on, minus those of these tensors that J1 made. No op of J1 reads what the segment makes, since a
          down-set holds all that its ops depend on. So a tensor of the segment is read outside it exactly if it is read
          outside J2. Of what J1 made, J2 still hands on the model's outputs, and the tensors that are live at J1 unless J2
          holds all their readers.
entering  The tensors that are live at J1 (see `crossings`) and read by an op of J2.
on CPU    Unmapped ops that depend on a mapped op of the segment, and all that depends on them. All
          ancestors of an op of the segment are in J2, so those inside the segment are the ones that J1 lacks: whether the op
          runs on the CPU depends on J1 alone.
capacity  The largest scratch among the segment's ops on the chip and the tensors that they read from outside.
overflow  Most segments cache everything. Only where that is not certain does `filling` find what overflows.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from balancer.cost.compilable import LEVELS, Compilable
from balancer.cost.crossings import crossings_of
from balancer.cost.filling import fillings
from balancer.cost.timing import scratch_ns_per_mib
from balancer.ground.opsets import members, op_set
from balancer.ground.units import MIB

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from balancer.cost.crossings import LiveTensors
    from balancer.cost.filling import Fillings
    from balancer.cost.segment import SegmentCosts
    from balancer.ground.downsets import DownSets
    from balancer.ground.opsets import OpSet

# How many ways to split ops over chip and CPU have their sums kept. Inner sets come in ascending order, so few are in use.
_KEPT_SPLITS = 8


class SegmentTable(NamedTuple):
    """One entry for each segment. allowed: whether it may stand; where not, the numbers mean nothing."""

    time_ns: NDArray[np.int64]
    streamed_bytes: NDArray[np.int64]
    overflow_bytes: NDArray[np.int64]
    allowed: NDArray[np.bool_]


class _Leaving(NamedTuple):
    """What leaves each set: ns to fetch it, and the number of tensors. unknown: the number of those that are read outside
    and have no known shape.
    """

    output_ns: NDArray[np.int64]
    tensors: NDArray[np.int64]
    unknown: NDArray[np.int64]


class _ChipShare(NamedTuple):
    """A split of all ops over chip and CPU, and sums over the ops of each set.

    on_tpu: the ops on the chip; runs_on_tpu: the same, for each op. time_ns: of the ops, without stalls. cacheable_bytes:
    of parameters that can be cached; always_bytes: of constant operands that never are. dense_bytes: what dense ops take
    of the tiles.
    """

    on_tpu: OpSet
    runs_on_tpu: NDArray[np.bool_]
    time_ns: NDArray[np.int64]
    cacheable_bytes: NDArray[np.int64]
    always_bytes: NDArray[np.int64]
    dense_bytes: NDArray[np.int64]


class _Inner(NamedTuple):
    """An inner set. row: in the down-sets. held: for each op whether the set holds it. made: for each activation whether
    the set makes it. live: the activations that cross its boundary.
    """

    row: int
    ops: OpSet
    held: NDArray[np.bool_]
    made: NDArray[np.bool_]
    live: LiveTensors


class _Tight(NamedTuple):
    """Segments whose parameters may not all be cached.

    at: their positions. capacity_bytes: of each. dense_fit: whether its dense ops fit into the tiles for certain.
    """

    at: NDArray[np.intp]
    capacity_bytes: NDArray[np.int64]
    dense_fit: NDArray[np.bool_]


class _Row(NamedTuple):
    """The segments between one inner set and several outer ones, before streaming of what overflows is added.

    ending: the unmapped ops that end the Edge TPU's part of these segments.
    """

    ending: OpSet
    time_ns: NDArray[np.int64]
    always_bytes: NDArray[np.int64]
    allowed: NDArray[np.bool_]
    tight: _Tight


class SegmentBatch:
    """Costs of the segments between down-sets of the graph. Sums over the sets are memoised."""

    def __init__(self, costs: SegmentCosts, sets: DownSets) -> None:
        self.costs = costs
        self.graph = costs.graph
        self.sets = sets
        self.crossings = crossings_of(costs.graph, costs.transfers, costs.input_scratch)
        self._split = lru_cache(_KEPT_SPLITS)(self._make_split)
        self._fillings = lru_cache(1)(self._make_fillings)

    def __call__(self, inners: ArrayLike, outers: ArrayLike) -> SegmentTable:
        """The costs of the segments between these pairs of sets.

        inners, outers: row numbers of the sets, one inner row or as many as outer ones. Inner rows ascend; each outer set
        contains its inner set.
        """
        inner_rows, outer_rows = (np.ravel(rows) for rows in np.broadcast_arrays(inners, outers))
        time_ns, streamed, overflow = (np.zeros(len(outer_rows), np.int64) for _ in range(3))
        allowed = np.zeros(len(outer_rows), bool)
        starts = np.nonzero(np.diff(inner_rows, prepend=-1))[0].tolist()  # empty if there are no segments
        tight: dict[OpSet, list[_Tight]] = {}
        for start, end in pairwise([*starts, len(inner_rows)]):
            here = slice(start, end)
            row = self._row(int(inner_rows[start]), outer_rows[here])
            time_ns[here], streamed[here], allowed[here] = row.time_ns, row.always_bytes, row.allowed
            if len(row.tight.at):
                tight.setdefault(row.ending, []).append(row.tight._replace(at=row.tight.at + start))
        # Rows with the same split are filled together: `filling` is faster, the more segments it takes at once.
        for ending, parts in tight.items():
            at, capacity_bytes, dense_fit = (np.concatenate(part) for part in zip(*parts, strict=True))
            filled = self._fillings(ending).overflow(inner_rows[at], outer_rows[at], capacity_bytes, dense_fit)
            overflow[at] = filled.overflow_bytes
            time_ns[at] += filled.stall_ns
        streamed += overflow
        link = self.costs.hardware.link
        time_ns += np.where(streamed > 0, link.stream_start_ns, 0) + self.costs.invoke_ns
        return SegmentTable(time_ns, streamed, overflow, allowed)

    def levels(self, inners: ArrayLike, outers: ArrayLike) -> NDArray[np.intp]:
        """For each segment how surely it compiles, as a position in `compilable.LEVELS`. inners, outers: as in a call."""
        inner_rows, outer_rows = (np.ravel(rows) for rows in np.broadcast_arrays(inners, outers))
        levels = np.zeros(len(outer_rows), np.intp)
        starts = np.nonzero(np.diff(inner_rows, prepend=-1))[0].tolist()
        for start, end in pairwise([*starts, len(inner_rows)]):
            levels[start:end] = self._levels(int(inner_rows[start]), outer_rows[start:end])
        return levels

    def _levels(self, row: int, outers: NDArray[np.intp]) -> NDArray[np.intp]:
        """`levels` of segments that start at one inner set."""
        levels, ops = np.zeros(len(outers), np.intp), self.sets.set_of(row)
        rule, ending = self.costs.compile_rule, self._ending(ops)
        if ending & rule.left_out:
            levels[self.sets.holds_any(ending & rule.left_out, outers)] = LEVELS.index(Compilable.PERHAPS)
        if not rule.suspects & ~ops:
            return levels
        outside = ~self.sets.members(row)
        of_ops = rule.levels(outside) * (self._split(ending).runs_on_tpu & outside)
        for level in range(1, int(of_ops.max()) + 1):
            holds = self.sets.holds_any(op_set(np.nonzero(of_ops >= level)[0].tolist()), outers)
            levels[holds] = np.maximum(levels[holds], level)
        return levels

    def _row(self, row: int, outers: NDArray[np.intp]) -> _Row:
        inner = self._inner(row)
        # One split serves the whole row, since it depends on the inner set alone.
        ending = self._ending(inner.ops)
        split = self._split(ending)
        time_ns = split.time_ns[outers] - split.time_ns[row] + self._transfer_ns(inner, outers)
        if self.costs.spilling.may_scratch & split.on_tpu & ~inner.ops:
            time_ns += self._host_scratch_ns(inner, outers, split)
        # A segment of folded ops alone computes nothing.
        allowed = self._keeps_state_together(inner, outers) & (self._computed[outers] > self._computed[row])
        if not self._interfaces_valid:
            allowed &= self._has_valid_interface(inner, outers)
        if self._unread_inputs and not inner.ops & ~self.graph.folded:
            # As in `Graph.interface`: a segment that holds every op takes the model's own inputs.
            whole = self.sets.holds_all(self.graph.all_ops & ~self.graph.folded, outers)
            time_ns += whole * self._unread_inputs_ns
            allowed &= ~whole | self._unread_inputs_known
        always_bytes = split.always_bytes[outers] - split.always_bytes[row]
        return _Row(ending, time_ns, always_bytes, allowed, self._tight(inner, outers, split, allowed))

    def _inner(self, row: int) -> _Inner:
        held = self.sets.members(row)
        return _Inner(row, self.sets.set_of(row), held, self.crossings.made_in(held), self.crossings.live(held))

    def _weigh_live(
        self, inner: _Inner, outers: NDArray[np.intp], entering: NDArray[np.int64], kept: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """For each outer set a sum over the tensors that are live at the inner one.

        entering: weights of tensors that an op of the outer set reads. kept: weights of tensors of which the outer set
        holds all readers, so that it hands them on no longer.
        """
        tensors, readers = inner.live
        weights: NDArray[np.int64] = self.sets.weigh(readers, entering[tensors], kept[tensors], outers)
        return weights

    def _transfer_ns(self, inner: _Inner, outers: NDArray[np.intp]) -> NDArray[np.int64]:
        """For each outer set ns of the tensors that enter and leave the segment."""
        crossings = self.crossings
        # Made by the inner set and handed on by the outer one as well, unless the outer set holds all readers.
        made_before = crossings.output_ns[inner.made & crossings.final].sum()
        made_before += crossings.passing_ns[inner.live.tensors].sum()
        transfers = self._weigh_live(inner, outers, crossings.input_ns, crossings.passing_ns)
        transfers += self._leaving.output_ns[outers] - made_before
        return transfers

    def _host_scratch_ns(self, inner: _Inner, outers: NDArray[np.intp], split: _ChipShare) -> NDArray[np.int64]:
        """For each outer set ns for activations of the segment that are held in the host's memory."""
        spilling, on_chip = self.costs.spilling, split.runs_on_tpu & ~inner.held
        capacity_bytes = self._capacity_bytes(inner, outers, split)
        room_bytes = np.maximum(0, capacity_bytes - split.cacheable_bytes[outers] + split.cacheable_bytes[inner.row])
        evicted = self.sets.largest(spilling.evicted(~inner.held) * on_chip, outers)
        scratch = np.maximum(self.sets.largest(spilling.sequence_bytes * on_chip, outers), evicted - room_bytes)
        nanoseconds: NDArray[np.int64] = -(-scratch * scratch_ns_per_mib(self.costs.hardware) // MIB)
        return nanoseconds

    def _capacity_bytes(self, inner: _Inner, outers: NDArray[np.intp], split: _ChipShare) -> NDArray[np.int64]:
        """For each outer set the on-chip bytes that the segment has for parameters."""
        return self.costs.capacity_rule.capacities_bytes(self.sets.largest(self._scratch_of_ops(inner, split), outers))

    def _has_valid_interface(self, inner: _Inner, outers: NDArray[np.intp]) -> NDArray[np.bool_]:
        """For each outer set whether the segment hands on a tensor, and knows the shape of each one that crosses."""
        crossings, live = self.crossings, inner.live.tensors
        entering_unknown = self._weigh_live(inner, outers, crossings.unknown, crossings.nothing)
        # Tensors that leave are counted as their ns are summed in `_transfer_ns`.
        leaving = self._leaving.tensors[outers] - (inner.made & crossings.final).sum() - crossings.passing[live].sum()
        leaving += self._weigh_live(inner, outers, crossings.nothing, crossings.passing)
        leaving_unknown = self._leaving.unknown[outers] - crossings.unknown_made[live].sum()
        leaving_unknown += self._weigh_live(inner, outers, crossings.nothing, crossings.unknown_made)
        return np.asarray((leaving > 0) & (entering_unknown == 0) & (leaving_unknown == 0))

    def _keeps_state_together(self, inner: _Inner, outers: NDArray[np.intp]) -> NDArray[np.bool_]:
        """For each outer set whether ops that share a variable tensor are all inside the segment or all outside."""
        together = np.ones(len(outers), bool)
        for group in self.graph.together:
            # Once the inner set holds a part of the group, the segment can't hold all of it, and must hold none.
            outside = ~self.sets.holds_any(group & ~inner.ops, outers)
            together &= outside if group & inner.ops else outside | self.sets.holds_all(group, outers)
        return together

    def _tight(self, inner: _Inner, outers: NDArray[np.intp], split: _ChipShare, allowed: NDArray[np.bool_]) -> _Tight:
        """The allowed segments whose parameters may not fit the capacity, or whose dense ops may not fit the tiles."""
        cacheable = split.cacheable_bytes[outers] - split.cacheable_bytes[inner.row]
        dense_bytes = split.dense_bytes[outers] - split.dense_bytes[inner.row]
        dense_fit = dense_bytes <= self.costs.caching.dense_sure_bytes
        # First with the capacity that any segment has; scratch is looked up only for what does not fit that.
        at = np.nonzero(allowed & ((cacheable > self._least_capacity_bytes) | ~dense_fit))[0]
        if not len(at):
            return _Tight(at, cacheable[at], dense_fit[at])
        capacity_bytes = self._capacity_bytes(inner, outers[at], split)
        tight = (cacheable[at] > capacity_bytes) | ~dense_fit[at]
        return _Tight(at[tight], capacity_bytes[tight], dense_fit[at][tight])

    def _scratch_of_ops(self, inner: _Inner, split: _ChipShare) -> NDArray[np.int64]:
        """For each op on the chip outside the inner set, scratch bytes in each tile; 0 for other ops.

        The op's own, or that of a live tensor which it reads, whichever is larger.
        """
        on_chip = split.runs_on_tpu & ~inner.held
        scratch = self._op_scratch * on_chip
        # An op may read several live tensors: maximum.at, unlike an assignment by index, takes all of them into account.
        pairs = self.crossings.live_pairs(inner.held)
        readers = self.crossings.pair_reader[pairs]
        np.maximum.at(scratch, readers, self.crossings.pair_scratch[pairs] * on_chip[readers])
        return scratch

    def _ending(self, inner: OpSet) -> OpSet:
        """The unmapped ops outside the inner set that depend on a mapped op outside it: they end the Edge TPU's part."""
        ancestors, mapped = self.costs.ancestors, self.costs.mapped & ~inner
        return op_set(u for u in members(self.costs.unmapped & ~inner) if ancestors[u] & mapped)

    def _make_split(self, ending: OpSet) -> _ChipShare:
        """ending: unmapped ops; they, and what depends on them, run on the CPU."""
        costs = self.costs
        on_tpu = op_set(i for i in members(costs.mapped) if not costs.ancestors[i] & ending)
        chip = [on_tpu >> i & 1 for i in range(len(self.graph.ops))]
        busy = [op.compute_ns + op.start_ns + op.always_streamed_ns + op.exchange_ns for op in costs.op_terms]
        # Folded ops are in no term, though `OpTerms` has their time on the CPU.
        cpu = [0 if op.folded else costs.op_terms[op.index].cpu_ns for op in self.graph.ops]
        return _ChipShare(
            on_tpu=on_tpu,
            runs_on_tpu=np.array(chip, bool),
            time_ns=self.sets.total([busy[i] if on else cpu[i] for i, on in enumerate(chip)]),
            cacheable_bytes=self.sets.total([costs.op_terms[i].layout.cached * on for i, on in enumerate(chip)]),
            always_bytes=self.sets.total([costs.op_terms[i].layout.always_streamed * on for i, on in enumerate(chip)]),
            dense_bytes=self.sets.total([costs.caching.dense_bytes(i) * on for i, on in enumerate(chip)]),
        )

    def _make_fillings(self, ending: OpSet) -> Fillings:
        return fillings(self.costs, self.sets, self._split(ending).on_tpu)

    @cached_property
    def _leaving(self) -> _Leaving:
        output_ns, tensors, unknown = (np.zeros(len(self.sets), np.int64) for _ in range(3))
        for crossing in self.crossings.tensors:
            if crossing.made:
                made = self.sets.holds_any(crossing.made)
                read_outside = made & ~self.sets.holds_all(crossing.readers)
                # A tensor leaves once, however many ops outside read it, and though it is final besides.
                leaves = made if crossing.final else read_outside
                output_ns += leaves * crossing.output_ns
                tensors += leaves
                unknown += read_outside & (not crossing.known)
        return _Leaving(output_ns, tensors, unknown)

    @cached_property
    def _computed(self) -> NDArray[np.int64]:
        """For each set the number of its ops that are not folded."""
        computed: NDArray[np.int64] = self.sets.total([not op.folded for op in self.graph.ops])
        return computed

    @cached_property
    def _interfaces_valid(self) -> bool:
        """Whether any segment that computes something has a valid interface, as in most models.

        Each op makes a tensor that is read or final. The last op of a segment makes one that nothing inside the segment reads,
        so at least one tensor leaves.
        """
        taken = set(self.graph.outputs) | set(self.graph.readers)
        all_taken = all(op.folded or any(t in taken for t in op.outputs) for op in self.graph.ops)
        return self.crossings.all_known and all_taken

    @cached_property
    def _unread_inputs(self) -> tuple[int, ...]:
        """Model inputs that no op reads. They belong to the interface of the segment that holds every op, and of no other."""
        return tuple(t for t in dict.fromkeys(self.graph.inputs) if t not in self.graph.readers)

    @cached_property
    def _unread_inputs_ns(self) -> int:
        return sum(self.costs.transfers[t].input_ns for t in self._unread_inputs)

    @cached_property
    def _unread_inputs_known(self) -> bool:
        return all(self.graph.tensors[t].shape is not None for t in self._unread_inputs)

    @cached_property
    def _op_scratch(self) -> NDArray[np.int64]:
        """For each op scratch bytes in each tile where it runs on the chip; 0 for ops that never do."""
        return np.array([op.scratch_bytes if op.mapped else 0 for op in self.costs.op_terms], np.int64)

    @cached_property
    def _least_capacity_bytes(self) -> int:
        """The capacity that every segment has, even one with the op or the input that needs the most scratch."""
        of_ops, of_inputs = self._op_scratch.max(initial=0), self.crossings.pair_scratch.max(initial=0)
        return self.costs.capacity_rule.capacity_bytes(max(int(of_ops), int(of_inputs)))
