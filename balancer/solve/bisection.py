"""Google's profiling partitioner: it bisects a target latency over measured segments of one order.

libcoral, `coral/tools/partitioner/profiling_based_partitioner.cc` (`partition_with_profiling`). The target lies between
the fastest and the slowest segment of a first split. Segment after segment takes the longest prefix that meets the
target, and shorter ones where the rest then fails. The last segment takes what is left.

The original's failings are kept: its lower bound is no bound on the optimum; where no target in between succeeds, the
first split stays; and a gap within the tolerance ends the search at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

TOLERANCE_NS = 1_000_000  # the program's default
_NEVER_NS = 1 << 62


class SegmentLatency(Protocol):
    """A source of latencies: a device, or a cost model."""

    def __call__(self, start: int, end: int, /) -> int | None:
        """ns of the ops from start to end - 1 as one segment; None where it cannot be one."""


@dataclass(frozen=True, slots=True)
class Bisection:
    """The cuts that the bisection ends with.

    slowest_ns: of their segments. measured: different segments measured. rounds: targets tried. improved: whether a
    target was met; else the cuts are the initial ones.
    """

    cuts: tuple[int, ...]
    slowest_ns: int
    measured: int
    rounds: int
    improved: bool


def bisect_cuts(  # noqa: PLR0913 - the program's flags
    n_ops: int,
    segments: int,
    latency: SegmentLatency,
    initial_cuts: Sequence[int],
    *,
    tolerance_ns: int = TOLERANCE_NS,
    step: int = 1,
) -> Bisection:
    """Cuts into so many segments. latency: asked once for each interval. step: by how many ops a prefix is shortened."""
    source = _MemoisedLatency(latency, n_ops)
    cuts = tuple(initial_cuts)
    times = source.of_segments(cuts)
    low, high, rounds, improved = min(times), max(times), 0, False
    while high - low > tolerance_ns:
        target = (low + high) // 2
        filled = _filled(source, segments, target, step)
        rounds += 1
        last = _NEVER_NS if filled is None else source.ns(filled[-1] if filled else 0, n_ops)
        if filled is not None and last <= target:
            slowest = max(source.of_segments(filled))
            cuts, high, improved = filled, min(target, slowest), True
        else:
            low = target
            if filled is not None:
                high = min(high, last)
                if max(source.of_segments(filled)) < max(source.of_segments(cuts)):
                    cuts, improved = filled, True
    return Bisection(cuts, max(source.of_segments(cuts)), len(source.known), rounds, improved)


@dataclass(frozen=True)
class _MemoisedLatency:
    """Latencies of the intervals of one order. known: by start and end."""

    latency: SegmentLatency
    n_ops: int
    known: dict[tuple[int, int], int] = field(default_factory=dict)

    def ns(self, start: int, end: int) -> int:
        if (start, end) not in self.known:
            measured = self.latency(start, end)
            self.known[start, end] = _NEVER_NS if measured is None else measured
        return self.known[start, end]

    def of_segments(self, cuts: Sequence[int]) -> list[int]:
        return [self.ns(a, b) for a, b in pairwise([0, *cuts, self.n_ops])]


def _filled(source: _MemoisedLatency, segments: int, target: int, step: int) -> tuple[int, ...] | None:
    """Cuts that keep every segment but the last within the target; None where there are none.

    The last segment is not tested. Each segment is tried from the longest prefix downwards.
    """
    failed: set[tuple[int, int]] = set()  # (start, segments left) is not tried again

    def fill(start: int, left: int) -> tuple[int, ...] | None:
        if left == 1:
            return ()
        if (start, left) in failed:
            return None
        for end in range(source.n_ops - left + 1, start, -step):
            if source.ns(start, end) <= target:
                rest = fill(end, left - 1)
                if rest is not None:
                    return (end, *rest)
        failed.add((start, left))
        return None

    return fill(0, segments)
