"""What workers wait at: queues with bounds, and results put back in order. Beneath `workers`, of which they are part."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from threading import TIMEOUT_MAX, Condition, Lock
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Stopped(Exception):
    """The workers were told to stop."""


class Finished(Exception):
    """All items have come out, and no more will go in."""


@dataclass(slots=True)
class Job:
    number: int
    value: Any
    since_ns: int = 0


class Channel:
    """A bounded queue that can be closed (what is in it still comes out) and dropped (it does not).

    One that is closed is over once nothing can come any more: it is empty, no place is reserved (`reserve`, then `fill`
    or `give_up`), and what was taken out is settled or put back.
    """

    def __init__(self, room: int) -> None:
        self._items: deque[Job] = deque()
        self._room, self._reserved, self._unsettled = room, 0, 0
        self._closed = self._dropped = False
        lock = Lock()
        self._filled, self._freed = Condition(lock), Condition(lock)

    def put(self, job: Job) -> None:
        """Waits for room. Raises Stopped once it is dropped."""
        with self._freed:
            while len(self._items) >= self._room and not self._dropped:
                self._freed.wait()
            if self._dropped:
                raise Stopped
            self._items.append(job)
            self._filled.notify()

    def reserve(self, timeout: float | None) -> None:
        """A place for `fill`. Raises TimeoutError, Stopped once it is dropped, or Finished once it is closed."""
        with self._freed:
            _wait(self._freed, lambda: len(self._items) + self._reserved < self._room or self._closed, timeout)
            if self._dropped:
                raise Stopped
            if self._closed:
                raise Finished
            self._reserved += 1

    def fill(self, job: Job) -> None:
        """Put an item into the reserved place. Raises Stopped once it is dropped."""
        with self._filled:
            self._reserved -= 1
            if self._dropped:
                raise Stopped
            self._items.append(job)
            self._filled.notify_all()  # once it is closed, those that get no item must see that it is over

    def give_up(self) -> None:
        """The reserved place stays empty."""
        with self._filled:
            self._reserved -= 1
            self._filled.notify_all()
            self._freed.notify()

    def get(self) -> Job:
        """Waits for an item; to be settled, or put back. Raises Finished once it is over, or dropped."""
        with self._filled:
            while not self._items:
                if self._dropped or (self._closed and not self._reserved and not self._unsettled):
                    raise Finished
                self._filled.wait()
            self._unsettled += 1
            self._freed.notify()
            return self._items.popleft()

    def settle(self) -> None:
        """An item that was taken out will not come back."""
        with self._filled:
            self._unsettled -= 1
            if self._closed:
                self._filled.notify_all()

    def put_back(self, job: Job) -> None:
        """Before all others, room or not."""
        with self._filled:
            self._unsettled -= 1
            if not self._dropped:
                self._items.appendleft(job)
                self._filled.notify_all()

    def close(self) -> None:
        with self._filled:
            self._closed = True
            self._filled.notify_all()

    def drop(self) -> None:
        with self._filled:
            self._closed = self._dropped = True
            self._items.clear()
            self._filled.notify_all()
            self._freed.notify_all()


class Results:
    """Puts results back in order, and limits how many items are in flight."""

    def __init__(self, most: int) -> None:
        self._done: dict[int, Any] = {}
        self._most = most
        self._entered = self._taken = 0
        self._finished = self._stopped = False
        lock = Lock()
        self._ready, self._freed = Condition(lock), Condition(lock)

    def enter(self, timeout: float | None) -> int:
        """The next item's number, once there is room for it. Raises Stopped, Finished or TimeoutError."""
        with self._freed:
            _wait(
                self._freed,
                lambda: self._stopped or self._finished or self._entered - self._taken < self._most,
                timeout,
            )
            if self._stopped:
                raise Stopped
            if self._finished:
                raise Finished
            self._entered += 1
            return self._entered - 1

    def withdraw(self) -> None:
        """The last number was given to no item."""
        with self._ready:
            self._entered -= 1
            self._ready.notify_all()
            self._freed.notify()

    def put(self, number: int, value: Any) -> None:
        with self._ready:
            self._done[number] = value
            if number == self._taken:
                self._ready.notify_all()

    def take(self, timeout: float | None) -> Any:
        """The next result. Raises Stopped, Finished or TimeoutError."""
        with self._ready:
            _wait(self._ready, lambda: self._stopped or self._taken in self._done or self._is_over(), timeout)
            if self._stopped:
                raise Stopped
            if self._taken not in self._done:
                raise Finished
            value = self._done.pop(self._taken)
            self._taken += 1
            self._freed.notify()
            self._ready.notify_all()
            return value

    def _is_over(self) -> bool:
        return self._finished and self._taken == self._entered

    def finish(self) -> None:
        with self._ready:
            self._finished = True
            self._ready.notify_all()
            self._freed.notify_all()

    def stop(self) -> None:
        with self._ready:
            self._stopped = True
            self._done.clear()
            self._ready.notify_all()
            self._freed.notify_all()

    @property
    def in_flight(self) -> int:
        return self._entered - self._taken


def time_left(end: float | None) -> float | None:
    return None if end is None else max(0.0, min(end - monotonic(), TIMEOUT_MAX))


def _wait(condition: Condition, met: Callable[[], bool], timeout: float | None) -> None:
    end = None if timeout is None else monotonic() + timeout
    while not met():
        left = time_left(end)
        if left == 0:
            raise TimeoutError
        condition.wait(left)
