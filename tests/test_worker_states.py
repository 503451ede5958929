"""The workers' state table walked event by event, and the queues' phases call by call."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from balancer.queues import Channel, Finished, Job, Phase, Results, Stopped, time_left
from balancer.worker_states import TRANSITIONS, WorkerEvent, WorkerState, next_state
from balancer.workers import Failure, WorkerLost, Workers, run_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.timeout(20)
WAITING, WORKING, HANDING_ON, LEFT = WorkerState
LEGAL = {
    (WAITING, WorkerEvent.JOB, WORKING), (WAITING, WorkerEvent.FAILED_JOB, HANDING_ON),
    (WAITING, WorkerEvent.LINE_GIVEN_UP, LEFT), (WAITING, WorkerEvent.OVER, LEFT), (WORKING, WorkerEvent.DONE, HANDING_ON),
    (WORKING, WorkerEvent.LOST, LEFT), (HANDING_ON, WorkerEvent.ACCEPTED, WAITING), (HANDING_ON, WorkerEvent.REFUSED, LEFT),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


# The table


@pytest.mark.parametrize("state", WorkerState, ids=lambda s: s.name)
@pytest.mark.parametrize("event", WorkerEvent, ids=lambda e: e.name)
def test_each_transition_is_legal_or_refused(state: WorkerState, event: WorkerEvent) -> None:
    after = [there for here, by, there in LEGAL if (here, by) == (state, event)]
    if after:
        assert next_state(state, event) is after[0]
    else:
        with pytest.raises(ValueError, match=f"{state.name} cannot meet {event.name}"):
            next_state(state, event)


def test_every_state_leads_to_the_end_and_the_end_to_none() -> None:
    assert set(TRANSITIONS) == set(WorkerState)
    assert not TRANSITIONS[LEFT]
    reaching = {LEFT}
    for _ in WorkerState:
        reaching |= {state for state, events in TRANSITIONS.items() if reaching & set(events.values())}
    assert reaching == set(WorkerState)


# Each transition, seen from outside: what comes out, which threads are left, what is counted


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[tuple[WorkerState, WorkerEvent, WorkerState]]:
    """The transitions that workers make."""
    made = set()

    def watched(state: WorkerState, event: WorkerEvent) -> WorkerState:
        there = next_state(state, event)
        made.add((state, event, there))
        return there

    monkeypatch.setattr("balancer.workers.next_state", watched)
    return made


def _fine(item: int) -> int:
    return item


def _raise(error: Exception) -> int:
    raise error


def _until(met: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not met():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_an_item_passes_a_stage(seen: set[tuple[WorkerState, WorkerEvent, WorkerState]]) -> None:
    assert list(run_all([_fine], [1, 2])) == [1, 2]
    assert seen == {
        (WAITING, WorkerEvent.JOB, WORKING), (WORKING, WorkerEvent.DONE, HANDING_ON),
        (HANDING_ON, WorkerEvent.ACCEPTED, WAITING), (WAITING, WorkerEvent.OVER, LEFT),
    }  # fmt: skip


def test_a_failed_item_is_handed_past_the_next_stage(seen: set[tuple[WorkerState, WorkerEvent, WorkerState]]) -> None:
    worked: list[int] = []
    failed, fine = run_all(
        [lambda item: item if item else _raise(ValueError()), lambda item: worked.append(item)], [0, 1]
    )
    assert isinstance(failed, Failure)
    assert fine is None
    assert worked == [1]
    assert (WAITING, WorkerEvent.FAILED_JOB, HANDING_ON) in seen


def test_one_lost_worker_of_two_takes_its_first_item_to_the_other(
    seen: set[tuple[WorkerState, WorkerEvent, WorkerState]],
) -> None:
    calls: list[int] = []

    def once(item: int) -> int:
        calls.append(item)
        if len(calls) == 1:
            raise WorkerLost
        return item

    workers = Workers([[[once, once]]])
    workers.put(7)
    assert workers.get(5) == 7
    assert calls == [7, 7]
    assert (WORKING, WorkerEvent.LOST, LEFT) in seen
    workers.put(8)
    assert workers.get(5) == 8
    workers.finish()
    with pytest.raises(Finished):
        workers.get(5)
    workers.join()


def test_the_last_worker_of_a_later_stage_stays_and_its_line_takes_no_more(
    seen: set[tuple[WorkerState, WorkerEvent, WorkerState]],
) -> None:
    """The item was worked on in this line already, so the other line cannot have it: it fails."""

    def slow(item: int) -> int:
        time.sleep(0.001)
        return -item

    def feed() -> None:
        for item in range(100):
            workers.put(item)
        workers.finish()

    workers = Workers([[[_fine], [lambda item: _raise(WorkerLost("gone"))]], [[slow]]], depth=1)
    feeder = threading.Thread(target=feed)
    feeder.start()
    results = [workers.get(5) for _ in range(100)]
    feeder.join()
    workers.join()
    failures = [result for result in results if isinstance(result, Failure)]
    assert {(f.line, f.stage) for f in failures} == {(0, 1)}
    assert 1 <= len(failures) <= 5  # those that were in the line when it was given up
    assert [f.item for f in failures] == [k for k, result in enumerate(results) if isinstance(result, Failure)]
    assert [r for r in results if not isinstance(r, Failure)] == [
        -k for k, result in enumerate(results) if not isinstance(result, Failure)
    ]
    assert workers.is_given_up(0)
    assert (WAITING, WorkerEvent.LINE_GIVEN_UP, LEFT) in seen
    assert (WORKING, WorkerEvent.LOST, LEFT) not in seen


def test_both_lines_cannot_be_given_up() -> None:
    workers = Workers([[[_fine]], [[_fine]], [[_fine]]])
    assert workers.give_up(2)
    assert workers.give_up(2)  # again: it stays given up
    assert workers.give_up(0)
    assert not workers.give_up(1)
    assert [workers.is_given_up(line) for line in range(3)] == [True, False, True]
    workers.stop()
    workers.join()


def test_a_worker_that_waits_for_a_free_place_leaves_when_stopped(
    seen: set[tuple[WorkerState, WorkerEvent, WorkerState]],
) -> None:
    gate, handled = threading.Event(), []

    def first(item: int) -> int:
        handled.append(item)
        return item

    workers = Workers([[[first], [lambda item: gate.wait(10)]]], depth=1)
    for item in range(3):
        workers.put(item, 5)
    _until(lambda: len(handled) == 3)  # one is worked on behind, one waits there, the third finds no free place
    time.sleep(0.05)
    workers.stop()
    gate.set()
    workers.join()
    assert (HANDING_ON, WorkerEvent.REFUSED, LEFT) in seen


def test_times_are_split_into_their_four_parts() -> None:
    """Two stages, the second one slow: the first is blocked, the second has items queued, and neither is starved long."""
    slow_s = 0.02
    workers = Workers([[[_fine], [lambda item: time.sleep(slow_s)]]], depth=1)
    feeder = threading.Thread(target=lambda: [workers.put(item) for item in range(10)])
    feeder.start()
    for _ in range(10):
        workers.get(5)
    feeder.join()
    workers.stop()
    workers.join()
    first, second = workers.times[0]
    assert (first.items, second.items) == (10, 10)
    assert first.blocked_ns >= 5 * slow_s * 1e9
    assert second.blocked_ns < first.blocked_ns / 2
    assert second.busy_ns >= 10 * slow_s * 1e9
    assert second.queued_ns >= 5 * slow_s * 1e9
    assert first.busy_ns < second.busy_ns / 4
    assert list(second.samples) == pytest.approx([second.busy_ns / 10] * 10, rel=0.9)


def test_an_idle_worker_is_starved() -> None:
    workers = Workers([[[_fine]]])
    for item in range(3):
        time.sleep(0.03)
        workers.put(item)
        assert workers.get(5) == item
    workers.stop()
    workers.join()
    times = workers.times[0][0]
    assert times.starved_ns >= 3 * 25_000_000
    assert times.queued_ns < times.starved_ns / 3


# How much is in flight


@pytest.mark.parametrize(("depth", "workers_each"), [(1, [1]), (2, [1, 2]), (3, [2])])
def test_by_default_as_many_items_are_in_flight_as_there_are_places(depth: int, workers_each: list[int]) -> None:
    gate = threading.Event()
    stages = [[lambda item: gate.wait(10) and item] * n for n in workers_each]
    workers = Workers([stages], depth=depth)
    put = 0
    with pytest.raises(TimeoutError):
        while True:
            workers.put(put, 0.1)
            put += 1
    # The first stage's workers and the queue before it: behind them nothing moves.
    assert put == workers_each[0] + depth
    assert workers.results.in_flight == put
    gate.set()
    for _ in range(put):
        workers.get(5)
    # Nothing is taken: everything waits as a result, until `most` is reached.
    with pytest.raises(TimeoutError):
        for item in range(1000):
            workers.put(item, 0.1)
    assert workers.results.in_flight == sum(workers_each) + depth * len(workers_each) + depth
    workers.stop()
    workers.join()


def test_most_limits_what_is_in_flight() -> None:
    workers = Workers([[[_fine]]], depth=4, most=2)
    assert [workers.put(item, 1) for item in (5, 6)] == [0, 1]
    with pytest.raises(TimeoutError):
        workers.put(7, 0.05)
    assert workers.get(5) == 5
    assert workers.put(7, 1) == 2
    assert [workers.get(5), workers.get(5)] == [6, 7]
    workers.stop()
    workers.join()


def test_a_putter_that_waits_for_another_one_gives_up_in_time() -> None:
    making, made = threading.Event(), threading.Event()

    def make(number: int) -> int:
        making.set()
        made.wait(10)
        return number

    workers = Workers([[[_fine]]])
    other = threading.Thread(target=workers.put_made, args=(make,))
    other.start()
    making.wait(10)
    with pytest.raises(TimeoutError):
        workers.put(1, 0.05)
    made.set()
    other.join()
    assert workers.put(1, 1) == 1
    workers.stop()
    workers.join()


# Channels and results, without threads where none is needed


def test_a_channel_is_first_in_first_out_and_what_comes_back_is_next() -> None:
    channel = Channel(3)
    for number in range(3):
        channel.put(Job(number, None))
    first = channel.get()
    channel.put(Job(3, None))
    channel.put_back(first)  # beyond the capacity
    assert [channel.get().number for _ in range(4)] == [0, 1, 2, 3]


def test_a_channel_holds_its_capacity_reserved_places_included() -> None:
    channel = Channel(2)
    channel.put(Job(0, None))
    channel.reserve(0)
    with pytest.raises(TimeoutError):
        channel.reserve(0)
    channel.give_up()
    channel.reserve(0)
    channel.fill(Job(1, None))
    with pytest.raises(TimeoutError):
        channel.reserve(0.01)
    channel.get()
    channel.reserve(0)


def test_a_closed_channel_is_over_once_nothing_can_come() -> None:
    channel = Channel(2)
    channel.reserve(0)
    channel.put(Job(0, None))
    channel.close()
    with pytest.raises(Finished):
        channel.reserve(0)
    got: list[int] = []
    ended = threading.Event()

    def take() -> None:
        try:
            while True:
                got.append(channel.get().number)
        except Finished:
            ended.set()

    taker = threading.Thread(target=take)
    taker.start()
    _until(lambda: got == [0])
    assert not ended.wait(0.05)  # a place is reserved, and a job is not settled
    channel.fill(Job(1, None))
    _until(lambda: got == [0, 1])
    assert not ended.wait(0.05)
    channel.settle()
    assert not ended.wait(0.05)
    channel.settle()
    assert ended.wait(5)
    taker.join()


def test_a_reserved_place_that_is_given_up_ends_a_closed_channel() -> None:
    channel = Channel(1)
    channel.reserve(0)
    channel.close()
    threading.Timer(0.05, channel.give_up).start()
    with pytest.raises(Finished):
        channel.get()
    _until(
        lambda: threading.active_count() == 1 or not any(isinstance(t, threading.Timer) for t in threading.enumerate())
    )


@pytest.mark.parametrize("end", ["close", "drop"])
def test_who_waits_for_a_free_place_learns_of_the_end(end: str) -> None:
    channel = Channel(1)
    channel.put(Job(0, None))
    timer = threading.Timer(0.05, getattr(channel, end))
    timer.start()
    with pytest.raises(Finished if end == "close" else Stopped):
        channel.reserve(5)
    timer.join()


def test_a_closed_channel_still_takes_what_is_handed_on_and_a_dropped_one_nothing() -> None:
    channel = Channel(2)
    channel.close()
    channel.put(Job(0, None))
    assert channel.get().number == 0
    channel.drop()
    with pytest.raises(Stopped):
        channel.put(Job(1, None))
    with pytest.raises(Stopped):
        channel.reserve(0)
    channel.put_back(Job(0, None))
    with pytest.raises(Finished):
        channel.get()


def test_a_dropped_channel_refuses_the_reserved_place_and_stays_dropped() -> None:
    channel = Channel(1)
    channel.reserve(0)
    channel.drop()
    channel.close()  # later: it does not lead back
    with pytest.raises(Stopped):
        channel.fill(Job(0, None))
    with pytest.raises(Stopped):
        channel.reserve(0)


def test_results_leave_in_order_whatever_order_they_come_in() -> None:
    results = Results(3)
    assert [results.enter(0) for _ in range(3)] == [0, 1, 2]
    results.put(2, "c")
    results.put(0, "a")
    assert results.take(0) == "a"
    with pytest.raises(TimeoutError):
        results.take(0.01)
    results.put(1, "b")
    assert [results.take(0), results.take(0)] == ["b", "c"]
    assert results.in_flight == 0


def test_a_number_that_is_withdrawn_is_given_again() -> None:
    results = Results(1)
    assert results.enter(0) == 0
    with pytest.raises(TimeoutError):
        results.enter(0.01)
    results.withdraw()
    assert results.in_flight == 0
    assert results.enter(0) == 0


def test_withdrawing_the_last_number_ends_who_waits_for_it() -> None:
    results = Results(2)
    results.enter(0)
    results.finish()
    timer = threading.Timer(0.05, results.withdraw)
    timer.start()
    with pytest.raises(Finished):
        results.take(5)
    timer.join()


def test_finished_results_still_come_out_and_stopped_ones_do_not() -> None:
    results = Results(3)
    for _ in range(3):
        results.enter(0)
    results.put(0, "a")
    results.put(1, "b")
    results.finish()
    with pytest.raises(Finished):
        results.enter(0)
    assert results.take(0) == "a"
    results.stop()
    results.finish()  # later: it does not lead back
    for call in (results.enter, results.take):
        with pytest.raises(Stopped):
            call(0)


@pytest.mark.parametrize(("end", "error"), [("finish", Finished), ("stop", Stopped)])
def test_who_waits_for_a_number_learns_of_the_end(end: str, error: type[Exception]) -> None:
    results = Results(1)
    results.enter(0)
    timer = threading.Timer(0.05, getattr(results, end))
    timer.start()
    with pytest.raises(error):
        results.enter(5)
    timer.join()


def test_phases_only_grow() -> None:
    assert list(Phase) == sorted(Phase)
    assert [phase.name for phase in Phase] == ["OPEN", "ENDING", "STOPPED"]


def test_the_time_that_is_left_is_never_negative_and_never_too_long() -> None:
    assert time_left(None) is None
    assert time_left(time.monotonic() - 5) == 0
    assert time_left(1e30) == threading.TIMEOUT_MAX
    left = time_left(time.monotonic() + 5)
    assert left is not None
    assert 4 < left <= 5


def test_one_item_after_the_other_without_a_deadlock_at_depth_one() -> None:
    """As many items under way as the line holds, never one more."""
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(30):
            taken.append(item)
            yield item

    results = run_all([_fine, _fine, _fine], items(), 1)
    assert next(results) == 0
    assert len(taken) == 3 * 1 + 3 + 1
    assert list(results) == list(range(1, 30))
