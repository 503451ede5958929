"""Divides devices among pipelines: the best plan that a list of candidate pipelines makes.

Devices are counted by kind. Without anything else in common this is a knapsack, F(N) = max over k of f(k) + F(N - k), where N
and k are such counts. With a host in common, or other resources, a set of pipelines is worth more than one number: its rate
depends on how much of them it gets (`shared_rate`).

The search extends partial plans by one candidate after the other, in a table by the devices that they use, here of one
kind:

    devices used    partial plans kept, as the candidates chosen
    0               ()
    1               (0)
    2               (0, 0)   (1)
    3               (0, 0, 0)   (0, 1)   (2)

A partial plan is kept while it can still reach the best objective known (`_PriceBound`) and no other in its cell dominates
it: P dominates Q if the rate of P is nowhere below that of Q, whatever is left of the resources, and P neither streams more
nor has a higher latency. Then P with any further pipelines is at least as good as Q with the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from balancer.ground.rates import objective_ns, plan_rate
from balancer.ground.units import NS_PER_S
from balancer.solve.problem import Value
from balancer.solve.shared_rate import RateCurve, RatesInParts
from balancer.solve.sizes import CountNumbers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from fractions import Fraction

    from numpy.typing import NDArray

    from balancer.solve.shared_rate import SharedRate
    from balancer.solve.sizes import Counts


MOST_PARTIAL = 12  # partial plans in one cell of the table
_MOST_PARTIAL_MIXED = 256  # the same with several kinds or resources, where far more of them are good in different ways
_MOST_PRICES = 64  # of one resource
_ROUNDING = 1e-9  # far above the rounding errors of sums of a few hundred floats


class TieValues(NamedTuple):
    """What decides between plans of equal rate on equally many devices. streamed_bytes: of all replicas."""

    streamed_bytes: int
    latency_ns: int


@dataclass(frozen=True)
class Candidate:
    """A pipeline that a plan may hold any number of times.

    devices: by kind. rate: inferences per second, alone. work: its ns of work per inference for the host and for each other
    resource. find_ties: called only where the pipeline may be part of a best plan, since it takes longest.
    """

    devices: Counts
    rate: Fraction
    work: tuple[int, ...]
    find_ties: Callable[[], TieValues] = field(compare=False)

    @cached_property
    def ties(self) -> TieValues:
        return self.find_ties()


@dataclass(frozen=True, slots=True)
class Supply:
    """What a plan may use. devices: by kind. reluctant: the kinds, by number, of which fewer devices are preferred.
    capacities: of the host and the other resources, in ns of work for each ns.
    """

    devices: Counts
    reluctant: tuple[int, ...] = ()
    capacities: tuple[int, ...] = (1,)


@dataclass(frozen=True, slots=True)
class _PartialPlan:
    """Pipelines chosen so far. chosen: indices of candidates, ascending. worth: of them, at each price of the bound."""

    curve: SharedRate
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
            self.curve.plus(candidate.rate, candidate.work),
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


def allocate(candidates: Sequence[Candidate], supply: Supply, max_pipelines: int | None) -> Allocation:
    """The best plan within the supply. Of plans with equal values, the one with smaller indices is taken.

    Where too many partial plans compete in one cell of the table (many devices, all of them more than the host can feed),
    the slower ones are dropped, and the result is not complete. Raises ValueError where no candidate
    fits the devices.
    """
    if not any(_fits(c, supply) for c in candidates):
        raise ValueError("no candidate fits the devices")
    candidates, supply = _without_ample(candidates, supply)
    numbers, total = CountNumbers(supply.devices), sum(supply.devices)
    most = total if max_pipelines is None else min(total, max_pipelines)
    bound = _price_bound(candidates, supply, most)
    # A cell is (devices used, pipelines left). The latter counts only where pipelines are scarcer than devices; else it
    # stays the same throughout.
    scarce, complete = most < total, True
    rate = RateCurve() if len(supply.capacities) == 1 else RatesInParts(supply.capacities)
    most_partial = MOST_PARTIAL if len(supply.devices) == len(supply.capacities) == 1 else _MOST_PARTIAL_MIXED
    nothing = _PartialPlan(rate, 0, 0, (), np.zeros(len(bound.prices)))
    cells: dict[tuple[int, int], list[_PartialPlan]] = {(0, most): [nothing]}
    for index, candidate in enumerate(candidates):
        step = numbers.number(candidate.devices)
        # Ascending in `used`, so that a candidate can extend plans that hold it already: it may be taken repeatedly.
        for used in np.nonzero((numbers.counts >= candidate.devices).all(axis=1))[0].tolist():
            for left in range(most) if scarce else (most,):
                for known in cells.get((used - step, left + scarce), ()):
                    worth = known.worth + bound.worth[index]
                    if bound.can_win(worth, used):
                        kept = cells.setdefault((used, left), [])
                        complete &= _keep(kept, known.extended(index, candidate, worth), most_partial)
    reluctant = numbers.counts[:, list(supply.reluctant)].sum(axis=1).tolist()
    devices = numbers.totals.tolist()
    plans = (
        (Value(objective_ns(p.curve.rate), devices[used], reluctant[used], p.streamed_bytes, p.latency_ns), p.chosen)
        for (used, _), kept in cells.items()
        for p in kept
        if p.chosen
    )
    return Allocation(min(plans)[1], complete, bound.objective_ns)


def _fits(candidate: Candidate, supply: Supply) -> bool:
    return all(count <= most for count, most in zip(candidate.devices, supply.devices, strict=True))


def _without_ample(candidates: Sequence[Candidate], supply: Supply) -> tuple[Sequence[Candidate], Supply]:
    """The same without the resources, other than the host, that no plan of these candidates can use up."""
    total = sum(supply.devices)
    scarce = [0]
    for k, capacity in enumerate(supply.capacities[1:], start=1):
        most = max(c.rate * c.work[k] / sum(c.devices) for c in candidates)  # for each device that a pipeline has
        if most * total > capacity * NS_PER_S:
            scarce.append(k)
    if len(scarce) == len(supply.capacities):
        return candidates, supply
    kept = [replace(c, work=tuple(c.work[k] for k in scarce), find_ties=partial(_ties, c)) for c in candidates]
    return kept, replace(supply, capacities=tuple(supply.capacities[k] for k in scarce))


def _ties(candidate: Candidate) -> TieValues:
    return candidate.ties


def good_objective_ns(candidates: Sequence[Candidate], supply: Supply, max_pipelines: int | None) -> int:
    """The objective of a good plan, often the best, in a fraction of the time that `allocate` takes."""
    total = sum(supply.devices)
    most = total if max_pipelines is None else min(total, max_pipelines)
    return _price_bound(*_without_ample(candidates, supply), most).known_ns


def _keep(kept: list[_PartialPlan], new: _PartialPlan, most: int) -> bool:
    """Add a partial plan to its cell, unless another dominates it, and drop those that it dominates.

    False where the cell overflows, so that a non-dominated plan is dropped.
    """
    if any(old.dominates(new) for old in kept):
        return True
    kept[:] = [old for old in kept if not new.dominates(old)]
    kept.append(new)
    if len(kept) <= most:
        return True
    kept.remove(min(kept, key=lambda partial: (partial.curve.rate, partial.chosen)))
    return False


@dataclass(frozen=True)
class _PriceBound:
    """Upper bounds on what a partial plan can still reach, against the best plan known.

    This is a Lagrangian relaxation of the limits of the host and the other resources. With a price p on each ns of a
    resource's work, the rate of a plan is at most

        the sum over resources of p * capacity * 10^9 + the sum over its pipelines of max(0, rate * (1 - sum of p * work)).

    The second sum treats every pipeline by itself, so a knapsack fills the devices that are left. Where the host alone
    limits, there is one among the prices 0 and 1 / work of each candidate at which the bound equals the plan's rate. Values
    are floats with a margin for rounding: they only decide what need not be looked at.

    prices: shape (n_prices, n_resources). supplied: for each price, what the resources are worth. worth: for each
    candidate its term of the second sum, at each price. filled: the largest worth of any pipelines on devices of each
    number, shape (n_numbers, n_prices). known_ns: the objective of the best plan that the knapsacks give. needed: the
    worth that a partial plan on such devices needs to reach known_ns, when the other devices do their utmost; shape as
    `filled`.
    """

    prices: NDArray[np.float64]
    supplied: NDArray[np.float64]
    worth: list[NDArray[np.float64]]
    filled: NDArray[np.float64]
    known_ns: int
    needed: NDArray[np.float64]

    @property
    def objective_ns(self) -> int:
        """A lower bound on the objective of every plan."""
        worth = float((self.filled[-1] + self.supplied).min())
        return math.floor(NS_PER_S / worth * (1 - _ROUNDING))

    def can_win(self, worth: NDArray[np.float64], used: int) -> bool:
        """Whether a partial plan of this worth at each price, on so many devices, may become as good as the best known."""
        return bool((worth >= self.needed[used]).all())


def _price_bound(candidates: Sequence[Candidate], supply: Supply, most_pipelines: int) -> _PriceBound:
    prices = _prices(candidates, len(supply.capacities))
    supplied = (prices * (np.array(supply.capacities) * NS_PER_S)).sum(axis=1)
    worth = [float(c.rate) * np.maximum(0, 1 - (prices * c.work).sum(axis=1)) for c in candidates]
    filled, plans = _knapsacks(candidates, worth, supply, most_pipelines)
    known_ns = min(_plan_objective_ns(candidates, supply, plan) for plan in plans if plan)
    required = NS_PER_S / known_ns * (1 - _ROUNDING)
    # The devices that one number leaves have the number that stands as far from the other end.
    return _PriceBound(prices, supplied, worth, filled, known_ns, required - filled[::-1] - supplied)


def _prices(candidates: Sequence[Candidate], resources: int) -> NDArray[np.float64]:
    """[price, resource]: 0 for all, then one resource at a time at which some candidate's work is worth its rate."""
    rows = [np.zeros(resources)]
    for k in range(resources):
        works = sorted({c.work[k] for c in candidates if c.work[k]})
        for work in works[:: -(-len(works) // _MOST_PRICES) or 1]:
            rows.append(np.zeros(resources))
            rows[-1][k] = 1 / work
    return np.array(rows)


def _knapsacks(
    candidates: Sequence[Candidate], worth: Sequence[NDArray[np.float64]], supply: Supply, most_pipelines: int
) -> tuple[NDArray[np.float64], set[tuple[int, ...]]]:
    """For the devices of each number and each price the largest worth of pipelines on them; and the plans that have it."""
    numbers, worths = CountNumbers(supply.devices), np.array(worth)
    sizes = np.array([c.devices for c in candidates])
    steps = sizes @ np.array(numbers.strides)
    fitting = [np.nonzero((sizes <= counts).all(axis=1))[0] for counts in numbers.counts]
    prices = np.arange(worths.shape[1])
    filled = np.zeros((len(fitting), len(prices)))
    chosen: list[list[tuple[int, ...]]] = [[()] * len(prices) for _ in fitting]
    for _ in range(most_pipelines):  # each round allows one pipeline more
        grown, changed = filled.copy(), [list(row) for row in chosen]
        for used, here in enumerate(fitting):
            if not len(here):
                continue
            better = filled[used - steps[here]] + worths[here]
            first = better.argmax(axis=0)  # of equals the one with the smallest index
            most_worth = better[first, prices]
            for price in np.nonzero(most_worth > grown[used])[0].tolist():
                k = int(here[first[price]])
                changed[used][price] = (*chosen[used - int(steps[k])][price], k)
            np.maximum(grown[used], most_worth, out=grown[used])
        if np.array_equal(grown, filled):
            break
        filled, chosen = grown, changed
    return filled, {plan for row in chosen for plan in row}


def _plan_objective_ns(candidates: Sequence[Candidate], supply: Supply, plan: tuple[int, ...]) -> int:
    rates, work = [candidates[k].rate for k in plan], [candidates[k].work for k in plan]
    return objective_ns(plan_rate(rates, work, supply.capacities))
