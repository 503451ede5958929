"""The shortest periods of pipelines: the rule of `downset_dp` under which a path is as slow as its slowest stage.

    best[I][s][u] = min over J < I and r of  max(best[J][s - 1][u - r], time(I - J) / r)

Periods are float64 that compare exactly as the fractions do that they stand for (see `periods`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from balancer.solve.downset_dp import DpPaths, best_paths, open_cuts, open_periods, replicas_by_kind
from balancer.solve.periods import exact_period
from balancer.solve.tie_rules import best_path

if TYPE_CHECKING:
    from fractions import Fraction

    from balancer.ground.arrays import IntArray
    from balancer.solve.budget import Budget
    from balancer.solve.costed_segments import SegmentColumns
    from balancer.solve.downset_dp import CutLattice, DpTable, PipelineLimits, StateColumns
    from balancer.solve.problem import PipelineSpec
    from balancer.solve.sizes import Counts
    from balancer.solve.tie_rules import CutPath

_UPDATES_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True)
class ShortestPeriod:
    """The shortest period, in ns, of any pipeline of exactly these stages, by class, and devices, by kind."""

    stages: Counts
    devices: Counts
    period: Fraction

    @property
    def stage_count(self) -> int:
        return sum(self.stages)

    @property
    def device_count(self) -> int:
        return sum(self.devices)


@dataclass(frozen=True, slots=True)
class PeriodResult:
    """A search that ran to its end. front: the non-dominated pipelines within `limits`, by stages, devices and period."""

    limits: PipelineLimits
    front: tuple[ShortestPeriod, ...]
    paths: DpPaths

    def settle(self, goal: ShortestPeriod) -> tuple[PipelineSpec, CutPath]:
        """Of all pipelines with the goal's stages and devices, and at most its period, the one that the tie rules name."""
        options = self.paths.stage_options(float(goal.period))
        size = self.paths.size(goal.stages, goal.devices)
        path = best_path(len(self.paths.sets), size, options, self.paths.ops_between)
        return self.paths.pipeline(path), path


def shortest_periods(lattice: CutLattice, limits: PipelineLimits, budget: Budget) -> PeriodResult:
    """All non-dominated pipelines within the limits. Raises BudgetSpent."""
    longest_ns = limits.most_ns * max(replicas_by_kind(lattice, limits))
    cuts = open_cuts(lattice, limits, open_periods(lattice, limits), longest_ns)
    paths = best_paths(lattice, limits, cuts, _PeriodRule(limits.most_ns, lattice.may_replicate_whole), budget)
    columns = (column.tolist() for column in paths.arrivals)
    stages_of, devices_of = paths.numbers.stages.vectors, paths.numbers.devices.vectors
    front = (
        ShortestPeriod(stages_of[stages], devices_of[used], exact_period(period, lattice.most_replicas))
        for stages, used, period in zip(*columns, strict=True)
    )
    return PeriodResult(limits, tuple(front), paths)


@dataclass(frozen=True, slots=True)
class _PeriodRule:
    """The period of a pipeline is that of its slowest stage.

    limit: the longest period wanted, in ns. may_replicate_whole: see `CutLattice`.
    """

    limit: float
    may_replicate_whole: bool

    def extend(
        self, table: DpTable, cut: int, kind: int, segments: SegmentColumns, states: StateColumns
    ) -> SegmentColumns | None:
        """See `ExtensionRule`."""
        # Each segment may have from the fewest replicas that keep the period to the most that the cut behind it allows.
        fewest = np.maximum(1, -(-segments.time_ns // table.limits.most_ns))
        most = np.minimum(table.cuts.highest[kind][segments.end], table.most_replicas[kind])
        fast = np.nonzero(fewest <= most)[0]
        if not len(fast):
            return None
        segments, fewest, most = segments.take(fast), fewest[fast], most[fast]
        # A segment from the first cut to the last one is the whole model.
        if cut == 0 and not self.may_replicate_whole:
            most = np.where(segments.end == len(table.cuts.sets) - 1, 1, most)
        extendable = table.may_follow(states, kind)
        if extendable.any():
            _relax(table, kind, segments, (fewest, most), states.take(extendable))
        return segments


def _relax(
    table: DpTable, kind: int, segments: SegmentColumns, replicas: tuple[IntArray, IntArray], states: StateColumns
) -> None:
    """Lower `table.best` at the cuts after the segments, for all states and numbers of replicas (fewest, most)."""
    fewest, most = replicas
    # One entry for each segment and number of replicas: segment which[i] on r[i] devices.
    counts = np.maximum(0, most - fewest + 1)
    which = np.repeat(np.arange(len(counts)), counts)
    r = fewest[which] + np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    end, step = segments.end[which], r * table.numbers.devices.strides[kind]
    one_stage = table.numbers.stages.strides[table.numbers.classes.of_kind[kind]]
    periods = np.maximum(segments.time_ns[which], 1) / r
    most_in_use = table.cuts.highest[kind][end] - r
    in_use = table.numbers.devices.counts[states.used, kind]
    best, shape = table.best.reshape(-1), table.best.shape
    is_open, longest_ns = table.cuts.is_open, table.cuts.longest_ns
    # The array of all pairs of a state and an entry could be too large: states are taken in batches.
    at_once = max(1, _UPDATES_AT_ONCE // max(1, len(which)))
    for first in range(0, len(in_use), at_once):
        state, entry = np.nonzero(in_use[first : first + at_once, None] <= most_in_use)
        state += first
        used = states.used[state] + step[entry]
        # `highest` looked at one kind alone; `is_open` is about the devices of all kinds together.
        opens = is_open[end[entry], used]
        state, entry, used = state[opens], entry[opens], used[opens]
        period = np.maximum(states.value[state], periods[entry])
        if longest_ns is not None:
            soon = period <= longest_ns[end[entry], used]
            state, entry, used, period = state[soon], entry[soon], used[soon], period[soon]
        # Several pairs may reach the same cell: `minimum.at` takes them all, plain indexing would keep one.
        cell = (end[entry] * shape[1] + states.stages[state] + one_stage) * shape[2] + used
        np.minimum.at(best, cell, period)
