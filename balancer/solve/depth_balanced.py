"""Depth-balanced segments with memory refinement.

J. Villarrubia, L. Costero, F. D. Igual, K. Olcoz, *Balanced segmentation of CNNs for multi-TPU inference*, Journal of
Supercomputing 2025, arXiv 2503.01035: the graph is cut across at depths, so that it becomes a row of levels; the cuts
are those that make the largest segment smallest in parameter bytes, by bisection with a greedy check; then cuts move
while the compiler reports that a segment needs host memory. How far a cut moves and in which direction first is not
told in what could be read: here one level at a time, from an overflowing segment to the neighbour that is smaller.
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
    """The segments. op_bytes: parameter bytes of each op. streams: whether a segment does not fit its device."""
    parts = levels(before)
    sizes = [sum(size for i, size in enumerate(op_bytes) if ops >> i & 1) for ops in parts]
    edges = [0, *balanced_cuts(sizes, min(segments, len(parts))), len(parts)]
    edges = _refined(edges, sizes, lambda a, b: streams(_union(parts[a:b])))
    return [_union(parts[a:b]) for a, b in pairwise(edges)]


def balanced_cuts(sizes: Sequence[int], segments: int) -> list[int]:
    """Cuts of a row into so many segments, none empty, whose largest sum is smallest.

    Bisection on that sum; whether it suffices, a greedy fill tells.
    """
    low, high = max(sizes), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        if len(_filled(sizes, middle)) < segments:
            high = middle
        else:
            low = middle + 1
    cuts = _filled(sizes, low)
    for position in range(1, len(sizes)):  # segments to spare: split what can be split
        if len(cuts) < segments - 1 and position not in cuts:
            cuts = sorted([*cuts, position])
    return cuts


def _filled(sizes: Sequence[int], limit: int) -> list[int]:
    """Cuts where the next element would go beyond the limit."""
    cuts, held = [], 0
    for i, size in enumerate(sizes):
        if held + size > limit and i:
            cuts.append(i)
            held = 0
        held += size
    return cuts


def _refined(edges: list[int], sizes: Sequence[int], streams: Callable[[int, int], bool]) -> list[int]:
    """Edges after moves of one level, each from a streaming segment to a neighbour that does not come to stream by it."""
    for _ in range(len(sizes) * len(edges)):
        moved = next((m for k in range(len(edges) - 1) if (m := _relieved(edges, k, sizes, streams))), None)
        if moved is None:
            break
        edges = moved
    return edges


def _relieved(edges: list[int], k: int, sizes: Sequence[int], streams: Callable[[int, int], bool]) -> list[int] | None:
    """The edges with one level less in a streaming segment, where a neighbour can take it; else None."""
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
