"""`Pipeline`: a plan running on devices. Items go in, results come out in order.

    caller                      one thread for each TPU (`workers`)                                 caller

    push --> checked, copied --> Channel --> stage 0 --> Channel --> stage 1 --> Results, in order --> pop
             (`items`)                          |                       |
                                                v                       v
                                         executor.run            RemoteExecutor.run <--socket--> host process
                                         in this process         (`remote`)                      with the driver
                                         (`executors`)                  |                            |
                                                                        +------ shared frames -------+
                                                                                (`tensors`)

A stage's thread hands each item to the executor of its TPU and waits for it. Interpreters on Edge TPUs run in processes of
their own, and so do all others on request. `map` adds one more thread, which pushes (`mapping`).

A pipeline lives once. What a call does depends on how far it is:

    call    | new                 | opening                            | running                   | stopped or closed
    --------+---------------------+------------------------------------+---------------------------+------------------
    enter   | opens all devices   | waits, then RuntimeError           | RuntimeError              | StageError
    stop    | enter will refuse   | opening ends; enter: StageError    | push, pop, map: StageError| nothing
    close   | as stop             | as stop; waits until all is closed | stops, closes everything  | waits until closed

A pipeline that is never closed is closed when Python ends (`_end`): after a bare `__enter__`, or with a generator that was
left in the middle.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.errors import BalancerError, InputError, StageError
from balancer.ground.wording import counted
from balancer.inputs import model_interface
from balancer.interpreter import PROVEN
from balancer.opened import AnyPlan, OpenedPlan, open_plan
from balancer.plan import KEPT, STATE_WORDS, segments_with_state, state_of
from balancer.queues import Finished, Stopped
from balancer.runtime.assigning import AnyDevices, assigned_devices, no_devices
from balancer.runtime.devices import usable_cores
from balancer.runtime.items import InnerStage, Inputs, LastStage, Result, checked_inputs, new_item
from balancer.runtime.limits import cores_note, warn_of_mappings, warn_of_other_kinds
from balancer.runtime.mapping import Turns, mapped
from balancer.runtime.opening import OpenExecutors
from balancer.runtime.options import CONTINUE, RunOptions
from balancer.runtime.provenance import kernels_note
from balancer.runtime.recipes import NONE, check_tensors, keeping_state, recipes
from balancer.runtime.stage_errors import named_error, stopped_error
from balancer.runtime.statistics import PipelineStatistics, statistics_of
from balancer.runtime.tensors import dead_after, lives
from balancer.workers import Failure, Workers

if TYPE_CHECKING:
    from balancer.runtime.executors import Executor, Recipe
    from balancer.runtime.tensors import Life
    from balancer.workers import Work

_LOG = logging.getLogger(__name__)
_MOST_ITEMS = 256  # in flight, however deep the pipeline is


class Pipeline:
    """Runs a plan: `with Pipeline(plan, devices) as pipeline: for result in pipeline.map(items): ...`.

    plan: a plan, its file, or its directory. devices: a name for each TPU of the plan (":0", "usb:0", "pci:1"); or one of
    "usb", "pci" and "sim" for all of them; or None for the Edge TPUs of this machine. Stages on the CPU need no name; "cpu"
    runs all stages there. See `balancer.runtime.assigning`. Inputs and results are dicts of arrays by tensor name, inputs with
    the shape and element type that the model gives.

    Attributes: `devices` has the names in the order of `Plan.positions`. `interface` has the model's inputs, the names of its
    outputs, and by name how integers stand for real numbers. `state` is "reset" or "kept" for a model with variable tensors,
    None for others. `kernels` compute what is computed on this CPU. `notes` says what a reader of the results has to know.
    """

    def __init__(
        self, plan: AnyPlan | OpenedPlan, devices: AnyDevices = None, options: RunOptions | None = None
    ) -> None:
        """Nothing is opened yet. Raises PlanError or DeviceError where plan and devices do not go together."""
        self._opened_plan = opened = open_plan(plan)
        check_tensors(opened)
        self.plan = opened.plan
        self.options = options or RunOptions()
        self.interface = model_interface(opened.graph)
        assigned = no_devices(self.plan) if devices == "none" else assigned_devices(self.plan, devices)
        assigned = replace(assigned, proven=assigned.proven or self.options.exact)
        self.devices = list(assigned.names)
        self.simulation = self.options.simulation.beside(self.devices)
        self._recipes = recipes(opened, assigned, self.simulation)
        self.state = state_of(self.interface.stateful, keep_state=self.options.keep_state)
        if self.state == KEPT:
            self._recipes = keeping_state(self._recipes, segments_with_state(self.plan, self.interface.stateful))
        if self.state is not None:
            _LOG.info("%s: %s", self.plan.file_name, STATE_WORDS[self.state])
        self.kernels = tuple(dict.fromkeys(r.kernels for r in self._recipes_flat if r.model is not None)) or (PROVEN,)
        on_cpu = [r.kernels for r in self._recipes_flat if r.device == "cpu" and r.kernels.delegated]
        self.notes = tuple(filter(None, [kernels_note(self.kernels), cores_note(on_cpu, usable_cores())]))
        self._opened = OpenExecutors(self.options)
        self._workers: Workers | None = None
        self._stopping = threading.Event()
        self._cause: StageError | None = None  # the error of the item that stopped it
        self._turns = Turns()
        # Held while it opens and while it closes: everything is opened once and closed once, whoever calls `close` how
        # often. Reentrant, since a signal's handler may close the pipeline in the thread that it interrupts.
        self._door = threading.RLock()
        self._process = os.getpid()

    # Opening and closing

    def __enter__(self) -> Pipeline:
        """Open all devices. Raises BalancerError where one cannot be opened, or after `stop`; then none is left open."""
        with self._door:
            if self._stopping.is_set():
                raise self._stopped()
            if self._workers is not None:
                raise RuntimeError("a pipeline is entered once")
            warn_of_mappings(self._opened_plan, self.devices)
            warn_of_other_kinds(self.plan, self.devices)
            try:
                self._start()
            except BaseException:
                self._stopping.set()
                self._give_back()
                raise
        return self

    def _start(self) -> None:
        try:
            self._workers = Workers(self._open(), depth=self.options.depth, most=self._most_in_flight)
        except RuntimeError as error:
            raise StageError(
                f"cannot be started ({error})", "pipeline", "raise the limit of threads: ulimit -u"
            ) from error
        # Registered after the workers' function, so called before it (`atexit` calls the last one first). It kills
        # processes that hang; the workers' function alone would wait for them.
        self._process = os.getpid()
        atexit.register(self._end)
        # `stop` sets the flag first and looks for workers second. Here the workers are set first and the flag is looked
        # at second. So in a race at least one of the two stops the workers.
        if self._stopping.is_set():
            self._workers.stop()
            raise self._stopped()

    def _open(self) -> list[list[list[Work]]]:
        """Open all executors. Returns the work of each TPU's thread, by pipeline, stage and replica."""
        tensor_lives = [
            lives([self.plan.segment(stage.segment) for stage in p.stages], self.interface.outputs)
            for p in self.plan.pipelines
        ]
        try:
            executors = iter(self._opened.open(self._recipes_flat, tensor_lives, self._most_in_flight))
        except BalancerError as error:
            if self._stopping.is_set():  # it was told to stop, and what failed to open was interrupted
                raise self._stopped() from error
            raise
        return [
            [[self._work(next(executors), k, len(line), of_line) for _ in stage] for k, stage in enumerate(line)]
            for line, of_line in zip(self._recipes, tensor_lives, strict=True)
        ]

    @property
    def _recipes_flat(self) -> list[Recipe]:
        return [recipe for line in self._recipes for stage in line for recipe in stage]

    def _work(self, executor: Executor, stage: int, stages: int, tensor_lives: Mapping[str, Life]) -> Work:
        """What a thread of the stage does with an item."""
        if stage < stages - 1:
            return InnerStage(executor, dead_after(tensor_lives, stage))
        # Without computed outputs there is no result, although shared memory has a place for each output.
        outputs = () if self.simulation.outputs == NONE else self.interface.outputs
        return LastStage(executor, outputs, copied=self._opened.frames is not None)

    @property
    def _most_in_flight(self) -> int:
        """Items in flight: as many as workers and queues hold, and those whose results wait for an earlier item in a
        slower pipeline.
        """
        places = sum(len(stage) + self.options.depth for line in self._recipes for stage in line)
        p = self.plan.predicted
        waiting = math.ceil(p.throughput_per_s * p.latency_ns / 1e9) if len(self._recipes) > 1 else 0
        return min(_MOST_ITEMS, places + waiting + self.options.depth)

    def __exit__(self, *_: object) -> None:
        self.close()

    def stop(self) -> None:
        """Discard what is in flight. A thread that waits in `push` or `pop` gets StageError.

        From any thread, any number of times.
        """
        self._stopping.set()
        if self._workers is not None:
            self._workers.stop()
        self._opened.interrupt()

    def close(self) -> None:
        """Stop, and close all threads, processes, devices and memory.

        From any thread, any number of times. Each call returns once everything is closed.
        """
        self.stop()
        with self._door:
            self._give_back()

    def _give_back(self) -> None:
        """With the door held. The workers come first: they use the executors and the memory."""
        if self._workers is not None:
            self._workers.join()
        self._opened.close()
        atexit.unregister(self._end)

    def _end(self) -> None:
        """Called when Python ends. A forked child inherits the registration, but the pipeline is its parent's."""
        if os.getpid() == self._process:  # pragma: no cover - as Python ends: test_endings, in child processes
            self.close()

    # Items

    def push(self, inputs: Inputs, timeout: float | None = None) -> int:
        """Hand in an item, waiting for a free place. Returns its number. As in pycoral, {} ends the input.

        The arrays are copied, so the caller may use them again. Raises InputError where the item does not fit the model
        or a map or run is going on, TimeoutError, or StageError once the pipeline has stopped.
        """
        with self._turns.single():
            if isinstance(inputs, Mapping) and not inputs:
                self._running().finish()
                return -1
            return self._push(inputs, timeout)

    def _push(self, inputs: Inputs, timeout: float | None = None) -> int:
        workers, checked = self._running(), checked_inputs(inputs, self.interface.inputs)
        try:
            return workers.put_made(lambda number: new_item(number, checked, self._opened.frames), timeout)
        except Stopped:
            raise self._stopped() from None
        except Finished:
            raise InputError("an item after the end", "pipeline", "push nothing after {}") from None

    def pop(self, timeout: float | None = None) -> Result | Failure | None:
        """The next result, in the order of the items; None after the last one, once the input has ended.

        For an item that failed: a Failure where `on_error` is "continue"; else StageError is raised and the pipeline
        stops. Raises TimeoutError, InputError while a map or run is going on, or StageError once the pipeline has stopped.
        """
        with self._turns.single():
            return self._pop(timeout)

    def _pop(self, timeout: float | None = None) -> Result | Failure | None:
        try:
            result: Result | Failure = self._running().get(timeout)
        except Stopped:
            raise self._stopped() from None
        except Finished:
            return None
        if not isinstance(result, Failure):
            return result
        error = named_error(self.plan, result)
        if self.options.on_error == CONTINUE:
            return replace(result, error=error)
        self._cause = error
        self.stop()
        raise error

    def finish(self) -> None:
        """End the input. Items in flight still come out. Raises InputError while a map or run is going on."""
        with self._turns.single():
            self._running().finish()

    def __iter__(self) -> Iterator[Result | Failure]:
        """Results until the last one, while another thread pushes and ends the input."""
        while (result := self.pop()) is not None:
            yield result

    def map(self, items: Iterable[Inputs]) -> Iterator[Result | Failure]:
        """The results of these items, in their order. Another thread takes the items, as fast as there are free places.

        Leaving early stops the pipeline. What the items raise is raised here, after the results of those before. One map
        at a time: raises InputError during another `map`, while another thread is in `push` or `pop`, or where results of
        pushed items were not taken.
        """
        with self._turns.mapping():
            left = self._running().results.in_flight
            if left:
                raise InputError(f"results of {counted(left, 'item')} are not taken yet", "pipeline", "pop them first")
            yield from mapped(self._push, self._pop, self.stop, items)

    def run(self, batch: Iterable[Inputs]) -> list[Result | Failure]:
        """All results of a batch. Raises as `map` does."""
        return list(self.map(batch))

    # Statistics

    def statistics(self) -> PipelineStatistics:
        """What was measured of each stage since the start, or since `reset_statistics`."""
        return statistics_of(self.plan, self.devices, self._running().times)

    def reset_statistics(self) -> None:
        """Forget what was measured so far, such as the warm-up."""
        self._running().reset_times()

    def _running(self) -> Workers:
        if self._workers is None:
            raise RuntimeError("use the pipeline in a with statement")
        return self._workers

    def _stopped(self) -> StageError:
        return stopped_error(self._cause)
