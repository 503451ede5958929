"""Op indices as text: "0-11,14"."""

from __future__ import annotations

import typing


def op_ranges(ops: typing.Iterable[int]) -> str:
    """Ascending op indices as closed ranges: "0-11,14"."""
    ranges: list[list[int]] = []
    for i in ops:
        if ranges and i == ranges[-1][1] + 1:
            ranges[-1][1] = i
        else:
            ranges.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def parse_op_ranges(text: str, n_ops: int) -> list[int]:
    """The indices of "0-11,14", in that order. Raises ValueError with what is wrong."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isascii() and first.isdigit() and (not dash or (last.isascii() and last.isdigit()))):
            raise ValueError(f"'{part.strip()}' is neither an op index nor a range like 3-7")
        a, b = int(first[:9]), int((last if dash else first)[:9])
        if b < a or b >= n_ops:
            raise ValueError(f"'{part.strip()}' is not within ops 0 to {n_ops - 1}")
        if len(found) + b - a + 1 > n_ops:
            raise ValueError(f"'{part.strip()}' lists ops a second time")
        found.extend(range(a, b + 1))
    return found
