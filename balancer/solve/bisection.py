"""Google's profiling partitioner: bisection of a target latency over measured segments of one order.

libcoral, `coral/tools/partitioner/profiling_based_partitioner.cc` (`partition_with_profiling`): between the fastest and
the slowest segment of a first split, a target is bisected; segment after segment takes the longest prefix that meets
it, shorter ones where the rest then fails; the last takes what is left. Its failings are kept: the lower bound is none,
where no target in between succeeds the first split stays, and a gap within the tolerance ends it at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TOLERANCE_NS = 1_000_000  # the program's default
_NEVER_NS = 1 << 62


@dataclass(frozen=True, slots=True)
class Bisection:
    """cuts, and their slowest segment in ns. measured: different segments measured. rounds: targets tried. improved:
    whether a target was met; else the cuts are the first ones.
    """

    cuts: tuple[int, ...]
    slowest_ns: int
    measured: int
    rounds: int
    improved: bool


def bisect_cuts(  # noqa: PLR0913 - the program's flags
    n_ops: int,
    segments: int,
    latency: Callable[[int, int], int | None],
    initial_cuts: Sequence[int],
    *,
    tolerance_ns: int = TOLERANCE_NS,
    step: int = 1,
) -> Bisection:
    """The cuts that it ends with. latency: ns of the interval [start, end), None where it cannot be; from any source,
    asked for once for each interval. step: by how many ops a prefix is shortened.
    """
    source = _Measured(latency)
    cuts = tuple(initial_cuts)
    times = source.all(cuts, n_ops)
    low, high, rounds, improved = min(times), max(times), 0, False
    while high - low > tolerance_ns:
        target = (low + high) // 2
        found = _Fill(n_ops, segments, source, target, step).cuts()
        rounds += 1
        last = source(found[-1] if found else 0, n_ops) if found is not None else _NEVER_NS
        if found is not None and last <= target:
            slowest = max(source.all(found, n_ops))
            cuts, high, improved = found, min(target, slowest), True
        else:
            low = target
            if found is not None:
                high = min(high, last)
                if max(source.all(found, n_ops)) < max(source.all(cuts, n_ops)):
                    cuts, improved = found, True
    return Bisection(cuts, max(source.all(cuts, n_ops)), len(source.known), rounds, improved)


class _Measured:
    """A latency source that remembers."""

    def __init__(self, latency: Callable[[int, int], int | None]) -> None:
        self.latency = latency
        self.known: dict[tuple[int, int], int] = {}

    def __call__(self, start: int, end: int) -> int:
        if (start, end) not in self.known:
            found = self.latency(start, end)
            self.known[start, end] = _NEVER_NS if found is None else found
        return self.known[start, end]

    def all(self, cuts: Sequence[int], n_ops: int) -> list[int]:
        return [self(a, b) for a, b in pairwise([0, *cuts, n_ops])]


class _Fill:
    """Segments filled to a target, each from the longest prefix downwards; what failed once is not tried again."""

    def __init__(self, n_ops: int, segments: int, source: _Measured, target: int, step: int) -> None:
        self.n_ops, self.segments, self.source, self.target, self.step = n_ops, segments, source, target, step
        self.failed: set[tuple[int, int]] = set()

    def cuts(self) -> tuple[int, ...] | None:
        """Cuts with every segment but the last within the target; the last is taken untested. None if there are none."""
        return self._fill(0, self.segments)

    def _fill(self, start: int, left: int) -> tuple[int, ...] | None:
        if left == 1:
            return ()
        if (start, left) in self.failed:
            return None
        for end in range(self.n_ops - left + 1, start, -self.step):
            if self.source(start, end) <= self.target:
                rest = self._fill(end, left - 1)
                if rest is not None:
                    return (end, *rest)
        self.failed.add((start, left))
        return None
