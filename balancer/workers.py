"""Threads with bounded queues around callables: order, failure, shutdown, statistics. Knows no device.

A line is a row of stages; a stage has one or more workers (replicas), which share its queue. Several lines side by side
take items from one queue, each as fast as it goes; one with a stage whose workers are all lost takes no more. Each item
comes out once, as a result or as a `Failure`, in the order in which the items went in. What fails in one stage is
handed past the others of its line. Items that are in flight, or done and not yet taken, are limited: who puts more
waits.

Python joins threads that are no daemons before it calls `atexit`'s functions, and before it collects a generator that
nobody ended: workers that wait for an item would keep such a script for ever. `threading` has no public hook before
that, and the private one that `concurrent.futures` uses is called while threads of the user's own are still at work.
So workers are daemons, and `atexit` stops and joins them: after the user's threads, and before the interpreter goes.
"""

from __future__ import annotations

import atexit
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import TIMEOUT_MAX, Lock, RLock, Thread
from time import monotonic, perf_counter_ns
from typing import Any

from balancer.queues import Channel, Finished, Job, Results, Stopped, time_left

Work = Callable[[Any], Any]
_SAMPLES = 4096  # busy times kept of a stage, the latest ones


@dataclass(frozen=True, slots=True)
class Failure:
    """What became of an item that a stage could not work on. line, stage: where; item: its number, from 0."""

    stage: int
    error: Exception
    line: int = 0
    item: int = 0


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


class Workers:
    """Lines of stages of workers, running from the start until `stop`, or until `finish` and the last result.

    lines: for each line its stages, for each stage its workers. depth: items that wait before a stage. most: items in
    flight, or done and not taken; by default as many as there are places.
    """

    def __init__(self, lines: Sequence[Sequence[Sequence[Work]]], *, depth: int = 2, most: int | None = None) -> None:
        places = sum(len(workers) + depth for line in lines for workers in line)
        self.results = Results(most or places + depth)
        self.times = [[StageTimes() for _ in line] for line in lines]
        self._first = Channel(depth)
        self._channels = [self._first]
        self._threads: list[Thread] = []
        self._process = os.getpid()
        self._lock = RLock()  # a signal's handler may join what it interrupts in `put`
        self._given_up: set[int] = set()
        self._given_up_lock = Lock()
        for i, line in enumerate(lines):
            inbox = self._first
            for k, workers in enumerate(line):
                outbox = Channel(depth) if k + 1 < len(line) else None
                stage = _Stage(self, i, k, inbox, outbox, len(workers))
                self._threads += [
                    Thread(target=stage.serve, args=(w,), name=f"line {i} stage {k}", daemon=True) for w in workers
                ]
                if outbox is not None:
                    self._channels.append(outbox)
                    inbox = outbox
        self._start()

    def _start(self) -> None:
        """All threads. Raises RuntimeError where the system has no room for one; then there is none."""
        atexit.register(self._end)
        started = []
        try:
            for thread in self._threads:
                thread.start()
                started.append(thread)
        except BaseException:
            self.stop()
            self._threads = started
            self.join()
            raise

    def _end(self) -> None:
        """When Python ends. A child that was forked has no such threads, and nothing to end."""
        if os.getpid() == self._process:
            self.stop()
            self.join()

    def put(self, value: Any, timeout: float | None = None) -> int:
        """Hand in an item, waiting for room; its number. Raises TimeoutError, Stopped, or Finished after `finish`."""
        return self.put_made(lambda number: value, timeout)

    def put_made(self, make: Callable[[int], Any], timeout: float | None = None) -> int:
        """The same for an item that is made from its number, once there is room for it. What `make` raises is raised,
        and the number is the next item's.
        """
        end = None if timeout is None else monotonic() + timeout
        # One at a time: numbers go into the queue in their order, and the room that one has seen stays its own.
        if not self._lock.acquire(timeout=-1 if timeout is None else min(timeout, TIMEOUT_MAX)):
            raise TimeoutError
        try:
            self._first.reserve(time_left(end))
            try:
                job = self._entered(make, end)
            except BaseException:
                self._first.give_up()
                raise
            self._first.fill(job)
            return job.number
        finally:
            self._lock.release()

    def _entered(self, make: Callable[[int], Any], end: float | None) -> Job:
        number = self.results.enter(time_left(end))
        try:
            return Job(number, make(number), perf_counter_ns())
        except BaseException:
            self.results.withdraw()
            raise

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
        """Wait until all threads have ended and nobody is in `put`, after `stop`, or `finish` and the last result."""
        for thread in self._threads:
            thread.join()
        with self._lock:  # who made an item meanwhile is done with it
            pass
        atexit.unregister(self._end)

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
        self, workers: Workers, line: int, stage: int, inbox: Channel, outbox: Channel | None, count: int
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
                self.inbox.settle()
                end = perf_counter_ns()
                queued, starved, job.since_ns = start - job.since_ns, start - idle, end
                worked = not isinstance(job.value, Failure)
                self._hand_on(job)
                idle = perf_counter_ns()
                if worked:  # what failed, here or before, says nothing of how long the work takes
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

    def _pass_on(self, job: Job) -> None:
        """Leave the item, before anything was done to it, and this line with it."""
        self.inbox.put_back(job)
        self._leave()
        raise WorkerLost

    def _hand_over(self, job: Job) -> bool:
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

    def _handle(self, job: Job, work: Work) -> None:
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

    def _hand_on(self, job: Job) -> None:
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


def run_at_once(task: Callable[[int], None], count: int, stop: Callable[[], None]) -> None:
    """Do task(0) to task(count - 1) side by side, in a thread each, until all have ended. What the first that fails raises
    is raised, after `stop`, which is to end the others.

    A ThreadPoolExecutor would refuse a thread that asks for this when the main one has ended.
    """
    outcomes: SimpleQueue[BaseException | None] = SimpleQueue()

    def run(k: int) -> None:
        try:
            task(k)
            outcomes.put(None)
        except BaseException as error:  # noqa: BLE001 - the thread's edge: raised by the caller
            outcomes.put(error)

    threads = [Thread(target=run, args=(k,), name=f"task {k}", daemon=True) for k in range(count)]
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            if (error := outcomes.get()) is not None:
                raise error
    except BaseException:
        stop()
        raise
    finally:
        for thread in threads:
            if thread.ident is not None:  # it was started
                thread.join()


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
