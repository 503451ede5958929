"""Threads with bounded queues around callables: order, failure, shutdown, statistics. Knows no device.

A line is a row of stages; a stage has one or more workers (replicas), which share its queue. Several lines side by side
take items from one queue, each as fast as it goes; one with a stage whose workers are all lost takes no more. Each item
comes out once, as a result or as a `Failure`, in the order in which the items went in. What fails in one stage is
handed past the others of its line. Items that are in flight, or done and not yet taken, are limited: who puts more
waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import TIMEOUT_MAX, Condition, Lock, Thread
from time import monotonic, perf_counter_ns
from typing import Any

Work = Callable[[Any], Any]
_SAMPLES = 4096  # busy times kept of a stage, the latest ones


@dataclass(frozen=True, slots=True)
class Failure:
    """What became of an item that a stage could not work on. line, stage: where; item: its number, from 0."""

    stage: int
    error: Exception
    line: int = 0
    item: int = 0


class Stopped(Exception):
    """The workers were told to stop."""


class Finished(Exception):
    """All items have come out, and no more will go in."""


class WorkerLost(Exception):
    """Raised by a worker that cannot go on: another one of its stage takes over, and the item with it."""


@dataclass(slots=True)
class StageTimes:
    """Sums over a stage's workers, in ns. busy: working. starved: waiting for an item. blocked: waiting for room behind
    it. queued: what its items waited before it.
    """

    items: int = 0
    busy_ns: int = 0
    starved_ns: int = 0
    blocked_ns: int = 0
    queued_ns: int = 0
    samples: deque[int] = field(default_factory=lambda: deque(maxlen=_SAMPLES))


@dataclass(slots=True)
class _Job:
    number: int
    value: Any
    since_ns: int = 0


class _Channel:
    """A bounded queue that can be closed (what is in it still comes out) and dropped (it does not)."""

    def __init__(self, room: int) -> None:
        self._items: deque[_Job] = deque()
        self._room = room
        self._closed = self._dropped = False
        lock = Lock()
        self._filled, self._freed = Condition(lock), Condition(lock)

    def put(self, job: _Job) -> None:
        """Waits for room. Raises Stopped once it is dropped."""
        with self._freed:
            while len(self._items) >= self._room and not self._dropped:
                self._freed.wait()
            if self._dropped:
                raise Stopped
            self._items.append(job)
            self._filled.notify()

    def await_room(self, timeout: float | None) -> None:
        """Raises TimeoutError, or Stopped once it is dropped."""
        with self._freed:
            _wait(self._freed, lambda: len(self._items) < self._room or self._closed, timeout)
            if self._dropped:
                raise Stopped

    def get(self) -> _Job:
        """Waits for an item. Raises Finished once it is closed and empty."""
        with self._filled:
            while not self._items:
                if self._closed:
                    raise Finished
                self._filled.wait()
            self._freed.notify()
            return self._items.popleft()

    def put_back(self, job: _Job) -> None:
        """Before all others, room or not."""
        with self._filled:
            if not self._dropped:
                self._items.appendleft(job)
                self._filled.notify()

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


class _Results:
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


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, min(end - monotonic(), TIMEOUT_MAX))


def _wait(condition: Condition, met: Callable[[], bool], timeout: float | None) -> None:
    end = None if timeout is None else monotonic() + timeout
    while not met():
        left = _left(end)
        if left == 0:
            raise TimeoutError
        condition.wait(left)


class Workers:
    """Lines of stages of workers, running from the start until `stop`, or until `finish` and the last result.

    lines: for each line its stages, for each stage its workers. depth: items that wait before a stage. most: items in
    flight, or done and not taken; by default as many as there are places.
    """

    def __init__(self, lines: Sequence[Sequence[Sequence[Work]]], *, depth: int = 2, most: int | None = None) -> None:
        places = sum(len(workers) + depth for line in lines for workers in line)
        self.results = _Results(most or places + depth)
        self.times = [[StageTimes() for _ in line] for line in lines]
        self._first = _Channel(depth)
        self._channels = [self._first]
        self._threads: list[Thread] = []
        self._lock = Lock()
        self._given_up: set[int] = set()
        self._given_up_lock = Lock()
        for i, line in enumerate(lines):
            inbox = self._first
            for k, workers in enumerate(line):
                outbox = _Channel(depth) if k + 1 < len(line) else None
                stage = _Stage(self, i, k, inbox, outbox, len(workers))
                self._threads += [Thread(target=stage.serve, args=(w,), name=f"line {i} stage {k}") for w in workers]
                if outbox is not None:
                    self._channels.append(outbox)
                    inbox = outbox
        for thread in self._threads:
            thread.start()

    def put(self, value: Any, timeout: float | None = None) -> int:
        """Hand in an item, waiting for room; its number. Raises TimeoutError, Stopped, or Finished after `finish`."""
        return self.put_made(lambda number: value, timeout)

    def put_made(self, make: Callable[[int], Any], timeout: float | None = None) -> int:
        """The same for an item that is made from its number, once there is room for it."""
        end = None if timeout is None else monotonic() + timeout
        # One at a time: numbers go into the queue in their order, and the room that one has seen stays its own.
        if not self._lock.acquire(timeout=-1 if timeout is None else min(timeout, TIMEOUT_MAX)):
            raise TimeoutError
        try:
            self._first.await_room(_left(end))
            number = self.results.enter(_left(end))
            self._first.put(_Job(number, make(number), perf_counter_ns()))
            return number
        finally:
            self._lock.release()

    def get(self, timeout: float | None = None) -> Any:
        """The next result or Failure. Raises TimeoutError, Stopped, or Finished after the last one."""
        return self.results.take(timeout)

    def finish(self) -> None:
        """No more items; those in flight still come out."""
        self.results.finish()
        self._first.close()

    def stop(self) -> None:
        """Drop what is in flight; who waits gets Stopped. What a worker is at is finished first: see `join`."""
        self.results.stop()
        for channel in self._channels:
            channel.drop()

    def join(self) -> None:
        """Wait until all threads have ended, after `stop`, or `finish` and the last result."""
        for thread in self._threads:
            thread.join()

    def give_up(self, line: int) -> bool:
        """A stage of the line has no worker left: it gets no more items, if there is another line to take them."""
        with self._given_up_lock:
            if line not in self._given_up and len(self._given_up) + 1 < len(self.times):
                self._given_up.add(line)
            return line in self._given_up

    def is_given_up(self, line: int) -> bool:
        return line in self._given_up

    def reset_times(self) -> None:
        """Forget what was measured so far."""
        for line in self.times:
            line[:] = [StageTimes() for _ in line]


class _Stage:
    """One stage of one line."""

    def __init__(  # noqa: PLR0913 - where it stands
        self, workers: Workers, line: int, stage: int, inbox: _Channel, outbox: _Channel | None, count: int
    ) -> None:
        self.workers, self.line, self.stage = workers, line, stage
        self.inbox, self.outbox = inbox, outbox
        self.left = count
        self.lock = Lock()

    def serve(self, work: Work) -> None:
        """A worker's thread."""
        idle = perf_counter_ns()
        try:
            while True:
                job = self.inbox.get()
                if not self.stage and self.workers.is_given_up(self.line):
                    self._pass_on(job)
                start = perf_counter_ns()
                self._handle(job, work)
                end = perf_counter_ns()
                queued, starved, job.since_ns = start - job.since_ns, start - idle, end
                self._hand_on(job)
                idle = perf_counter_ns()
                self._count(queued, starved, end - start, idle - end)
        except (Finished, Stopped):
            self._leave()
        except WorkerLost:
            pass  # has left already

    def _leave(self) -> None:
        with self.lock:
            self.left -= 1
            if not self.left and self.outbox is not None:
                self.outbox.close()

    def _pass_on(self, job: _Job) -> None:
        """Leave the item, before anything was done to it, and this line with it."""
        self.inbox.put_back(job)
        self._leave()
        raise WorkerLost

    def _hand_over(self, job: _Job) -> bool:
        """Leave the item to another worker of the stage; or, in a first stage, to another line. Whether there is one."""
        with self.lock:
            if self.left == 1:
                if not self.workers.give_up(self.line) or self.stage:
                    return False
                self.left = 0
            else:
                self.left -= 1
            last = not self.left
        self.inbox.put_back(job)
        if last and self.outbox is not None:
            self.outbox.close()
        return True

    def _handle(self, job: _Job, work: Work) -> None:
        if isinstance(job.value, Failure):
            return
        try:
            job.value = work(job.value)
        except WorkerLost as error:
            if self._hand_over(job):
                raise
            job.value = Failure(self.stage, error, self.line, job.number)
        except Exception as error:  # noqa: BLE001 - the thread's edge: handed on, raised by the caller
            job.value = Failure(self.stage, error, self.line, job.number)

    def _hand_on(self, job: _Job) -> None:
        if self.outbox is not None:
            self.outbox.put(job)
        else:
            self.workers.results.put(job.number, job.value)

    def _count(self, queued: int, starved: int, busy: int, blocked: int) -> None:
        with self.lock:
            times = self.workers.times[self.line][self.stage]
            times.items += 1
            times.busy_ns += busy
            times.queued_ns += queued
            times.starved_ns += starved
            times.blocked_ns += blocked
            times.samples.append(busy)


def run_all(stages: Sequence[Work], items: Iterable[Any], depth: int = 2) -> Iterator[Any]:
    """Each item's result, or its Failure, in the order of the items. Items are taken as fast as the line takes them."""
    workers = Workers([[[work] for work in stages]], depth=depth)
    try:
        under_way, most = 0, depth * len(stages) + len(stages)
        for item in items:
            if under_way == most:
                yield workers.get()
                under_way -= 1
            workers.put(item)
            under_way += 1
        workers.finish()
        for _ in range(under_way):
            yield workers.get()
    finally:
        workers.stop()
        workers.join()
