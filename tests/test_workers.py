"""Threads and queues: order, failure in each stage, and that nothing is left behind."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.queues import Finished, Stopped
from balancer.workers import Failure, Work, WorkerLost, Workers, run_all

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.timeout(20), pytest.mark.usefixtures("no_thread_is_left")]


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("stages", [1, 2, 6])
@pytest.mark.parametrize("items", [0, 1, 3, 50])
def test_results_come_in_the_order_of_the_items(stages: int, items: int, depth: int) -> None:
    found = list(run_all([lambda x: x + 1] * stages, range(items), depth))
    assert found == [i + stages for i in range(items)]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failure_takes_the_place_of_its_item_and_names_the_stage(failing: int) -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError(item)
        return item

    stages = [work if k == failing else (lambda x: x) for k in range(3)]
    found = list(run_all(stages, range(6)))
    assert [i for i, x in enumerate(found) if isinstance(x, Failure)] == [3]
    assert found[3].stage == failing
    assert isinstance(found[3].error, ValueError)
    assert [x for x in found if not isinstance(x, Failure)] == [0, 1, 2, 4, 5]


def test_a_consumer_may_leave_early() -> None:
    results = run_all([lambda x: x] * 3, iter(range(1000)), 1)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]


def test_an_error_in_the_items_reaches_the_caller() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        list(run_all([lambda x: x] * 2, items()))


def test_no_more_items_are_taken_than_the_line_holds() -> None:
    gate, taken = threading.Event(), []

    def items() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    def work(item: int) -> int:
        gate.wait(10)
        return item

    results = run_all([work], items(), 1)
    threading.Timer(0.2, gate.set).start()
    assert next(results) == 0
    assert len(taken) <= 5
    assert list(results) == list(range(1, 100))


def _numbers(workers: Workers, count: int) -> list[object]:
    def feed() -> None:
        for i in range(count):
            workers.put(i)
        workers.finish()

    feeder = threading.Thread(target=feed)
    feeder.start()
    found: list[object] = []
    with suppress(Finished):
        while True:
            found.append(workers.get(10))
    feeder.join()
    workers.join()
    return found


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=1, max_size=3), st.integers(1, 3),
    st.integers(1, 60), st.integers(0, 1 << 30),
)  # fmt: skip
def test_order_is_kept_with_replicas_and_lines_side_by_side(
    shape: list[list[int]], depth: int, count: int, seed: int
) -> None:
    """Whatever each worker takes: every item comes out once, in order, having passed each stage of one line."""
    dice = random.Random(seed)

    def work(line: int, stage: int) -> Work:
        def one(value: list[tuple[int, int]] | int) -> list[tuple[int, int]]:
            if dice.random() < 0.2:
                time.sleep(dice.random() / 500)
            passed = [] if isinstance(value, int) else value
            return [*passed, (line, stage)]

        return one

    lines = [[[work(i, k) for _ in range(n)] for k, n in enumerate(stages)] for i, stages in enumerate(shape)]
    found = _numbers(Workers(lines, depth=depth), count)
    assert len(found) == count
    for passed in found:
        (line,) = {place[0] for place in passed}  # type: ignore[attr-defined]
        assert [place[1] for place in passed] == list(range(len(shape[line])))  # type: ignore[attr-defined]


def test_results_are_those_of_the_items_in_their_order() -> None:
    dice = random.Random(1)

    def work(item: int) -> int:
        time.sleep(dice.random() / 200)
        return item * item

    assert _numbers(Workers([[[work] * 4], [[work] * 2]]), 100) == [i * i for i in range(100)]


def test_a_failure_names_line_stage_and_item() -> None:
    def work(item: int) -> int:
        if item == 5:
            raise ValueError("five")
        return item

    found = _numbers(Workers([[[lambda x: x], [work]]]), 8)
    failure = found[5]
    assert isinstance(failure, Failure)
    assert (failure.line, failure.stage, failure.item) == (0, 1, 5)
    assert [x for x in found if not isinstance(x, Failure)] == [0, 1, 2, 3, 4, 6, 7]


def test_a_lost_worker_leaves_its_item_to_another() -> None:
    lost: list[int] = []

    def weak(item: int) -> int:
        if item >= 3 and not lost:
            lost.append(item)
            raise WorkerLost("gone")
        time.sleep(0.001)
        return item

    assert _numbers(Workers([[[weak, weak], [lambda x: x]]]), 40) == list(range(40))
    assert len(lost) == 1


def test_the_last_worker_of_a_stage_stays_and_fails() -> None:
    def gone(item: int) -> int:
        raise WorkerLost("gone")

    found = _numbers(Workers([[[gone, gone, gone]]]), 10)
    assert all(isinstance(x, Failure) for x in found)
    assert len(found) == 10


@pytest.mark.parametrize("stage", [0, 1])
def test_a_line_with_a_lost_stage_takes_no_more(stage: int) -> None:
    """Only what is in it fails; all else goes through the others."""
    lost = []

    def gone(item: int) -> int:
        lost.append(item)
        raise WorkerLost("gone")

    def slow(item: int) -> int:
        time.sleep(0.001)
        return item

    bad: list[list[Work]] = [[gone if k == stage else slow] for k in range(2)]
    found = _numbers(Workers([bad, [[slow], [slow]]], depth=2), 100)
    failed = [k for k, x in enumerate(found) if isinstance(x, Failure)]
    assert len(failed) <= (0 if stage == 0 else 5)
    assert [x for x in found if not isinstance(x, Failure)] == [k for k in range(100) if k not in failed]
    assert lost


def test_putting_waits_for_room_and_gives_up_in_time() -> None:
    gate = threading.Event()

    def work(item: int) -> int:
        gate.wait(10)
        return item

    workers = Workers([[[work]]], depth=1)
    put = 0
    with pytest.raises(TimeoutError):
        for _ in range(100):
            workers.put(put, 0.05)
            put += 1
    assert 1 <= put <= 4
    gate.set()
    assert [workers.get(5) for _ in range(put)] == list(range(put))
    with pytest.raises(TimeoutError):
        workers.get(0.01)
    workers.stop()
    workers.join()


@pytest.mark.parametrize("where", ["put", "get", "working"])
def test_stop_wakes_whoever_waits(where: str) -> None:
    gate = threading.Event()

    def work(item: int) -> int:
        gate.wait(10)
        return item

    workers = Workers([[[work], [work]]], depth=1)
    threading.Timer(0.1, workers.stop).start()
    with pytest.raises(Stopped):
        while True:
            if where == "get":
                workers.get()
            else:
                workers.put(1)
    gate.set()
    workers.join()
    with pytest.raises(Stopped):
        workers.get()


def test_times_add_up() -> None:
    def work(item: int) -> int:
        time.sleep(0.005)
        return item

    start = time.perf_counter_ns()  # the threads begin to wait for items as soon as they exist
    workers = Workers([[[work], [work]]])
    _numbers(workers, 20)
    whole = time.perf_counter_ns() - start
    for times in workers.times[0]:
        assert times.items == 20
        assert 20 * 5_000_000 <= times.busy_ns <= whole
        assert times.busy_ns + times.starved_ns + times.blocked_ns <= whole
        assert len(times.samples) == 20
    workers.reset_times()
    assert workers.times[0][0].items == 0
