"""Problems whose cost is the formula of a `Structure` and nothing else: other accelerators, published instances."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from balancer.ground.opsets import members, op_set
from balancer.solve.problem import Cost, CostColumns, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from balancer.ground.downsets import DownSets
    from balancer.ground.opsets import OpSet
    from balancer.solve.problem import Between, Kind
    from balancer.solve.structure import Structure, Transfer


def structured_problem(
    before: Sequence[OpSet],
    devices: Sequence[tuple[Kind, int]],
    structures: Mapping[Kind, Structure],
    *,
    together: Sequence[OpSet] = (),
    host_ns: Mapping[Kind, int] | None = None,
) -> Problem:
    """A problem whose `exact` is the formula of each kind's structure. Parameters that spill count as streamed bytes.

    before: for each op the set of ops that it reads from.

    >>> from balancer.solve import Structure, solve
    >>> tpu = Structure(stage_ns=10, op_ns=(300, 200, 400))
    >>> solve(structured_problem([0b000, 0b001, 0b010], [("tpu", 2)], {"tpu": tpu})).value.objective_ns
    455
    """
    costs = {kind: StructuredCosts(structures[kind], len(before)) for kind, _ in devices}
    return Problem(
        before=tuple(before),
        devices=tuple(devices),
        exact=lambda ops, kind: costs[kind].exact(ops),
        lower=lambda ops, kind: costs[kind].lower(ops),
        batch=lambda sets, kind: costs[kind].batch(sets),
        together=tuple(together),
        structures=dict(structures),
        host_ns=dict(host_ns or {}),
    )


class StructuredCosts:
    """The formula of one structure, for one segment and for many.

    work: ns of each op. barred: ops that the kind cannot run. sizes, limit: memory in bytes. kept_sizes: bytes of each
    op's parameters that may stay on the device.
    """

    def __init__(self, structure: Structure, n_ops: int) -> None:
        self.structure = structure
        self.n_ops = n_ops
        self.tensors = [TensorSets(transfer) for transfer in structure.transfers]
        self.work = [ns or 0 for ns in structure.op_ns]
        self.barred = op_set(i for i, ns in enumerate(structure.op_ns) if ns is None)
        self.streaming = op_set(structure.streaming)
        self.sizes = list(structure.op_bytes) or [0] * n_ops
        self.limit = structure.limit_bytes if structure.limit_bytes is not None else sum(self.sizes)
        self.kept_sizes = [0] * n_ops
        for kept in structure.kept:
            self.kept_sizes[kept.op] = kept.size_bytes

    def exact(self, ops: OpSet) -> Cost | None:
        """Time and spilled bytes; None where an op cannot run or memory does not suffice."""
        if ops & self.barred or sum(self.sizes[i] for i in members(ops)) > self.limit:
            return None
        time = self.structure.stage_ns + sum(self.work[i] for i in members(ops))
        for tensor in self.tensors:
            if tensor.made & ops:
                time += tensor.send_ns * bool(tensor.leaves or tensor.readers & ~ops)
            else:
                time += tensor.receive_ns * bool(tensor.readers & ops)
        free, spilled = self.structure.capacity_bytes, 0
        for kept in self.structure.kept:
            if ops >> kept.op & 1:
                if kept.size_bytes <= free:
                    free -= kept.size_bytes
                else:
                    time, spilled = time + kept.spill_ns, spilled + kept.size_bytes
        starts = bool(spilled or ops & self.streaming)
        return Cost(time + self.structure.spill_start_ns * starts, spilled)

    def lower(self, ops: OpSet) -> int:
        """ns of the ops alone. Transfers are left out, since further ops can remove them; so is spilling."""
        return self.structure.stage_ns + sum(self.work[i] for i in members(ops))

    def batch(self, sets: DownSets) -> Between:
        return _segments_between(self, sets)


class TensorSets:
    """A transfer with its ops as sets. made: the producer; empty where the tensor is an input of the whole."""

    __slots__ = ("leaves", "made", "readers", "receive_ns", "send_ns")

    def __init__(self, transfer: Transfer) -> None:
        self.made = 0 if transfer.producer is None else 1 << transfer.producer
        self.readers = op_set(transfer.readers)
        self.leaves, self.receive_ns, self.send_ns = transfer.leaves, transfer.receive_ns, transfer.send_ns


@dataclass(frozen=True)
class _SegmentsBetween:
    """`StructuredCosts.exact` for many segments, from sums over down-sets.

    A sum over a segment is that over its outer set less that over its inner set. What the segment sends is what the outer
    set sends on, less what the inner set made of that.

    work, held, kept, streaming: for each set the sum of its ops' ns, memory, bytes to keep, and ops that always stream.
    sent: ns of sending all tensors that the set makes and others read, or that leave.
    """

    costs: StructuredCosts
    sets: DownSets
    work: NDArray[np.int64]
    held: NDArray[np.int64]
    kept: NDArray[np.int64]
    streaming: NDArray[np.int64]
    sent: NDArray[np.int64]

    def __call__(self, inners: NDArray[np.intp], outers: NDArray[np.intp], /) -> CostColumns:
        inners, outers = (np.ravel(a) for a in np.broadcast_arrays(inners, outers))
        costs = self.costs
        time = costs.structure.stage_ns + self.work[outers] - self.work[inners] + self.sent[outers]
        allowed = self.held[outers] - self.held[inners] <= costs.limit
        # Inners ascend, so that each run of equal ones is handled at once. There is no run where there are no segments.
        starts = np.nonzero(np.diff(inners, prepend=-1))[0].tolist()
        for start, end in pairwise([*starts, len(inners)]):
            here = slice(start, end)
            self._add_crossings(self.sets.set_of(int(inners[start])), outers[here], time[here], allowed[here])
        return CostColumns(time, self._add_spills(inners, outers, time), allowed)

    def _add_crossings(
        self, inner: OpSet, outers: NDArray[np.intp], time: NDArray[np.int64], allowed: NDArray[np.bool_]
    ) -> None:
        """Correct the times of all segments with this inner set, in place, for tensors that the inner set makes or lacks.

        A tensor of the inner set that is still unread is received, and it is not sent by these segments.
        """
        for tensor in self.costs.tensors:
            waiting = tensor.readers & ~inner
            if tensor.made and not tensor.made & inner:
                continue
            if waiting and tensor.receive_ns:
                time += tensor.receive_ns * self.sets.holds_any(waiting, outers)
            if tensor.made and tensor.send_ns and (waiting or tensor.leaves):
                still = True if tensor.leaves else ~self.sets.holds_all(waiting, outers)
                time -= tensor.send_ns * still
        if self.costs.barred & ~inner:
            allowed &= ~self.sets.holds_any(self.costs.barred & ~inner, outers)

    def _add_spills(
        self, inners: NDArray[np.intp], outers: NDArray[np.intp], time: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Spilled bytes. Their time is added in place. Only segments that exceed the capacity are filled op by op."""
        structure, spilled = self.costs.structure, np.zeros(len(outers), np.int64)
        tight = np.nonzero(self.kept[outers] - self.kept[inners] > structure.capacity_bytes)[0]
        free = np.full(len(tight), structure.capacity_bytes, np.int64)
        for kept in structure.kept if len(tight) else ():
            op = 1 << kept.op
            here = self.sets.holds_any(op, outers[tight]) & ~self.sets.holds_any(op, inners[tight])
            fits = here & (free >= kept.size_bytes)
            free -= fits * kept.size_bytes
            spills = tight[here & ~fits]
            spilled[spills] += kept.size_bytes
            time[spills] += kept.spill_ns
        time += structure.spill_start_ns * ((spilled > 0) | (self.streaming[outers] > self.streaming[inners]))
        return spilled


def _segments_between(costs: StructuredCosts, sets: DownSets) -> _SegmentsBetween:
    work, held, kept = (sets.total(weights) for weights in (costs.work, costs.sizes, costs.kept_sizes))
    streaming = sets.total([costs.streaming >> i & 1 for i in range(costs.n_ops)])
    sent = np.zeros(len(sets), np.int64)
    for tensor in costs.tensors:
        if tensor.made and tensor.send_ns:
            made = sets.holds_any(tensor.made)
            sent += tensor.send_ns * (made if tensor.leaves else made & ~sets.holds_all(tensor.readers))
    return _SegmentsBetween(costs, sets, work, held, kept, streaming, sent)
