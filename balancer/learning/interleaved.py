"""Times short functions on a machine that does other things, too.

All functions are timed in turn, round after round, so that a slow minute meets all of them. What counts is the time in which
this thread computes: a core that another program takes does not add to it. But a core is slower while its neighbour computes
(they share units, caches, the clock), so another thread computes all the time, as another stage of a plan would: each sample
then stands for the same state, whatever else runs. A reference is timed beside the functions. Rounds in which it was
unusually fast or slow are left out, and the median of the others is taken.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from balancer.ground.arrays import FloatArray

_GROUP = 8  # functions between two runs of the reference
_REPEATS = 3  # in one round; the middle one counts
_USUAL = (0.2, 0.8)  # quantiles of the reference between which a round counts


@dataclass(frozen=True, slots=True)
class TimingLimits:
    """When to stop. rounds: at most. seconds: no round begins after that many. least_rounds: are run in any case."""

    rounds: int = 25
    seconds: float = 60.0
    least_rounds: int = 5


@dataclass(frozen=True, slots=True)
class Clocks:
    """What time is read from. computing_ns: ns in which this thread computed. now_s: seconds, for the limit."""

    computing_ns: Callable[[], int] = time.thread_time_ns
    now_s: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class Timings:
    """What was measured.

    ns: of each function. spread: for each, the quartiles' distance as a share of the median. rounds: how many there were.
    slowest: how many times its best the reference took in the slowest round.
    """

    ns: tuple[int, ...]
    spread: tuple[float, ...]
    rounds: int
    slowest: float


DEFAULT, CLOCKS = TimingLimits(), Clocks()


def interleaved(
    runs: Sequence[Callable[[], object]], reference: Callable[[], object], limits: TimingLimits = DEFAULT, *,
    clocks: Clocks = CLOCKS, progress: Callable[[int], None] = lambda done: None,
) -> Timings:  # fmt: skip
    """The time of each function in ns. progress: called with the number of rounds that are done.

    Raises ValueError if there is nothing to time.
    """
    if not runs:
        raise ValueError("there is nothing to time")
    until = clocks.now_s() + limits.seconds
    samples: list[list[int]] = []
    references: list[list[int]] = []
    for run in (reference, *runs):
        run()  # the first call of an interpreter lays out memory
    while len(samples) < limits.rounds and (len(samples) < limits.least_rounds or clocks.now_s() < until):
        times, beside = _round(runs, reference, clocks.computing_ns)
        samples.append(times)
        references.append(beside)
        progress(len(samples))
    return _summary(np.array(samples, float), np.array(references, float))


def _round(
    runs: Sequence[Callable[[], object]], reference: Callable[[], object], clock: Callable[[], int]
) -> tuple[list[int], list[int]]:
    """The time of each function in one round, and that of the reference next to it."""
    times: list[int] = []
    beside: list[int] = []
    before = _typical(reference, clock)
    for first in range(0, len(runs), _GROUP):
        group = runs[first : first + _GROUP]
        times += [_typical(run, clock) for run in group]
        after = _typical(reference, clock)
        beside += [(before + after) // 2] * len(group)
        before = after
    return times, beside


def _typical(run: Callable[[], object], clock: Callable[[], int]) -> int:
    taken: list[int] = []
    for _ in range(_REPEATS):
        start = clock()
        run()
        taken.append(clock() - start)
    return max(1, sorted(taken)[_REPEATS // 2])


def _summary(samples: FloatArray, references: FloatArray) -> Timings:
    """samples, references: of shape (rounds, functions)."""
    low, high = np.quantile(references, _USUAL, axis=0)
    kept = np.where((references >= low) & (references <= high), samples, np.nan)
    lower, middle, upper = np.nanquantile(kept, (0.25, 0.5, 0.75), axis=0)
    spread = (upper - lower) / np.maximum(middle, 1)
    return Timings(
        tuple(int(ns) for ns in np.maximum(1, np.rint(middle))), tuple(float(s) for s in spread), len(samples),
        float(references.max() / references.min()),
    )  # fmt: skip


@contextmanager
def beside(work: Callable[[], object] | None) -> Iterator[None]:
    """While the body runs, another thread does this work again and again. None: nothing runs beside it."""
    if work is None:
        yield
        return
    ended = threading.Event()

    def go_on() -> None:
        while not ended.is_set():
            work()

    companion = threading.Thread(target=go_on, name="companion", daemon=True)
    companion.start()
    try:
        yield
    finally:
        ended.set()
        companion.join()
