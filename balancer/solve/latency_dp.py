"""The lowest latencies of pipelines whose stages all keep to a period: a shortest path in the lattice of `downset_dp`.

Once the period is fixed, a segment of time t needs ceil(t / period) replicas, and more would only take devices. The
latency of a pipeline is a sum over its stages, of each one's time and a hand-over. So the lowest latency is the length
of a shortest path from no ops to all ops, whose nodes are (down-set, stages, devices in use) and whose edges are segments:

    best[I][s][u] = min over J < I of  best[J][s - 1][u - r] + time(I - J) + handover,   r = ceil(time / period)

Cuts that lie on no path of the allowed length are dropped beforehand: lower bounds say how long the ops before and after a
cut take at least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from balancer.solve.downset_dp import DeviceNumbers, DpPaths, best_paths, open_cuts, open_mask, replicas_by_kind
from balancer.solve.tie_rules import best_path

if TYPE_CHECKING:
    from balancer.ground.arrays import IntArray
    from balancer.solve.budget import Budget
    from balancer.solve.costed_segments import SegmentColumns
    from balancer.solve.downset_dp import CutLattice, Devices, DpTable, PipelineLimits, StateColumns
    from balancer.solve.problem import PipelineSpec


class LowestLatency(NamedTuple):
    """The lowest latency, in ns, of any pipeline of exactly these numbers of stages and of devices of each kind."""

    stages: int
    devices: Devices
    latency_ns: int


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """A search that ran to its end. front: the non-dominated pipelines within the limits; empty where there is none."""

    limits: PipelineLimits
    front: tuple[LowestLatency, ...]
    paths: DpPaths

    def settle(self, goal: LowestLatency, most_latency_ns: int) -> PipelineSpec:
        """The pipeline that the tie rules name of those with the goal's stages and devices, within the period searched
        for and at most this latency.
        """
        # The tie rules sum the stages' times alone; hand-overs are the same for all pipelines of so many stages.
        most_ns = most_latency_ns - self.paths.problem.handover_ns * goal.stages
        options = self.paths.stage_options(self.limits.most_ns)
        cuts, key = len(self.paths.sets), self.paths.ops_between
        return self.paths.pipeline(best_path(cuts, goal.stages, goal.devices, options, key, most_ns))


def lowest_latencies(
    lattice: CutLattice, limits: PipelineLimits, most_latency_ns: int, budget: Budget
) -> LatencyResult:
    """All non-dominated pipelines within the limits and the latency. Raises BudgetSpent."""
    numbers = DeviceNumbers(limits.devices)
    before_ns, after_ns = _least_latencies(lattice, limits)
    mask = open_mask(lattice, limits, numbers)
    # A shortest path visits no node whose lower bounds, to it and from it, exceed the length allowed (as in A*).
    mask[before_ns + after_ns > most_latency_ns] = False
    longest_ns = min(limits.most_ns * max(replicas_by_kind(lattice, limits)), most_latency_ns)
    cuts = open_cuts(lattice, mask, numbers, longest_ns)
    rule = _LatencyRule(most_latency_ns, lattice.problem.handover_ns, after_ns[cuts.rows])
    paths = best_paths(lattice, limits, cuts, rule, budget)
    columns = (column.tolist() for column in paths.arrivals)
    front = (
        LowestLatency(stages, numbers.vectors[used], int(latency))
        for stages, used, latency in zip(*columns, strict=True)
    )
    return LatencyResult(limits, tuple(front), paths)


def _least_latencies(lattice: CutLattice, limits: PipelineLimits) -> tuple[IntArray, IntArray]:
    """For each set lower bounds, in ns, on the latency of the stages before it and of those after it."""
    bounds, n_sets = lattice.reachability.bounds, len(lattice.sets)
    before_ns, after_ns = np.zeros(n_sets, np.int64), np.zeros(n_sets, np.int64)
    if bounds is None or len(limits.devices) > 1:
        return before_ns, after_ns  # the bounds are those of the first kind alone
    handover_ns = lattice.problem.handover_ns
    # The number of stages on either side is not known: the least over all of them is a bound.
    stages = range(1, min(limits.most_stages, sum(limits.devices)) + 1)
    before_ns[1:] = np.minimum.reduce([bounds.prefix_ns(s)[1:] + s * handover_ns for s in stages])
    after_ns[:-1] = np.minimum.reduce([bounds.suffix_ns(s)[:-1] + s * handover_ns for s in stages])
    return before_ns, after_ns


@dataclass(frozen=True, slots=True)
class _LatencyRule:
    """Latencies add up.

    limit: the highest latency wanted, in ns. after_ns: for each cut, a lower bound on the latency of the stages behind it.
    """

    limit: float
    handover_ns: int
    after_ns: IntArray

    def extend(
        self, table: DpTable, cut: int, kind: int, segments: SegmentColumns, states: StateColumns
    ) -> SegmentColumns | None:
        """See `ExtensionRule`."""
        # The fewest replicas that keep the period: ceil(time / period).
        replicas = np.maximum(1, -(-segments.time_ns // table.limits.most_ns))
        added = segments.time_ns + self.handover_ns
        # The latency up to this cut that still lets a pipeline with the segment keep the limit.
        longest = table.limit - added - self.after_ns[segments.end]
        most = np.minimum(table.cuts.highest[kind][segments.end], table.most_replicas[kind])
        useful = np.nonzero((replicas <= most) & (longest >= states.value.min()))[0]
        if not len(useful):
            return None
        segments, replicas, added, longest = segments.take(useful), replicas[useful], added[useful], longest[useful]
        step = replicas * table.numbers.strides[kind]
        free = table.limits.devices[kind] - table.numbers.counts[states.used, kind]
        columns = (states.stages.tolist(), states.used.tolist(), states.value.tolist(), free.tolist())
        for stages, used, latency, left in zip(*columns, strict=True):
            if stages < table.stages:
                fits = np.nonzero((latency <= longest) & (replicas <= left))[0]
                end, used_after = segments.end[fits], used + step[fits]
                opens = table.cuts.is_open[end, used_after]
                end, used_after, reached = end[opens], used_after[opens], latency + added[fits[opens]]
                # A cut occurs once among the segments from one cut and of one kind, so plain indexing is enough.
                table.best[end, stages + 1, used_after] = np.minimum(table.best[end, stages + 1, used_after], reached)
        return segments
