"""Exact interval dynamic programming: the best cuts of one execution order and the best replicas of their stages, for
each number of stages and devices.

A stage of time t with r replicas takes an input every t / r. With L a common multiple of the numbers of replicas, t *
(L / r) is whole, so that ties are ties; `shares` are such times, in L-ths of a nanosecond.

best[s][u][b], the shortest period of the positions before b in s stages on u devices, is the minimum over the last
stage, [a, b) on r devices, of max(best[s - 1][u - r][a], share[r][a, b]): a whole row at once, since a cost that
grows by one op can fall, so that neither two pointers nor a greedy fill would be exact. Ties are settled in further
passes over the partitions that meet the optimum (see `paths`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.solve.paths import NEVER, Choice, best_way, quickest_way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balancer.solve.problem import Costs

# The least common multiple of 1 to 16 times the longest stage stays within 64 bits.
MOST_REPLICAS = 16


@dataclass(frozen=True, slots=True)
class Chain:
    """A partition into len(cuts) + 1 intervals, and the replicas of each stage. cuts: numbers of those between stages.

    streamed_bytes: each replica's. latency_ns: the sum of the stages' times.
    """

    cuts: tuple[int, ...]
    replicas: tuple[int, ...]
    streamed_bytes: int
    latency_ns: int


@dataclass(frozen=True, slots=True)
class Reached:
    """The shortest period, in ns, of any partition into so many stages on so many devices."""

    stages: int
    devices: int
    period: Fraction


class ChainSolver:
    """All pipelines of one order on up to `devices` devices. whole_replicas: whether a pipeline of one stage may have
    several.

    most_replicas: of a stage, at most MOST_REPLICAS.
    """

    def __init__(self, intervals: Costs, devices: int, *, most_replicas: int = 1, whole_replicas: bool = False) -> None:
        self.devices = devices
        self.most_replicas = min(devices, most_replicas, MOST_REPLICAS)
        self.intervals = intervals
        self.n = len(intervals.time_ns) - 1
        self.multiple = math.lcm(*range(1, self.most_replicas + 1))
        self.shares = [self._share(r, whole=r == 1 or whole_replicas) for r in range(1, self.most_replicas + 1)]

    def _share(self, replicas: int, *, whole: bool) -> Any:
        share = np.where(self.intervals.allowed, self.intervals.time_ns * (self.multiple // replicas), NEVER)
        if not whole:
            share[0, -1] = NEVER
        return share

    @cached_property
    def _rows(self) -> dict[tuple[int, int], Any]:
        """(stages, devices) -> the shortest period, in L-ths of a ns, of the positions before b, for all b."""
        rows = {(1, r): self.shares[r - 1][0] for r in range(1, self.most_replicas + 1)}
        for stages in range(2, min(self.devices, self.n) + 1):
            for devices in range(stages, self.devices + 1):
                found = [
                    np.maximum(rows[stages - 1, devices - r][:, None], self.shares[r - 1]).min(axis=0)
                    for r in range(1, self.most_replicas + 1)
                    if (stages - 1, devices - r) in rows
                ]
                if found:
                    rows[stages, devices] = np.minimum.reduce(found)
        return rows

    def reached(self) -> Iterator[Reached]:
        """What can be reached with each number of stages and devices, fewest devices and stages first, as far as it
        is faster than everything with no more of both.
        """
        best: dict[tuple[int, int], int] = {}
        for stages, devices in sorted(self._rows, key=lambda key: (key[1], key[0])):
            period = int(self._rows[stages, devices][-1])
            smaller = (p for (s, u), p in best.items() if s <= stages and u <= devices)
            if period < min(smaller, default=int(NEVER)):
                best[stages, devices] = period
                yield Reached(stages, devices, Fraction(period, self.multiple))

    def reached_with(self, stages: int) -> list[Reached]:
        """The same for exactly so many stages."""
        found: list[Reached] = []
        for devices in range(stages, self.devices + 1):
            period = int(self._rows[stages, devices][-1]) if (stages, devices) in self._rows else int(NEVER)
            if period < min((int(r.period * self.multiple) for r in found), default=int(NEVER)):
                found.append(Reached(stages, devices, Fraction(period, self.multiple)))
        return found

    def meeting(self, period: int) -> list[Reached]:
        """All numbers of stages and devices with which some partition has a period of at most so many ns; with just
        that period as the goal.
        """
        limit = period * self.multiple
        return [Reached(s, u, Fraction(period)) for (s, u), row in self._rows.items() if row[-1] <= limit]

    def settle(self, goal: Reached) -> Chain:
        """Of all partitions that meet the goal's period with its stages and devices, the one that the tie rules name."""
        way = best_way(self.n + 1, goal.stages, (goal.devices,), self._choices(goal), key=lambda start, end: end)
        return Chain(way.ends[:-1], tuple(r for _, r in way.stages), way.streamed_bytes, way.latency_ns)

    def settle_quickest(self, goal: Reached) -> Chain:
        """Of these the one with the lowest latency."""
        way = quickest_way(self.n + 1, goal.stages, (goal.devices,), self._choices(goal), key=lambda start, end: end)
        return Chain(way.ends[:-1], tuple(r for _, r in way.stages), way.streamed_bytes, way.latency_ns)

    def within_latency(self, most_ns: int, handover_ns: int) -> list[Reached]:
        """For each number of devices the shortest period of a pipeline whose latency is at most so many ns, as far as it
        is faster than on fewer devices. Bisection over all periods that there can be.
        """
        periods = np.unique(np.concatenate([share[share < NEVER] for share in self.shares]))
        found: list[Reached] = []
        for devices in range(1, self.devices + 1):
            fastest = int(found[-1].period * self.multiple) if found else int(NEVER)
            low, high = 0, int(np.searchsorted(periods, fastest))
            best: tuple[int, int] | None = None
            while low < high:
                middle = (low + high) // 2
                stages = self._quick_enough(int(periods[middle]), devices, most_ns, handover_ns)
                if stages:
                    best, high = (stages, middle), middle
                else:
                    low = middle + 1
            if best:
                found.append(Reached(best[0], devices, Fraction(int(periods[best[1]]), self.multiple)))
        return found

    def _quick_enough(self, period: int, devices: int, most_ns: int, handover_ns: int) -> int | None:
        """The fewest stages of a pipeline on just so many devices with this period, in L-ths, and such a latency."""
        times = [np.where(share <= period, self.intervals.time_ns, NEVER) for share in self.shares]
        quickest = {(1, r): times[r - 1][0] for r in range(1, self.most_replicas + 1)}
        for stages in range(1, min(devices, self.n) + 1):
            for used in range(stages, devices + 1) if stages > 1 else ():
                found = [
                    (quickest[stages - 1, used - r][:, None] + times[r - 1]).min(axis=0)
                    for r in range(1, self.most_replicas + 1)
                    if (stages - 1, used - r) in quickest
                ]
                if found:
                    quickest[stages, used] = np.minimum.reduce(found)
            if (stages, devices) in quickest and quickest[stages, devices][-1] + handover_ns * stages <= most_ns:
                return stages
        return None

    def _choices(self, goal: Reached) -> list[Choice]:
        """The intervals by the fewest replicas with which they meet the goal's period; more would only take devices."""
        period = math.floor(goal.period * self.multiple)
        need = np.full((self.n + 1, self.n + 1), self.most_replicas + 1)
        for r in range(self.most_replicas, 0, -1):
            need[self.shares[r - 1] <= period] = r
        return [self._choice(r, *np.nonzero(need == r)) for r in range(1, self.most_replicas + 1)]

    def _choice(self, replicas: int, start: Any, end: Any) -> Choice:
        table = self.intervals
        streamed = table.streamed_bytes[start, end] * replicas
        return Choice(0, replicas, start, end, streamed, table.time_ns[start, end])
