"""Ways through numbered cuts, one segment a stage: of those with equal periods, which one the tie rules name.

Fewest streamed bytes, then lowest latency, then the segment whose ops come first, stage by stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NEVER = np.int64(1) << 60


@dataclass(frozen=True, slots=True)
class Choice:
    """Segments that may each be a stage on so many devices of one kind.

    kind: number of the kind. start, end: numbers of the cuts before and after each segment. streamed_bytes: of all
    replicas together. time_ns: of one input.
    """

    kind: int
    replicas: int
    start: Any
    end: Any
    streamed_bytes: Any
    time_ns: Any


@dataclass(frozen=True, slots=True)
class Way:
    """ends: the cut after each stage. stages: (kind, replicas) of each. latency_ns: the sum of the stages' times."""

    ends: tuple[int, ...]
    stages: tuple[tuple[int, int], ...]
    streamed_bytes: int
    latency_ns: int


def best_way(  # noqa: PLR0913 - one question's data
    cuts: int,
    stages: int,
    devices: tuple[int, ...],
    choices: Sequence[Choice],
    key: Callable[[int, int], Any],
    most_ns: int | None = None,
) -> Way:
    """The way from cut 0 to the last one that the tie rules name, among those of just so many stages on just so many
    devices of each kind; there is one. key: of the segment between two cuts, the smallest comes first. most_ns: of the
    sum of the stages' times, None for any.
    """
    streamed, times = ([getattr(choice, name) for choice in choices] for name in ("streamed_bytes", "time_ns"))
    ways = _Ways(cuts, stages, devices, choices)
    least_streamed, latency = ways.keep_cheapest(streamed), ways.keep_cheapest(times)
    if most_ns is None or latency <= most_ns:
        return Way(*ways.first(key), least_streamed, latency)
    # The way that streams least takes too long: the two are weighed against each other.
    return _Ways(cuts, stages, devices, choices).least_streaming(streamed, times, most_ns, key)


class _Ways:
    """kept: (stage, devices in use before it, number of the choice) -> which of the choice's segments still count."""

    def __init__(self, cuts: int, stages: int, devices: tuple[int, ...], choices: Sequence[Choice]) -> None:
        self.cuts, self.stages, self.choices = cuts, stages, choices
        self.vectors = list(product(*(range(count + 1) for count in devices)))
        self.number = {vector: k for k, vector in enumerate(self.vectors)}
        self.most = max((choice.replicas for choice in choices), default=1)
        self.kept = {move: np.arange(len(choices[move[2]].start)) for move in self._moves()}

    def _moves(self) -> Iterator[tuple[int, int, int]]:
        """In order of the stages, as far as the rest can still be taken."""
        total = sum(self.vectors[-1])
        for stage in range(self.stages):
            for used, vector in enumerate(self.vectors):
                if sum(vector) < stage or (stage == 0) != (used == 0):
                    continue
                for c in range(len(self.choices)):
                    after = self._after(used, c)
                    stages_left = self.stages - stage - 1
                    if after is not None:
                        left = total - sum(self.vectors[after])
                        if stages_left <= left <= stages_left * self.most:
                            yield stage, used, c

    def _after(self, used: int, c: int) -> int | None:
        """The devices in use after a choice; None where there are not so many."""
        vector = list(self.vectors[used])
        vector[self.choices[c].kind] += self.choices[c].replicas
        return self.number.get(tuple(vector))

    def keep_cheapest(self, weights: Sequence[Any]) -> int:
        """The least total weight of a way; segments that are on none of that weight go."""
        forward, _ = self._totals(weights)
        best = int(forward[self.stages, -1, self.cuts - 1])
        self._keep_within(weights, best)
        return best

    def _keep_within(self, weights: Sequence[Any], most: int) -> None:
        """Drop the segments that are on no way of at most this total weight."""
        forward, backward = self._totals(weights)
        for (stage, used, c), kept in self.kept.items():
            start, end = self.choices[c].start[kept], self.choices[c].end[kept]
            rest = backward[stage + 1, self._after(used, c), end]
            self.kept[stage, used, c] = kept[forward[stage, used, start] + weights[c][kept] + rest <= most]

    def _totals(self, weights: Sequence[Any]) -> tuple[Any, Any]:
        """The least weight from the first cut, and to the last one, for each stage, devices in use and cut."""
        forward, backward = self._table(), self._table()
        forward[0, 0, 0] = backward[self.stages, -1, self.cuts - 1] = 0
        for (stage, used, c), kept in self.kept.items():
            start, end = self.choices[c].start[kept], self.choices[c].end[kept]
            np.minimum.at(forward[stage + 1, self._after(used, c)], end, forward[stage, used, start] + weights[c][kept])
        for (stage, used, c), kept in reversed(self.kept.items()):
            start, end = self.choices[c].start[kept], self.choices[c].end[kept]
            rest = backward[stage + 1, self._after(used, c), end]
            np.minimum.at(backward[stage, used], start, rest + weights[c][kept])
        return forward, backward

    def least_streaming(
        self, streamed: Sequence[Any], times: Sequence[Any], most_ns: int, key: Callable[[int, int], Any]
    ) -> Way:
        """Of the ways whose times sum to at most most_ns, the one that streams least, then takes least, then comes first.

        labels: (stage, devices in use, cut) -> the non-dominated (streamed bytes, ns) of the ways on from there. Each way
        on of the best way is non-dominated where it starts, so that it can be followed by its labels.
        """
        self._keep_within(times, most_ns)
        forward, _ = self._totals(times)
        labels: dict[tuple[int, int, int], list[tuple[int, int]]] = {
            (self.stages, len(self.vectors) - 1, self.cuts - 1): [(0, 0)]
        }
        for stage, used, c, k, start, end in self._segments_backwards():
            there = labels.get((stage + 1, self._after(used, c) or 0, end), ())
            left = most_ns - int(forward[stage, used, start])
            more = [(s + int(streamed[c][k]), t + int(times[c][k])) for s, t in there]
            found = labels.setdefault((stage, used, start), [])
            found[:] = _non_dominated([*found, *(label for label in more if label[1] <= left)])
        best = labels[0, 0, 0][0]
        return Way(*self._follow(labels, best, (streamed, times), key), *best)

    def _follow(
        self,
        labels: dict[tuple[int, int, int], list[tuple[int, int]]],
        left: tuple[int, int],
        weights: tuple[Sequence[Any], Sequence[Any]],
        key: Callable[[int, int], Any],
    ) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """The way with just this label that comes first."""
        ends: list[int] = []
        taken: list[tuple[int, int]] = []
        at = used = 0
        for stage in range(self.stages):
            options = []
            for c, k, end in self._leaving(stage, used, at):
                rest = (left[0] - int(weights[0][c][k]), left[1] - int(weights[1][c][k]))
                if rest in labels.get((stage + 1, self._after(used, c) or 0, end), ()):
                    options.append((key(at, end), self.choices[c].replicas, self.choices[c].kind, end, c, rest))
            _, replicas, kind, at, c, left = min(options)
            ends.append(at)
            taken.append((kind, replicas))
            used = self._after(used, c) or 0
        return tuple(ends), tuple(taken)

    def _segments_backwards(self) -> Iterator[tuple[int, int, int, int, int, int]]:
        """(stage, devices in use, choice, number in it, start, end), last stages first."""
        for (stage, used, c), kept in reversed(self.kept.items()):
            columns = kept, self.choices[c].start[kept], self.choices[c].end[kept]
            for k, start, end in zip(*(column.tolist() for column in columns), strict=True):
                yield stage, used, c, k, start, end

    def _leaving(self, stage: int, used: int, at: int) -> Iterator[tuple[int, int, int]]:
        """(choice, number in it, end) of the segments that may be this stage after these devices and this cut."""
        for (k, u, c), kept in self.kept.items():
            if (k, u) == (stage, used):
                here = kept[self.choices[c].start[kept] == at]
                yield from (
                    (c, n, end) for n, end in zip(here.tolist(), self.choices[c].end[here].tolist(), strict=True)
                )

    def _table(self) -> Any:
        return np.full((self.stages + 1, len(self.vectors), self.cuts), NEVER, np.int64)

    def first(self, key: Callable[[int, int], Any]) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Cuts, and kind and replicas of each stage, of the way whose segments come first; fewer replicas first."""
        ends, taken, at, used = [], [], 0, 0
        for stage in range(self.stages):
            _, replicas, kind, at, c = min(
                (key(at, end), self.choices[c].replicas, self.choices[c].kind, end, c)
                for c, _, end in self._leaving(stage, used, at)
            )
            ends.append(at)
            taken.append((kind, replicas))
            used = self._after(used, c) or 0
        return tuple(ends), tuple(taken)


def _non_dominated(labels: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pairs of which no other is at most as large in both, ascending in the first."""
    found: list[tuple[int, int]] = []
    for label in sorted(set(labels)):
        if not found or label[1] < found[-1][1]:
            found.append(label)
    return found
