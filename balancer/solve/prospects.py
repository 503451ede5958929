"""How good a pipeline with so many stages and devices can be at most, and how good it must be to improve a plan.

With a price on the host's time, p for each ns, a plan's rate is at most p * 10^9 + the sum over its pipelines of rate *
(1 - p * host_ns), where that is positive (see `allocation`). So to make a plan of some rate, one pipeline must bring
what is missing when all other devices do their utmost, at every price. Floating point, with room for its rounding: it
only decides what need not be looked for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.ground.units import NS_PER_S
from balancer.solve.bounds import pipeline_bound_ns
from balancer.solve.downset_dp import Within
from balancer.solve.periods import longest_ns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.solve.downset_dp import Goal
    from balancer.solve.problem import Problem

_ROUNDING = 1e-9


class Prospects:
    """Of pipelines on one kind of device, with 1 to `devices` of both stages and devices.

    least_ns[s, u]: no pipeline of s stages on u devices that is not known has a shorter period.
    """

    def __init__(self, problem: Problem, most_pipelines: int, most_replicas: int, *, whole_replicas: bool) -> None:
        devices = sum(count for _, count in problem.devices)
        self.devices, self.most_pipelines = devices, most_pipelines
        self.longest_ns = longest_ns(most_replicas)
        self.host_ns = np.arange(devices + 1) * problem.host_ns
        self.prices = np.array([0.0, *(1 / host for host in self.host_ns.tolist() if host)])
        self.least_ns = np.full((devices + 1, devices + 1), math.inf)
        for used in range(1, devices + 1):
            for stages in range(1, used + 1):
                if used <= stages * most_replicas and (stages > 1 or used == 1 or whole_replicas):
                    self.least_ns[stages, used] = pipeline_bound_ns(problem, stages, used, most_replicas)

    def objective_ns(self) -> int:
        """No plan has a smaller one."""
        worth = float((self._utmost(self.most_pipelines)[self.devices] + self.prices * NS_PER_S).min())
        return math.floor(NS_PER_S / worth * (1 - _ROUNDING)) if worth else 0

    def worth_finding(self, devices: int, objective_ns: int) -> Within | None:
        """What to look for on just so many devices so that some plan gets below an objective; None where nothing can."""
        if objective_ns < 2:
            return None
        others = self._utmost(self.most_pipelines - 1)[self.devices - devices] + self.prices * NS_PER_S
        missing = NS_PER_S / (objective_ns - 1) * (1 - _ROUNDING) - others
        most_ns, most_stages = 0.0, 0
        for stages in range(1, devices + 1):
            share = 1 - self.prices * self.host_ns[stages]
            if (missing[share <= 0] > 0).any():
                continue
            needed = float((missing[share > 0] / share[share > 0]).max())
            # Whatever is slower than a plan of one such pipeline alone may be is of no use to anybody.
            period = NS_PER_S / needed if needed > 0 else math.inf
            if period >= self.least_ns[stages, devices]:
                most_ns, most_stages = max(most_ns, period), stages
        return Within((devices,), math.ceil(min(most_ns, self.longest_ns)), most_stages) if most_stages else None

    def note(self, stages: int, devices: int, least_ns: float) -> None:
        """Nothing with so many stages and devices that is worth having and not known has a shorter period."""
        self.least_ns[stages, devices] = max(self.least_ns[stages, devices], least_ns)

    def found(self, within: Within, goals: Sequence[Goal]) -> None:
        """Take note of what a complete search found; what it did not find is slower than what it looked for."""
        (devices,) = within.devices
        shortest = float(within.most_ns)
        for stages in range(1, within.most_stages + 1):
            shortest = min([shortest, *(float(goal.period) for goal in goals if goal.stages == stages)])
            self.note(stages, devices, shortest)

    def _utmost(self, pipelines: int) -> Any:
        """For each number of devices, the most that so many pipelines on them are worth, at each price."""
        shares = np.maximum(0, 1 - self.prices[None, :] * self.host_ns[:, None])
        worth = (NS_PER_S / self.least_ns[:, :, None] * shares[:, None, :]).max(axis=0)
        filled = np.zeros((self.devices + 1, len(self.prices)))
        for _ in range(pipelines):
            grown = filled.copy()
            for used in range(1, self.devices + 1):
                grown[used] = np.maximum(grown[used], (filled[used - 1 :: -1] + worth[1 : used + 1]).max(axis=0))
            if np.array_equal(grown, filled):
                break
            filled = grown
        return filled
