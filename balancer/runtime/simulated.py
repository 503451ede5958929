"""Simulated Edge TPUs: after the latency of their own truth they give true outputs, recorded ones, or none.

Time is kept as by a device that is handed work: an inference starts when it is handed over, or when the one before has
ended. Programs wake up a little late; a device would not, so that what was slept too long is taken off the next one.
"""

from __future__ import annotations

import math
import os
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from balancer.errors import StageError
from balancer.workers import WorkerLost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from balancer.runtime.tensors import Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What is true of one simulated TPU with one segment. stage_ns: busy for one input. first_ns: more, for the first
    one (parameters are loaded). jitter: standard deviation as a share of stage_ns. failing, hanging, dying: of each
    million inferences, so many fail, never end, or end the device. seed: of its own dice.
    """

    stage_ns: int
    first_ns: int = 0
    jitter: float = 0.0
    failing: int = 0
    hanging: int = 0
    dying: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for times and shares that no device can have."""
        for name, value in (("stage_ns", self.stage_ns), ("first_ns", self.first_ns), ("jitter", self.jitter)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be from 0 on, and finite, not {value!r}")


class Outputs(Protocol):
    """Where a simulated TPU's outputs come from."""

    def __call__(self, item: int, tensors: Tensors) -> None:
        """Add the segment's outputs for the item with this number."""


def no_outputs(item: int, tensors: Tensors) -> None:
    """None are computed: for rates alone."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Outputs that were computed before: those of item k % len(items)."""

    items: Sequence[Mapping[str, Any]]

    def __call__(self, item: int, tensors: Tensors) -> None:
        for name, value in self.items[item % len(self.items)].items():
            tensors[name] = read_only(value)


def read_only(array: Any) -> Any:
    """The same array, which is given out more than once, for nobody to write to."""
    view = array.view()
    view.flags.writeable = False
    return view


_AWAKE_NS = 200_000
_LATE_SHARE = 20


@dataclass(slots=True)
class SimulatedTpu:
    """An executor. outputs: what it gives. seconds: after which one that hangs is given up. die: how it ends its
    process, where it has one of its own.
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
        """One inference. Raises StageError where this one fails."""
        handed = time.perf_counter_ns() - self._late_ns
        end = max(handed, self._free_ns) + self._latency_ns()
        self._misfortune(item)
        self.outputs(item, tensors)
        while not self._closed and (left := end - time.perf_counter_ns()) > 0:
            # A sleep, even of no time, ends late by as much as a short stage takes: the last of it is waited for awake.
            if left > _AWAKE_NS:
                time.sleep(min(left - _AWAKE_NS, 50_000_000) / 1e9)
            else:
                os.sched_yield()
        # Recorded outputs take the host some time to hand on; what goes beyond the end is no oversleeping. No more is made
        # up for than a small part of the time, or the next inference would be measured as shorter than it is.
        self._late_ns = min(max(0, time.perf_counter_ns() - end), 1_000_000, self.behaviour.stage_ns // _LATE_SHARE)
        self._free_ns = end

    def _latency_ns(self) -> int:
        truth = self.behaviour
        factor = max(0.0, 1 + truth.jitter * self._dice.gauss(0, 1)) if truth.jitter else 1.0
        load = 0 if self._started else truth.first_ns
        self._started = True
        return int(truth.stage_ns * factor) + load

    def _misfortune(self, item: int) -> None:
        truth = self.behaviour
        if not truth.failing + truth.hanging + truth.dying:
            return
        fate = self._dice.randrange(1_000_000)
        if fate < truth.failing:
            raise StageError("the simulated inference failed", f"{self.segment}, item {item}", "try again")
        if fate < truth.failing + truth.hanging:
            end = time.monotonic() + self.seconds
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
