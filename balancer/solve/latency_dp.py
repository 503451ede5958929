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

from balancer.solve.downset_dp import DpPaths, best_paths, open_cuts, open_periods, replicas_by_kind
from balancer.solve.tie_rules import best_path

if TYPE_CHECKING:
    from balancer.ground.arrays import IntArray
    from balancer.solve.budget import Budget
    from balancer.solve.costed_segments import SegmentColumns
    from balancer.solve.downset_dp import CutLattice, DpTable, PipelineLimits, StateColumns
    from balancer.solve.problem import PipelineSpec, Problem
    from balancer.solve.sizes import Counts


class LowestLatency(NamedTuple):
    """The lowest latency, in ns, of any pipeline of exactly these stages, by class, and devices, by kind."""

    stages: Counts
    devices: Counts
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
        options, size = self.paths.stage_options(self.limits.most_ns), self.paths.size(goal.stages, goal.devices)
        cuts, key = len(self.paths.sets), self.paths.ops_between
        return self.paths.pipeline(best_path(cuts, size, options, key, most_latency_ns))


def lowest_latencies(
    lattice: CutLattice, limits: PipelineLimits, most_latency_ns: int, budget: Budget
) -> LatencyResult:
    """All non-dominated pipelines within the limits and the latency. Raises BudgetSpent."""
    before_ns, after_ns = _least_latencies(lattice, limits)
    periods = open_periods(lattice, limits)
    # A shortest path visits no node whose lower bounds, to it and from it, exceed the length allowed (as in A*).
    periods[before_ns + after_ns > most_latency_ns] = -1
    longest_ns = min(limits.most_ns * max(replicas_by_kind(lattice, limits)), most_latency_ns)
    cuts = open_cuts(lattice, limits, periods, longest_ns)
    rule = _LatencyRule(most_latency_ns, _handovers_ns(lattice.problem), after_ns[cuts.rows])
    paths = best_paths(lattice, limits, cuts, rule, budget)
    columns = (column.tolist() for column in paths.arrivals)
    stages_of, devices_of = paths.numbers.stages.vectors, paths.numbers.devices.vectors
    front = (
        LowestLatency(stages_of[stages], devices_of[used], int(latency))
        for stages, used, latency in zip(*columns, strict=True)
    )
    return LatencyResult(limits, tuple(front), paths)


def _least_latencies(lattice: CutLattice, limits: PipelineLimits) -> tuple[IntArray, IntArray]:
    """For each set lower bounds, in ns, on the latency of the stages before it and of those after it."""
    n_sets = len(lattice.sets)
    before_ns, after_ns = np.zeros(n_sets, np.int64), np.zeros(n_sets, np.int64)
    if len(lattice.reachability.bounds) != 1:
        return before_ns, after_ns  # there are no bounds, or they are those of each kind alone
    (bounds,) = lattice.reachability.bounds
    (handover_ns,) = _handovers_ns(lattice.problem)
    # The number of stages on either side is not known: the least over all of them is a bound.
    stages = range(1, min(limits.most_stages, sum(limits.devices)) + 1)
    before_ns[1:] = np.minimum.reduce([bounds.prefix_ns(s)[1:] + s * handover_ns for s in stages])
    after_ns[:-1] = np.minimum.reduce([bounds.suffix_ns(s)[:-1] + s * handover_ns for s in stages])
    return before_ns, after_ns


def _handovers_ns(problem: Problem) -> list[int]:
    """By kind."""
    return [problem.handover_ns.get(kind, 0) for kind, _ in problem.devices]


@dataclass(frozen=True, slots=True)
class _LatencyRule:
    """Latencies add up.

    limit: the highest latency wanted, in ns. handover_ns: by kind. after_ns: for each cut, a lower bound on the latency of the
    stages behind it.
    """

    limit: float
    handover_ns: list[int]
    after_ns: IntArray

    def extend(
        self, table: DpTable, cut: int, kind: int, segments: SegmentColumns, states: StateColumns
    ) -> SegmentColumns | None:
        """See `ExtensionRule`."""
        # The fewest replicas that keep the period: ceil(time / period).
        replicas = np.maximum(1, -(-segments.time_ns // table.limits.most_ns))
        added = segments.time_ns + self.handover_ns[kind]
        # The latency up to this cut that still lets a pipeline with the segment keep the limit.
        longest = table.limit - added - self.after_ns[segments.end]
        most = np.minimum(table.cuts.highest[kind][segments.end], table.most_replicas[kind])
        useful = np.nonzero((replicas <= most) & (longest >= states.value.min()))[0]
        if not len(useful):
            return None
        segments, replicas, added, longest = segments.take(useful), replicas[useful], added[useful], longest[useful]
        numbers, states = table.numbers, states.take(table.may_follow(states, kind))
        step = replicas * numbers.devices.strides[kind]
        one_stage = numbers.stages.strides[numbers.classes.of_kind[kind]]
        free = table.limits.devices[kind] - numbers.devices.counts[states.used, kind]
        columns = (states.stages.tolist(), states.used.tolist(), states.value.tolist(), free.tolist())
        for stages, used, latency, left in zip(*columns, strict=True):
            fits = np.nonzero((latency <= longest) & (replicas <= left))[0]
            end, used_after = segments.end[fits], used + step[fits]
            opens = table.cuts.is_open[end, used_after]
            end, used_after, reached = end[opens], used_after[opens], latency + added[fits[opens]]
            # A cut occurs once among the segments from one cut and of one kind, so plain indexing is enough.
            stages_after = stages + one_stage
            table.best[end, stages_after, used_after] = np.minimum(table.best[end, stages_after, used_after], reached)
        return segments
