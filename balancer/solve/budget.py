"""How much work a solver may do. Work is counted, so that the same input gives the same answer everywhere; a clock
comes on top where somebody asks for one.
"""

from __future__ import annotations

import time


class BudgetSpent(Exception):
    """There is no more work, or time, to spend. Solvers catch it and return the best so far."""


class Budget:
    """work: segments costed. seconds: of wall time from now on, None for any."""

    def __init__(self, work: int, seconds: float | None = None) -> None:
        self.left = work
        self.spent = 0
        self.timed_out = False
        self._end = None if seconds is None else time.monotonic() + seconds

    def spend(self, work: int) -> None:
        """Raises BudgetSpent where this is more than is left."""
        self.timed_out = self._end is not None and time.monotonic() > self._end
        if work > self.left or self.timed_out:
            raise BudgetSpent
        self.left -= work
        self.spent += work

    @property
    def seconds_left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())
