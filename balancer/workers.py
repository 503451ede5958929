"""Threads with bounded queues around callables: order, failure, shutdown, statistics. Knows no device.

A line is a row of stages. A stage has one or more workers (replicas), a thread each, that share the stage's queue.
Several lines side by side take items from one queue, each as fast as it can. With two lines:

                    +--> line 0: stage 0 [w w] --> Channel --> stage 1 [w] --+
    put --> Channel |                                                        +--> Results --> get
                    +--> line 1: stage 0 [w]   --> Channel --> stage 1 [w] --+

Each item comes out once, as a result or as a `Failure`, in the order in which the items went in. An item that fails in
one stage passes the later stages of its line unchanged. The number of items in flight is limited: `put` waits for a
result to be taken.

A line here is a pipeline elsewhere: stages one after the other. A worker goes from state to state as the table in
`worker_states` says; `_Worker` has one method for each state.
A worker whose device is lost leaves its item to another worker of the stage. In a first stage without another worker,
the item goes to another line. A line with a stage whose workers are all lost is given up: it takes no more items, and
those that are in it fail.

Why the threads are daemons: Python joins the other threads before it calls `atexit`'s functions, and before it collects
a generator that was left unfinished. Workers that wait for an item would therefore keep a script alive for ever that left its
pipeline open.
`threading` has no public hook before that point, and the private one that `concurrent.futures` uses is called while the
user's own threads still work. So an `atexit` function stops and joins the workers: after the user's threads have ended,
and before the interpreter is torn down.
"""

from __future__ import annotations

import atexit
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import TIMEOUT_MAX, Lock, RLock, Thread
from time import monotonic, perf_counter_ns
from typing import Any

from balancer.queues import Channel, Finished, Job, Results, Stopped, time_left
from balancer.worker_states import (
    ACCEPTED,
    DONE,
    FAILED_JOB,
    HANDING_ON,
    JOB,
    LEFT,
    LINE_GIVEN_UP,
    LOST,
    OVER,
    REFUSED,
    WAITING,
    WORKING,
    WorkerEvent,
    next_state,
)

Work = Callable[[Any], Any]  # from an item to what the next stage takes, or to the result: any value
_SAMPLES = 4096  # busy times kept of a stage, the latest ones


@dataclass(frozen=True, slots=True)
class Failure:
    """Takes the place of the result of an item that failed. line, stage: where; item: its number, from 0."""

    stage: int
    error: Exception
    line: int = 0
    item: int = 0


class WorkerLost(Exception):
    """Raised by a worker that cannot go on: another worker of its stage takes over its item and all later ones."""


@dataclass(slots=True)
class StageTimes:
    """Sums over a stage's workers, in ns. busy: working. starved: waiting for an item. blocked: waiting for a free place
    in the next queue. queued: time that its items waited in the queue before it. samples: busy times, one an item.
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
    flight, which are those that went in and were not taken; by default as many as workers and queues can hold.
    """

    def __init__(self, lines: Sequence[Sequence[Sequence[Work]]], *, depth: int = 2, most: int | None = None) -> None:
        """Starts all threads. Raises RuntimeError where the system refuses one; then none is left."""
        places = sum(len(workers) + depth for line in lines for workers in line)
        self.results = Results(most or places + depth)
        self.times = [[StageTimes() for _ in line] for line in lines]
        self._first = Channel(depth)
        self._channels = [self._first]
        self._threads: list[Thread] = []
        self._process = os.getpid()
        self._put_lock = (
            RLock()
        )  # reentrant: a signal's handler may call `join` in the thread that it interrupts in `put`
        self._given_up: set[int] = set()
        self._given_up_lock = Lock()
        for i, line in enumerate(lines):
            inbox = self._first
            for k, workers in enumerate(line):
                outbox = Channel(depth) if k + 1 < len(line) else None
                stage = _Stage(self, i, k, inbox, outbox, len(workers))
                self._threads += [
                    Thread(target=_Worker(stage, w).serve, name=f"line {i} stage {k}", daemon=True) for w in workers
                ]
                if outbox is not None:
                    self._channels.append(outbox)
                    inbox = outbox
        self._start()

    def _start(self) -> None:
        atexit.register(self._end)
        started = []
        try:
            for thread in self._threads:
                thread.start()
                started.append(thread)
        except BaseException:
            self.stop()
            self._threads = started  # a thread that was not started cannot be joined
            self.join()
            raise

    def _end(self) -> None:
        """Called when Python ends. A forked child inherits the registration, but no threads: it has nothing to end."""
        if os.getpid() == self._process:  # pragma: no cover - as Python ends: test_endings, in child processes
            self.stop()
            self.join()

    def put(self, value: Any, timeout: float | None = None) -> int:
        """Hand in an item, waiting for a free place. Returns its number.

        Raises TimeoutError, Stopped after `stop`, or Finished after `finish`.
        """
        return self.put_made(lambda number: value, timeout)

    def put_made(self, make: Callable[[int], Any], timeout: float | None = None) -> int:
        """The same for an item that is made from its number, once there is a free place for it.

        What `make` raises is raised here; the number then goes to the next item.
        """
        end = None if timeout is None else monotonic() + timeout
        # One putter at a time, from the place's reservation until it is filled: items go into the queue in the order
        # of their numbers, and `withdraw` takes back the number that was given last.
        if not self._put_lock.acquire(timeout=-1 if timeout is None else min(timeout, TIMEOUT_MAX)):
            raise TimeoutError
        try:
            # All that may wait or be refused comes before `make`, which copies the item into memory; `fill` never waits.
            self._first.reserve(time_left(end))
            try:
                job = self._entered(make, end)
            except BaseException:
                self._first.give_up()
                raise
            self._first.fill(job)
            return job.number
        finally:
            self._put_lock.release()

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
        """No more items go in. Those in flight still come out."""
        # An item that has its number by now keeps its reserved place in the channel, and comes out.
        self.results.finish()
        self._first.close()

    def stop(self) -> None:
        """Discard what is in flight. Whoever waits in `put` or `get` gets Stopped.

        A worker first finishes the item that it works on; `join` waits for it.
        """
        self.results.stop()
        for channel in self._channels:
            channel.drop()

    def join(self) -> None:
        """After `stop`, or after `finish` and the last result: wait until all threads and all calls of `put` have ended."""
        for thread in self._threads:
            thread.join()
        with self._put_lock:  # a `put` in another thread may still make its item
            pass
        atexit.unregister(self._end)

    def give_up(self, line: int) -> bool:
        """Give up a line, one of whose stages has no worker left, unless it is the last line. Whether it is given up."""
        with self._given_up_lock:
            if line not in self._given_up and len(self._given_up) + 1 < len(self.times):
                self._given_up.add(line)
            return line in self._given_up

    def is_given_up(self, line: int) -> bool:
        """Whether the line takes no more items."""
        return line in self._given_up

    def reset_times(self) -> None:
        """Forget what was measured so far."""
        for line in self.times:
            line[:] = [StageTimes() for _ in line]


class _Stage:
    """One stage of one line: its queues, and how many of its workers are left."""

    def __init__(  # noqa: PLR0913 - where it stands
        self, workers: Workers, line: int, stage: int, inbox: Channel, outbox: Channel | None, count: int
    ) -> None:
        self.workers, self.line, self.stage = workers, line, stage
        self.inbox, self.outbox = inbox, outbox
        self.left = count
        self.lock = Lock()

    def is_given_up(self) -> bool:
        """Whether this is the first stage of a line that takes no more items."""
        return not self.stage and self.workers.is_given_up(self.line)

    def leave(self) -> None:
        """A worker leaves. With the last one, nothing more comes for the next stage."""
        with self.lock:
            self.left -= 1
            last = not self.left
        if last:
            self._close()

    def hand_over(self, job: Job) -> bool:
        """Leave the job to another worker of the stage or, in a first stage, to another line. Whether there is one.

        Where there is, the caller has left the stage; where there is none, it stays and fails the job.
        """
        with self.lock:
            # Decided and counted in one step: of two workers that are lost at the same time, each would otherwise
            # leave its job to the other.
            if self.left == 1:
                given_up = self.workers.give_up(self.line)
                if not given_up or self.stage:  # the queue before a later stage is this line's alone
                    return False
            self.left -= 1
            last = not self.left
        # Between these steps the job is in no queue. It is not settled either, so the channel is not over, and the
        # workers that are to take over the job are still there.
        self.inbox.put_back(job)
        if last:
            self._close()
        return True

    def hand_on(self, job: Job) -> None:
        """Give the job to the next stage, or its value to the results. Raises Stopped."""
        if self.outbox is not None:
            self.outbox.put(job)
        else:
            self.workers.results.put(job.number, job.value)

    def count(self, *, queued_ns: int, starved_ns: int, busy_ns: int, blocked_ns: int) -> None:
        """Add an item that was worked on to the stage's times."""
        with self.lock:
            times = self.workers.times[self.line][self.stage]
            times.items += 1
            times.busy_ns += busy_ns
            times.queued_ns += queued_ns
            times.starved_ns += starved_ns
            times.blocked_ns += blocked_ns
            times.samples.append(busy_ns)

    def _close(self) -> None:
        if self.outbox is not None:
            self.outbox.close()


class _Worker:
    """One thread of a stage. In each state it does one thing, and what comes of it leads to the next state."""

    def __init__(self, stage: _Stage, work: Work) -> None:
        self.stage, self.work = stage, work
        self.state = WAITING
        self._job = Job(-1, None)  # the one that it has, in the states between `get` and `hand_on`
        self._idle_ns = self._start_ns = 0  # when it began to wait, and when its job came
        self._acts = {WAITING: self._wait, WORKING: self._work, HANDING_ON: self._hand_on}

    def serve(self) -> None:
        """The thread's function."""
        self._idle_ns = perf_counter_ns()
        while self.state is not LEFT:
            self.state = next_state(self.state, self._acts[self.state]())

    def _wait(self) -> WorkerEvent:
        stage = self.stage
        try:
            self._job = job = stage.inbox.get()
        except Finished:
            stage.leave()
            return OVER
        # Asked after the job came: the line may have been given up while this worker waited.
        if stage.is_given_up():
            stage.inbox.put_back(job)
            stage.leave()
            return LINE_GIVEN_UP
        self._start_ns = perf_counter_ns()
        return FAILED_JOB if isinstance(job.value, Failure) else JOB

    def _work(self) -> WorkerEvent:
        job, stage = self._job, self.stage
        try:
            job.value = self.work(job.value)
        except WorkerLost as error:
            if stage.hand_over(job):
                return LOST
            job.value = Failure(stage.stage, error, stage.line, job.number)
        except Exception as error:  # noqa: BLE001 - the thread's edge: handed on, raised by the caller
            job.value = Failure(stage.stage, error, stage.line, job.number)
        return DONE

    def _hand_on(self) -> WorkerEvent:
        job, stage = self._job, self.stage
        # Settled before it is handed on, which may wait: the stage's other workers can leave meanwhile.
        stage.inbox.settle()
        end_ns = perf_counter_ns()
        start_ns, idle_ns, entered_ns = self._start_ns, self._idle_ns, job.since_ns
        worked = not isinstance(job.value, Failure)
        job.since_ns = end_ns
        try:
            stage.hand_on(job)  # from here on the job is another thread's
        except Stopped:
            stage.leave()
            return REFUSED
        self._idle_ns = perf_counter_ns()
        if worked:  # an item that failed, here or before, says nothing of how long the work takes
            stage.count(
                queued_ns=start_ns - entered_ns, starved_ns=start_ns - idle_ns,
                busy_ns=end_ns - start_ns, blocked_ns=self._idle_ns - end_ns,
            )  # fmt: skip
        return ACCEPTED


def run_all(stages: Sequence[Work], items: Iterable[Any], depth: int = 2) -> Iterator[Any]:
    """Each item's result, or its Failure, in the order of the items; a line of single workers.

    An item is taken from `items` when there is a place for it in the line.
    """
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
