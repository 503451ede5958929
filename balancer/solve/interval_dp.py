"""Exact interval dynamic programming: the best cuts of one execution order, and the best replicas of their stages.

Cut b stands before op b, or before block b of ops that no cut may separate; there are n + 1 cuts, 0 to n. A stage of
time t on r replicas has the period t / r. Periods are floats that compare exactly (see `periods`).

The table holds, for s stages on u devices, the shortest period with which the ops before cut b can be run. For ops of
7, 2, 7 and 5 ns, whose times simply add up:

    cut b            1     2     3     4
    s = 1, u = 1     7     9    16    21
    s = 1, u = 2   3.5   4.5     8  10.5    two replicas
    s = 2, u = 2     .     7     9    12    at cut 4: ops 0 and 1 take 9, ops 2 and 3 take 12
    s = 2, u = 3     .   3.5     7     7    at cut 4: op 0 takes 7, ops 1 to 3 take 14 on two devices
    s = 3, u = 3     .     .     7     9
                                   ^ the last column: pipelines that hold all ops

    row(s, u)[b] = min over the last stage, [a, b) on r devices, of max(row(s - 1, u - r)[a], time[a, b] / r)

A row is the minimum over columns of an n x n array. Adding an op can make a segment cheaper, since its output no longer
leaves the device. So neither two pointers nor a greedy fill would be exact, and every interval counts. Among partitions
that meet the best period, `tie_rules` decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from balancer.solve.periods import MOST_REPLICAS, exact_period
from balancer.solve.tie_rules import PathSize, StageOptions, best_path

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from balancer.solve.problem import CostColumns
    from balancer.solve.tie_rules import CutPath


_MOST_KEPT = 1 << 23  # periods that are memoised, for all numbers of replicas: 64 MiB


@dataclass(frozen=True, slots=True)
class IntervalGoal:
    """The size of a pipeline, and the longest period, in ns, that its stages may have."""

    stages: int
    devices: int
    period: Fraction


@dataclass(frozen=True)
class IntervalPeriods:
    """The periods of all intervals of an order. Arrays have shape (n + 1, n + 1), indexed by the cuts around an interval.

    costs: of the intervals, for one replica. may_replicate_whole: whether a pipeline of one stage may have replicas.
    """

    costs: CostColumns
    most_replicas: int
    may_replicate_whole: bool
    _known: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Ops, or blocks of ops, of the order."""
        return len(self.costs.time_ns) - 1

    def of(self, replicas: int) -> NDArray[np.float64]:
        """In ns, with so many replicas; infinite where an interval may not stand. Memoised as far as memory allows."""
        if replicas not in self._known:
            if self.most_replicas * (self.n + 1) ** 2 > _MOST_KEPT:
                self._known.clear()
            period = np.where(self.costs.allowed, np.maximum(self.costs.time_ns, 1) / replicas, math.inf)
            if replicas > 1 and not self.may_replicate_whole:
                period[0, -1] = math.inf
            self._known[replicas] = period
        return self._known[replicas]


@dataclass(frozen=True)
class IntervalTable:
    """All pipelines of intervals of one order, on up to `devices` devices.

    rows: (stages, devices) -> the shortest period of the ops before each cut, in ns, shape (n + 1,); infinite where
    there is none. Sizes for which there cannot be any are left out.
    """

    periods: IntervalPeriods
    devices: int
    rows: dict[tuple[int, int], NDArray[np.float64]]

    def _goal(self, stages: int, devices: int, period: float) -> IntervalGoal:
        return IntervalGoal(stages, devices, exact_period(period, self.periods.most_replicas))

    def non_dominated(self) -> list[IntervalGoal]:
        """The Pareto front in stages, devices and period, by ascending devices and then stages."""
        best: dict[tuple[int, int], float] = {}
        for stages, devices in sorted(self.rows, key=lambda key: (key[1], key[0])):
            period = float(self.rows[stages, devices][-1])
            smaller = (p for (s, u), p in best.items() if s <= stages and u <= devices)
            if period < min(smaller, default=math.inf):
                best[stages, devices] = period
        return [self._goal(stages, devices, period) for (stages, devices), period in best.items()]

    def with_stages(self, stages: int) -> list[IntervalGoal]:
        """The Pareto front in devices and period, for exactly so many stages, by ascending devices."""
        front: list[tuple[int, float]] = []
        for devices in range(stages, self.devices + 1):
            period = float(self.rows[stages, devices][-1]) if (stages, devices) in self.rows else math.inf
            if period < min((p for _, p in front), default=math.inf):
                front.append((devices, period))
        return [self._goal(stages, devices, period) for devices, period in front]

    def within(self, period: int) -> list[IntervalGoal]:
        """Every size for which some partition has at most this period in ns. The period is also that of the goals."""
        return [IntervalGoal(s, u, Fraction(period)) for (s, u), row in self.rows.items() if row[-1] <= period]


def interval_table(
    costs: CostColumns, devices: int, *, most_replicas: int = 1, may_replicate_whole: bool = False
) -> IntervalTable:
    """Run the dynamic program over the intervals of an order.

    costs: of all intervals, as `orders.order_table` gives them. most_replicas: of one stage. may_replicate_whole: whether
    a pipeline of one stage may have replicas.
    """
    periods = IntervalPeriods(costs, min(devices, most_replicas, MOST_REPLICAS), may_replicate_whole)
    rows = {(1, r): periods.of(r)[0] for r in range(1, periods.most_replicas + 1)}
    for stages in range(2, min(devices, periods.n) + 1):
        for r in range(1, periods.most_replicas + 1):
            last = periods.of(r)
            for used in range(stages - 1 + r, devices + 1):
                if (stages - 1, used - r) in rows:
                    row = np.maximum(rows[stages - 1, used - r][:, None], last).min(axis=0)
                    known = rows.get((stages, used))
                    rows[stages, used] = row if known is None else np.minimum(known, row)
    return IntervalTable(periods, devices, rows)


def best_partition(table: IntervalTable, goal: IntervalGoal) -> CutPath:
    """Of all partitions that meet the goal with exactly its stages and devices, the one that the tie rules name."""
    size = PathSize((goal.stages,), (goal.devices,))
    return best_path(table.periods.n + 1, size, _choices(table.periods, goal), key=lambda start, end: end)


def _choices(periods: IntervalPeriods, goal: IntervalGoal) -> list[StageOptions]:
    """The intervals, grouped by the fewest replicas with which they meet the goal's period.

    More replicas would take devices and change nothing that the tie rules look at but streamed bytes, for the worse.
    """
    # Exact: a goal's period is a float that `exact_period` recovered, or a whole number of ns.
    period = float(goal.period)
    need = np.full((periods.n + 1, periods.n + 1), periods.most_replicas + 1)
    for r in range(periods.most_replicas, 0, -1):
        need[periods.of(r) <= period] = r
    return [_choice(periods.costs, r, *np.nonzero(need == r)) for r in range(1, periods.most_replicas + 1)]


def _choice(costs: CostColumns, replicas: int, start: NDArray[np.intp], end: NDArray[np.intp]) -> StageOptions:
    streamed = costs.streamed_bytes[start, end] * replicas
    return StageOptions(0, replicas, start, end, streamed, costs.time_ns[start, end])
