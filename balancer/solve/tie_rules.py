"""The tie rules: of the pipelines with equal periods, which one is the answer.

Fewest streamed bytes; then lowest latency; then stage by stage: the segment with the smallest key and, for equal keys, fewer
replicas.

Pipelines are paths. Cuts are numbered, and a segment is an edge from the cut before it to the cut after it:

    cut 0 ---- segment ----> cut 3 ---- segment ----> cut 4 ---- segment ----> last cut
              2 replicas               1 replica                1 replica

A path must have given numbers of stages, by class, on given numbers of devices, by kind (see `sizes`). So the nodes of the
graph are (stages so far, devices in use, cut). Each rule is a shortest path problem in this graph: two passes, forward and
backward, give the least weight of a path through each edge, and edges that lie on no lightest path are dropped. What is left
after one rule are exactly the paths that tie under it. The key decides last, greedily from the first stage on.

Under a limit on the latency, the path that streams least may take too long. Then streamed bytes and latency are weighed
against each other: each node gets its Pareto front of (streamed bytes, ns) over the paths on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from balancer.solve.sizes import CountNumbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balancer.ground.arrays import IndexArray, IntArray
    from balancer.solve.sizes import Counts

_UNREACHED = np.int64(1) << 60  # above every sum of weights; two of them and a weight still fit int64


@dataclass(frozen=True, slots=True)
class StageOptions:
    """Segments that may each be a stage on the same number of devices of one kind, as columns.

    kind: number of the kind. start, end: numbers of the cuts before and after each segment. streamed_bytes: of all
    replicas together. latency_ns: what each adds to the latency of one input.
    """

    kind: int
    replicas: int
    start: IndexArray
    end: IndexArray
    streamed_bytes: IntArray
    latency_ns: IntArray


@dataclass(frozen=True, slots=True)
class CutPath:
    """A pipeline as a path. ends: number of the cut after each stage. stages: (kind, replicas) of each.

    streamed_bytes: of all stages and replicas. latency_ns: the sum of the segments'.
    """

    ends: tuple[int, ...]
    stages: tuple[tuple[int, int], ...]
    streamed_bytes: int
    latency_ns: int


class SegmentKey(Protocol):
    """Ranks the segments of a stage where all else is equal: the smallest key comes first."""

    def __call__(self, start: int, end: int) -> int | tuple[int, ...]:
        """start, end: numbers of the cuts before and after the segment."""


@dataclass(frozen=True, slots=True)
class PathSize:
    """How many stages of each class and how many devices of each kind a path has. of_kind: the class of each kind."""

    stages: Counts
    devices: Counts
    of_kind: tuple[int, ...] = (0,)

    def by_class(self, devices: Counts) -> list[int]:
        """Devices of all kinds of each class."""
        totals = [0] * len(self.stages)
        for count, own in zip(devices, self.of_kind, strict=True):
            totals[own] += count
        return totals


class _Move(NamedTuple):
    """A stage that takes a segment of one option. stage, used: numbers of the stages and the devices before it, and after."""

    stage: int
    used: int
    stage_after: int
    used_after: int
    option: int


class _Label(NamedTuple):
    """What a path on from a node comes to."""

    streamed_bytes: int
    latency_ns: int


_Node = tuple[int, int, int]  # numbers of the stages so far and of the devices in use, cut


def best_path(
    cuts: int, size: PathSize, options: Sequence[StageOptions], key: SegmentKey, most_ns: int | None = None
) -> CutPath:
    """The path from cut 0 to the last of `cuts` cuts that the tie rules name.

    Only paths of exactly this size count; there must be one. most_ns: the highest latency, None for any.
    """
    streamed = [option.streamed_bytes for option in options]
    times = [option.latency_ns for option in options]
    graph = _StageGraph(cuts, size, options)
    least_streamed, latency = graph.keep_lightest(streamed), graph.keep_lightest(times)
    if most_ns is None or latency <= most_ns:
        return CutPath(*graph.first_path(key), least_streamed, latency)
    # The path that streams least takes too long: streaming and latency are weighed against each other.
    return _StageGraph(cuts, size, options).least_streaming_path(streamed, times, most_ns, key)


class _StageGraph:
    """The graph of (stages so far, devices in use, cut), whose edges are dropped as rules are applied.

    kept: for each move, which of its option's segments are still edges. Moves are in order of their stages, so that one
    pass over them in this order relaxes every edge after all edges that lead to it: a topological order.
    """

    def __init__(self, cuts: int, size: PathSize, options: Sequence[StageOptions]) -> None:
        self.cuts, self.size, self.options = cuts, size, options
        self.stages, self.devices = CountNumbers(size.stages), CountNumbers(size.devices)
        self.kept = {move: np.arange(len(options[move.option].start)) for move in self._moves()}
        self._from: dict[tuple[int, int], list[_Move]] = {}
        for move in self.kept:
            self._from.setdefault((move.stage, move.used), []).append(move)

    def _moves(self) -> Iterator[_Move]:
        """All moves after which the remaining stages can still take exactly the remaining devices."""
        size, most_replicas = self.size, max((option.replicas for option in self.options), default=1)
        totals = size.by_class(size.devices)
        in_use = [size.by_class(vector) for vector in self.devices.vectors]
        for stage, stages in enumerate(self.stages.vectors):
            for used, own in enumerate(in_use):
                # Each earlier stage took a device at least.
                if any(count < least or (not least and count) for least, count in zip(stages, own, strict=True)):
                    continue
                for k, option in enumerate(self.options):
                    of = size.of_kind[option.kind]
                    if stages[of] == size.stages[of]:
                        continue
                    if self.devices.vectors[used][option.kind] + option.replicas > size.devices[option.kind]:
                        continue
                    stage_after = stage + self.stages.strides[of]
                    used_after = used + option.replicas * self.devices.strides[option.kind]
                    # Each remaining stage takes from 1 to most_replicas devices.
                    left = zip(size.stages, self.stages.vectors[stage_after], totals, in_use[used_after], strict=True)
                    if all(a - b <= n - u <= (a - b) * most_replicas for a, b, n, u in left):
                        yield _Move(stage, used, stage_after, used_after, k)

    def keep_lightest(self, weights: Sequence[IntArray]) -> int:
        """The least total weight of a path; edges on no path of this weight are dropped. weights: by option."""
        forward, _ = self._distances(weights)
        # All stages, all devices, the last cut: where every path ends.
        lightest = int(forward[-1, -1, self.cuts - 1])
        self._keep_within(weights, lightest)
        return lightest

    def _keep_within(self, weights: Sequence[IntArray], most: int) -> None:
        """Drop the edges that lie on no path of at most this total weight."""
        forward, backward = self._distances(weights)
        for move, kept in self.kept.items():
            start, end = self._ends(move, kept)
            # An edge lies on a path of at most this weight where the lightest path through it does.
            through = forward[move.stage, move.used, start] + weights[move.option][kept]
            self.kept[move] = kept[through + backward[move.stage_after, move.used_after, end] <= most]

    def _distances(self, weights: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
        """[stages, devices in use, cut]: the least weight of a path from the first cut, and of one to the last cut."""
        shape = (len(self.stages.vectors), len(self.devices.vectors), self.cuts)
        forward, backward = np.full(shape, _UNREACHED, np.int64), np.full(shape, _UNREACHED, np.int64)
        forward[0, 0, 0] = backward[-1, -1, self.cuts - 1] = 0
        # Several edges may end in one node, so `minimum.at`.
        for move, kept in self.kept.items():
            start, end = self._ends(move, kept)
            reached = forward[move.stage, move.used, start] + weights[move.option][kept]
            np.minimum.at(forward[move.stage_after, move.used_after], end, reached)
        for move, kept in reversed(self.kept.items()):
            start, end = self._ends(move, kept)
            rest = backward[move.stage_after, move.used_after, end] + weights[move.option][kept]
            np.minimum.at(backward[move.stage, move.used], start, rest)
        return forward, backward

    def first_path(self, key: SegmentKey) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Ends and stages (see `CutPath`) of the path whose segments come first; all edges left lie on some path."""
        ends: list[int] = []
        stages: list[tuple[int, int]] = []
        cut = used = stage = 0
        for _ in range(sum(self.size.stages)):
            _, replicas, kind, cut, _, used, stage = min(
                (key(cut, end), self.options[k].replicas, self.options[k].kind, end, k, used_after, stage_after)
                for (_, _, stage_after, used_after, k), _, end in self._leaving(stage, used, cut)
            )
            ends.append(cut)
            stages.append((kind, replicas))
        return tuple(ends), tuple(stages)

    def least_streaming_path(
        self, streamed: Sequence[IntArray], times: Sequence[IntArray], most_ns: int, key: SegmentKey
    ) -> CutPath:
        """Of the paths whose times sum to at most most_ns, the one that streams least, then takes least, then comes first.

        streamed, times: by option.
        """
        self._keep_within(times, most_ns)  # fewer edges mean shorter fronts
        forward, _ = self._distances(times)
        # Where a part of a path is dominated, exchanging it makes a better path: so every rest of the best path is on
        # the Pareto front of the node where it starts, and the path can be followed by its labels.
        fronts: dict[_Node, list[_Label]] = {
            (len(self.stages.vectors) - 1, len(self.devices.vectors) - 1, self.cuts - 1): [_Label(0, 0)]
        }
        for move, segment, start, end in self._edges_backwards():
            weight = int(streamed[move.option][segment]), int(times[move.option][segment])
            # A rest that takes longer than this cannot be completed to a path within most_ns.
            time_left = most_ns - int(forward[move.stage, move.used, start])
            rests = fronts.get((move.stage_after, move.used_after, end), ())
            longer = (_Label(s + weight[0], t + weight[1]) for s, t in rests)
            node = move.stage, move.used, start
            fronts[node] = _non_dominated(
                [*fronts.get(node, ()), *(label for label in longer if label.latency_ns <= time_left)]
            )
        best = fronts[0, 0, 0][0]
        return CutPath(*self._follow(fronts, best, (streamed, times), key), *best)

    def _follow(
        self,
        fronts: dict[_Node, list[_Label]],
        left: _Label,
        weights: tuple[Sequence[IntArray], Sequence[IntArray]],
        key: SegmentKey,
    ) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """As `first_path`, among the paths that come to exactly this label."""
        ends: list[int] = []
        stages: list[tuple[int, int]] = []
        cut = used = stage = 0
        streamed, times = weights
        for _ in range(sum(self.size.stages)):
            allowed = []
            for move, segment, end in self._leaving(stage, used, cut):
                option, k = self.options[move.option], move.option
                rest = _Label(left.streamed_bytes - int(streamed[k][segment]), left.latency_ns - int(times[k][segment]))
                # An edge belongs to a path with the label where what remains of the label is on the front behind it.
                after = move.stage_after, move.used_after
                if rest in fronts.get((*after, end), ()):
                    allowed.append((key(cut, end), option.replicas, option.kind, end, k, after, rest))
            _, replicas, kind, cut, _, (stage, used), left = min(allowed)
            ends.append(cut)
            stages.append((kind, replicas))
        return tuple(ends), tuple(stages)

    def _ends(self, move: _Move, segments: IndexArray) -> tuple[IndexArray, IndexArray]:
        """The cuts before and after some segments of a move's option."""
        option = self.options[move.option]
        return option.start[segments], option.end[segments]

    def _edges_backwards(self) -> Iterator[tuple[_Move, int, int, int]]:
        """(move, number of the segment in its option, start, end) of all edges, those of the last stage first."""
        for move, kept in reversed(self.kept.items()):
            starts, ends = self._ends(move, kept)
            for segment, start, end in zip(kept.tolist(), starts.tolist(), ends.tolist(), strict=True):
                yield move, segment, start, end

    def _leaving(self, stage: int, used: int, cut: int) -> Iterator[tuple[_Move, int, int]]:
        """(move, number of the segment in its option, end) of the edges that leave a node."""
        for move in self._from.get((stage, used), ()):
            option, kept = self.options[move.option], self.kept[move]
            here = kept[option.start[kept] == cut]
            for segment, end in zip(here.tolist(), option.end[here].tolist(), strict=True):
                yield move, segment, end


def _non_dominated(labels: Sequence[_Label]) -> list[_Label]:
    """The Pareto front: labels of which no other is at most as large in both numbers, ascending in the first.

    >>> _non_dominated([_Label(2, 5), _Label(1, 9), _Label(3, 5), _Label(1, 8)])
    [_Label(streamed_bytes=1, latency_ns=8), _Label(streamed_bytes=2, latency_ns=5)]
    """
    front: list[_Label] = []
    for label in sorted(set(labels)):
        if not front or label.latency_ns < front[-1].latency_ns:
            front.append(label)
    return front
