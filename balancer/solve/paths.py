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


def best_way(
    cuts: int, stages: int, devices: tuple[int, ...], choices: Sequence[Choice], key: Callable[[int, int], Any]
) -> Way:
    """The way from cut 0 to the last one that the tie rules name, among those of just so many stages on just so many
    devices of each kind; there is one. key: of the segment between two cuts, the smallest comes first.
    """
    ways = _Ways(cuts, stages, devices, choices)
    streamed = ways.keep_cheapest([choice.streamed_bytes for choice in choices])
    latency = ways.keep_cheapest([choice.time_ns for choice in choices])
    ends, taken = ways.first(key)
    return Way(ends, taken, streamed, latency)


def quickest_way(
    cuts: int, stages: int, devices: tuple[int, ...], choices: Sequence[Choice], key: Callable[[int, int], Any]
) -> Way:
    """The same where latency counts before streamed bytes."""
    ways = _Ways(cuts, stages, devices, choices)
    latency = ways.keep_cheapest([choice.time_ns for choice in choices])
    streamed = ways.keep_cheapest([choice.streamed_bytes for choice in choices])
    ends, taken = ways.first(key)
    return Way(ends, taken, streamed, latency)


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
        forward, backward = self._table(), self._table()
        forward[0, 0, 0] = backward[self.stages, -1, self.cuts - 1] = 0
        for (stage, used, c), kept in self.kept.items():
            start, end = self.choices[c].start[kept], self.choices[c].end[kept]
            np.minimum.at(forward[stage + 1, self._after(used, c)], end, forward[stage, used, start] + weights[c][kept])
        for (stage, used, c), kept in reversed(self.kept.items()):
            start, end = self.choices[c].start[kept], self.choices[c].end[kept]
            rest = backward[stage + 1, self._after(used, c), end]
            np.minimum.at(backward[stage, used], start, rest + weights[c][kept])
        best = int(forward[self.stages, -1, self.cuts - 1])
        for (stage, used, c), kept in self.kept.items():
            start, end = self.choices[c].start[kept], self.choices[c].end[kept]
            rest = backward[stage + 1, self._after(used, c), end]
            self.kept[stage, used, c] = kept[forward[stage, used, start] + weights[c][kept] + rest == best]
        return best

    def _table(self) -> Any:
        return np.full((self.stages + 1, len(self.vectors), self.cuts), NEVER, np.int64)

    def first(self, key: Callable[[int, int], Any]) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Cuts, and kind and replicas of each stage, of the way whose segments come first; fewer replicas first."""
        ends, taken, at, used = [], [], 0, 0
        for stage in range(self.stages):
            found = []
            for (k, u, c), kept in self.kept.items():
                if (k, u) == (stage, used):
                    choice = self.choices[c]
                    leaving = choice.end[kept[choice.start[kept] == at]]
                    found += [(key(at, end), choice.replicas, choice.kind, end, c) for end in leaving.tolist()]
            _, replicas, kind, end, c = min(found)
            ends.append(end)
            taken.append((kind, replicas))
            at, used = end, self._after(used, c) or 0
        return tuple(ends), tuple(taken)
