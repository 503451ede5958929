"""The costs of all intervals of an order at once, as tables: what `SegmentCosts.terms` says of each, without asking it.

Tables are (n + 1, n + 1) arrays; entry [a, b] is of the segment with the ops at positions a to b - 1 of the order.
They are filled by rectangles: what holds for all intervals that start in one range of positions and end in another.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.cost.capacity import TILES, largest_capacity
from balancer.cost.timing import input_ns, output_ns
from balancer.graph import members

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.cost.caching import Caching
    from balancer.cost.segment import SegmentCosts
    from balancer.graph import OpSet


@dataclass(frozen=True, slots=True)
class IntervalTable:
    """time_ns, streamed_bytes, overflow_bytes: int64. allowed: where a segment may stand; numbers elsewhere mean
    nothing.
    """

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


class _DenseSets:
    """Which dense ops each interval has cached so far, as numbers of sets: few sets occur, so that each is tried
    once.
    """

    def __init__(self, caching: Caching, n: int) -> None:
        self.caching = caching
        self.sets: list[OpSet] = [0]
        self.number: dict[OpSet, int] = {0: 0}
        self.held = np.zeros((n + 1, n + 1), np.int64)

    def add(self, i: int, block: Any, wanted: Any) -> Any:
        """Where the op finds room in the tiles, among the intervals of the block that want it; there it is added."""
        held = self.held[block]
        fits = np.zeros(wanted.shape, bool)
        for number in np.unique(held[wanted]).tolist():
            grown = self.sets[number] | 1 << i
            if self.caching.dense_fit(grown):
                if grown not in self.number:
                    self.number[grown] = len(self.sets)
                    self.sets.append(grown)
                here = wanted & (held == number)
                fits |= here
        for number in np.unique(held[fits]).tolist():
            held[fits & (held == number)] = self.number[self.sets[number] | 1 << i]
        return fits


class _Table:
    def __init__(self, costs: SegmentCosts, order: Sequence[int]) -> None:
        self.costs = costs
        self.order = list(order)
        self.n = len(self.order)
        self.at = {i: p for p, i in enumerate(self.order)}
        self.held_from = self._held_from()

    def build(self) -> IntervalTable:
        """All costs, summed up from the parts below."""
        transfers, broken, giving = self._transfers()
        overflow, always, waiting = self._streaming()
        hardware = self.costs.hardware
        streamed = overflow + always
        time = (
            self._sums()
            + transfers
            + waiting
            + np.where(streamed > 0, hardware.stream_start_ns, 0)
            + hardware.invoke_ns
        )
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
            on_tpu = self.costs.compute[i] + self.costs.start[i]
            table.add((self.held_from[p], p), (p + 1, self.n), on_tpu)
            if not self.costs.graph.ops[i].folded:
                table.add((0, min(p, self.held_from[p] - 1)), (p + 1, self.n), self.costs.cpu[i])
        return table.total()

    def _transfers(self) -> tuple[Any, Any, Any]:
        """ns for tensors in and out, how many tensors without a shape cross, and how many tensors leave, per
        interval.
        """
        graph, hardware, n = self.costs.graph, self.costs.hardware, self.n
        time, broken, giving = (_Rectangles(n) for _ in range(3))
        final = set(graph.outputs)
        for t in sorted(set(graph.producer) | set(graph.readers)):
            tensor = graph.tensors[t]
            made = self.at[graph.producer[t]] if t in graph.producer else -1
            readers = sorted(self.at[r] for r in graph.readers.get(t, ()))
            for before, reader in pairwise([made, *readers]):
                where = (before + 1, reader), (reader + 1, n)
                time.add(*where, input_ns(tensor.bytes, hardware))
                broken.add(*where, int(tensor.shape is None))
            if made >= 0:
                leaving = (0, made), (made + 1, n if t in final else readers[-1] if readers else made)
                time.add(*leaving, output_ns(tensor.bytes, hardware))
                giving.add(*leaving, 1)
                broken.add((0, made), (made + 1, readers[-1] if readers else made), int(tensor.shape is None))
        # The segment that holds every op also has the model inputs that nobody reads; folded ops may stand at its
        # edges.
        real = [p for p, i in enumerate(self.order) if not graph.ops[i].folded]
        for t in set(graph.inputs) - set(graph.readers):
            time.add((0, real[0]), (real[-1] + 1, n), input_ns(graph.tensors[t].bytes, hardware))
        return time.total(), broken.total(), giving.total()

    def _room(self) -> Any:
        """On-chip bytes for parameters: the largest scratch of an op of the interval, or of a tensor that enters it."""
        costs, graph = self.costs, self.costs.graph
        scratch = np.zeros((self.n + 1, self.n + 1), np.int64)
        for p, i in enumerate(self.order):
            starts = scratch[self.held_from[p] : p + 1, p + 1]
            starts[:] = costs.scratch[i]
            for t in graph.activations[i]:
                made = self.at[graph.producer[t]] if t in graph.producer else -1
                entering = scratch[max(made + 1, self.held_from[p]) : p + 1, p + 1]
                np.maximum(entering, costs.input_scratch[t, i], out=entering)
        worst = np.maximum.accumulate(scratch, axis=1)
        most = largest_capacity(costs.hardware)
        return np.maximum(0, most - TILES * worst)

    def _streaming(self) -> tuple[Any, Any, Any]:
        """Overflow, bytes that always stream, and the ns that both add: all caches are filled at once, op by op."""
        costs, caching, n = self.costs, self.costs.caching, self.n
        always_bytes, always_ns = _Rectangles(n), _Rectangles(n)
        for p, i in enumerate(self.order):
            where = (self.held_from[p], p), (p + 1, n)
            always_bytes.add(*where, costs.layout[i].always_streamed)
            always_ns.add(*where, costs.always[i])
        left, waiting = self._room(), always_ns.total()
        overflow = np.zeros_like(left)
        dense = _DenseSets(caching, n)
        for i in caching.priority:
            p = self.at[i]
            block = np.s_[self.held_from[p] : p + 1, p + 1 :]
            spills = left[block] < caching.size[i]
            if caching.dense >> i & 1:
                spills |= ~dense.add(i, block, ~spills)
            left[block] -= np.where(spills, 0, caching.size[i])
            overflow[block] += spills * costs.layout[i].streamed
            waiting[block] += spills * costs.waiting[i]
        return overflow, always_bytes.total(), waiting

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
