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
from balancer.solve.bounds import pipeline_bound_ns
from balancer.solve.downset_dp import PipelineLimits
from balancer.solve.periods import MOST_REPLICAS, longest_ns

if TYPE_CHECKING:
    from balancer.ground.arrays import FloatArray, IntArray
    from balancer.solve.period_dp import PeriodResult
    from balancer.solve.problem import Problem

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class PlanBounds:
    """For pipelines on one kind of device, of 1 to `devices` stages on 1 to `devices` devices; made by `plan_bounds`.

    least_ns[stages, devices]: no pipeline that is not known has a shorter period; infinite where there can be none. A
    search that has run raises it. host_ns: the host's work per inference, by stages. prices: those that are tried.
    """

    devices: int
    most_pipelines: int
    longest_ns: int
    host_ns: IntArray
    prices: FloatArray
    least_ns: FloatArray

    def objective_ns(self) -> int:
        """ns per inference: a lower bound for all plans."""
        rate = float((self._most_worth(self.most_pipelines)[self.devices] + self.prices * NS_PER_S).min())
        return math.floor(NS_PER_S / rate * (1 - _ROUNDING)) if rate else 0

    def limits_to_improve(self, devices: int, objective_ns: int) -> PipelineLimits | None:
        """Which pipelines on exactly this number of devices might lead to a plan below an objective; None where none can.

        objective_ns: of the incumbent. Plans compare by whole ns per inference: a better one has at least 1 ns less.
        """
        if objective_ns < 2:
            return None
        others = self._most_worth(self.most_pipelines - 1)[self.devices - devices] + self.prices * NS_PER_S
        missing = NS_PER_S / (objective_ns - 1) * (1 - _ROUNDING) - others
        most_ns, most_stages = 0.0, 0
        for stages in range(1, devices + 1):
            share = 1 - self.prices * self.host_ns[stages]
            # At a price where its host work costs more than the pipeline brings, it cannot make up for anything.
            if (missing[share <= 0] > 0).any():
                continue
            # rate * share must reach what is missing at every price. Nothing missing: any period may do.
            needed = float((missing[share > 0] / share[share > 0]).max())
            period = NS_PER_S / needed if needed > 0 else math.inf
            if period >= self.least_ns[stages, devices]:
                most_ns, most_stages = max(most_ns, period), stages
        if not most_stages:
            return None
        return PipelineLimits((devices,), math.ceil(min(most_ns, self.longest_ns)), most_stages)

    def raise_least(self, stages: int, devices: int, least_ns: float) -> None:
        """Record that every pipeline of this size with a shorter period is already known, or useless."""
        self.least_ns[stages, devices] = max(self.least_ns[stages, devices], least_ns)

    def raise_all(self, limits: PipelineLimits) -> None:
        """Record that a search found no pipeline within these limits, on these devices or on fewer."""
        (devices,) = limits.devices
        here = self.least_ns[: limits.most_stages + 1, : devices + 1]
        np.maximum(here, beyond_ns(limits), out=here)

    def note_search(self, result: PeriodResult, left_ns: float | None = None) -> None:
        """Record what a search left: what it did not find has a longer period than its limits allow.

        left_ns: what such pipelines take at least; None for the limit.
        """
        (devices,) = result.limits.devices
        shortest = float(left_ns or result.limits.most_ns)
        # A pipeline that is dominated by one of fewer stages is not in the front: the minimum includes these.
        for stages in range(1, result.limits.most_stages + 1):
            here = (float(p.period) for p in result.front if p.stages == stages and p.device_count == devices)
            shortest = min([shortest, *here])
            self.raise_least(stages, devices, shortest)

    def _most_worth(self, pipelines: int) -> FloatArray:
        """[devices, price]: the most that this number of pipelines are worth together on the devices.

        An unbounded knapsack whose items are pipelines, one more of them in each round.
        """
        # A pipeline that costs the host more than it brings is left out, and is worth nothing.
        shares = np.maximum(0, 1 - self.prices[None, :] * self.host_ns[:, None])
        worth = (NS_PER_S / self.least_ns[:, :, None] * shares[:, None, :]).max(axis=0)
        filled = np.zeros((self.devices + 1, len(self.prices)))
        for _ in range(pipelines):
            grown = filled.copy()
            for used in range(1, self.devices + 1):
                grown[used] = np.maximum(grown[used], (filled[used - 1 :: -1] + worth[1 : used + 1]).max(axis=0))
            if np.array_equal(grown, filled):
                break  # more pipelines no longer help
            filled = grown
        return filled


def beyond_ns(limits: PipelineLimits) -> float:
    """The shortest period, in ns, that is longer than the limits allow: periods are whole ns divided by replicas."""
    return limits.most_ns + 1 / MOST_REPLICAS


def plan_bounds(problem: Problem, most_pipelines: int, most_replicas: int, *, may_replicate_whole: bool) -> PlanBounds:
    """The bounds that follow from the costs alone. most_replicas: of a stage. may_replicate_whole: whether the only stage of
    a pipeline may have several.
    """
    devices = sum(count for _, count in problem.devices)
    host_ns = np.arange(devices + 1) * problem.host_ns
    least_ns = np.full((devices + 1, devices + 1), math.inf)
    for used in range(1, devices + 1):
        for stages in range(1, used + 1):
            # Elsewhere there is no pipeline: the devices are too many for the replicas allowed.
            if used <= stages * most_replicas and (stages > 1 or used == 1 or may_replicate_whole):
                least_ns[stages, used] = pipeline_bound_ns(problem, stages, used, most_replicas)
    return PlanBounds(
        devices=devices,
        most_pipelines=most_pipelines,
        longest_ns=longest_ns(most_replicas),
        host_ns=host_ns,
        # Any prices give a bound. That of one plan is piecewise linear in the price, with corners at 1 / host_ns.
        prices=np.array([0.0, *(1 / host for host in host_ns.tolist() if host)]),
        least_ns=least_ns,
    )
