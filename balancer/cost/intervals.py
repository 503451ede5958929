"""The costs of all intervals of an order at once, as tables: what `SegmentCosts.terms` says of each, without asking it.

Tables are (n + 1, n + 1) arrays; entry [a, b] is of the segment with the ops at positions a to b - 1 of the order. They are
filled by rectangles: what holds for all intervals that start in one range of positions and end in another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.cost.hardware import NS_PER_S
from balancer.graph import members

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.cost.segment import SegmentCosts

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class IntervalTable:
    """time_ns, streamed_bytes, overflow_bytes: int64. allowed: where a segment may stand; numbers elsewhere mean nothing."""

    time_ns: Any
    streamed_bytes: Any
    overflow_bytes: Any
    allowed: Any


class _Rectangles:
    """Sums of constants over rectangles, filled at their corners and added up once."""

    def __init__(self, n: int) -> None:
        self.corners = np.zeros((n + 2, n + 2), np.int64)

    def add(self, starts: tuple[int, int], ends: tuple[int, int], value: int) -> None:
        """Add to all [a, b] with starts[0] <= a <= starts[1] and ends[0] <= b <= ends[1]."""
        (a, a2), (b, b2) = starts, ends
        if a > a2 or b > b2:
            return
        self.corners[a, b] += value
        self.corners[a2 + 1, b] -= value
        self.corners[a, b2 + 1] -= value
        self.corners[a2 + 1, b2 + 1] += value

    def total(self) -> Any:
        return self.corners.cumsum(0).cumsum(1)[:-1, :-1]


def interval_table(costs: SegmentCosts, order: Sequence[int]) -> IntervalTable:
    """Costs of all intervals of an order of the graph's ops (each once, none before what it depends on)."""
    return _Table(costs, order).build()


class _Table:
    def __init__(self, costs: SegmentCosts, order: Sequence[int]) -> None:
        self.costs = costs
        self.order = list(order)
        self.n = len(self.order)
        self.at = {i: p for p, i in enumerate(self.order)}
        self.held_from = self._held_from()

    def build(self) -> IntervalTable:
        incoming, outgoing, broken, giving = self._transfers()
        hardware = self.costs.hardware
        time = self._sums() + self._transfer_ns(incoming, hardware.input_bytes_per_s)
        time += self._transfer_ns(outgoing, hardware.output_bytes_per_s)
        streamed, overflow, waiting = self._streaming()
        time += waiting + np.where(streamed > 0, hardware.stream_setup_ns, 0)
        time += hardware.invoke_ns + hardware.host_ns_per_stage
        return IntervalTable(time, streamed, overflow, self._allowed(broken, giving))

    def _held_from(self) -> list[int]:
        """For each position p, the least a such that its op is on the TPU in the intervals [a, b) that hold it.

        A mapped op stays on the CPU from an unmapped ancestor u on, where u itself has a mapped ancestor m in the
        interval: for all a <= the largest such m. For an unmapped op it is p + 1: never.
        """
        graph, at = self.costs.graph, self.at
        last_mapped = [-1] * self.n  # the last mapped ancestor of the op at p
        ending = [-1] * self.n  # the largest last_mapped of p's unmapped ancestors and itself
        held = [0] * self.n
        for p, i in enumerate(self.order):
            parents = [at[j] for j in members(graph.before[i])]
            mapped = [q for q in parents if self.costs.mapped >> self.order[q] & 1]
            last_mapped[p] = max((*mapped, *(last_mapped[q] for q in parents)), default=-1)
            ending[p] = max((ending[q] for q in parents), default=-1)
            if self.costs.unmapped >> i & 1:
                ending[p] = max(ending[p], last_mapped[p])
            held[p] = ending[p] + 1 if self.costs.mapped >> i & 1 else p + 1
        return held

    def _sums(self) -> Any:
        """Terms that add up over ops: computing and starting on the TPU, and the CPU's time."""
        table = _Rectangles(self.n)
        for p, i in enumerate(self.order):
            on_tpu = self.costs.compute[i] + self.costs.hardware.op_ns
            table.add((self.held_from[p], p), (p + 1, self.n), on_tpu)
            if not self.costs.graph.ops[i].folded:
                table.add((0, min(p, self.held_from[p] - 1)), (p + 1, self.n), self.costs.cpu[i])
        return table.total()

    def _transfers(self) -> tuple[Any, Any, Any, Any]:
        """Bytes in, bytes out, how many tensors without a shape cross, and how many tensors leave, per interval."""
        graph, n = self.costs.graph, self.n
        incoming, outgoing, broken, giving = (_Rectangles(n) for _ in range(4))
        final = set(graph.outputs)
        for t in sorted(set(graph.producer) | set(graph.readers)):
            size, unknown = graph.tensors[t].bytes, graph.tensors[t].shape is None
            made = self.at[graph.producer[t]] if t in graph.producer else -1
            readers = sorted(self.at[r] for r in graph.readers.get(t, ()))
            before = made
            for reader in readers:
                where = (before + 1, reader), (reader + 1, n)
                incoming.add(*where, size)
                if unknown:
                    broken.add(*where, 1)
                before = reader
            last = n if t in final else readers[-1] if readers else made
            if made >= 0:
                outgoing.add((0, made), (made + 1, last), size)
                giving.add((0, made), (made + 1, last), 1)
                if unknown and readers:
                    broken.add((0, made), (made + 1, readers[-1]), 1)
        # The segment that holds every op also has the model inputs that nobody reads; folded ops may stand at its edges.
        real = [p for p, i in enumerate(self.order) if not graph.ops[i].folded]
        unread = sum(graph.tensors[t].bytes for t in set(graph.inputs) if not graph.readers.get(t))
        incoming.add((0, real[0]), (real[-1] + 1, n), unread)
        return incoming.total(), outgoing.total(), broken.total(), giving.total()

    def _transfer_ns(self, size: Any, bytes_per_s: int) -> Any:
        hardware = self.costs.hardware
        beyond = np.maximum(0, size - hardware.large_transfer_bytes)
        seconds, rest = np.divmod(size, bytes_per_s)  # apart, so that no product passes 64 bits
        return (
            seconds * NS_PER_S
            - (-rest * NS_PER_S // bytes_per_s)
            - (-beyond * hardware.large_ns_per_mib // _MIB)
        )  # fmt: skip

    def _streaming(self) -> tuple[Any, Any, Any]:
        """Streamed bytes, the overflow among them, and the ns that they add: all caches are filled at once, op by op."""
        costs, n = self.costs, self.n
        always_bytes, always_ns = _Rectangles(n), _Rectangles(n)
        left = np.full((n + 1, n + 1), costs.hardware.capacity_bytes, np.int64)
        for p, i in enumerate(self.order):
            block = np.s_[self.held_from[p] : p + 1, p + 1 :]
            if costs.scratch[i]:
                np.minimum(left[block], max(0, costs.hardware.capacity_bytes - costs.scratch[i]), out=left[block])
            if costs.layout[i].always_streamed:
                where = (self.held_from[p], p), (p + 1, n)
                always_bytes.add(*where, costs.layout[i].always_streamed)
                always_ns.add(*where, costs.always[i])
        overflow, waiting = np.zeros_like(left), always_ns.total()
        for i in costs.priority:
            p = self.at[i]
            block = np.s_[self.held_from[p] : p + 1, p + 1 :]
            spills = left[block] < costs.layout[i].cached
            left[block] -= np.where(spills, 0, costs.layout[i].cached)
            overflow[block] += spills * costs.layout[i].streamed
            waiting[block] += spills * max(0, costs.stream[i] - costs.compute[i])
        return always_bytes.total() + overflow, overflow, waiting

    def _allowed(self, broken: Any, giving: Any) -> Any:
        n, graph = self.n, self.costs.graph
        real = np.cumsum([0] + [not graph.ops[i].folded for i in self.order])
        allowed = (real[None, :] > real[:, None]) & (broken == 0) & (giving > 0)
        starts, ends = np.arange(n + 1)[:, None], np.arange(n + 1)[None, :]
        for group in graph.together:
            inside = np.zeros(n + 1, np.int64)
            inside[1:] = np.cumsum([group >> i & 1 for i in self.order])
            held = inside[None, :] - inside[:, None]
            allowed &= (held == 0) | (held == group.bit_count())
        return allowed & (starts < ends)
