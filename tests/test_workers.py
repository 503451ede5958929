"""Threads and queues: order, failure in each stage, and that nothing is left behind."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from balancer.workers import Failure, run_all, running

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(20)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


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


def test_leaving_with_a_full_line_ends_all_threads() -> None:
    with running([lambda x: x] * 2, 1) as (first, _):
        for i in range(3):
            first.put(i)
