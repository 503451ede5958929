"""Depth-balanced segments with memory refinement.

J. Villarrubia, L. Costero, F. D. Igual, K. Olcoz, *Balanced segmentation of CNNs for multi-TPU inference*, Journal of
Supercomputing 2025, arXiv 2503.01035:

1. The graph is cut between depths only, so that it becomes a row of levels.
2. The cuts minimise the parameter bytes of the largest segment, by bisection with a greedy check.
3. Cuts move while the compiler reports that a segment needs host memory.

The text does not say how far a cut moves and in which direction first. Here it moves by one level at a time, from a
segment that streams to the smaller of its neighbours.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from balancer.solve.orders import levels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.ground.opsets import OpSet


def depth_balanced(
    before: Sequence[OpSet], op_bytes: Sequence[int], segments: int, streams: Callable[[OpSet], bool]
) -> list[OpSet]:
    """The segments, in order.

    before: for each op the set of ops that it reads from. op_bytes: parameter bytes of each op. streams: whether a
    segment does not fit its device.
    """
    parts = levels(before)
    sizes = [sum(size for i, size in enumerate(op_bytes) if ops >> i & 1) for ops in parts]
    edges = [0, *balanced_cuts(sizes, min(segments, len(parts))), len(parts)]
    edges = _refined(edges, sizes, lambda a, b: streams(_union(parts[a:b])))
    return [_union(parts[a:b]) for a, b in pairwise(edges)]


def balanced_cuts(sizes: Sequence[int], segments: int) -> list[int]:
    """Cuts of a row of sizes into segments that are not empty, so that the largest sum of a segment is minimal.

    segments: at most len(sizes). Bisection on that sum; a greedy fill tells whether a sum suffices.

    >>> balanced_cuts([4, 1, 1, 5, 2], segments=3)
    [3, 4]
    """
    low, high = max(sizes), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        if len(_filled(sizes, middle)) < segments:
            high = middle
        else:
            low = middle + 1
    cuts = _filled(sizes, low)
    for position in range(1, len(sizes)):  # fewer segments would do: split at the first places that can be split
        if len(cuts) < segments - 1 and position not in cuts:
            cuts = sorted([*cuts, position])
    return cuts


def _filled(sizes: Sequence[int], limit: int) -> list[int]:
    """Cuts before each element with which a segment would exceed the limit."""
    cuts, held = [], 0
    for i, size in enumerate(sizes):
        if held + size > limit and i:
            cuts.append(i)
            held = 0
        held += size
    return cuts


def _refined(edges: list[int], sizes: Sequence[int], streams: Callable[[int, int], bool]) -> list[int]:
    """Edges after all moves of one level from a segment that streams to a neighbour that still does not stream."""
    for _ in range(len(sizes) * len(edges)):  # a limit: moves might come back to where they were
        moved = next((m for k in range(len(edges) - 1) if (m := _relieved(edges, k, sizes, streams))), None)
        if moved is None:
            break
        edges = moved
    return edges


def _relieved(edges: list[int], k: int, sizes: Sequence[int], streams: Callable[[int, int], bool]) -> list[int] | None:
    """The edges after segment k has given a level to a neighbour; None where it does not stream or none can take it."""
    if not streams(edges[k], edges[k + 1]) or edges[k + 1] - edges[k] < 2:
        return None
    left, right = (k, +1, k - 1), (k + 1, -1, k + 1)
    options = [move for move in (left, right) if 0 <= move[2] < len(edges) - 1]
    for edge, step, neighbour in sorted(options, key=lambda m: sum(sizes[edges[m[2]] : edges[m[2] + 1]])):
        moved = [*edges]
        moved[edge] += step
        if not streams(moved[neighbour], moved[neighbour + 1]):
            return moved
    return None


def _union(parts: Sequence[OpSet]) -> OpSet:
    merged = 0
    for ops in parts:
        merged |= ops
    return merged
