"""Google's own pipeline runner, where it is installed: the same plan, run by another program.

It runs one pipeline of single TPUs and matches tensors by name. It aborts the process on some plans, so these are refused
beforehand: see `balancer.plan.pycoral_obstacle`. Result elements wider than eight bits come out as bytes (pycoral issue
36), and get their element type back here.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.errors import DependencyError, PlanError
from balancer.inputs import model_interface
from balancer.opened import AnyPlan, OpenedPlan, open_plan
from balancer.plan import RESET, file_bytes, pycoral_obstacle, state_of
from balancer.runtime.assigning import AnyDevices, assigned_devices
from balancer.runtime.limits import warn_of_other_kinds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from balancer.inputs import Array
    from balancer.runtime.items import Inputs, Result


class PycoralRunner:
    """Like `Pipeline`, with `map` alone: `with PycoralRunner(plan) as runner: runner.map(items)`."""

    def __init__(self, plan: AnyPlan | OpenedPlan, devices: AnyDevices = None, *, keep_state: bool = False) -> None:
        """keep_state: must be set for a model with variable tensors, since Google's runner never resets them.

        Raises PlanError where Google's runner cannot run the plan, DependencyError where it is not installed.
        """
        opened = open_plan(plan)
        self.plan = plan = opened.plan
        pipeline = plan.pipelines[0]
        obstacle = pycoral_obstacle(plan)
        if len(plan.pipelines) > 1 or any(stage.replicas > 1 for stage in pipeline.stages):
            obstacle = "it has several pipelines, or TPUs that share a stage"
        if obstacle:
            raise PlanError(f"pycoral's runner cannot run it: {obstacle}", plan.file_name, "leave out --runner pycoral")
        self.devices = list(assigned_devices(plan, devices).names)
        self.notes = ()
        self.interface = model_interface(opened.graph)
        self.state = state_of(self.interface.stateful, keep_state=keep_state)
        if self.state == RESET:
            what = "pycoral's runner cannot run it: it keeps state from input to input"
            raise PlanError(what, plan.file_name, "add --keep-state, or leave out --runner pycoral")
        self._module("pycoral.utils.edgetpu")
        self._runner: Any = None

    def __enter__(self) -> PycoralRunner:
        """Open all devices. Raises what pycoral raises."""
        warn_of_other_kinds(self.plan, self.devices)
        edgetpu = self._module("pycoral.utils.edgetpu")
        runners = self._module("pycoral.pipeline.pipelined_model_runner")
        interpreters = []
        for stage, device in zip(self.plan.pipelines[0].stages, self.devices, strict=True):
            interpreter = edgetpu.make_interpreter(self._compiled(stage.segment), device=device)
            interpreter.allocate_tensors()
            interpreters.append(interpreter)
        self._runner = runners.PipelinedModelRunner(interpreters)
        self._runner.set_input_queue_size(len(interpreters))  # unlimited by default
        return self

    def __exit__(self, *_: object) -> None:
        self._runner = None  # it closes itself when it is collected; closing it a second time raises

    def map(self, items: Iterable[Inputs]) -> Iterator[Result]:
        """Results in the order of the items. What the items raise is raised here, after the results of those before."""
        names = [spec.name for spec in self.interface.inputs]
        runner, errors, leaving = self._runner, list[BaseException](), threading.Event()

        def feed() -> None:
            try:
                for item in items:
                    if leaving.is_set():
                        break
                    runner.push({name: item[name] for name in names})  # it takes tensors in the order of the dict
            except BaseException as error:  # noqa: BLE001 - the thread's edge: raised by the consumer
                errors.append(error)
            finally:
                runner.push({})  # else `pop` would wait for ever

        feeder = threading.Thread(target=feed, name="feeder", daemon=True)
        feeder.start()
        try:
            while (popped := runner.pop()) is not None:
                yield {name: self._mended(name, value) for name, value in popped.items()}
        finally:
            leaving.set()
        feeder.join()
        if errors:
            raise errors[0]

    def _mended(self, name: str, value: Array) -> Array:
        """The value with the element type and shape that the plan gives its tensor."""
        for segment in self.plan.segments:
            for tensor in segment.outputs:
                if tensor.tensor == name and tensor.shape is not None and value.nbytes == tensor.bytes:
                    return np.frombuffer(value.tobytes(), np.dtype(tensor.dtype)).reshape(tensor.shape)
        return value

    def _compiled(self, name: str) -> str:
        """The path of a segment's compiled file. Raises PlanError where it is missing or was changed."""
        reported = self.plan.segment(name).reported
        if reported is None or reported.file is None or self.plan.directory is None:
            raise PlanError("is not compiled for the Edge TPU", name, "run `balancer compile` on the plan first")
        file_bytes(self.plan, reported.file, reported.sha256)  # checks its hash
        return str(self.plan.directory / reported.file)

    def _module(self, name: str) -> Any:
        """A module of pycoral. Raises DependencyError where it is not installed."""
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            spec = None
        if spec is None:
            remedy = "install it from github.com/google-coral/pycoral or a fork (PyPI's pycoral is another project)"
            raise DependencyError("Google's pycoral is not installed", "--runner pycoral", remedy)
        return importlib.import_module(name)
