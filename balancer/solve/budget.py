"""How much work a solver may do, and how long.

Work is counted, so that the same input gives the same answer on every machine. A wall-clock limit is added only where the
caller asks for one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """When several searches together are to be over. at: by the monotonic clock, in s; None for never."""

    at: float | None

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """The deadline that is so many seconds from now; None for none."""
        return cls(None if seconds is None else time.monotonic() + seconds)

    @property
    def seconds_left(self) -> float | None:
        """At least 0; None for no limit."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    @property
    def is_over(self) -> bool:
        return self.at is not None and time.monotonic() >= self.at


class BudgetSpent(Exception):
    """No work or time is left. Solvers catch it and return the best plan so far."""


class Budget:
    """Work that is left to spend, in a unit that the solver chooses.

    work: the limit. seconds: of wall time from now on; None for no limit. spent: work spent so far.
    """

    def __init__(self, work: int, seconds: float | None = None) -> None:
        self.left = work
        self.spent = 0
        self._deadline = Deadline.after(seconds)

    def spend(self, work: int) -> None:
        """Raises BudgetSpent where this is more than is left, or the time is over."""
        if work > self.left or self._deadline.is_over:
            raise BudgetSpent
        self.left -= work
        self.spent += work

    @property
    def seconds_left(self) -> float | None:
        """At least 0; None for no limit."""
        return self._deadline.seconds_left
