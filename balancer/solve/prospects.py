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

from balancer.solve.lattice import Within
from balancer.solve.problem import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.solve.lattice import Goal, LatticeSolver
    from balancer.solve.problem import Problem

_ROUNDING = 1e-9


class Prospects:
    """Of pipelines on one kind of device, with 1 to `devices` of both stages and devices.

    least_ns[s, u]: no pipeline of s stages on u devices that is not known has a shorter period.
    """

    def __init__(self, problem: Problem, lattice: LatticeSolver, devices: int, most_pipelines: int) -> None:
        self.devices, self.most_pipelines = devices, most_pipelines
        self.longest_ns = lattice.longest_ns
        self.host_ns = np.arange(devices + 1) * problem.host_ns
        self.prices = np.array([0.0, *(1 / host for host in self.host_ns.tolist() if host)])
        self.least_ns = np.full((devices + 1, devices + 1), math.inf)
        largest = _largest_op_ns(problem)
        for stages in range(1, devices + 1):
            total = _least_total_ns(problem, lattice, stages)
            for used in range(stages, devices + 1):
                if stages > 1 or used == 1 or lattice.whole_replicas:
                    replicas = min(lattice.most_replicas, used - stages + 1)
                    self.least_ns[stages, used] = max(1.0, total / used, largest / replicas)

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

    def found(self, within: Within, goals: Sequence[Goal]) -> None:
        """Take note of what a complete search found; what it did not find is slower than what it looked for."""
        (devices,) = within.devices
        shortest = float(within.most_ns)
        for stages in range(1, within.most_stages + 1):
            shortest = min([shortest, *(float(goal.period) for goal in goals if goal.stages == stages)])
            self.least_ns[stages, devices] = max(self.least_ns[stages, devices], shortest)

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


def _least_total_ns(problem: Problem, lattice: LatticeSolver, stages: int) -> float:
    least = lattice.reach.least
    return float(least.before(stages)[-1]) if least else 0.0


def _largest_op_ns(problem: Problem) -> int:
    """No stage that holds this op takes less."""
    kind = problem.devices[0][0]
    return max(problem.lower(1 << op, kind) for op in range(problem.n_ops))
