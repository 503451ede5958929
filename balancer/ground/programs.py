"""Small linear programs, solved exactly."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Optimum(NamedTuple):
    """The optimum of a linear program. values: of the variables. prices: what one more of each limit would gain."""

    values: list[Fraction]
    prices: list[Fraction]


def highest_gain(gains: Sequence[Fraction], rows: Sequence[Sequence[Fraction]], limits: Sequence[Fraction]) -> Optimum:
    """Maximise sum(gains * values) where sum(row * values) <= limit for each row, and no value is negative.

    gains: by variable. rows: by limit and variable. limits: at least 0. The optimum must be finite. It is the simplex method
    on fractions: of the variables that could enter or leave the basis, the first one does (Bland's rule), so that it ends.

    >>> values, prices = highest_gain([Fraction(1), Fraction(1)], [[Fraction(1), Fraction(2)]], [Fraction(4)])
    >>> [int(value) for value in values], [int(price) for price in prices]
    ([4, 0], [1])
    """
    n, m = len(gains), len(rows)
    # Behind the variables a slack for each limit; the last column holds the right-hand sides.
    table = [
        [*row, *(Fraction(k == slack) for slack in range(m)), limit]
        for k, (row, limit) in enumerate(zip(rows, limits, strict=True))
    ]
    gain = [*gains, *[Fraction(0)] * (m + 1)]
    basis = list(range(n, n + m))
    while True:
        enters = next((j for j in range(n + m) if gain[j] > 0), None)
        if enters is None:
            break
        _, _, leaves = min((table[k][-1] / table[k][enters], basis[k], k) for k in range(m) if table[k][enters] > 0)
        pivot = table[leaves][enters]
        table[leaves] = [value / pivot for value in table[leaves]]
        for row in [*(table[k] for k in range(m) if k != leaves), gain]:
            factor = row[enters]
            if factor:
                row[:] = [value - factor * own for value, own in zip(row, table[leaves], strict=True)]
        basis[leaves] = enters
    values = {variable: table[k][-1] for k, variable in enumerate(basis)}
    return Optimum([values.get(j, Fraction(0)) for j in range(n)], [-gain[n + k] for k in range(m)])
