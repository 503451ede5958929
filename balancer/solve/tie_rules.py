"""The tie rules: of the pipelines with equal periods, which one is the answer.

Fewest streamed bytes; then lowest latency; then stage by stage: the segment with the smallest key and, for equal keys, fewer
replicas.

Pipelines are paths. Cuts are numbered, and a segment is an edge from the cut before it to the cut after it:

    cut 0 ---- segment ----> cut 3 ---- segment ----> cut 4 ---- segment ----> last cut
              2 replicas               1 replica                1 replica

A path must have a given number of stages on a given number of devices, so the nodes of the graph are
(stage, devices in use, cut). Each rule is a shortest path problem in this graph: two passes, forward and backward, give
the least weight of a path through each edge, and edges that lie on no lightest path are dropped. What is left after one
rule are exactly the paths that tie under it. The key decides last, greedily from the first stage on.

Under a limit on the latency, the path that streams least may take too long. Then streamed bytes and latency are weighed
against each other: each node gets its Pareto front of (streamed bytes, ns) over the paths on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balancer.ground.arrays import IndexArray, IntArray

_UNREACHED = np.int64(1) << 60  # above every sum of weights; two of them and a weight still fit int64


@dataclass(frozen=True, slots=True)
class StageOptions:
    """Segments that may each be a stage on the same number of devices of one kind, as columns.

    kind: number of the kind. start, end: numbers of the cuts before and after each segment. streamed_bytes: of all
    replicas together. time_ns: of one input.
    """

    kind: int
    replicas: int
    start: IndexArray
    end: IndexArray
    streamed_bytes: IntArray
    time_ns: IntArray


@dataclass(frozen=True, slots=True)
class CutPath:
    """A pipeline as a path. ends: number of the cut after each stage. stages: (kind, replicas) of each.

    streamed_bytes: of all stages and replicas. latency_ns: the sum of the stages' times, hand-overs left out.
    """

    ends: tuple[int, ...]
    stages: tuple[tuple[int, int], ...]
    streamed_bytes: int
    latency_ns: int


class SegmentKey(Protocol):
    """Ranks the segments of a stage where all else is equal: the smallest key comes first."""

    def __call__(self, start: int, end: int) -> int | tuple[int, ...]:
        """start, end: numbers of the cuts before and after the segment."""


class _Move(NamedTuple):
    """A stage that takes a segment of one option. used, used_after: numbers of the devices in use before and after."""

    stage: int
    used: int
    used_after: int
    option: int


class _Label(NamedTuple):
    """What a path on from a node comes to."""

    streamed_bytes: int
    time_ns: int


_Node = tuple[int, int, int]  # stage, number of the devices in use, cut


def best_path(  # noqa: PLR0913 - one question's data
    cuts: int,
    stages: int,
    devices: tuple[int, ...],
    options: Sequence[StageOptions],
    key: SegmentKey,
    most_ns: int | None = None,
) -> CutPath:
    """The path from cut 0 to the last of `cuts` cuts that the tie rules name.

    Only paths of exactly these numbers of stages and of devices of each kind count; there must be one. most_ns: the
    most that the stages' times may sum to, None for any.
    """
    streamed = [option.streamed_bytes for option in options]
    times = [option.time_ns for option in options]
    graph = _StageGraph(cuts, stages, devices, options)
    least_streamed, latency = graph.keep_lightest(streamed), graph.keep_lightest(times)
    if most_ns is None or latency <= most_ns:
        return CutPath(*graph.first_path(key), least_streamed, latency)
    # The path that streams least takes too long: streaming and latency are weighed against each other.
    return _StageGraph(cuts, stages, devices, options).least_streaming_path(streamed, times, most_ns, key)


class _StageGraph:
    """The graph of (stage, devices in use, cut), whose edges are dropped as rules are applied.

    kept: for each move, which of its option's segments are still edges. Moves are in order of their stages, so that one
    pass over them in this order relaxes every edge after all edges that lead to it: a topological order.
    """

    def __init__(self, cuts: int, stages: int, devices: tuple[int, ...], options: Sequence[StageOptions]) -> None:
        self.cuts, self.stages, self.options = cuts, stages, options
        self.vectors = list(product(*(range(count + 1) for count in devices)))
        self.kept = {move: np.arange(len(options[move.option].start)) for move in self._moves()}

    def _moves(self) -> Iterator[_Move]:
        """All moves after which the remaining stages can still take exactly the remaining devices."""
        number = {vector: k for k, vector in enumerate(self.vectors)}
        most_replicas = max((option.replicas for option in self.options), default=1)
        total = sum(self.vectors[-1])
        for stage in range(self.stages):
            stages_left = self.stages - stage - 1
            for used, vector in enumerate(self.vectors):
                # Each earlier stage took a device at least, and only the first stage starts with none in use.
                if sum(vector) < stage or (stage == 0) != (used == 0):
                    continue
                for k, option in enumerate(self.options):
                    after = number.get(_with_devices(vector, option))
                    # Each remaining stage takes from 1 to most_replicas devices.
                    if after is not None and (
                        stages_left <= total - sum(self.vectors[after]) <= stages_left * most_replicas
                    ):
                        yield _Move(stage, used, after, k)

    def keep_lightest(self, weights: Sequence[IntArray]) -> int:
        """The least total weight of a path; edges on no path of this weight are dropped. weights: by option."""
        forward, _ = self._distances(weights)
        # All stages, all devices, the last cut: where every path ends.
        lightest = int(forward[self.stages, -1, self.cuts - 1])
        self._keep_within(weights, lightest)
        return lightest

    def _keep_within(self, weights: Sequence[IntArray], most: int) -> None:
        """Drop the edges that lie on no path of at most this total weight."""
        forward, backward = self._distances(weights)
        for move, kept in self.kept.items():
            start, end = self._ends(move, kept)
            # An edge lies on a path of at most this weight where the lightest path through it does.
            through = forward[move.stage, move.used, start] + weights[move.option][kept]
            self.kept[move] = kept[through + backward[move.stage + 1, move.used_after, end] <= most]

    def _distances(self, weights: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
        """[stage, devices in use, cut]: the least weight of a path from the first cut, and of one to the last cut."""
        shape = (self.stages + 1, len(self.vectors), self.cuts)
        forward, backward = np.full(shape, _UNREACHED, np.int64), np.full(shape, _UNREACHED, np.int64)
        forward[0, 0, 0] = backward[self.stages, -1, self.cuts - 1] = 0
        # Several edges may end in one node, so `minimum.at`.
        for move, kept in self.kept.items():
            start, end = self._ends(move, kept)
            reached = forward[move.stage, move.used, start] + weights[move.option][kept]
            np.minimum.at(forward[move.stage + 1, move.used_after], end, reached)
        for move, kept in reversed(self.kept.items()):
            start, end = self._ends(move, kept)
            rest = backward[move.stage + 1, move.used_after, end] + weights[move.option][kept]
            np.minimum.at(backward[move.stage, move.used], start, rest)
        return forward, backward

    def first_path(self, key: SegmentKey) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Ends and stages (see `CutPath`) of the path whose segments come first; all edges left lie on some path."""
        ends: list[int] = []
        stages: list[tuple[int, int]] = []
        cut = used = 0
        for stage in range(self.stages):
            _, replicas, kind, cut, _, used = min(
                (key(cut, end), self.options[k].replicas, self.options[k].kind, end, k, used_after)
                for (_, _, used_after, k), _, end in self._leaving(stage, used, cut)
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
        fronts: dict[_Node, list[_Label]] = {(self.stages, len(self.vectors) - 1, self.cuts - 1): [_Label(0, 0)]}
        for move, segment, start, end in self._edges_backwards():
            weight = int(streamed[move.option][segment]), int(times[move.option][segment])
            # A rest that takes longer than this cannot be completed to a path within most_ns.
            time_left = most_ns - int(forward[move.stage, move.used, start])
            rests = fronts.get((move.stage + 1, move.used_after, end), ())
            longer = (_Label(s + weight[0], t + weight[1]) for s, t in rests)
            node = move.stage, move.used, start
            fronts[node] = _non_dominated(
                [*fronts.get(node, ()), *(label for label in longer if label.time_ns <= time_left)]
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
        cut = used = 0
        streamed, times = weights
        for stage in range(self.stages):
            allowed = []
            for move, segment, end in self._leaving(stage, used, cut):
                option, k = self.options[move.option], move.option
                rest = _Label(left.streamed_bytes - int(streamed[k][segment]), left.time_ns - int(times[k][segment]))
                # An edge belongs to a path with the label where what remains of the label is on the front behind it.
                if rest in fronts.get((stage + 1, move.used_after, end), ()):
                    allowed.append((key(cut, end), option.replicas, option.kind, end, k, move.used_after, rest))
            _, replicas, kind, cut, _, used, left = min(allowed)
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
        for move, kept in self.kept.items():
            if (move.stage, move.used) == (stage, used):
                option = self.options[move.option]
                here = kept[option.start[kept] == cut]
                for segment, end in zip(here.tolist(), option.end[here].tolist(), strict=True):
                    yield move, segment, end


def _with_devices(vector: tuple[int, ...], option: StageOptions) -> tuple[int, ...]:
    """The devices in use, by kind, after a stage of this option."""
    return tuple(count + option.replicas * (kind == option.kind) for kind, count in enumerate(vector))


def _non_dominated(labels: Sequence[_Label]) -> list[_Label]:
    """The Pareto front: labels of which no other is at most as large in both numbers, ascending in the first.

    >>> _non_dominated([_Label(2, 5), _Label(1, 9), _Label(3, 5), _Label(1, 8)])
    [_Label(streamed_bytes=1, time_ns=8), _Label(streamed_bytes=2, time_ns=5)]
    """
    front: list[_Label] = []
    for label in sorted(set(labels)):
        if not front or label.time_ns < front[-1].time_ns:
            front.append(label)
    return front
