"""Exact interval dynamic programming: the best cuts of one execution order and the best replicas of their stages, for
each number of stages and devices.

A stage of time t with r replicas takes an input every t / r. With L a common multiple of the numbers of replicas, t *
(L / r) is whole, so that ties are ties; `shares` are such times, in L-ths of a nanosecond.

best[s][u][b], the shortest period of the positions before b in s stages on u devices, is the minimum over the last
stage, [a, b) on r devices, of max(best[s - 1][u - r][a], share[r][a, b]): a whole row at once, since a cost that
grows by one op can fall, so that neither two pointers nor a greedy fill would be exact. Ties are settled in further
passes over the partitions that meet the optimum: fewest streamed bytes, then lowest latency, then the earliest cuts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balancer.solve.problem import Intervals

NEVER = np.int64(1) << 60
# The least common multiple of 1 to 16 times the longest stage stays within 64 bits.
MOST_REPLICAS = 16


@dataclass(frozen=True, slots=True)
class Chain:
    """A partition into len(cuts) + 1 intervals, and the replicas of each stage. cuts: positions at which a new stage
    starts.

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

    def __init__(
        self, intervals: Intervals, devices: int, *, most_replicas: int = 1, whole_replicas: bool = False
    ) -> None:
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
        period = math.floor(goal.period * self.multiple)
        # The fewest replicas with which each interval meets the period; more would only take devices.
        need = np.full((self.n + 1, self.n + 1), self.most_replicas + 1)
        for r in range(self.most_replicas, 0, -1):
            need[self.shares[r - 1] <= period] = r
        paths = _Paths(self.n, goal, [np.nonzero(need == r) for r in range(1, self.most_replicas + 1)])
        streamed = paths.keep_cheapest([self.intervals.streamed_bytes * r for r in range(1, self.most_replicas + 1)])
        latency = paths.keep_cheapest([self.intervals.time_ns] * self.most_replicas)
        cuts, replicas = paths.first()
        return Chain(cuts, replicas, streamed, latency)


class _Paths:
    """The ways from position 0 to n in as many steps as the goal has stages, which take its devices in all.

    arcs: (step, devices taken before it, devices it takes less one) -> where it leads from and to, as two arrays.
    """

    def __init__(self, n: int, goal: Reached, arcs: list[Any]) -> None:
        self.n, self.steps, self.devices = n, goal.stages, goal.devices
        self.arcs = {(j, u, r): arcs[r] for j, u, r in self._moves(len(arcs))}

    def _moves(self, kinds: int) -> Iterator[tuple[int, int, int]]:
        """In order of the steps, as far as the rest can still be taken."""
        for j in range(self.steps):
            for u in range(j, self.devices):
                for r in range(min(kinds, self.devices - u)):
                    left, steps_left = self.devices - u - r - 1, self.steps - j - 1
                    if steps_left <= left <= steps_left * kinds:
                        yield j, u, r

    def keep_cheapest(self, weights: list[Any]) -> int:
        """The least total weight of a way; arcs that are on none of that weight go. weights: by devices taken, less
        one.
        """
        forward, backward = self._table(), self._table()
        forward[0, 0, 0] = backward[self.steps, self.devices, self.n] = 0
        for (j, u, r), (a, b) in self.arcs.items():
            np.minimum.at(forward[j + 1, u + r + 1], b, forward[j, u, a] + weights[r][a, b])
        for (j, u, r), (a, b) in reversed(self.arcs.items()):
            np.minimum.at(backward[j, u], a, backward[j + 1, u + r + 1, b] + weights[r][a, b])
        best = int(forward[self.steps, self.devices, self.n])
        for (j, u, r), (a, b) in self.arcs.items():
            on_best = forward[j, u, a] + weights[r][a, b] + backward[j + 1, u + r + 1, b] == best
            self.arcs[j, u, r] = (a[on_best], b[on_best])
        return best

    def _table(self) -> Any:
        return np.full((self.steps + 1, self.devices + 1, self.n + 1), NEVER, np.int64)

    def first(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Cuts and replicas of the way whose steps are shortest, the first of them first."""
        cuts, replicas, at, used = [], [], 0, 0
        for j in range(self.steps):
            at, r = min(
                (int(b[a == at].min()), r)
                for (k, u, r), (a, b) in self.arcs.items()
                if (k, u) == (j, used) and (a == at).any()
            )
            used += r + 1
            cuts.append(at)
            replicas.append(r + 1)
        return tuple(cuts[:-1]), tuple(replicas)
