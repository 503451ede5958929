"""Problems whose cost is its structure and nothing else: other accelerators, published instances."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.ground.opsets import members
from balancer.solve.problem import Cost, CostColumns, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    host_ns: int = 0,
) -> Problem:
    """A problem whose `exact` is the structures' formula. Spilled parameters count as streamed bytes."""
    costs = {kind: StructuredCosts(structures[kind], len(before)) for kind, _ in devices}
    return Problem(
        before=tuple(before),
        devices=tuple(devices),
        exact=lambda ops, kind: costs[kind].exact(ops),
        lower=lambda ops, kind: costs[kind].lower(ops),
        batch=lambda sets, kind: costs[kind].batch(sets),
        together=tuple(together),
        structures=dict(structures),
        host_ns=host_ns,
    )


class StructuredCosts:
    """The formula of one structure, for one segment and for many."""

    def __init__(self, structure: Structure, n_ops: int) -> None:
        self.structure = structure
        self.n_ops = n_ops
        self.tensors = [TensorSets(transfer) for transfer in structure.transfers]
        self.work = [ns or 0 for ns in structure.op_ns]
        self.barred = sum(1 << i for i, ns in enumerate(structure.op_ns) if ns is None)
        self.streaming = sum(1 << i for i in structure.streaming)
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
        room, spilled = self.structure.capacity_bytes, 0
        for kept in self.structure.kept:
            if ops >> kept.op & 1:
                if kept.size_bytes <= room:
                    room -= kept.size_bytes
                else:
                    time, spilled = time + kept.spill_ns, spilled + kept.size_bytes
        starts = bool(spilled or ops & self.streaming)
        return Cost(time + self.structure.spill_start_ns * starts, spilled)

    def lower(self, ops: OpSet) -> int:
        """ns: the ops alone. Transfers can go as ops come, and spilling is left out."""
        return self.structure.stage_ns + sum(self.work[i] for i in members(ops))

    def batch(self, sets: DownSets) -> Between:
        return _Batch(self, sets)


class TensorSets:
    """A transfer with its ops as sets. made: 0 where it comes from outside."""

    __slots__ = ("leaves", "made", "readers", "receive_ns", "send_ns")

    def __init__(self, transfer: Transfer) -> None:
        self.made = 0 if transfer.producer is None else 1 << transfer.producer
        self.readers = sum(1 << r for r in transfer.readers)
        self.leaves, self.receive_ns, self.send_ns = transfer.leaves, transfer.receive_ns, transfer.send_ns


class _Batch:
    """Segments between down-sets: sums are differences; what the outer set hands on is sent, less what the inner one
    made of it.
    """

    def __init__(self, costs: StructuredCosts, sets: DownSets) -> None:
        self.costs, self.sets = costs, sets
        self.work, self.held, self.kept = (sets.total(w) for w in (costs.work, costs.sizes, costs.kept_sizes))
        self.streaming = sets.total([costs.streaming >> i & 1 for i in range(costs.n_ops)])
        self.sent = np.zeros(len(sets), np.int64)
        for tensor in costs.tensors:
            if tensor.made and tensor.send_ns:
                made = sets.holds_any(tensor.made)
                self.sent += tensor.send_ns * (made if tensor.leaves else made & ~sets.holds_all(tensor.readers))

    def __call__(self, inners: Any, outers: Any) -> CostColumns:
        inners, outers = (np.ravel(a) for a in np.broadcast_arrays(inners, outers))
        costs = self.costs
        time = costs.structure.stage_ns + self.work[outers] - self.work[inners] + self.sent[outers]
        allowed = self.held[outers] - self.held[inners] <= costs.limit
        starts = np.nonzero(np.diff(inners, prepend=-1))[0].tolist()  # none, where there are no segments
        for start, end in pairwise([*starts, len(inners)]):
            here = slice(start, end)
            self._cross(self.sets.set_of(int(inners[start])), outers[here], time[here], allowed[here])
        return CostColumns(time, self._spill(inners, outers, time), allowed)

    def _cross(self, inner: OpSet, outers: Any, time: Any, allowed: Any) -> None:
        """What the inner set hands on or leaves unread, for all segments that start there."""
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

    def _spill(self, inners: Any, outers: Any, time: Any) -> Any:
        """Spilled bytes; their time is added. Only where not everything fits is the room filled, in order."""
        structure, spilled = self.costs.structure, np.zeros(len(outers), np.int64)
        tight = np.nonzero(self.kept[outers] - self.kept[inners] > structure.capacity_bytes)[0]
        room = np.full(len(tight), structure.capacity_bytes, np.int64)
        for kept in structure.kept if len(tight) else ():
            op = 1 << kept.op
            here = self.sets.holds_any(op, outers[tight]) & ~self.sets.holds_any(op, inners[tight])
            fits = here & (room >= kept.size_bytes)
            room -= fits * kept.size_bytes
            spills = tight[here & ~fits]
            spilled[spills] += kept.size_bytes
            time[spills] += kept.spill_ns
        time += structure.spill_start_ns * ((spilled > 0) | (self.streaming[outers] > self.streaming[inners]))
        return spilled
