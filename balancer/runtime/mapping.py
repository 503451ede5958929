"""What `Pipeline.map` needs: items pushed from a thread of their own, and no other thread that pushes or pops meanwhile."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from balancer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from balancer.runtime.items import Inputs, Result
    from balancer.workers import Failure

_LEAVING_S = 0.5  # how long a feeder that waits for its source is waited for
_POLL_S = 0.02  # how often a map that waits for a result looks whether its feeder has ended


class Pop(Protocol):
    """How a map takes results."""

    def __call__(self, timeout: float, /) -> Result | Failure | None:
        """The next result; None after the last one. Raises TimeoutError, or what the pipeline raises."""


class Turns:
    """Who uses a pipeline: any number of threads that push and pop, or one map.

    Results are matched with items by their order alone. An item pushed, or a result popped, during a map would shift all
    later ones, so it is refused. Nothing here waits.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._single = 0
        self._mapping = False

    @contextmanager
    def single(self) -> Iterator[None]:
        """The turn of one push or pop. Raises InputError during a map."""
        with self._lock:
            if self._mapping:
                raise InputError("a map or run is going on", "pipeline", "push and pop before it or after it")
            self._single += 1
        try:
            yield
        finally:
            with self._lock:
                self._single -= 1

    @contextmanager
    def mapping(self) -> Iterator[None]:
        """The turn of one map. Raises InputError during another map, a push or a pop."""
        with self._lock:
            if self._mapping:
                raise InputError("another map or run is going on", "pipeline", "wait for its end, or use push and pop")
            if self._single:
                raise InputError("another thread is in push or pop", "pipeline", "wait for its end")
            self._mapping = True
        try:
            yield
        finally:
            self._mapping = False  # one assignment: it needs no lock


class Feeder:
    """Pushes items from a thread of its own. pushed: how many; final once `over` is set, as is error, what the items
    raised. stop: ends the pipeline.
    """

    def __init__(self, push: Callable[[Inputs], int], stop: Callable[[], None], items: Iterable[Inputs]) -> None:
        """Starts the thread."""
        self.push, self.stop, self.items = push, stop, items
        self.pushed = 0
        self.error: BaseException | None = None
        self.over = threading.Event()
        self.leaving = False
        self.thread = threading.Thread(target=self._feed, name="feeder", daemon=True)
        self.thread.start()

    def _feed(self) -> None:
        try:
            for item in self.items:
                if self.leaving:
                    break
                self.push(item)
                self.pushed += 1
        except BaseException as error:  # noqa: BLE001 - the thread's edge: raised by the consumer
            self.error = error
        finally:
            self.over.set()

    def end(self) -> None:
        """End the thread, which may be waiting for a free place or for its source.

        Stopping the pipeline ends the first wait. The second one cannot be ended: the thread is then left behind, and
        ends with the source's next item.
        """
        self.leaving = True
        if not self.over.is_set():
            self.stop()
        # A thread that is left behind is not joined: when Python ends, a daemon thread stands still for ever.
        if self.over.wait(_LEAVING_S):
            self.thread.join(_LEAVING_S)


def mapped(
    push: Callable[[Inputs], int], pop: Pop, stop: Callable[[], None], items: Iterable[Inputs]
) -> Iterator[Result | Failure]:
    """The results of the items, in their order, with push and pop of one pipeline and `stop` to end it.

    Leaving early stops the pipeline. What the items raise is raised here, after the results of those before.
    """
    feeder = Feeder(push, stop, items)
    taken = 0
    try:
        while True:
            # Asked in this order: `pushed` is final once `over` is set.
            if feeder.over.is_set() and taken == feeder.pushed:
                break
            try:
                result = pop(_POLL_S)
            except TimeoutError:
                continue
            if result is None:
                break
            taken += 1
            yield result
    except BaseException:
        stop()
        raise
    finally:
        feeder.end()
    if feeder.error is not None:
        raise feeder.error
