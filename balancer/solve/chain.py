"""Exact interval dynamic programming: the best cuts of one execution order, for each number of segments.

best[j][b] = min over a < b of max(best[j - 1][a], time[a, b]): the whole row at once, since a cost that grows by one
op can fall, so that neither two pointers nor a greedy fill would be exact. Ties are settled in further passes over
the cuts that meet the optimum: fewest streamed bytes, then lowest latency, then the earliest cuts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from balancer.solve.problem import Intervals

NEVER = np.int64(1) << 60


@dataclass(frozen=True, slots=True)
class Chain:
    """The best partition into len(cuts) + 1 intervals. cuts: positions at which a new segment starts."""

    cuts: tuple[int, ...]
    period_ns: int
    streamed_bytes: int
    latency_ns: int

    @property
    def segments(self) -> int:
        return len(self.cuts) + 1


def best_chains(intervals: Intervals, most_segments: int) -> list[Chain]:
    """The best partitions into ever more segments, up to so many; only those with a shorter period than all before.

    Best: the shortest period, then fewest streamed bytes, then lowest latency, then lexicographically smallest
    segments.
    """
    time, rows = _periods(intervals, most_segments)
    found: list[Chain] = []
    for segments, row in enumerate(rows, start=1):
        if row[-1] < (found[-1].period_ns if found else NEVER):
            found.append(_settle(intervals, time, int(row[-1]), segments))
    return found


def best_chain(intervals: Intervals, segments: int) -> Chain | None:
    """The best partition into exactly so many segments; None where there is none."""
    time, rows = _periods(intervals, segments)
    if len(rows) < segments or rows[-1][-1] >= NEVER:
        return None
    return _settle(intervals, time, int(rows[-1][-1]), segments)


def _periods(intervals: Intervals, most_segments: int) -> tuple[Any, list[Any]]:
    """Times with NEVER where a segment may not stand; and for each number of segments, the shortest period of the
    positions
    before b, for all b."""
    time = np.where(intervals.allowed, intervals.time_ns, NEVER)
    rows = [time[0]]
    for _ in range(1, min(most_segments, len(time) - 1)):
        rows.append(np.maximum(rows[-1][:, None], time).min(axis=0))
    return time, rows


def _settle(intervals: Intervals, time: Any, period: int, segments: int) -> Chain:
    """Of all partitions that meet the period, the one that the tie rules name."""
    layers = [time <= period] * segments
    streamed, layers = _cheapest(layers, intervals.streamed_bytes)
    latency, layers = _cheapest(layers, intervals.time_ns)
    cuts, at = [], 0
    for layer in layers[:-1]:
        at = int(np.argmax(layer[at]))
        cuts.append(at)
    return Chain(tuple(cuts), period, streamed, latency)


def _cheapest(layers: list[Any], weight: Any) -> tuple[int, list[Any]]:
    """The least total weight of a path 0 -> n through the layers, and the layers with only the arcs of such paths."""
    n = len(weight) - 1
    start = np.full(n + 1, NEVER, np.int64)
    start[0] = 0
    forward = [start]
    for layer in layers:
        forward.append(np.where(layer, forward[-1][:, None] + weight, NEVER).min(axis=0))
    end = np.full(n + 1, NEVER, np.int64)
    end[n] = 0
    backward = [end]
    for layer in reversed(layers):
        backward.append(np.where(layer, weight + backward[-1][None, :], NEVER).min(axis=1))
    backward.reverse()
    best = int(forward[-1][n])
    on_best = [
        layer & (forward[j][:, None] + weight + backward[j + 1][None, :] == best) for j, layer in enumerate(layers)
    ]  # fmt: skip
    return best, on_best
