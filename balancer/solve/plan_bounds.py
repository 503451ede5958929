"""Lower bounds on the periods of pipelines that are not known yet, and what they say of plans.

A Lagrangian relaxation of the host's limit: with a price on the host's time, p for each ns, a plan's rate is at most

    p * 10^9  +  the sum over its pipelines of  rate * (1 - p * host_ns), where that is positive

(see `allocation`; 10^9 is the host's ns in one second). At a fixed price the terms are independent of each other, so each
pipeline is best taken by itself, and a knapsack over the numbers of devices gives the most that several pipelines are
worth. So to make a plan of some rate, one pipeline must
bring what is missing when all other devices do their utmost, at every price: that limits its period from above.

All of this is floating point, weakened by more than its rounding: it only decides what need not be looked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from balancer.ground.units import NS_PER_S
from balancer.solve.bounds import one_kind_bound_ns
from balancer.solve.downset_dp import PipelineLimits
from balancer.solve.periods import MOST_REPLICAS, longest_ns
from balancer.solve.sizes import CountNumbers, stage_classes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.ground.arrays import FloatArray, IntArray
    from balancer.solve.period_dp import PeriodResult
    from balancer.solve.priced_bounds import PricedBounds
    from balancer.solve.problem import Problem
    from balancer.solve.sizes import Counts

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class PlanBounds:
    """For pipelines of all sizes, numbered by stages and by devices (see `sizes`); made by `plan_bounds`.

    least_ns[stages, devices]: no pipeline that is not known has a shorter period; infinite where there can be none. A
    search that has run raises it. host_ns: the host's work per inference, by stages. prices: those that are tried.
    """

    stages: CountNumbers
    devices: CountNumbers
    most_pipelines: int
    longest_ns: int
    host_ns: IntArray
    prices: FloatArray
    least_ns: FloatArray

    def objective_ns(self) -> int:
        """ns per inference: a lower bound for all plans."""
        rate = float((self._most_worth(self.most_pipelines)[-1] + self.prices * NS_PER_S).min())
        return math.floor(NS_PER_S / rate * (1 - _ROUNDING)) if rate else 0

    def limits_to_improve(self, sizes: Sequence[int], objective_ns: int) -> PipelineLimits | None:
        """Which pipelines on exactly these numbers of devices might lead to a plan below an objective; None where none can.

        sizes: numbers of devices. objective_ns: of the incumbent. Plans compare by whole ns per inference: a better one has
        at least 1 ns less.
        """
        if objective_ns < 2:
            return None
        # The devices that one number leaves have the number that stands as far from the other end.
        others = self._most_worth(self.most_pipelines - 1)[::-1] + self.prices * NS_PER_S
        missing = NS_PER_S / (objective_ns - 1) * (1 - _ROUNDING) - others
        found = {number: self._to_improve(number, missing[number]) for number in sizes}
        wanted = {number: within for number, within in found.items() if within is not None}
        if not wanted:
            return None
        most_ns, most_stages = (max(column) for column in zip(*wanted.values(), strict=True))
        if len(sizes) == 1:
            return PipelineLimits(self.devices.vectors[sizes[0]], most_ns, most_stages)
        longest_ns = tuple(wanted[k][0] if k in wanted else 0 for k in range(len(self.devices.vectors)))
        return PipelineLimits(self.devices.most, most_ns, most_stages, longest_ns=longest_ns)

    def _to_improve(self, number: int, missing: FloatArray) -> tuple[int, int] | None:
        """The longest period and the most stages of a pipeline on these devices that brings what is missing at each price."""
        most_ns, most_stages = 0.0, 0
        for stages in np.nonzero(self.stages.totals <= self.devices.totals[number])[0][1:].tolist():
            share = 1 - self.prices * self.host_ns[stages]
            # At a price where its host work costs more than the pipeline brings, it cannot make up for anything.
            if (missing[share <= 0] > 0).any():
                continue
            # rate * share must reach what is missing at every price. Nothing missing: any period may do.
            needed = float((missing[share > 0] / share[share > 0]).max())
            period = NS_PER_S / needed if needed > 0 else math.inf
            if period >= self.least_ns[stages, number]:
                most_ns, most_stages = max(most_ns, period), max(most_stages, int(self.stages.totals[stages]))
        return (math.ceil(min(most_ns, self.longest_ns)), most_stages) if most_stages else None

    def raise_least(self, stages: int, devices: int, least_ns: float) -> None:
        """Record that every pipeline of this size with a shorter period is already known, or useless."""
        self.least_ns[stages, devices] = max(self.least_ns[stages, devices], least_ns)

    def raise_all(self, limits: PipelineLimits) -> None:
        """Record that a search found no pipeline within these limits, on these devices or on fewer."""
        fewer = (self.devices.counts <= limits.devices).all(axis=1)
        here = np.ix_(self.stages.totals <= limits.most_stages, fewer)
        self.least_ns[here] = np.maximum(self.least_ns[here], beyond_ns(limits))

    def note_search(self, result: PeriodResult, left_ns: float | None = None) -> None:
        """Record what a search left: what it did not find has a longer period than its limits allow.

        left_ns: what such pipelines take at least; None for the limit.
        """
        limits, found = result.limits, np.full(self.least_ns.shape, math.inf)
        for p in result.front:
            here = self.stages.number(p.stages), self.devices.number(p.devices)
            found[here] = min(found[here], float(p.period))
        # A pipeline that is dominated by one of fewer stages is not in the front: the minimum includes these.
        axes = found.reshape([count + 1 for count in self.stages.most] + [-1])
        for axis in range(len(self.stages.most)):
            axes = np.minimum.accumulate(axes, axis)
        found = axes.reshape(found.shape)
        sought = limits.longest_ns or {self.devices.number(limits.devices): limits.most_ns}
        for devices in range(len(self.devices.vectors)) if limits.longest_ns else [self.devices.number(limits.devices)]:
            if sought[devices]:
                for stages in np.nonzero(self.stages.totals <= limits.most_stages)[0].tolist():
                    self.raise_least(stages, devices, min(float(left_ns or sought[devices]), found[stages, devices]))

    def _most_worth(self, pipelines: int) -> FloatArray:
        """[devices, price]: the most that this number of pipelines are worth together on the devices.

        An unbounded knapsack whose items are pipelines, one more of them in each round.
        """
        # A pipeline that costs the host more than it brings is left out, and is worth nothing.
        shares = np.maximum(0, 1 - self.prices[None, :] * self.host_ns[:, None])
        worth = np.zeros((len(self.devices.vectors), len(self.prices)))
        for least_ns, share in zip(self.least_ns, shares, strict=True):
            np.maximum(worth, NS_PER_S / least_ns[:, None] * share, out=worth)
        parts = [np.nonzero((self.devices.counts <= counts).all(axis=1))[0] for counts in self.devices.counts]
        filled = np.zeros(worth.shape)
        for _ in range(pipelines):
            grown = filled.copy()
            for used, here in enumerate(parts):
                grown[used] = np.maximum(grown[used], (filled[used - here] + worth[here]).max(axis=0))
            if np.array_equal(grown, filled):
                break  # more pipelines no longer help
            filled = grown
        return filled


def beyond_ns(limits: PipelineLimits) -> float:
    """The shortest period, in ns, that is longer than the limits allow: periods are whole ns divided by replicas."""
    return limits.most_ns + 1 / MOST_REPLICAS


def plan_bounds(
    problem: Problem,
    most_pipelines: int,
    most_replicas: int,
    *,
    may_replicate_whole: bool,
    priced: PricedBounds | None = None,
) -> PlanBounds:
    """The bounds that follow from the costs alone. most_replicas: of a stage. may_replicate_whole: whether the only stage of
    a pipeline may have several. priced: for several kinds of devices, see `priced_bounds`.
    """
    classes, devices = stage_classes(problem), CountNumbers(tuple(count for _, count in problem.devices))
    stages = CountNumbers(classes.counts(devices.most))
    least_ns = np.full((len(stages.vectors), len(devices.vectors)), math.inf)
    period_ns = _period_bounds(problem, devices, most_replicas, priced)
    for used, counts in enumerate(devices.vectors):
        least = classes.counts(tuple(min(1, count) for count in counts))
        most, total = classes.counts(counts), sum(counts)
        for number, own in enumerate(stages.vectors):
            if any(not a <= n <= b <= n * most_replicas for a, n, b in zip(least, own, most, strict=True)):
                continue  # each kind in use has a stage; the devices are too many for the replicas allowed
            if used and (sum(own) > 1 or total == 1 or may_replicate_whole):
                least_ns[number, used] = max(period_ns(sum(own), used), classes.work_ns(own))
    host_ns = np.array([classes.work_ns(own) for own in stages.vectors])
    return PlanBounds(
        stages=stages,
        devices=devices,
        most_pipelines=most_pipelines,
        longest_ns=longest_ns(most_replicas),
        host_ns=host_ns,
        # Any prices give a bound. That of one plan is piecewise linear in the price, with corners at 1 / host_ns.
        prices=np.array([0.0, *(1 / host for host in np.unique(host_ns).tolist() if host)]),
        least_ns=least_ns,
    )


def _period_bounds(
    problem: Problem, devices: CountNumbers, most_replicas: int, priced: PricedBounds | None
) -> Callable[[int, int], float]:
    """A lower bound on the period of a pipeline, in ns, by its number of stages and the number of its devices by kind."""
    kinds = [kind for kind, _ in problem.devices]
    mixed: dict[int, float] = {}

    def period_ns(stages: int, used: int) -> float:
        counts = devices.vectors[used]
        own = [k for k, count in enumerate(counts) if count]
        if len(own) == 1:
            return one_kind_bound_ns(problem, kinds[own[0]], stages, counts[own[0]], most_replicas)
        if used not in mixed:
            mixed[used] = _mixed_ns(problem, counts, most_replicas, priced)
        return mixed[used]

    return period_ns


def _mixed_ns(problem: Problem, counts: Counts, most_replicas: int, priced: PricedBounds | None) -> float:
    """A lower bound for pipelines on devices of several kinds."""
    if priced is not None:
        return max(1, priced.period_ns(counts), priced.alone_ns(counts, most_replicas))
    here = [(kind, min(most_replicas, n)) for (kind, _), n in zip(problem.devices, counts, strict=True) if n]
    return max(1, *(min(problem.lower(1 << i, kind) / n for kind, n in here) for i in range(problem.n_ops)))
