"""`Pipeline`: a plan running on devices. Items go in, results come out in order.

Each TPU has a thread that hands it work. Interpreters on Edge TPUs, and all others on request, live in processes of
their own (`remote`), with their tensors in shared memory (`tensors`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.errors import BalancerError, InputError, StageError
from balancer.plan import Plan, load_plan
from balancer.runtime.devices import device_names
from balancer.runtime.executors import Executor, Recipe, make_executor
from balancer.runtime.limits import warn_of_mappings
from balancer.runtime.options import CONTINUE, RunOptions
from balancer.runtime.recipes import Interface, plan_interface, recipes
from balancer.runtime.remote import RemoteExecutor
from balancer.runtime.statistics import PipelineStatistics, statistics_of
from balancer.runtime.tensors import FrameTensors, SharedFrames, Tensors, dead_after, layout, lives
from balancer.workers import Failure, Finished, Stopped, Work, WorkerLost, Workers

if TYPE_CHECKING:
    from pathlib import Path

_MOST_ITEMS = 256
_POLL_S = 0.02
_LEAVING_S = 0.5
Inputs = Mapping[str, Any]
Result = dict[str, Any]


@dataclass(slots=True)
class _Item:
    number: int
    tensors: Tensors


class Pipeline:
    """Runs a plan: `with Pipeline(plan, devices) as pipeline: for result in pipeline.map(items): ...`.

    plan: a saved plan, or its file. devices: a name for each TPU of the plan, "sim", "cpu", or None for the Edge TPUs
    of this machine; see `balancer.runtime.devices`. Inputs and results are dicts of arrays by tensor name, inputs of
    shape and type as the model has them.
    """

    def __init__(
        self, plan: Plan | str | Path, devices: str | Sequence[str] | None = None, options: RunOptions | None = None
    ) -> None:
        """Nothing is opened yet. Raises PlanError or DeviceError where plan and devices do not go together."""
        self.plan = plan if isinstance(plan, Plan) else load_plan(plan)
        self.options = options or RunOptions()
        count = 1 + max(t for p in self.plan.pipelines for stage in p.stages for t in stage.tpus)
        none = devices == "none"
        self.devices = ["none"] * count if none else device_names(devices, count)
        self.interface: Interface = plan_interface(self.plan)
        self._recipes = recipes(self.plan, self.devices, self.options.simulation)
        self._executors: list[Executor | RemoteExecutor] = []
        self._frames: SharedFrames | None = None
        self._workers: Workers | None = None
        self._stopping = threading.Event()
        self._cause: StageError | None = None  # the item that stopped it
        self._mapping = threading.Lock()

    # Opening and closing

    def __enter__(self) -> Pipeline:
        """Open all devices. Raises BalancerError where one cannot be opened, or `stop` was called; then none is."""
        if self._workers is not None:
            raise RuntimeError("a pipeline is entered once")
        warn_of_mappings(self.plan, self.devices)
        flat = [recipe for line in self._recipes for stage in line for recipe in stage]
        if any(self._needs_process(recipe) for recipe in flat):
            found = [lives(p, self.interface.outputs) for p in self._partitions()]
            self._frames = SharedFrames(layout(found), self._most)
        try:
            self._open(flat)
            if self._stopping.is_set():
                raise self._stopped()
        except BaseException:
            self._give_back()
            raise
        self._workers = Workers(self._lines(), depth=self.options.depth, most=self._most)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stop(self) -> None:
        """Drop what is in flight; who waits in `push` or `pop` gets StageError. From any thread, any number of times."""
        self._stopping.set()
        if self._workers is not None:
            self._workers.stop()
        for executor in list(self._executors):
            executor.interrupt()

    def close(self) -> None:
        """Stop, and give back all threads, processes, devices and memory."""
        self.stop()
        if self._workers is not None:
            self._workers.join()
        self._give_back()

    def _give_back(self) -> None:
        for executor in self._executors:
            executor.close()
        self._executors = []
        if self._frames is not None:
            self._frames.close()
            self._frames = None

    def _partitions(self) -> list[list[Any]]:
        return [[self.plan.segment(stage.segment) for stage in p.stages] for p in self.plan.pipelines]

    @property
    def _most(self) -> int:
        """Items in flight: those that all places hold, and those that wait for a slower one before them."""
        places = sum(len(stage) + self.options.depth for line in self._recipes for stage in line)
        p = self.plan.predicted
        waiting = math.ceil(p.throughput_per_s * p.latency_ns / 1e9) if len(self._recipes) > 1 else 0
        return min(_MOST_ITEMS, places + waiting + self.options.depth)

    def _needs_process(self, recipe: Recipe) -> bool:
        return self.options.processes or recipe.device not in ("cpu", "sim", "none")

    def _open(self, flat: Sequence[Recipe]) -> None:
        """All at once: each Edge TPU takes seconds. What was opened is in `_executors`, also where another one fails."""
        made: list[Executor | RemoteExecutor | None] = [None] * len(flat)

        def make(k: int) -> None:
            made[k] = executor = self._make(flat[k])
            self._executors.append(executor)
            if self._stopping.is_set():
                executor.interrupt()
            if isinstance(executor, RemoteExecutor):
                executor.open()

        pool = ThreadPoolExecutor(max_workers=max(1, len(flat)))
        try:
            for task in [pool.submit(make, k) for k in range(len(flat))]:
                task.result()
        except BaseException as error:
            stopped = self._stopping.is_set()
            self.stop()  # nobody waits for a device that is no longer wanted
            if stopped and isinstance(error, BalancerError):
                raise self._stopped() from error
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        self._executors = [executor for executor in made if executor is not None]

    def _make(self, recipe: Recipe) -> Executor | RemoteExecutor:
        seconds = self.options.seconds
        if self._frames is None or not self._needs_process(recipe):
            return make_executor(recipe, seconds)
        return RemoteExecutor(recipe, self._frames, seconds=seconds, restarts=self.options.restarts)

    def _lines(self) -> list[list[list[Work]]]:
        executors = iter(self._executors)
        lines = []
        for line, partition in zip(self._recipes, self._partitions(), strict=True):
            found = lives(partition, self.interface.outputs)
            last = len(line) - 1
            lines.append(
                [
                    [self._work(next(executors), dead_after(found, k), last=k == last) for _ in stage]
                    for k, stage in enumerate(line)
                ]
            )
        return lines

    def _work(self, executor: Executor | RemoteExecutor, dead: tuple[str, ...], *, last: bool) -> Work:
        """What a stage's thread does with an item. last: it gives the result, and the item's memory is free."""
        outputs, shared = self.interface.outputs, self._frames is not None

        def work(item: _Item) -> _Item | Result:
            executor.run(item.number, item.tensors)
            for name in dead:
                item.tensors.pop(name, None)
            if not last:
                return item
            made = {name: item.tensors[name] for name in outputs if name in item.tensors}
            return {name: np.array(value) for name, value in made.items()} if shared else made

        return work

    # Items

    def push(self, inputs: Inputs, timeout: float | None = None) -> int:
        """Hand in an item, waiting for room; its number. Nothing ({}) ends the input, as in pycoral. Arrays are copied:
        the caller may use them again.

        Raises InputError where it does not fit the model, TimeoutError, or StageError once the pipeline has stopped.
        """
        workers = self._running()
        if isinstance(inputs, Mapping) and not inputs:
            workers.finish()
            return -1
        return self._push(inputs, timeout)

    def _push(self, inputs: Inputs, timeout: float | None = None) -> int:
        workers, checked = self._running(), self._checked(inputs)
        try:
            return workers.put_made(lambda number: self._item(number, checked), timeout)
        except Stopped:
            raise self._stopped() from None
        except Finished:
            raise InputError("an item after the end", "pipeline", "push nothing after {}") from None

    def pop(self, timeout: float | None = None) -> Result | Failure | None:
        """The next result, in the order of the items; None after the last one, once the input has ended.

        An item that failed is a Failure where `on_error` is "continue"; else it raises StageError, and the pipeline
        stops. Raises TimeoutError, or StageError once the pipeline has stopped.
        """
        try:
            found = self._running().get(timeout)
        except Stopped:
            raise self._stopped() from None
        except Finished:
            return None
        if not isinstance(found, Failure):
            return found  # type: ignore[no-any-return]
        named = self._named(found)
        if self.options.on_error == CONTINUE:
            return named
        self._cause = named.error if isinstance(named.error, StageError) else None
        self.stop()
        raise named.error

    def finish(self) -> None:
        """No more items; those in flight still come out."""
        self._running().finish()

    def __iter__(self) -> Iterator[Result | Failure]:
        """Results until the last one; somebody else pushes, and ends the input."""
        while (found := self.pop()) is not None:
            yield found

    def map(self, items: Iterable[Inputs]) -> Iterator[Result | Failure]:
        """The results of these items, in their order. Items are taken from another thread, as fast as there is room.

        Leaving early stops the pipeline. What the items raise is raised here, after the results of those before. One
        at a time: raises InputError while another `map` runs, or results of items that were pushed are not taken.
        """
        if not self._mapping.acquire(blocking=False):
            raise InputError("another map or run is going on", "pipeline", "wait for its end, or use push and pop")
        try:
            left = self._running().results.in_flight
            if left:
                raise InputError(f"results of {left} items are not taken yet", "pipeline", "pop them first")
            yield from self._mapped(items)
        finally:
            self._mapping.release()

    def _mapped(self, items: Iterable[Inputs]) -> Iterator[Result | Failure]:
        feeder = _Feeder(self, items)
        taken = 0
        try:
            while True:
                over = feeder.over.is_set()
                if over and taken == feeder.pushed:
                    break
                try:
                    found = self.pop(_POLL_S)
                except TimeoutError:
                    continue
                if found is None:
                    break
                taken += 1
                yield found
        except BaseException:
            self.stop()
            raise
        finally:
            feeder.end()
        if feeder.error is not None:
            raise feeder.error

    def run(self, batch: Iterable[Inputs]) -> list[Result | Failure]:
        """All results of a batch."""
        return list(self.map(batch))

    # Statistics

    def statistics(self) -> PipelineStatistics:
        """What was measured of each stage since the start, or since `reset_statistics`."""
        return statistics_of(self.plan, self.devices, self._running().times)

    def reset_statistics(self) -> None:
        """Forget what was measured so far: the warm-up."""
        self._running().reset_times()

    def _running(self) -> Workers:
        if self._workers is None:
            raise RuntimeError("use the pipeline in a with statement")
        return self._workers

    def _stopped(self) -> StageError:
        because = f" because of an item ({self._cause.args[1]}: {self._cause.args[0]})" if self._cause else ""
        return StageError(f"has stopped{because}", "pipeline", "make a new one")

    def _named(self, failure: Failure) -> Failure:
        """With the segment and the item in the error."""
        pipeline = self.plan.pipelines[failure.line]
        where = f"{pipeline.stages[failure.stage].segment}, item {failure.item}"
        if isinstance(failure.error, BalancerError):
            what, _, remedy = failure.error.args
            error = StageError(what, where, remedy)
        elif isinstance(failure.error, WorkerLost):
            error = StageError(f"its device is given up: {failure.error}", where, "see `balancer devices`")
        else:
            error = StageError(f"{type(failure.error).__name__}: {failure.error}", where, "see the log")
        error.__cause__ = failure.error
        return Failure(failure.stage, error, failure.line, failure.item)

    def _checked(self, inputs: Inputs) -> Result:
        wanted = f"give {[spec.name for spec in self.interface.inputs]}"
        if not isinstance(inputs, Mapping):
            raise InputError(f"{type(inputs).__name__} instead of arrays by tensor name", "item", wanted)
        checked = {}
        for spec in self.interface.inputs:
            if spec.name not in inputs:
                raise InputError(
                    f"input '{spec.name}' is missing", "item", f"give {[s.name for s in self.interface.inputs]}"
                )
            value = np.asarray(inputs[spec.name])
            if value.dtype != np.dtype(spec.dtype) or value.shape != spec.shape:
                what = f"input '{spec.name}' is {value.dtype} {list(value.shape)}"
                raise InputError(what, "item", f"make it {spec.dtype} {list(spec.shape)}")
            checked[spec.name] = value
        return checked

    def _item(self, number: int, inputs: Result) -> _Item:
        if self._frames is None:
            return _Item(number, {name: np.array(value) for name, value in inputs.items()})
        # Items in flight have consecutive numbers, no more than there are frames.
        frame = number % self._frames.count
        tensors = FrameTensors(frame, self._frames.view(frame))
        for name, value in inputs.items():
            tensors[name] = value
        return _Item(number, tensors)


class _Feeder:
    """Pushes items from a thread of its own."""

    def __init__(self, pipeline: Pipeline, items: Iterable[Inputs]) -> None:
        self.pipeline, self.items = pipeline, items
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
                self.pipeline._push(item)
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
            self.pipeline.stop()
        self.thread.join(_LEAVING_S)
