"""Threads with bounded queues around callables, one after the other: order, failure, shutdown. Knows no device.

Each item goes through all stages in order and comes out as a result or as a `Failure`; what fails in one stage is
handed past the others. One STOP travels the line at the end. A worker never leaves early, so nobody before it waits
for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Full, Queue
from threading import Thread
from typing import Any

Stage = Callable[[Any], Any]


class _Stop:
    """The last thing in a line."""


STOP = _Stop()


@dataclass(frozen=True, slots=True)
class Failure:
    """What became of an item that a stage could not work on. stage: its index."""

    stage: int
    error: Exception


def _serve(stage: int, work: Stage, inbox: Queue[Any], outbox: Queue[Any]) -> None:
    while (item := inbox.get()) is not STOP:
        if not isinstance(item, Failure):
            try:
                item = work(item)
            except Exception as error:  # noqa: BLE001 - the thread's edge: handed on, raised by the caller
                item = Failure(stage, error)
        outbox.put(item)
    outbox.put(STOP)


@contextmanager
def running(stages: Sequence[Stage], depth: int = 2) -> Iterator[tuple[Queue[Any], Queue[Any]]]:
    """The queues before the first and behind the last stage, while a thread for each stage runs.

    depth: items that a queue holds. On leaving, what is under way is finished and dropped, and all threads have ended.
    """
    queues: list[Queue[Any]] = [Queue(depth) for _ in range(len(stages) + 1)]
    threads = [
        Thread(target=_serve, args=(i, work, queues[i], queues[i + 1]), name=f"stage {i}")
        for i, work in enumerate(stages)
    ]
    for thread in threads:
        thread.start()
    try:
        yield queues[0], queues[-1]
    finally:
        _close(queues[0], queues[-1])
        for thread in threads:
            thread.join()


def _close(first: Queue[Any], last: Queue[Any]) -> None:
    """Send STOP down the line, taking results while the line is full, and drop what comes out before it."""
    while True:
        try:
            first.put_nowait(STOP)
            break
        except Full:
            last.get()
    while last.get() is not STOP:
        pass


def run_all(stages: Sequence[Stage], items: Iterable[Any], depth: int = 2) -> Iterator[Any]:
    """Each item's result, or its Failure, in the order of the items. Items are taken as fast as the line takes them."""
    with running(stages, depth) as (first, last):
        under_way = 0
        most = depth * (len(stages) + 1) + len(stages) - 1
        for item in items:
            if under_way == most:
                yield last.get()
                under_way -= 1
            first.put(item)
            under_way += 1
        for _ in range(under_way):
            yield last.get()
