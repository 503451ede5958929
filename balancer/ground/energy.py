"""The energy that an inference takes, from what devices draw while they wait and while they work.

    energy for one inference = power / rate
    power = sum over kinds of   powered * idle_mw                  all devices that are powered, in use or not
                              + working * (busy_mw - idle_mw)      and the rest, for those at work

It is an estimate: a device draws more or less from op to op, and `busy_mw` is a mean over few models.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Drawn(NamedTuple):
    """What devices of one kind draw. powered: how many are powered. working: how many are at work, on average over time.

    idle_mw, busy_mw: milliwatts of one that waits, and of one at work; idle_error_mw, busy_error_mw: how far they may be off,
    to either side.
    """

    powered: int
    working: Fraction
    idle_mw: int
    idle_error_mw: int
    busy_mw: int
    busy_error_mw: int

    @property
    def mw(self) -> Fraction:
        """Milliwatts of all of them."""
        return self._mw(self.idle_mw, self.busy_mw)

    @property
    def range_mw(self) -> tuple[Fraction, Fraction]:
        """The least and the most milliwatts within the errors."""
        # The power is linear in both numbers as far as a device at work draws more: its extremes are at the corners.
        ends = [self._mw(idle_mw, busy_mw) for idle_mw, busy_mw in self._corners()]
        return min(ends), max(ends)

    def _mw(self, idle_mw: int, busy_mw: int) -> Fraction:
        return self.powered * idle_mw + self.working * max(0, busy_mw - idle_mw)

    def _corners(self) -> Iterator[tuple[int, int]]:
        idle, busy = (
            (max(0, mw - error), mw + error)
            for mw, error in ((self.idle_mw, self.idle_error_mw), (self.busy_mw, self.busy_error_mw))
        )
        return product(idle, busy)


class Energy(NamedTuple):
    """Millijoules for one inference: the estimate, the least and the most."""

    mj: Fraction
    least_mj: Fraction
    most_mj: Fraction


def energy(drawn: Iterable[Drawn], rate: Fraction) -> Energy:
    """The energy of one inference. drawn: by all kinds of devices. rate: inferences per second of all pipelines together.

    >>> one = Drawn(powered=2, working=Fraction(1, 2), idle_mw=100, idle_error_mw=10, busy_mw=1100, busy_error_mw=0)
    >>> [float(mj) for mj in energy([one], rate=Fraction(10))]
    [70.0, 68.5, 71.5]
    """
    kinds = list(drawn)
    ranges = [kind.range_mw for kind in kinds]
    total = sum((kind.mw for kind in kinds), Fraction(0))
    least, most = (sum((ends[k] for ends in ranges), Fraction(0)) for k in (0, 1))
    return Energy(total / rate, least / rate, most / rate)
