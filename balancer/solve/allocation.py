"""Dividing N devices among pipelines, when the best pipeline for each number of devices is known.

Without a host in common F(N) = max over k of f(k) + F(N - k). With one, a pipeline can take the host's time from the
others, so F is only a bound. Partial plans are kept as long as they can still reach the best objective known, and no
other is at least as good in every respect that the end is judged by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.ground.rates import objective_ns, plan_rate
from balancer.ground.units import NS_PER_S
from balancer.solve.problem import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


MOST_PARTIAL = 12
_ROUNDING = 1e-9  # far above that of sums of a few hundred floats


@dataclass(frozen=True)
class Candidate:
    """A pipeline that a plan may hold any number of times. host_ns: its host work per inference.

    settle: its streamed bytes and latency, asked for only where ties are in question: finding them takes longest.
    """

    devices: int
    rate: Fraction
    host_ns: int
    settle: Callable[[], tuple[int, int]] = field(compare=False)

    @cached_property
    def settled(self) -> tuple[int, int]:
        return self.settle()


@dataclass(frozen=True)
class _Speed:
    """Rates of pipelines by their host work per inference, that with the least work first."""

    rates: tuple[tuple[int, Fraction], ...] = ()

    def plus(self, rate: Fraction, host_ns: int) -> _Speed:
        merged = dict(self.rates)
        merged[host_ns] = merged.get(host_ns, Fraction(0)) + rate
        return _Speed(tuple(sorted(merged.items())))

    @cached_property
    def corners(self) -> list[tuple[Fraction, Fraction]]:
        """(the host's time in each second, the rate that it allows) with none, one, two ... of the rates fed in full."""
        found = [(Fraction(0), Fraction(0))]
        for host_ns, rate in self.rates:
            time, total = found[-1]
            found.append((time + rate * host_ns, total + rate))
        return found

    @cached_property
    def near_corners(self) -> list[tuple[float, float]]:
        """The same, rounded."""
        return [(float(time), float(rate)) for time, rate in self.corners]

    def within(self, host_ns_per_s: Fraction) -> Fraction:
        """The rate that so much of the host's time in each second allows."""
        allowed: Fraction = _allowed(self.corners, [host_ns for host_ns, _ in self.rates], host_ns_per_s)
        return allowed

    def reaches(self, other: _Speed) -> bool:
        """Whether it allows at least the other's rate with any share of the host's time; then it does so with any
        pipelines added to both. Both are concave in that time, so the other's corners are enough. Rounded rates
        decide where they are clearly apart.
        """
        hosts = [host_ns for host_ns, _ in self.rates]
        same = 0
        while same < min(len(self.rates), len(other.rates)) and self.rates[same] == other.rates[same]:
            same += 1
        close = []
        for k in range(same + 1, len(other.corners)):
            time, rate = other.near_corners[k]
            allowed = _allowed(self.near_corners, hosts, time)
            if allowed < rate * (1 - _ROUNDING):
                return False
            if allowed < rate * (1 + _ROUNDING):
                close.append(other.corners[k])
        return all(_allowed(self.corners, hosts, time) >= rate for time, rate in close)

    @cached_property
    def rate(self) -> Fraction:
        return self.within(Fraction(NS_PER_S))


def _allowed(corners: Sequence[tuple[Any, Any]], hosts: Sequence[int], host_ns_per_s: Any) -> Any:
    """The rate on the line between the corners, at so much of the host's time; exact where the numbers are."""
    last = len(hosts)
    while corners[last][0] > host_ns_per_s:
        last -= 1
    time, rate = corners[last]
    return rate if last == len(hosts) else rate + (host_ns_per_s - time) / hosts[last]


@dataclass(frozen=True, slots=True)
class _Partial:
    """worth: of its pipelines, at each price of the bound."""

    speed: _Speed
    streamed_bytes: int
    latency_ns: int
    chosen: tuple[int, ...]  # candidates' indices, ascending
    worth: Any = field(compare=False)

    def dominates(self, other: _Partial) -> bool:
        return (
            self.streamed_bytes <= other.streamed_bytes
            and self.latency_ns <= other.latency_ns
            and self.speed.reaches(other.speed)
        )


@dataclass(frozen=True, slots=True)
class Allocation:
    """chosen: indices of the candidates, with repeats. bound_ns: no plan has a smaller objective; None where this one
    is best.
    """

    chosen: tuple[int, ...]
    bound_ns: int | None


def allocate(candidates: Sequence[Candidate], devices: int, max_pipelines: int | None) -> Allocation:
    """The best plan on at most so many devices; ties to smaller indices.

    Where more than MOST_PARTIAL partial plans compete for the same devices (many devices, all of them more than the
    host can feed), the slower ones are dropped, and the result says how much better a plan could be at most. Raises
    ValueError where no candidate fits.
    """
    if not any(c.devices <= devices for c in candidates):
        raise ValueError("no candidate fits the devices")
    most = devices if max_pipelines is None else min(devices, max_pipelines)
    bound = _Bound(candidates, devices, most)
    # Partial plans by the devices used and the pipelines still allowed, which only count where they are fewer than
    # devices.
    scarce, complete = most < devices, True
    states: dict[tuple[int, int], list[_Partial]] = {(0, most): [_Partial(_Speed(), 0, 0, (), bound.nothing)]}
    for index, candidate in enumerate(candidates):
        for used in range(candidate.devices, devices + 1):
            for left in range(most) if scarce else (most,):
                for partial in states.get((used - candidate.devices, left + scarce), ()):
                    worth = partial.worth + bound.worth[index]
                    if bound.can_win(worth, used):
                        kept = states.setdefault((used, left), [])
                        complete &= _keep(kept, _grown(partial, index, candidate, worth))
    plans = (
        (Value(objective_ns(p.speed.rate), used, p.streamed_bytes, p.latency_ns), p.chosen)
        for (used, _), kept in states.items()
        for p in kept
        if p.chosen
    )
    return Allocation(min(plans)[1], None if complete else bound.objective_ns)


def good_objective_ns(candidates: Sequence[Candidate], devices: int, max_pipelines: int | None) -> int:
    """The objective of a good plan, often the best, in a fraction of the time."""
    most = devices if max_pipelines is None else min(devices, max_pipelines)
    return _Bound(candidates, devices, most).known_ns


def _grown(partial: _Partial, index: int, candidate: Candidate, worth: Any) -> _Partial:
    streamed, latency = candidate.settled
    return _Partial(
        partial.speed.plus(candidate.rate, candidate.host_ns),
        partial.streamed_bytes + streamed,
        max(partial.latency_ns, latency),
        (*partial.chosen, index),
        worth,
    )


def _keep(kept: list[_Partial], new: _Partial) -> bool:
    """Add a partial plan unless another dominates it; drop those that it dominates. False where one had to go that
    could win.
    """
    if any(old.dominates(new) for old in kept):
        return True
    kept[:] = [old for old in kept if not new.dominates(old)]
    kept.append(new)
    if len(kept) <= MOST_PARTIAL:
        return True
    kept.remove(min(kept, key=lambda partial: (partial.speed.rate, partial.chosen)))
    return False


class _Bound:
    """What a partial plan can still reach, against the best plan known.

    With a price on the host's time, p for each ns, a plan's rate is at most p * 10^9 + the sum over its pipelines of
    rate * (1 - p * host_ns), where that is positive: a sum, so that what is left of the devices can be filled at best
    by itself, and the least over prices 0 and 1 / host_ns of the candidates is the plan's rate itself. Floating
    point, with room for its rounding: it only decides what need not be looked at.
    """

    def __init__(self, candidates: Sequence[Candidate], devices: int, most: int) -> None:
        self.devices = devices
        hosts = sorted({c.host_ns for c in candidates if c.host_ns})
        self.prices = np.array([0.0, *(1 / host for host in hosts)])
        self.worth = [float(c.rate) * np.maximum(0, 1 - self.prices * c.host_ns) for c in candidates]
        self.filled, plans = self._fill(candidates, most)
        self.known_ns = min(self._objective(candidates, plan) for plan in plans if plan)
        needed = NS_PER_S / self.known_ns * (1 - _ROUNDING)
        # By the devices that are used: what those chosen must be worth, when the others do their utmost.
        self.least = needed - self.filled[::-1] - self.prices * NS_PER_S

    def _fill(self, candidates: Sequence[Candidate], most: int) -> tuple[Any, set[tuple[int, ...]]]:
        """For each number of devices the most that pipelines on them are worth, at each price; and the plans that
        are.
        """
        filled = np.zeros((self.devices + 1, len(self.prices)))
        chosen: list[list[tuple[int, ...]]] = [[()] * len(self.prices) for _ in range(self.devices + 1)]
        sizes, worth = np.array([c.devices for c in candidates]), np.array(self.worth)
        for _ in range(most):
            grown, changed = filled.copy(), [list(row) for row in chosen]
            for used in range(1, self.devices + 1):
                fitting = np.nonzero(sizes <= used)[0]
                if not len(fitting):
                    continue
                better = filled[used - sizes[fitting]] + worth[fitting]
                first = better.argmax(axis=0)  # the first of the best
                most_worth = better[first, np.arange(len(self.prices))]
                for price in np.nonzero(most_worth > grown[used])[0].tolist():
                    k = int(fitting[first[price]])
                    changed[used][price] = (*chosen[used - candidates[k].devices][price], k)
                np.maximum(grown[used], most_worth, out=grown[used])
            if np.array_equal(grown, filled):
                break
            filled, chosen = grown, changed
        return filled, {plan for row in chosen for plan in row}

    def _objective(self, candidates: Sequence[Candidate], plan: tuple[int, ...]) -> int:
        rates, hosts = [candidates[k].rate for k in plan], [candidates[k].host_ns for k in plan]
        return objective_ns(plan_rate(rates, hosts))

    @property
    def objective_ns(self) -> int:
        """No plan has a smaller one."""
        worth = float((self.filled[self.devices] + self.prices * NS_PER_S).min())
        return math.floor(NS_PER_S / worth * (1 - _ROUNDING))

    @property
    def nothing(self) -> Any:
        """What no pipeline is worth."""
        return np.zeros(len(self.prices))

    def can_win(self, worth: Any, used: int) -> bool:
        """worth: of the pipelines chosen, at each price. used: their devices."""
        return bool((worth >= self.least[used]).all())
