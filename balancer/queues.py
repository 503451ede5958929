"""The queues between workers, and the results put back in order. Part of `workers`, which is the layer above.

                 reserve, then fill (or give_up)                 get
    `put` -------------------------------------> Channel ------------------> worker of the first stage
                                                    ^                               |
                                                    +---- put_back, or settle ------+   put
                                                                                        v
                                                                                     Channel --> ... --> last stage
                 enter (takes a number, or waits)                      take                                 | put
    `put` -------------------------------------> Results ------------------> `get`                          v
                                                    ^-------------------------------------------------------+

Channels and results go through the same phases, in this order only (see `Phase`):

    phase    | what goes in                | what comes out          | next phase
    ---------+-----------------------------+-------------------------+-----------------------------------------------
    OPEN     | items                       | items                   | ENDING (close, finish) or STOPPED (drop, stop)
    ENDING   | items entered before: `fill`| items, then `Finished`  | STOPPED
    STOPPED  | nothing: `Stopped`          | nothing                 | -

Every method takes the queue's one lock, so each is atomic. Two conditions share that lock: one for those that wait for
an item, one for those that wait for a free place. `notify` wakes one waiter and is enough where one item or place became
available. `notify_all` is needed where the phase may be over for all waiters.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from threading import TIMEOUT_MAX, Condition, Lock
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Stopped(Exception):
    """The workers were told to stop."""


class Finished(Exception):
    """All items have come out, and no more will go in."""


class Phase(IntEnum):
    """How far a queue is in its life. It only ever grows; the table stands at the head of the module."""

    OPEN = 0
    ENDING = 1
    STOPPED = 2


OPEN, ENDING, STOPPED = Phase  # looked up several times for each item


@dataclass(slots=True)
class Job:
    """An item on its way. number: from 0, in the order of `put`. since_ns: when it entered the queue that it is in."""

    number: int
    value: Any
    since_ns: int = 0


class Channel:
    """A bounded queue of jobs, for several putters and several workers.

    `close` lets what is in it come out; `drop` discards it. A closed channel is over once no job can come any more: it is
    empty, no place is reserved, and every job that was taken out is settled. A job that is not settled may come back
    (`put_back`), so the workers that have nothing to do must not leave before.
    """

    def __init__(self, capacity: int) -> None:
        """capacity: jobs that it holds, reserved places included."""
        self._items: deque[Job] = deque()
        self._capacity, self._reserved, self._unsettled = capacity, 0, 0
        self._phase = OPEN
        lock = Lock()
        self._filled, self._freed = Condition(lock), Condition(lock)

    def put(self, job: Job) -> None:
        """Add a job, waiting for a free place. Raises Stopped once the channel is dropped."""
        with self._freed:
            # A closed channel still takes jobs: the stage before may hand on what it has.
            while len(self._items) >= self._capacity and self._phase is not STOPPED:
                self._freed.wait()
            self._refuse_stopped()
            self._items.append(job)
            self._filled.notify()

    def reserve(self, timeout: float | None) -> None:
        """Wait for a free place and keep it for `fill`.

        Raises TimeoutError, Stopped once the channel is dropped, or Finished once it is closed.
        """
        with self._freed:
            _wait(
                self._freed,
                lambda: len(self._items) + self._reserved < self._capacity or self._phase is not OPEN,
                timeout,
            )
            self._refuse_stopped()
            if self._phase is ENDING:
                raise Finished
            self._reserved += 1

    def fill(self, job: Job) -> None:
        """Put a job into the reserved place. Raises Stopped once the channel is dropped."""
        with self._filled:
            self._reserved -= 1
            self._refuse_stopped()
            self._items.append(job)
            # All, not one: where this was the last reserved place of a closed channel, the workers that get no job
            # must see that the channel is over.
            self._filled.notify_all()

    def give_up(self) -> None:
        """Free the reserved place: no job comes for it."""
        with self._filled:
            self._reserved -= 1
            self._filled.notify_all()  # a closed channel may be over now
            self._freed.notify()

    def get(self) -> Job:
        """Take the next job, waiting for one; it must be settled or put back afterwards.

        Raises Finished once the channel is over or dropped.
        """
        with self._filled:
            while not self._items:
                if self._is_over():
                    raise Finished
                self._filled.wait()
            self._unsettled += 1
            self._freed.notify()
            return self._items.popleft()

    def settle(self) -> None:
        """A job that was taken out will not come back."""
        with self._filled:
            self._unsettled -= 1
            if self._phase is not OPEN:
                self._filled.notify_all()  # it may be over now; while it is open, nobody waits for this

    def put_back(self, job: Job) -> None:
        """Return a job that was taken out; it is the next one to be taken.

        Never waits for a free place: a worker that leaves its job to another one must not wait for the others.
        """
        with self._filled:
            self._unsettled -= 1
            if self._phase is not STOPPED:
                self._items.appendleft(job)
            self._filled.notify_all()

    def close(self) -> None:
        """No place can be reserved any more. What is in the channel still comes out."""
        with self._filled:
            self._phase = max(self._phase, ENDING)
            self._wake_all()

    def drop(self) -> None:
        """Discard what is in the channel. Nothing goes in or comes out any more."""
        with self._filled:
            self._phase = STOPPED
            self._items.clear()
            self._wake_all()

    def _is_over(self) -> bool:
        """With the lock held, and no job in the channel."""
        if self._phase is ENDING:
            return not self._reserved and not self._unsettled
        return self._phase is STOPPED

    def _refuse_stopped(self) -> None:
        if self._phase is STOPPED:
            raise Stopped

    def _wake_all(self) -> None:
        self._filled.notify_all()
        self._freed.notify_all()


class Results:
    """Puts results back in order, and limits how many items are in flight.

    Numbers are given in order (`enter`), results arrive in any order (`put`) and leave in order (`take`). An item is in
    flight from `enter` to `take`; the items in flight have consecutive numbers.
    """

    def __init__(self, most: int) -> None:
        """most: items in flight."""
        self._done: dict[int, Any] = {}
        self._most = most
        self._entered = self._taken = 0
        self._phase = OPEN
        lock = Lock()
        self._ready, self._freed = Condition(lock), Condition(lock)

    def enter(self, timeout: float | None) -> int:
        """The next item's number, once fewer than `most` items are in flight.

        Raises Stopped, Finished or TimeoutError.
        """
        with self._freed:
            _wait(
                self._freed,
                lambda: self._phase is not OPEN or self._entered - self._taken < self._most,
                timeout,
            )
            self._refuse_stopped()
            if self._phase is ENDING:
                raise Finished
            self._entered += 1
            return self._entered - 1

    def withdraw(self) -> None:
        """Take back the number that was given last: no item was made for it."""
        with self._ready:
            self._entered -= 1
            self._ready.notify_all()  # after `finish` this may have been the last item that a `take` waits for
            self._freed.notify()

    def put(self, number: int, value: Any) -> None:
        """The result of an item. Never waits: `enter` has limited how many there can be."""
        with self._ready:
            self._done[number] = value
            # Any other result is not the next one, and wakes nobody.
            if number == self._taken:
                self._ready.notify_all()

    def take(self, timeout: float | None) -> Any:
        """The next result. Raises Stopped, Finished or TimeoutError."""
        with self._ready:
            _wait(
                self._ready,
                lambda: self._phase is STOPPED or self._taken in self._done or self._is_over(),
                timeout,
            )
            self._refuse_stopped()
            if self._taken not in self._done:
                raise Finished
            value = self._done.pop(self._taken)
            self._taken += 1
            self._freed.notify()
            # The result after this one may be there already, and `put` woke nobody for it.
            self._ready.notify_all()
            return value

    def finish(self) -> None:
        """No more numbers are given. The items in flight still come out."""
        with self._ready:
            self._phase = max(self._phase, ENDING)
            self._wake_all()

    def stop(self) -> None:
        """Discard the results. Nothing goes in or comes out any more."""
        with self._ready:
            self._phase = STOPPED
            self._done.clear()
            self._wake_all()

    @property
    def in_flight(self) -> int:
        """Items that entered and were not taken."""
        return self._entered - self._taken

    def _is_over(self) -> bool:
        return self._phase is ENDING and self._taken == self._entered

    def _refuse_stopped(self) -> None:
        if self._phase is STOPPED:
            raise Stopped

    def _wake_all(self) -> None:
        self._ready.notify_all()
        self._freed.notify_all()


def time_left(end: float | None) -> float | None:
    """Seconds until this time of the monotonic clock: from 0 to the longest that `threading` can wait. None: for ever.

    >>> time_left(None)
    >>> time_left(0.0)
    0.0
    """
    return None if end is None else max(0.0, min(end - monotonic(), TIMEOUT_MAX))


def _wait(condition: Condition, met: Callable[[], bool], timeout: float | None) -> None:
    """Wait until it is met, with the condition's lock held. Raises TimeoutError; what is met already never times out."""
    end = None if timeout is None else monotonic() + timeout
    while not met():
        left = time_left(end)
        if left == 0:
            raise TimeoutError
        condition.wait(left)
