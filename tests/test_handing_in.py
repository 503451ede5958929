"""What goes into the workers comes out, or is refused: makers that fail, ends that come in between, lost lines."""

from __future__ import annotations

import threading
import time

import pytest

from balancer.queues import Finished, Stopped
from balancer.workers import Failure, WorkerLost, Workers

pytestmark = [pytest.mark.timeout(20), pytest.mark.usefixtures("no_thread_is_left")]


def _end(workers: Workers) -> None:
    workers.stop()
    workers.join()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_maker_that_fails_loses_no_number(error: type[BaseException]) -> None:
    def refuse(number: int) -> int:
        raise error(number)

    workers = Workers([[[lambda x: x]]], depth=1)
    for k in range(5):
        for _ in range(4):  # more often than there are places
            with pytest.raises(error):
                workers.put_made(refuse, 1)
        assert workers.put(k, 1) == k
        assert workers.get(5) == k
    assert workers.results.in_flight == 0
    workers.finish()
    with pytest.raises(Finished):
        workers.get(5)
    _end(workers)


def test_an_item_that_is_being_made_when_the_end_comes_still_comes_out() -> None:
    making, made = threading.Event(), threading.Event()

    def make(number: int) -> int:
        making.set()
        made.wait(10)
        return 7

    workers = Workers([[[lambda x: x] * 3], [[lambda x: x]]])
    putter = threading.Thread(target=workers.put_made, args=(make,))
    putter.start()
    making.wait(10)
    workers.finish()
    with pytest.raises(TimeoutError):
        workers.get(0.1)  # its workers have not left
    made.set()
    assert workers.get(5) == 7
    with pytest.raises(Finished):
        workers.get(5)
    putter.join()
    workers.join()


def test_an_item_of_a_lost_line_is_taken_over_after_the_end() -> None:
    """The other line has nothing to do any more, and waits all the same for what may come back."""
    at_work, end = threading.Barrier(3), threading.Event()

    def gone(item: int) -> int:
        at_work.wait(10)
        end.wait(10)
        raise WorkerLost("gone")

    def fine(item: int) -> int:
        if item < 2 and not end.is_set():
            at_work.wait(10)
        return item * 10

    workers = Workers([[[gone]], [[fine]]])
    for k in range(2):
        workers.put(k)
    at_work.wait(10)
    workers.finish()
    time.sleep(0.1)  # the other line would leave meanwhile
    end.set()
    assert [workers.get(5) for _ in range(2)] == [0, 10]
    with pytest.raises(Finished):
        workers.get(5)
    workers.join()


def test_joining_waits_for_who_makes_an_item() -> None:
    making, made, joined = threading.Event(), threading.Event(), threading.Event()

    def make(number: int) -> int:
        making.set()
        made.wait(10)
        return 1

    def put() -> None:
        with pytest.raises(Stopped):
            workers.put_made(make)

    def join() -> None:
        workers.join()
        joined.set()

    workers = Workers([[[lambda x: x]]])
    putter, joiner = threading.Thread(target=put), threading.Thread(target=join)
    putter.start()
    making.wait(10)
    workers.stop()
    joiner.start()
    assert not joined.wait(0.2)  # what the item is made in is still needed
    made.set()
    assert joined.wait(5)
    putter.join()
    joiner.join()


def test_only_what_was_worked_on_counts_as_time() -> None:
    """A failure passes the stages behind it in no time: that is not how long they take."""

    def work(item: int) -> int:
        if item % 2:
            raise ValueError(item)
        return item

    def slow(item: int) -> int:
        time.sleep(0.005)
        return item

    workers = Workers([[[work], [slow]]])
    found = []
    for k in range(10):
        workers.put(k)
        found.append(workers.get(5))
    assert sum(isinstance(x, Failure) for x in found) == 5
    _end(workers)
    first, second = workers.times[0]
    assert (first.items, second.items) == (5, 5)
    assert min(second.samples) >= 5_000_000


def test_threads_that_cannot_all_be_started_leave_none(monkeypatch: pytest.MonkeyPatch) -> None:
    start, left = threading.Thread.start, [2]

    def limited(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError, match="can't start"):
        Workers([[[lambda x: x] * 4]])
