"""Exact interval dynamic programming: the best cuts of one execution order and the best replicas of their stages, for
each number of stages and devices.

A stage of time t with r replicas takes an input every t / r; `shares` are these periods, as floats that compare exactly
(see `periods`).

best[s][u][b], the shortest period of the positions before b in s stages on u devices, is the minimum over the last
stage, [a, b) on r devices, of max(best[s - 1][u - r][a], share[r][a, b]): a whole row at once, since a cost that
grows by one op can fall, so that neither two pointers nor a greedy fill would be exact. Ties are settled in further
passes over the partitions that meet the optimum (see `tie_rules`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.solve.periods import MOST_REPLICAS, exact_period
from balancer.solve.tie_rules import StageOptions, best_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balancer.solve.problem import CostColumns


_MOST_KEPT = 1 << 23  # periods, of all numbers of replicas: 64 MiB


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

    def __init__(
        self, intervals: CostColumns, devices: int, *, most_replicas: int = 1, whole_replicas: bool = False
    ) -> None:
        self.devices = devices
        self.most_replicas = min(devices, most_replicas, MOST_REPLICAS)
        self.intervals = intervals
        self.n = len(intervals.time_ns) - 1
        self.whole_replicas = whole_replicas
        self._shares: dict[int, Any] = {}

    def _share(self, replicas: int) -> Any:
        """Periods of all intervals on so many devices each; infinite where one may not stand."""
        if replicas not in self._shares:
            if self.most_replicas * (self.n + 1) ** 2 > _MOST_KEPT:
                self._shares.clear()
            self._shares[replicas] = self._made_share(replicas)
        return self._shares[replicas]

    def _made_share(self, replicas: int) -> Any:
        share = np.where(self.intervals.allowed, np.maximum(self.intervals.time_ns, 1) / replicas, math.inf)
        if replicas > 1 and not self.whole_replicas:
            share[0, -1] = math.inf
        return share

    @cached_property
    def _rows(self) -> dict[tuple[int, int], Any]:
        """(stages, devices) -> the shortest period of the positions before b, for all b."""
        rows = {(1, r): self._share(r)[0] for r in range(1, self.most_replicas + 1)}
        for stages in range(2, min(self.devices, self.n) + 1):
            for r in range(1, self.most_replicas + 1):
                share = self._share(r)
                for devices in range(stages - 1 + r, self.devices + 1):
                    if (stages - 1, devices - r) in rows:
                        found = np.maximum(rows[stages - 1, devices - r][:, None], share).min(axis=0)
                        known = rows.get((stages, devices))
                        rows[stages, devices] = found if known is None else np.minimum(known, found)
        return rows

    def reached(self) -> Iterator[Reached]:
        """What can be reached with each number of stages and devices, fewest devices and stages first, where nothing with
        no more of both is as fast.
        """
        best: dict[tuple[int, int], float] = {}
        for stages, devices in sorted(self._rows, key=lambda key: (key[1], key[0])):
            period = float(self._rows[stages, devices][-1])
            smaller = (p for (s, u), p in best.items() if s <= stages and u <= devices)
            if period < min(smaller, default=math.inf):
                best[stages, devices] = period
                yield Reached(stages, devices, exact_period(period, self.most_replicas))

    def reached_with(self, stages: int) -> list[Reached]:
        """The same for exactly so many stages."""
        found: list[Reached] = []
        for devices in range(stages, self.devices + 1):
            period = float(self._rows[stages, devices][-1]) if (stages, devices) in self._rows else math.inf
            if period < min((float(r.period) for r in found), default=math.inf):
                found.append(Reached(stages, devices, exact_period(period, self.most_replicas)))
        return found

    def meeting(self, period: int) -> list[Reached]:
        """All numbers of stages and devices with which some partition has a period of at most so many ns; with just
        that period as the goal.
        """
        return [Reached(s, u, Fraction(period)) for (s, u), row in self._rows.items() if row[-1] <= period]

    def settle(self, goal: Reached) -> Chain:
        """Of all partitions that meet the goal's period with its stages and devices, the one that the tie rules name."""
        way = best_path(self.n + 1, goal.stages, (goal.devices,), self._choices(goal), key=lambda start, end: end)
        return Chain(way.ends[:-1], tuple(r for _, r in way.stages), way.streamed_bytes, way.latency_ns)

    def _choices(self, goal: Reached) -> list[StageOptions]:
        """The intervals by the fewest replicas with which they meet the goal's period; more would only take devices."""
        period = float(goal.period)
        need = np.full((self.n + 1, self.n + 1), self.most_replicas + 1)
        for r in range(self.most_replicas, 0, -1):
            need[self._share(r) <= period] = r
        return [self._choice(r, *np.nonzero(need == r)) for r in range(1, self.most_replicas + 1)]

    def _choice(self, replicas: int, start: Any, end: Any) -> StageOptions:
        table = self.intervals
        streamed = table.streamed_bytes[start, end] * replicas
        return StageOptions(0, replicas, start, end, streamed, table.time_ns[start, end])
