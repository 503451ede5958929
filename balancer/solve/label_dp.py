"""All pipelines within limits that no other beats in anything that plans are compared by: dynamic programming over down-sets
with several values for each way to get to a cut.

`period_dp` keeps, for each size, the shortest period alone. That settles the rate where pipelines share nothing but the host's
work, which follows from the size. It does not where a slower pipeline takes less of a bus, nor between plans of equal rate,
where a slower pipeline may stream less. So here a way to a cut has a label,

    (stages by class, devices by kind, period, what it takes of each shared resource, streamed bytes, latency)

and is dropped only where another label is nowhere larger: exchanging the one way for the other never makes a plan worse, since
a plan's value does not get worse by smaller numbers. A stage adds to all of them but the period, of which it is the maximum.
Of equal labels the one is kept whose segments come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from balancer.ground.opsets import members
from balancer.solve.budget import BudgetSpent
from balancer.solve.downset_dp import open_cuts, open_periods, replicas_by_kind, size_numbers
from balancer.solve.periods import exact_period
from balancer.solve.problem import PipelineSpec, StageSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

    from balancer.ground.arrays import BoolArray, FloatArray, IndexArray, IntArray
    from balancer.solve.budget import Budget
    from balancer.solve.costed_segments import SegmentColumns
    from balancer.solve.downset_dp import CutLattice, OpenCuts, PipelineLimits, SizeNumbers
    from balancer.solve.sizes import Counts

_MOST_LABELS = 1 << 12  # at one cut: comparing them with each other takes a second
_COMPARING = 100  # work to take up one label, in the unit of the budget: half of a label extended by a segment
_MOST_WAITING = 1 << 20  # at all cuts that are still to be visited: about 100 MiB
_AT_ONCE = 1 << 18  # labels and segments that are combined in one step


class Labelled(NamedTuple):
    """A pipeline that no other beats. stages: by class. devices: by kind."""

    stages: Counts
    devices: Counts
    period: Fraction
    streamed_bytes: int
    latency_ns: int
    pipeline: PipelineSpec


@dataclass(frozen=True, slots=True)
class _Labels:
    """Labels of ways to one cut, as rows. stages, used: numbers of the stages and the devices. period: in ns.

    sums: [label, (each shared resource, streamed bytes, latency)]. before: cut, label at it, kind and replicas of the last
    stage.
    """

    stages: IndexArray
    used: IndexArray
    period: FloatArray
    sums: IntArray
    before: IntArray

    def take(self, chosen: IndexArray | BoolArray) -> _Labels:
        return _Labels(
            self.stages[chosen], self.used[chosen], self.period[chosen], self.sums[chosen], self.before[chosen]
        )


def _joined(parts: Sequence[_Labels]) -> _Labels:
    columns = ("stages", "used", "period", "sums", "before")
    return _Labels(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))


def non_dominated_pipelines(
    lattice: CutLattice, limits: PipelineLimits, budget: Budget, most_shared_ns: Sequence[int] = ()
) -> list[Labelled]:
    """The pipelines within the limits that no other of them beats.

    most_shared_ns: the most that a pipeline may take of each shared resource; empty for any. Raises BudgetSpent, also where
    there are too many labels.
    """
    return _LabelSearch(lattice, limits, budget, most_shared_ns).run()


def sparing_pipelines(
    lattice: CutLattice, limits: PipelineLimits, budget: Budget, most_shared_ns: Sequence[int]
) -> list[Labelled]:
    """The pipelines within the limits that no other of them beats in what it takes of shared resources.

    Arguments and errors as in `non_dominated_pipelines`.
    """
    return _SharedSearch(lattice, limits, budget, most_shared_ns).run()


class _LabelSearch:
    """One run. labels: of each cut that was visited; waiting: what has got to cuts further on."""

    def __init__(
        self, lattice: CutLattice, limits: PipelineLimits, budget: Budget, most_shared_ns: Sequence[int]
    ) -> None:
        self.lattice, self.problem, self.limits, self.budget = lattice, lattice.problem, limits, budget
        self.most_shared_ns = np.array(most_shared_ns, np.int64)
        longest_ns = limits.most_ns * max(replicas_by_kind(lattice, limits))
        self.cuts: OpenCuts = open_cuts(lattice, limits, open_periods(lattice, limits), longest_ns)
        self._waiting = 0  # labels
        self.numbers: SizeNumbers = size_numbers(lattice.problem, limits)
        self.most_replicas = replicas_by_kind(lattice, limits)
        self.handover_ns = [self.problem.handover_ns.get(kind, 0) for kind, _ in self.problem.devices]
        none = np.zeros(1, np.intp)
        start = _Labels(
            none, none, np.zeros(1), np.zeros((1, len(self.problem.shared) + 2), np.int64), np.zeros((1, 4), int)
        )
        self.waiting: dict[int, list[_Labels]] = {0: [start]}
        self.labels: dict[int, _Labels] = {}

    def run(self) -> list[Labelled]:
        last = len(self.cuts.sets) - 1
        for cut in range(last + 1):
            parts = self.waiting.pop(cut, None)
            if parts is None:
                continue
            self._waiting -= sum(len(part.period) for part in parts)
            self.labels[cut] = labels = self._non_dominated(cut, _joined(parts))
            if cut < last:
                ahead = sorted(self.waiting)
                for kind, segments in enumerate(self.cuts.segments.after(cut, ahead, self.budget)):
                    self._extend(cut, kind, segments, labels)
        ends = self.labels.get(last)
        return [] if ends is None else [self._pipeline(ends, k) for k in range(len(ends.period))]

    def _extend(self, cut: int, kind: int, segments: SegmentColumns, labels: _Labels) -> None:
        """All labels at a cut with one more stage of one kind, for each number of replicas that keeps the limits."""
        numbers, cuts = self.numbers, self.cuts
        most = np.minimum(cuts.highest[kind][segments.end], self.most_replicas[kind])
        if cut == 0 and not self.lattice.may_replicate_whole:
            most = np.where(segments.end == len(cuts.sets) - 1, np.minimum(most, 1), most)
        room = numbers.stages.counts[labels.stages, numbers.classes.of_kind[kind]] < numbers.stages.most[
            numbers.classes.of_kind[kind]
        ]  # fmt: skip
        free = self.limits.devices[kind] - numbers.devices.counts[labels.used, kind]
        for r in range(1, self.most_replicas[kind] + 1):
            fast = np.nonzero((r <= most) & self._allows(segments, r))[0]
            able = np.nonzero(room & (free >= r))[0]
            if len(fast) and len(able):
                step = max(1, _AT_ONCE // len(fast))
                for first in range(0, len(able), step):
                    self._combine(cut, (kind, r), segments.take(fast), labels, able[first : first + step])

    def _allows(self, segments: SegmentColumns, replicas: int) -> BoolArray:
        """Which segments may have so many replicas: from the fewest that keep the period."""
        allowed: BoolArray = -(-segments.time_ns // self.limits.most_ns) <= replicas
        return allowed

    def _values(self, labels: _Labels) -> FloatArray:
        """What labels are compared by besides their sizes."""
        return np.concatenate([labels.sums, labels.period[:, None]], axis=1)

    def _combine(
        self, cut: int, choice: tuple[int, int], segments: SegmentColumns, labels: _Labels, able: IndexArray
    ) -> None:
        """The labels of these numbers with a stage of each of the segments. choice: its kind and replicas."""
        (kind, r), numbers = choice, self.numbers
        self.budget.spend(2 * len(able) * len(segments.end))
        label, segment = (a.reshape(-1) for a in np.meshgrid(able, np.arange(len(segments.end)), indexing="ij"))
        end, used = segments.end[segment], labels.used[label] + r * numbers.devices.strides[kind]
        period = np.maximum(labels.period[label], np.maximum(segments.time_ns[segment], 1) / r)
        longest = self.limits.most_ns if self.cuts.longest_ns is None else self.cuts.longest_ns[end, used]
        keeps = np.nonzero(self.cuts.is_open[end, used] & (period <= longest))[0]
        label, segment, end, used, period = label[keeps], segment[keeps], end[keeps], used[keeps], period[keeps]
        shared = [] if segments.shared_ns is None else list(segments.shared_ns[: len(self.problem.shared)])
        shared += [np.zeros(len(segments.end), np.int64)] * (len(self.problem.shared) - len(shared))
        added = np.stack([*shared, segments.streamed_bytes * r, segments.time_ns + self.handover_ns[kind]], axis=1)
        stages = labels.stages[label] + numbers.stages.strides[numbers.classes.of_kind[kind]]
        before = np.stack([np.full(len(label), cut), label, np.full(len(label), kind), np.full(len(label), r)], axis=1)
        grown = _Labels(stages, used, period, labels.sums[label] + added[segment], before)
        if len(self.most_shared_ns):
            within = np.nonzero((grown.sums[:, : len(self.most_shared_ns)] <= self.most_shared_ns).all(axis=1))[0]
            grown, end = grown.take(within), end[within]
        self._waiting += len(end)
        if self._waiting > _MOST_WAITING:
            raise BudgetSpent
        order = np.argsort(end, kind="stable")
        edges = np.nonzero(np.diff(end[order], prepend=-1, append=-1))[0].tolist()
        self.budget.spend(_COMPARING * len(edges))
        for first, after in pairwise(edges):
            self.waiting.setdefault(int(end[order[first]]), []).append(grown.take(order[first:after]))

    def _non_dominated(self, cut: int, labels: _Labels) -> _Labels:
        """The labels that no other at the cut beats or equals in every entry; of equal ones the first by its segments."""
        rows = np.concatenate(
            [
                self.numbers.devices.counts[labels.used], self.numbers.stages.counts[labels.stages],
                self._values(labels),
            ],
            axis=1,
        )  # fmt: skip
        order = np.lexsort(rows.T[::-1])
        differs = np.concatenate([[True], (np.diff(rows[order], axis=0) != 0).any(axis=1), [True]])
        kept: list[int] = []
        known = np.zeros((64, rows.shape[1]))
        for first, after in pairwise(np.nonzero(differs)[0].tolist()):
            row = rows[order[first]]
            self.budget.spend(_COMPARING + len(kept) // 2)
            if (known[: len(kept)] <= row).all(axis=1).any():
                continue
            if len(kept) == len(known):
                known = np.concatenate([known, np.zeros(known.shape)])
            known[len(kept)] = row
            kept.append(self._first(cut, labels, order[first:after].tolist()))
            if len(kept) > _MOST_LABELS:
                raise BudgetSpent
        return labels.take(np.array(kept, np.intp))

    def _first(self, cut: int, labels: _Labels, equal: list[int]) -> int:
        """The one of several equal labels to keep."""
        return equal[0] if len(equal) == 1 else min(equal, key=lambda k: self._key(cut, labels, k))

    def _stages(self, end: int, labels: _Labels, k: int) -> list[tuple[int, int, int, int]]:
        """(cut before, cut after, kind, replicas) of each stage of the way with a label at a cut."""
        stages: list[tuple[int, int, int, int]] = []
        while end:
            cut, label, kind, r = labels.before[k].tolist()
            stages.append((cut, end, kind, r))
            end, k = cut, label
            if end:
                labels = self.labels[end]
        return stages[::-1]

    def _key(self, end: int, labels: _Labels, k: int) -> list[tuple[tuple[int, ...], int, int]]:
        """What ranks ways that are equal in all else: the ops of their segments, then replicas and kinds."""
        sets = self.cuts.sets
        return [
            (tuple(members(sets.set_of(after) & ~sets.set_of(before))), r, kind)
            for before, after, kind, r in self._stages(end, labels, k)
        ]

    def _pipeline(self, labels: _Labels, k: int) -> Labelled:
        sets, kinds = self.cuts.sets, [kind for kind, _ in self.problem.devices]
        stages = tuple(
            StageSpec(sets.set_of(after) & ~sets.set_of(before), kinds[kind], r)
            for before, after, kind, r in self._stages(len(sets) - 1, labels, k)
        )
        *_, streamed, latency = labels.sums[k].tolist()
        return Labelled(
            self.numbers.stages.vectors[labels.stages[k]], self.numbers.devices.vectors[labels.used[k]],
            exact_period(float(labels.period[k]), self.lattice.most_replicas), streamed, latency, PipelineSpec(stages),
        )  # fmt: skip


class _SharedSearch(_LabelSearch):
    """A search in which labels are compared by shared resources alone: the period is a limit, and nothing else counts."""

    def _allows(self, segments: SegmentColumns, replicas: int) -> BoolArray:
        fewest = np.maximum(1, -(-segments.time_ns // self.limits.most_ns))
        allowed: BoolArray = fewest == replicas
        return allowed

    def _values(self, labels: _Labels) -> FloatArray:
        return labels.sums[:, : len(self.problem.shared)].astype(float)

    def _first(self, cut: int, labels: _Labels, equal: list[int]) -> int:
        return equal[0]
