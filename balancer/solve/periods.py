"""Periods of stages as numbers that compare exactly.

A stage of `time` whole nanoseconds on r replicas takes an input every time / r nanoseconds. A float64 holds 53 bits, and
division rounds to the nearest float. Two different fractions with denominators up to R differ by more than 1 / R^2, and
below 2^52 / R^2 neighbouring floats are less than 1 / R^2 apart. So equal periods are equal floats, different ones are
different floats in the right order, and the fraction can be had back from the float.
"""

from __future__ import annotations

from fractions import Fraction

MOST_REPLICAS = 32  # of a stage


def longest_ns(most_replicas: int) -> int:
    """Stage times up to here, in ns, have periods that compare exactly; with 32 replicas, over an hour."""
    return (1 << 52) // most_replicas**2 - 1


def exact_period(period: float, most_replicas: int) -> Fraction:
    """The fraction, in ns, that a float stands for: the one with a denominator of at most `most_replicas`."""
    return Fraction(period).limit_denominator(most_replicas)
