"""What `map` needs of its pipeline: items pushed from a thread of their own, and nobody else who pushes or pops meanwhile."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from balancer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_LEAVING_S = 0.5


class Turns:
    """Who uses a pipeline: any number that push and pop, or one map. Who comes at the wrong time is refused, and waits for
    nothing: results go by their order, so that one that is pushed or popped in between would shift all others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._single = 0
        self._mapping = False

    @contextmanager
    def single(self) -> Iterator[None]:
        """For one push or pop. Raises InputError while a map is at work."""
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
        """For one map. Raises InputError while another one is at work, or a push or pop."""
        with self._lock:
            if self._mapping:
                raise InputError("another map or run is going on", "pipeline", "wait for its end, or use push and pop")
            if self._single:
                raise InputError("another thread is in push or pop", "pipeline", "wait for its end")
            self._mapping = True
        try:
            yield
        finally:
            self._mapping = False


class Feeder:
    """Pushes items from a thread of its own. stop: the pipeline."""

    def __init__(self, push: Callable[[Any], int], stop: Callable[[], None], items: Iterable[Any]) -> None:
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
        """The thread may be waiting for room, which it is told; or for its source, which nobody can end: then it is left,
        and ends with the next item.
        """
        self.leaving = True
        if not self.over.is_set():
            self.stop()
        # No join of one that is left: when Python ends, it never ends.
        if self.over.wait(_LEAVING_S):
            self.thread.join(_LEAVING_S)
