"""What a pipeline has open: its executors, and the memory that those in other processes share with it."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

from balancer.runtime.executors import make_executor
from balancer.runtime.remote import RemoteExecutor
from balancer.runtime.tensors import SharedFrames, layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from balancer.runtime.executors import Executor, Recipe
    from balancer.runtime.options import RunOptions
    from balancer.runtime.tensors import Life

_IN_THIS_PROCESS = ("cpu", "sim", "none")  # on these devices no driver can end the process


class OpenExecutors:
    """Executors, from the first that is opened to the last that is closed.

    `open` and `close` are called by one thread at a time, `interrupt` by any thread at any time.
    """

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self.frames: SharedFrames | None = None
        self._executors: list[Executor] = []
        self._interrupted = threading.Event()

    def open(
        self, recipes: Sequence[Recipe], tensor_lives: Sequence[Mapping[str, Life]], most_items: int
    ) -> list[Executor]:
        """An executor for each recipe, all opened at the same time, since each Edge TPU takes seconds.

        tensor_lives: of each pipeline. most_items: in flight. Raises BalancerError where a device or the memory is
        refused, or after `interrupt`; RuntimeError where the system refuses a thread. Then `close` gives back what was
        opened.
        """
        if any(self._needs_process(recipe) for recipe in recipes):
            self.frames = SharedFrames(layout(tensor_lives), most_items)
        opened: dict[int, Executor] = {}

        def open_one(k: int) -> None:
            executor = self._new(recipes[k])
            opened[k] = executor
            self._executors.append(executor)
            # Added first, asked second; `interrupt` does it the other way round. One of the two sees the other.
            if self._interrupted.is_set():
                executor.interrupt()
            if isinstance(executor, RemoteExecutor):
                executor.open()

        run_at_once(open_one, len(recipes), self.interrupt)
        return [opened[k] for k in range(len(recipes))]

    def interrupt(self) -> None:
        """End what is opening or running as soon as possible. Nothing more is opened or run."""
        self._interrupted.set()
        for executor in list(self._executors):
            executor.interrupt()

    def close(self) -> None:
        """Give back everything that was opened, once. No executor runs any more."""
        while self._executors:
            self._executors.pop().close()
        frames, self.frames = self.frames, None
        if frames is not None:
            frames.close()

    def _needs_process(self, recipe: Recipe) -> bool:
        return self.options.processes or recipe.device not in _IN_THIS_PROCESS

    def _new(self, recipe: Recipe) -> Executor:
        seconds = self.options.seconds
        if self.frames is None or not self._needs_process(recipe):
            return make_executor(recipe, seconds)
        restarts = 0 if recipe.keep_state else self.options.restarts  # a new process would have lost the state
        return RemoteExecutor(recipe, self.frames, seconds=seconds, restarts=restarts)


def run_at_once(task: Callable[[int], None], count: int, stop: Callable[[], None]) -> None:
    """Call task(0) to task(count - 1) at the same time, each in a thread, and wait until all have ended.

    If a task raises, `stop` is called, which has to make the others end; then the first error is raised.

    A ThreadPoolExecutor does not do here: once the main thread has ended, it starts no more threads, and a pipeline may
    be opened by another thread after that.
    """
    outcomes: SimpleQueue[BaseException | None] = SimpleQueue()

    def run(k: int) -> None:
        try:
            task(k)
            outcomes.put(None)
        except BaseException as error:  # noqa: BLE001 - the thread's edge: raised by the caller
            outcomes.put(error)

    threads = [threading.Thread(target=run, args=(k,), name=f"task {k}", daemon=True) for k in range(count)]
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
