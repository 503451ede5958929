"""`Pipeline`: a plan running on devices. Items go in, results come out in order.

Each TPU has a thread that hands it work. Interpreters on Edge TPUs, and all others on request, live in processes of
their own (`remote`), with their tensors in shared memory (`tensors`).

One that nobody closes is closed when Python ends (`_end`): a generator that was left in the middle, a bare `__enter__`.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from balancer.errors import BalancerError, InputError, StageError
from balancer.inputs import model_interface
from balancer.opened import AnyPlan, OpenedPlan, open_plan
from balancer.plan import KEPT, STATE_WORDS, segments_with_state, state_of
from balancer.queues import Finished, Stopped
from balancer.runtime.devices import device_names
from balancer.runtime.executors import Executor, Recipe, make_executor
from balancer.runtime.limits import warn_of_mappings, warn_of_other_kinds
from balancer.runtime.mapping import Feeder, Turns
from balancer.runtime.options import CONTINUE, RunOptions
from balancer.runtime.recipes import NONE, check_tensors, keeping_state, recipes
from balancer.runtime.remote import RemoteExecutor
from balancer.runtime.statistics import PipelineStatistics, statistics_of
from balancer.runtime.tensors import FrameTensors, SharedFrames, Tensors, dead_after, layout, lives
from balancer.workers import Failure, Work, WorkerLost, Workers, run_at_once

_LOG = logging.getLogger(__name__)
_MOST_ITEMS = 256
_POLL_S = 0.02
Inputs = Mapping[str, Any]
Result = dict[str, Any]


@dataclass(slots=True)
class _Item:
    number: int
    tensors: Tensors


class Pipeline:
    """Runs a plan: `with Pipeline(plan, devices) as pipeline: for result in pipeline.map(items): ...`.

    plan: a plan, its file, or its directory. devices: a name for each TPU of the plan, "sim", "cpu", or None for
    the Edge TPUs of this machine; see `balancer.runtime.devices`. Inputs and results are dicts of arrays by tensor name,
    inputs of shape and type as the model has them. state: "reset" or "kept" where the model has some.
    """

    def __init__(
        self, plan: AnyPlan | OpenedPlan, devices: str | Sequence[str] | None = None, options: RunOptions | None = None
    ) -> None:
        """Nothing is opened yet. Raises PlanError or DeviceError where plan and devices do not go together."""
        self._opened = opened = open_plan(plan)
        check_tensors(opened)
        self.plan = opened.plan
        self.options = options or RunOptions()
        count = 1 + max(t for p in self.plan.pipelines for stage in p.stages for t in stage.tpus)
        none = devices == "none"
        self.devices = ["none"] * count if none else device_names(devices, count)
        self.interface = model_interface(opened.graph)
        self.simulation = self.options.simulation.beside(self.devices)
        self._recipes = recipes(opened, self.devices, self.simulation)
        self.state = state_of(self.interface.stateful, keep_state=self.options.keep_state)
        if self.state == KEPT:
            self._recipes = keeping_state(self._recipes, segments_with_state(self.plan, self.interface.stateful))
        if self.state is not None:
            _LOG.info("%s: %s", self.plan.file_name, STATE_WORDS[self.state])
        self._executors: list[Executor | RemoteExecutor] = []
        self._frames: SharedFrames | None = None
        self._workers: Workers | None = None
        self._stopping = threading.Event()
        self._cause: StageError | None = None  # the item that stopped it
        self._turns = Turns()
        # Held while it opens and while it gives back, each thing once, whoever closes it how often. Again by the same
        # thread: a signal's handler may close what it interrupts.
        self._door = threading.RLock()
        self._process = os.getpid()

    # Opening and closing

    def __enter__(self) -> Pipeline:
        """Open all devices. Raises BalancerError where one cannot be opened, or `stop` was called; then none is."""
        with self._door:
            if self._stopping.is_set():
                raise self._stopped()
            if self._workers is not None:
                raise RuntimeError("a pipeline is entered once")
            warn_of_mappings(self._opened, self.devices)
            warn_of_other_kinds(self.plan, self.devices)
            try:
                self._start()
            except BaseException:
                self._give_back()
                raise
        return self

    def _start(self) -> None:
        flat = [recipe for line in self._recipes for stage in line for recipe in stage]
        if any(self._needs_process(recipe) for recipe in flat):
            found = [lives(p, self.interface.outputs) for p in self._partitions()]
            self._frames = SharedFrames(layout(found), self._most)
        try:
            self._open(flat)
            self._workers = Workers(self._lines(), depth=self.options.depth, most=self._most)
        except RuntimeError as error:
            raise StageError(
                f"cannot be started ({error})", "pipeline", "raise the limit of threads: ulimit -u"
            ) from error
        # After the workers' own: `atexit` calls the last one first, and this one ends processes that hang, too.
        self._process = os.getpid()
        atexit.register(self._end)
        # Who stops it says so first, and then looks for workers: one of the two sees the other.
        if self._stopping.is_set():
            self._workers.stop()
            raise self._stopped()

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
        """Stop, and give back all threads, processes, devices and memory. From any thread, any number of times: each
        returns when all is given back.
        """
        self.stop()
        with self._door:
            self._give_back()

    def _give_back(self) -> None:
        """With the door held."""
        if self._workers is not None:
            self._workers.join()
        while self._executors:
            self._executors.pop().close()
        frames, self._frames = self._frames, None
        if frames is not None:
            frames.close()
        atexit.unregister(self._end)

    def _end(self) -> None:
        """When Python ends. What a forked child has of a pipeline is its parent's."""
        if os.getpid() == self._process:
            self.close()

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

        stopped = []

        def stop() -> None:  # nobody waits for a device that is no longer wanted
            stopped.append(self._stopping.is_set())
            self.stop()

        try:
            run_at_once(make, len(flat), stop)
        except BalancerError as error:
            if stopped[0]:
                raise self._stopped() from error
            raise
        self._executors = [executor for executor in made if executor is not None]

    def _make(self, recipe: Recipe) -> Executor | RemoteExecutor:
        seconds = self.options.seconds
        if self._frames is None or not self._needs_process(recipe):
            return make_executor(recipe, seconds)
        restarts = 0 if recipe.keep_state else self.options.restarts  # a new process would have lost the state
        return RemoteExecutor(recipe, self._frames, seconds=seconds, restarts=restarts)

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
        shared = self._frames is not None
        # What nobody computed is no result, also where shared memory has a place for it.
        outputs = () if self.simulation.outputs == NONE else self.interface.outputs

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

        Raises InputError where it does not fit the model, or a map or run is going on, TimeoutError, or StageError once
        the pipeline has stopped.
        """
        with self._turns.single():
            if isinstance(inputs, Mapping) and not inputs:
                self._running().finish()
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
        stops. Raises TimeoutError, InputError while a map or run is going on, or StageError once the pipeline has stopped.
        """
        with self._turns.single():
            return self._pop(timeout)

    def _pop(self, timeout: float | None = None) -> Result | Failure | None:
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
        """No more items; those in flight still come out. Raises InputError while a map or run is going on."""
        with self._turns.single():
            self._running().finish()

    def __iter__(self) -> Iterator[Result | Failure]:
        """Results until the last one; somebody else pushes, and ends the input."""
        while (found := self.pop()) is not None:
            yield found

    def map(self, items: Iterable[Inputs]) -> Iterator[Result | Failure]:
        """The results of these items, in their order. Items are taken from another thread, as fast as there is room.

        Leaving early stops the pipeline. What the items raise is raised here, after the results of those before. One
        at a time: raises InputError while another `map` runs, another thread is in `push` or `pop`, or results of items
        that were pushed are not taken.
        """
        with self._turns.mapping():
            left = self._running().results.in_flight
            if left:
                raise InputError(f"results of {left} items are not taken yet", "pipeline", "pop them first")
            yield from self._mapped(items)

    def _mapped(self, items: Iterable[Inputs]) -> Iterator[Result | Failure]:
        feeder = Feeder(self._push, self.stop, items)
        taken = 0
        try:
            while True:
                over = feeder.over.is_set()
                if over and taken == feeder.pushed:
                    break
                try:
                    found = self._pop(_POLL_S)
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
                raise InputError(f"input '{spec.name}' is missing", "item", wanted)
            try:
                value = np.asarray(inputs[spec.name])
            except (ValueError, TypeError) as error:
                raise InputError(f"input '{spec.name}' is no array ({error})", "item", wanted) from error
            if value.dtype != np.dtype(spec.dtype) or value.shape != spec.shape:
                what = f"input '{spec.name}' is {value.dtype} {list(value.shape)}"
                raise InputError(what, "item", f"make it {spec.dtype} {list(spec.shape)}")
            checked[spec.name] = value
        return checked

    def _item(self, number: int, inputs: Result) -> _Item:
        frames = self._frames
        if frames is None:
            return _Item(number, {name: np.array(value) for name, value in inputs.items()})
        # Items in flight have consecutive numbers, no more than there are frames.
        frame = number % frames.count
        tensors = FrameTensors(frame, frames.view(frame))
        for name, value in inputs.items():
            tensors[name] = value
        return _Item(number, tensors)
