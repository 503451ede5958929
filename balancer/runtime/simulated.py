"""Simulated Edge TPUs: after a latency that is given, they give computed outputs, recorded ones, or none.

Time runs as on a device: an inference starts when it is handed over, or when the one before has ended, whichever is
later. A program wakes up a little late from a sleep and a device does not, so the oversleeping is taken off the next
inference.
"""

from __future__ import annotations

import math
import os
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from balancer.errors import StageError
from balancer.workers import WorkerLost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from balancer.inputs import Array
    from balancer.runtime.tensors import Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How one simulated TPU behaves with one segment.

    stage_ns: time it is busy for one input. first_ns: added for the first input, when parameters are loaded. jitter:
    standard deviation of the time, as a share of stage_ns. failing, hanging, dying: how many of a million inferences
    fail, never end, or end the device. seed: of the random numbers for these.
    """

    stage_ns: int
    first_ns: int = 0
    jitter: float = 0.0
    failing: int = 0
    hanging: int = 0
    dying: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for a negative or infinite time or share."""
        for name, value in (("stage_ns", self.stage_ns), ("first_ns", self.first_ns), ("jitter", self.jitter)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, not {value!r}")


class Outputs(Protocol):
    """Where a simulated TPU's outputs come from."""

    def __call__(self, item: int, tensors: Tensors) -> None:
        """Add the segment's outputs for the item with this number."""


def no_outputs(item: int, tensors: Tensors) -> None:
    """Add no outputs, where only rates are of interest."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Outputs that were computed before: item k gets those of items[k % len(items)]."""

    items: Sequence[Mapping[str, Array]]

    def __call__(self, item: int, tensors: Tensors) -> None:
        for name, value in self.items[item % len(self.items)].items():
            tensors[name] = read_only(value)


def read_only(array: Array) -> Array:
    """A view on the array that cannot be written to, for an array that is given out more than once."""
    view = array.view()
    view.flags.writeable = False
    return view


_AWAKE_NS = 200_000  # the last part of a wait, which is not slept
_LONGEST_SLEEP_NS = 50_000_000  # so that `interrupt` is seen
_MOST_LATE_NS = 1_000_000  # of oversleeping taken off the next inference: no more than this,
_LATE_SHARE = 20  # and no more than stage_ns / 20


@dataclass(slots=True)
class SimulatedTpu:
    """A simulated TPU as an executor. outputs: adds what it computes. seconds: after this time an inference that hangs
    fails. die: ends the process, where the executor has a process of its own.
    """

    segment: str
    behaviour: Behaviour
    outputs: Outputs = no_outputs
    seconds: float = 60.0
    die: Callable[[], None] | None = None
    _dice: random.Random = field(init=False, repr=False)
    _free_ns: int = 0
    _late_ns: int = 0
    _started: bool = False
    _closed: bool = False

    def __post_init__(self) -> None:
        self._dice = random.Random(f"{self.segment} {self.behaviour.seed}")

    def run(self, item: int, tensors: Tensors) -> None:
        """One inference. Raises StageError where it fails or hangs, WorkerLost where the device is gone."""
        handed = time.perf_counter_ns() - self._late_ns
        end = max(handed, self._free_ns) + self._latency_ns()
        self._misfortune(item)
        self.outputs(item, tensors)
        while not self._closed and (left := end - time.perf_counter_ns()) > 0:
            # A sleep, even of no time, ends late by as much as a short stage takes. The last part is therefore spent
            # awake, giving way to other threads.
            if left > _AWAKE_NS:
                time.sleep(min(left - _AWAKE_NS, _LONGEST_SLEEP_NS) / 1e9)
            else:
                os.sched_yield()
        # Copying outputs may take longer than the inference should; that is no oversleeping. Only a small part of the time
        # is made up for, or the next inference would be measured as shorter than it is.
        late = max(0, time.perf_counter_ns() - end)
        self._late_ns = min(late, _MOST_LATE_NS, self.behaviour.stage_ns // _LATE_SHARE)
        self._free_ns = end

    def _latency_ns(self) -> int:
        truth = self.behaviour
        factor = max(0.0, 1 + truth.jitter * self._dice.gauss(0, 1)) if truth.jitter else 1.0
        load = 0 if self._started else truth.first_ns
        self._started = True
        return int(truth.stage_ns * factor) + load

    def _misfortune(self, item: int) -> None:
        """Fail, hang or die as often as the behaviour says; one random number for each inference."""
        truth = self.behaviour
        if not truth.failing + truth.hanging + truth.dying:
            return
        fate = self._dice.randrange(1_000_000)
        if fate < truth.failing:
            raise StageError("the simulated inference failed", f"{self.segment}, item {item}", "try again")
        if fate < truth.failing + truth.hanging:
            end = time.monotonic() + self.seconds
            # In a process of its own it hangs for ever: the parent has a time limit and ends the process.
            while not self._closed and (self.die is not None or time.monotonic() < end):
                time.sleep(0.01)
            what = f"the simulated TPU did not answer within {self.seconds:g} s"
            raise StageError(what, f"{self.segment}, item {item}", "try again")
        if fate < truth.failing + truth.hanging + truth.dying:
            if self.die is None:
                raise WorkerLost(f"{self.segment}: the simulated TPU is gone")
            self.die()

    def interrupt(self) -> None:
        self._closed = True

    def close(self) -> None:
        self._closed = True
