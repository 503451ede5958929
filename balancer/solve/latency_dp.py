"""The lowest latency of a pipeline whose stages all keep to a period: a shortest path.

Once the period is fixed, a segment of time t needs ceil(t / period) replicas, and more would only take devices. The latency
of a pipeline is a sum over its stages, of each one's time and a hand-over. So the lowest latency is the length of a
shortest path from no ops to all ops, along segments, whose nodes are (down-set, stages, devices in use):

    latency[I][s][u] = min over J < I of  latency[J][s - 1][u - r] + time(I - J) + handover,  r = ceil(time / period)

Lower bounds on what the ops before and after a cut take leave out cuts that no path of the length allowed can use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from balancer.solve.costed_segments import SegmentColumns
from balancer.solve.downset_dp import CutSearch
from balancer.solve.tie_rules import best_way

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.solve.budget import Budget
    from balancer.solve.downset_dp import Devices, LatticeSolver, Within
    from balancer.solve.tie_rules import Way


class Arrival(NamedTuple):
    """The lowest latency, in ns, of a pipeline with exactly this many stages and devices of each kind."""

    stages: int
    devices: Devices
    latency_ns: int


class LatencySearch(CutSearch):
    """Pipelines within limits on devices, stages, period (`within`) and latency."""

    def __init__(self, solver: LatticeSolver, within: Within, budget: Budget, most_latency_ns: int) -> None:
        """Raises BudgetSpent."""
        self.handover_ns = solver.problem.handover_ns
        super().__init__(solver, within, budget, most_latency_ns)

    def reached(self) -> list[Arrival]:
        """What there is; none where the limits cannot all be kept."""
        return [Arrival(s, self.vectors[u], int(latency)) for s, u, latency in self.arrivals]

    def settle(self, arrival: Arrival, most_latency_ns: int) -> Way:
        """Of the pipelines with just these stages and devices, in the period and at most this latency, the one that the tie
        rules name. Ends are rows of this search's sets.
        """
        most_ns = most_latency_ns - self.handover_ns * arrival.stages
        choices = self.choices(self.within.most_ns)
        return best_way(len(self.sets), arrival.stages, arrival.devices, choices, self.ops_between, most_ns)

    def _open(self) -> Any:
        before, self.rest_ns = self._least_around()
        fits = super()._open()
        fits[before + self.rest_ns > self.limit] = False
        return fits

    def _find_cuts(self) -> None:
        super()._find_cuts()
        self.rest_ns = self.rest_ns[self.rows]

    def _longest_ns(self) -> int:
        return min(super()._longest_ns(), int(self.limit))

    def _least_around(self) -> tuple[Any, Any]:
        """ns of latency before and after each set, at least."""
        least, count = self.solver.reach.least, len(self.solver.sets)
        before, after = np.zeros(count, np.int64), np.zeros(count, np.int64)
        if least is None or len(self.within.devices) > 1:
            return before, after
        stages = range(1, self.stages + 1)
        before[1:] = np.minimum.reduce([least.before(s)[1:] + s * self.handover_ns for s in stages])
        after[:-1] = np.minimum.reduce([least.after(s)[:-1] + s * self.handover_ns for s in stages])
        return before, after

    def _extend(self, at: int, kind: int, segments: SegmentColumns, states: Sequence[tuple[int, int, float]]) -> None:
        replicas = np.maximum(1, -(-segments.time_ns // self.within.most_ns))
        added = segments.time_ns + self.handover_ns
        longest = self.limit - added - self.rest_ns[segments.end]  # of the way to this cut
        soonest = min(latency for _, _, latency in states)
        most = np.minimum(self.highest[kind][segments.end], self.most_replicas[kind])
        short = np.nonzero((replicas <= most) & (longest >= soonest))[0]
        if not len(short):
            return
        replicas, added, longest = replicas[short], added[short], longest[short]
        segments = SegmentColumns(*(column[short] for column in segments))
        self.used[kind].append((at, segments))
        for s, used, latency in states:
            if s < self.stages:
                free = self.within.devices[kind] - self.vectors[used][kind]
                fits = np.nonzero((latency <= longest) & (replicas <= free))[0]
                end, there = segments.end[fits], used + replicas[fits] * self.strides[kind]
                found = self.open[end, there]
                end, there, reached = end[found], there[found], latency + added[fits[found]]
                self.best[end, s + 1, there] = np.minimum(self.best[end, s + 1, there], reached)
