"""The rate of a set of pipelines as a function of what they get of the resources that they share.

With one resource, the host, a pipeline can take its time from the others. The host serves the pipelines with the least work per
inference first, which makes the rate a concave function of that time:

    rate
     |                .C-----------   C: both pipelines are fed in full
     |            . '
     |        B '                     slope of B to C: 1 / host_ns of the second pipeline
     |       /
     |      /                         slope of A to B: 1 / host_ns of the first
     |     /
     A----+---+--------+-----------   ns of the host in each second

Other resources that pipelines share (`Problem.shared`) limit the rate in the same way, all together a linear program.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, TypeVar

from balancer.ground.rates import plan_rate
from balancer.ground.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

_ROUNDING = 1e-9  # far above the rounding errors of sums of a few hundred floats
_Number = TypeVar("_Number", float, Fraction)


class SharedRate(Protocol):
    """The rate of a set of pipelines as a function of what is left of the resources that they share."""

    @property
    def rate(self) -> Fraction:
        """With the whole of all resources."""

    def plus(self, rate: Fraction, work: tuple[int, ...]) -> Self:
        """With one more pipeline."""

    def is_nowhere_below(self, other: Self) -> bool:
        """Whether the rate is at least the other's, whatever is left. It then stays so with any pipelines added to both.

        May be False where it is nowhere below: what is lost then is time.
        """


@dataclass(frozen=True)
class RateCurve:
    """The rate of a set of pipelines as a function of the host's time, as drawn above.

    rates: (host_ns, sum of the rates of all pipelines with that host work), ascending in host_ns.
    """

    rates: tuple[tuple[int, Fraction], ...] = ()

    def plus(self, rate: Fraction, work: tuple[int, ...]) -> RateCurve:
        merged, (host_ns,) = dict(self.rates), work
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

        Between two of its corners the other curve is a line, and this
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


@dataclass(frozen=True)
class RatesInParts:
    """The same where there are several resources: what each of them leaves is not weighed, only compared.

    capacities: of the resources. rates: (work, sum of the rates of all pipelines with that work), ascending.
    """

    capacities: tuple[int, ...]
    rates: tuple[tuple[tuple[int, ...], Fraction], ...] = ()

    def plus(self, rate: Fraction, work: tuple[int, ...]) -> RatesInParts:
        """See `SharedRate`."""
        merged = dict(self.rates)
        merged[work] = merged.get(work, Fraction(0)) + rate
        return RatesInParts(self.capacities, tuple(sorted(merged.items())))

    @cached_property
    def rate(self) -> Fraction:
        """See `SharedRate`."""
        return plan_rate([rate for _, rate in self.rates], [work for work, _ in self.rates], self.capacities)

    def is_nowhere_below(self, other: RatesInParts) -> bool:
        """Whether all of the other's rate can be replaced, part by part, by rate that takes no more of any resource."""
        left = dict(self.rates)
        for work, rate in other.rates:
            missing = rate
            for own in sorted(left, reverse=True):
                if missing and all(a <= b for a, b in zip(own, work, strict=True)):
                    part = min(missing, left[own])
                    missing, left[own] = missing - part, left[own] - part
            if missing:
                return False
        return True
