"""Dividing N devices among pipelines, when the best pipeline for each number of devices is known.

Without a host in common F(N) = max over k of f(k) + F(N - k). With one, adding a pipeline can slow the others, so F
is only a bound. Partial plans are kept as long as they can still reach the best objective known, and no other is at
least as good in every respect that the end is judged by. The rate under one host never falls when a part gets faster
or its host work less, so nothing that could win is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

from balancer.solve.problem import NS_PER_S, Value, objective_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Candidate:
    """A pipeline that a plan may hold any number of times. host_ns: its host work per inference.

    settle: its streamed bytes and latency, asked for only where ties are in question: finding them takes longest.
    """

    devices: int
    rate: Fraction
    host_ns: int
    settle: Callable[[], tuple[int, int]] = field(compare=False)

    @cached_property
    def settled(self) -> tuple[int, int]:
        return self.settle()


@dataclass(frozen=True, slots=True)
class _Speed:
    """Sums over pipelines. load: host ns per second."""

    rate: Fraction = Fraction(0)
    load: Fraction = Fraction(0)

    def plus(self, candidate: Candidate) -> _Speed:
        return _Speed(self.rate + candidate.rate, self.load + candidate.rate * candidate.host_ns)

    @property
    def objective_ns(self) -> int:
        return objective_ns(self.rate / max(self.load / NS_PER_S, Fraction(1)))


@dataclass(frozen=True, slots=True)
class _Partial:
    speed: _Speed
    streamed_bytes: int
    latency_ns: int
    chosen: tuple[int, ...]  # candidates' indices, ascending

    def dominates(self, other: _Partial) -> bool:
        return (
            self.speed.rate >= other.speed.rate
            and self.speed.load <= other.speed.load
            and self.streamed_bytes <= other.streamed_bytes
            and self.latency_ns <= other.latency_ns
        )


def allocate(candidates: Sequence[Candidate], devices: int, max_pipelines: int | None) -> tuple[int, ...]:
    """Indices of the candidates, with repeats, whose plan is best on at most so many devices; ties to smaller indices.

    Raises ValueError where no candidate fits.
    """
    if not any(c.devices <= devices for c in candidates):
        raise ValueError("no candidate fits the devices")
    most = devices if max_pipelines is None else min(devices, max_pipelines)
    bound = _Bound(candidates, devices, most)
    # Partial plans by the devices used and the pipelines still allowed, which only count where they are fewer than devices.
    scarce = most < devices
    states: dict[tuple[int, int], list[_Partial]] = {(0, most): [_Partial(_Speed(), 0, 0, ())]}
    for index, candidate in enumerate(candidates):
        for used in range(candidate.devices, devices + 1):
            for left in range(most) if scarce else (most,):
                for partial in states.get((used - candidate.devices, left + scarce), ()):
                    if bound.can_win(partial.speed.plus(candidate), used):
                        _keep(states.setdefault((used, left), []), _grown(partial, index, candidate))
    plans = ((Value(p.speed.objective_ns, used, p.streamed_bytes, p.latency_ns), p.chosen)
             for (used, _), kept in states.items() if used for p in kept)  # fmt: skip
    return min(plans)[1]


def _grown(partial: _Partial, index: int, candidate: Candidate) -> _Partial:
    streamed, latency = candidate.settled
    return _Partial(
        partial.speed.plus(candidate),
        partial.streamed_bytes + streamed,
        max(partial.latency_ns, latency),
        (*partial.chosen, index),
    )


def _keep(kept: list[_Partial], new: _Partial) -> None:
    """Add a partial plan unless another dominates it; drop those that it dominates."""
    if any(old.dominates(new) for old in kept):
        return
    kept[:] = [old for old in kept if not new.dominates(old)]
    kept.append(new)


class _Bound:
    """What a partial plan can still reach, against the best of the plans that F alone would choose."""

    def __init__(self, candidates: Sequence[Candidate], devices: int, most: int) -> None:
        self.devices = devices
        self.least_host = min(c.host_ns for c in candidates)
        plans = [[_Speed()] * (devices + 1)]
        while len(plans) <= most:
            plans.append([_fastest(candidates, plans[-1], used) for used in range(devices + 1)])
            if plans[-1] == plans[-2]:
                break
        self.most_rate = [speed.rate for speed in plans[-1]]
        self.needed = Fraction(NS_PER_S, min(speed.objective_ns for row in plans for speed in row if speed.rate))

    def can_win(self, speed: _Speed, used: int) -> bool:
        more = self.most_rate[self.devices - used]
        load = (speed.load + more * self.least_host) / NS_PER_S
        return speed.rate + more >= self.needed * max(load, Fraction(1))


def _fastest(candidates: Sequence[Candidate], shorter: Sequence[_Speed], used: int) -> _Speed:
    """The highest sum of rates on at most `used` devices, from plans with one pipeline less."""
    grown = (shorter[used - c.devices].plus(c) for c in candidates if c.devices <= used)
    return max((shorter[used], *grown), key=lambda speed: speed.rate)
