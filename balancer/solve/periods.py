"""Periods of stages as floats that compare exactly.

A stage of `time` whole nanoseconds on r replicas takes an input every time / r nanoseconds. Solvers keep these periods
in float64 arrays, and still compare them exactly:

- A float64 holds 53 bits, and division rounds to the nearest float.
- Two different fractions with denominators up to R differ by more than 1 / R^2.
- Below 2^52 / R^2, neighbouring floats are less than 1 / R^2 apart.

So equal periods are equal floats, different periods are different floats in the right order, and the fraction can be
recovered from the float.
"""

from __future__ import annotations

from fractions import Fraction

MOST_REPLICAS = 32  # of a stage


def longest_ns(most_replicas: int) -> int:
    """The longest stage time, in ns, whose periods compare exactly with up to so many replicas.

    With 32 replicas it is more than an hour.

    >>> longest_ns(32) > 3_600 * 10**9
    True
    """
    return (1 << 52) // most_replicas**2 - 1


def exact_period(period: float, most_replicas: int) -> Fraction:
    """The fraction, in ns, that a float stands for. Its denominator is at most `most_replicas`.

    >>> exact_period(1_000_000 / 3, most_replicas=32)
    Fraction(1000000, 3)
    """
    return Fraction(period).limit_denominator(most_replicas)
