"""Divides devices among pipelines: the best plan that a list of candidate pipelines makes.

Without a host in common this is a knapsack, F(N) = max over k of f(k) + F(N - k). With one, a pipeline can take the
host's time from the others, so that a set of pipelines is worth more than one number. Its rate depends on how much of
the host's time it gets. The host serves the pipelines with the least work per inference first, which makes the rate a
concave function of that time:

    rate
     |                .C-----------   C: both pipelines are fed in full
     |            . '
     |        B '                     slope of B to C: 1 / host_ns of the second pipeline
     |       /
     |      /                         slope of A to B: 1 / host_ns of the first
     |     /
     A----+---+--------+-----------   ns of the host in each second

The search extends partial plans by one candidate after the other, in a table by the devices that they use:

    devices used    partial plans kept, as the candidates chosen
    0               ()
    1               (0)
    2               (0, 0)   (1)
    3               (0, 0, 0)   (0, 1)   (2)

A partial plan is kept while it can still reach the best objective known (`_PriceBound`) and no other in its cell dominates
it: P dominates Q if the curve of P is nowhere below that of Q, and P neither streams more nor has a higher latency. Then
P with any further pipelines is at least as good as Q with the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from balancer.ground.rates import objective_ns, plan_rate
from balancer.ground.units import NS_PER_S
from balancer.solve.problem import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


MOST_PARTIAL = 12  # partial plans in one cell of the table
_ROUNDING = 1e-9  # far above the rounding errors of sums of a few hundred floats
_Number = TypeVar("_Number", float, Fraction)


class TieValues(NamedTuple):
    """What decides between plans of equal rate on equally many devices. streamed_bytes: of all replicas."""

    streamed_bytes: int
    latency_ns: int


@dataclass(frozen=True)
class Candidate:
    """A pipeline that a plan may hold any number of times.

    rate: inferences per second, alone. host_ns: its host work per inference. find_ties: called only where the pipeline may
    be part of a best plan, since it takes longest.
    """

    devices: int
    rate: Fraction
    host_ns: int
    find_ties: Callable[[], TieValues] = field(compare=False)

    @cached_property
    def ties(self) -> TieValues:
        return self.find_ties()


@dataclass(frozen=True)
class RateCurve:
    """The rate of a set of pipelines as a function of the host's time, as drawn above.

    rates: (host_ns, sum of the rates of all pipelines with that host work), ascending in host_ns.
    """

    rates: tuple[tuple[int, Fraction], ...] = ()

    def plus(self, rate: Fraction, host_ns: int) -> RateCurve:
        merged = dict(self.rates)
        merged[host_ns] = merged.get(host_ns, Fraction(0)) + rate
        return RateCurve(tuple(sorted(merged.items())))

    @cached_property
    def corners(self) -> list[tuple[Fraction, Fraction]]:
        """(ns of the host in each second, rate) at the corners: with none, one, two ... of `rates` fed in full."""
        corners = [(Fraction(0), Fraction(0))]
        for host_ns, rate in self.rates:
            time, total = corners[-1]
            corners.append((time + rate * host_ns, total + rate))
        return corners

    @cached_property
    def rounded_corners(self) -> list[tuple[float, float]]:
        return [(float(time), float(rate)) for time, rate in self.corners]

    def at(self, host_ns_per_s: Fraction) -> Fraction:
        """The rate with so much of the host's time in each second."""
        return _interpolated(self.corners, [host_ns for host_ns, _ in self.rates], host_ns_per_s)

    def is_nowhere_below(self, other: RateCurve) -> bool:
        """Whether the rate is at least the other's at every share of the host's time.

        It then stays so with any pipelines added to both. Between two of its corners the other curve is a line, and this
        one is concave: it is enough to compare at the other's corners. Floats decide where the curves are clearly apart,
        fractions elsewhere.
        """
        hosts = [host_ns for host_ns, _ in self.rates]
        same = 0  # equal leading entries have equal corners
        while same < min(len(self.rates), len(other.rates)) and self.rates[same] == other.rates[same]:
            same += 1
        close = []
        for k in range(same + 1, len(other.corners)):
            time, rate = other.rounded_corners[k]
            own = _interpolated(self.rounded_corners, hosts, time)
            if own < rate * (1 - _ROUNDING):
                return False
            if own < rate * (1 + _ROUNDING):
                close.append(other.corners[k])
        return all(_interpolated(self.corners, hosts, time) >= rate for time, rate in close)

    @cached_property
    def rate(self) -> Fraction:
        """With the whole of the host's time."""
        return self.at(Fraction(NS_PER_S))


def _interpolated(corners: Sequence[tuple[_Number, _Number]], hosts: Sequence[int], host_ns_per_s: _Number) -> _Number:
    """The rate on the line between two corners, at so much of the host's time. Exact for fractions."""
    last = len(hosts)
    while corners[last][0] > host_ns_per_s:
        last -= 1
    time, rate = corners[last]
    return rate if last == len(hosts) else rate + (host_ns_per_s - time) / hosts[last]


@dataclass(frozen=True, slots=True)
class _PartialPlan:
    """Pipelines chosen so far. chosen: indices of candidates, ascending. worth: of them, at each price of the bound."""

    curve: RateCurve
    streamed_bytes: int
    latency_ns: int
    chosen: tuple[int, ...]
    worth: NDArray[np.float64] = field(compare=False)

    def dominates(self, other: _PartialPlan) -> bool:
        return (
            self.streamed_bytes <= other.streamed_bytes
            and self.latency_ns <= other.latency_ns
            and self.curve.is_nowhere_below(other.curve)
        )

    def extended(self, index: int, candidate: Candidate, worth: NDArray[np.float64]) -> _PartialPlan:
        """With one more pipeline. worth: of all of them."""
        return _PartialPlan(
            self.curve.plus(candidate.rate, candidate.host_ns),
            self.streamed_bytes + candidate.ties.streamed_bytes,
            max(self.latency_ns, candidate.ties.latency_ns),
            (*self.chosen, index),
            worth,
        )


@dataclass(frozen=True, slots=True)
class Allocation:
    """The best plan found.

    chosen: indices of the candidates, with repeats. complete: whether no plan of the candidates is better. bound_ns: a
    lower bound on the objective of every plan; where the search is complete, the plan's own objective is one, too.
    """

    chosen: tuple[int, ...]
    complete: bool
    bound_ns: int


def allocate(candidates: Sequence[Candidate], devices: int, max_pipelines: int | None) -> Allocation:
    """The best plan on at most so many devices. Of plans with equal values, the one with smaller indices is taken.

    Where more than MOST_PARTIAL partial plans compete in one cell of the table (many devices, all of them more than the
    host can feed), the slower ones are dropped, and the result is not complete. Raises ValueError where no candidate
    fits the devices.
    """
    if not any(c.devices <= devices for c in candidates):
        raise ValueError("no candidate fits the devices")
    most = devices if max_pipelines is None else min(devices, max_pipelines)
    bound = _price_bound(candidates, devices, most)
    # A cell is (devices used, pipelines left). The latter counts only where pipelines are scarcer than devices; else it
    # stays the same throughout.
    scarce, complete = most < devices, True
    nothing = _PartialPlan(RateCurve(), 0, 0, (), np.zeros(len(bound.prices)))
    cells: dict[tuple[int, int], list[_PartialPlan]] = {(0, most): [nothing]}
    for index, candidate in enumerate(candidates):
        # Ascending in `used`, so that a candidate can extend plans that hold it already: it may be taken repeatedly.
        for used in range(candidate.devices, devices + 1):
            for left in range(most) if scarce else (most,):
                for partial in cells.get((used - candidate.devices, left + scarce), ()):
                    worth = partial.worth + bound.worth[index]
                    if bound.can_win(worth, used):
                        kept = cells.setdefault((used, left), [])
                        complete &= _keep(kept, partial.extended(index, candidate, worth))
    plans = (
        (Value(objective_ns(p.curve.rate), used, p.streamed_bytes, p.latency_ns), p.chosen)
        for (used, _), kept in cells.items()
        for p in kept
        if p.chosen
    )
    return Allocation(min(plans)[1], complete, bound.objective_ns)


def good_objective_ns(candidates: Sequence[Candidate], devices: int, max_pipelines: int | None) -> int:
    """The objective of a good plan, often the best, in a fraction of the time that `allocate` takes."""
    most = devices if max_pipelines is None else min(devices, max_pipelines)
    return _price_bound(candidates, devices, most).known_ns


def _keep(kept: list[_PartialPlan], new: _PartialPlan) -> bool:
    """Add a partial plan to its cell, unless another dominates it, and drop those that it dominates.

    False where the cell overflows, so that a non-dominated plan is dropped.
    """
    if any(old.dominates(new) for old in kept):
        return True
    kept[:] = [old for old in kept if not new.dominates(old)]
    kept.append(new)
    if len(kept) <= MOST_PARTIAL:
        return True
    kept.remove(min(kept, key=lambda partial: (partial.curve.rate, partial.chosen)))
    return False


@dataclass(frozen=True)
class _PriceBound:
    """Upper bounds on what a partial plan can still reach, against the best plan known.

    This is a Lagrangian relaxation of the host's limit. With a price p on each ns of the host's time, the rate of a plan is
    at most

        p * 10^9 + the sum over its pipelines of max(0, rate * (1 - p * host_ns)).

    The sum treats every pipeline by itself, so a knapsack fills the devices that are left. Among the
    prices 0 and 1 / host_ns of each candidate is one at which the bound equals the plan's rate. Values
    are floats with a margin for rounding: they only decide what need not be looked at.

    prices: shape (n_prices,). worth: for each candidate its term of the sum, at each price. filled: the largest worth
    of any pipelines on so many devices, shape (devices + 1, n_prices). known_ns: the objective of the best plan that
    the knapsacks give. needed: the worth that a partial plan on so many devices needs to reach known_ns, when the
    other devices do their utmost; shape as `filled`.
    """

    prices: NDArray[np.float64]
    worth: list[NDArray[np.float64]]
    filled: NDArray[np.float64]
    known_ns: int
    needed: NDArray[np.float64]

    @property
    def objective_ns(self) -> int:
        """A lower bound on the objective of every plan."""
        worth = float((self.filled[-1] + self.prices * NS_PER_S).min())
        return math.floor(NS_PER_S / worth * (1 - _ROUNDING))

    def can_win(self, worth: NDArray[np.float64], used: int) -> bool:
        """Whether a partial plan of this worth at each price, on so many devices, may become as good as the best known."""
        return bool((worth >= self.needed[used]).all())


def _price_bound(candidates: Sequence[Candidate], devices: int, most_pipelines: int) -> _PriceBound:
    hosts = sorted({c.host_ns for c in candidates if c.host_ns})
    prices = np.array([0.0, *(1 / host for host in hosts)])
    worth = [float(c.rate) * np.maximum(0, 1 - prices * c.host_ns) for c in candidates]
    filled, plans = _knapsacks(candidates, worth, devices, most_pipelines)
    known_ns = min(_plan_objective_ns(candidates, plan) for plan in plans if plan)
    required = NS_PER_S / known_ns * (1 - _ROUNDING)
    return _PriceBound(prices, worth, filled, known_ns, required - filled[::-1] - prices * NS_PER_S)


def _knapsacks(
    candidates: Sequence[Candidate], worth: Sequence[NDArray[np.float64]], devices: int, most_pipelines: int
) -> tuple[NDArray[np.float64], set[tuple[int, ...]]]:
    """For each number of devices and each price the largest worth of pipelines on them; and the plans that have it."""
    sizes, worths = np.array([c.devices for c in candidates]), np.array(worth)
    prices = np.arange(worths.shape[1])
    filled = np.zeros((devices + 1, len(prices)))
    chosen: list[list[tuple[int, ...]]] = [[()] * len(prices) for _ in range(devices + 1)]
    for _ in range(most_pipelines):  # each round allows one pipeline more
        grown, changed = filled.copy(), [list(row) for row in chosen]
        for used in range(1, devices + 1):
            fitting = np.nonzero(sizes <= used)[0]
            if not len(fitting):
                continue
            better = filled[used - sizes[fitting]] + worths[fitting]
            first = better.argmax(axis=0)  # of equals the one with the smallest index
            most_worth = better[first, prices]
            for price in np.nonzero(most_worth > grown[used])[0].tolist():
                k = int(fitting[first[price]])
                changed[used][price] = (*chosen[used - candidates[k].devices][price], k)
            np.maximum(grown[used], most_worth, out=grown[used])
        if np.array_equal(grown, filled):
            break
        filled, chosen = grown, changed
    return filled, {plan for row in chosen for plan in row}


def _plan_objective_ns(candidates: Sequence[Candidate], plan: tuple[int, ...]) -> int:
    rates, hosts = [candidates[k].rate for k in plan], [candidates[k].host_ns for k in plan]
    return objective_ns(plan_rate(rates, hosts))
