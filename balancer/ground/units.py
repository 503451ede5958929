"""Unit constants, and division that rounds up. Times are whole nanoseconds, sizes are bytes."""

from __future__ import annotations

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
KIB = 1 << 10
MIB = 1 << 20


def ceil_div(value: int, by: int) -> int:
    """value / by, rounded up.

    >>> ceil_div(7, 2)
    4
    """
    return -(-value // by)


def ceil_to(value: int, step: int) -> int:
    """The smallest multiple of step that is at least value.

    >>> ceil_to(7, 4)
    8
    """
    return -(-value // step) * step
