"""Google's own pipeline runner, where it is installed: the same plan through other hands.

It runs one pipeline of single TPUs and matches tensors by name. Known failings are checked before, since it aborts the
process on them: see `balancer.plan.pycoral_obstacle`. Results wider than eight bits come out of it as bytes (pycoral
issue 36) and are read again here.
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
from balancer.runtime.devices import device_names
from balancer.runtime.limits import warn_of_other_kinds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from balancer.runtime.pipeline import Inputs, Result


class PycoralRunner:
    """Like `Pipeline`, as far as Google's runner goes: `with PycoralRunner(plan) as runner: runner.map(items)`."""

    def __init__(
        self, plan: AnyPlan | OpenedPlan, devices: str | Sequence[str] | None = None, *, keep_state: bool = False
    ) -> None:
        """keep_state: of a model that has some, since that is what its runner does. Raises PlanError where its runner
        cannot run the plan, DependencyError where it is not installed."""
        opened = open_plan(plan)
        self.plan = plan = opened.plan
        pipeline = plan.pipelines[0]
        obstacle = pycoral_obstacle(plan)
        if len(plan.pipelines) > 1 or any(stage.replicas > 1 for stage in pipeline.stages):
            obstacle = "it has several pipelines, or TPUs that share a stage"
        if obstacle:
            raise PlanError(f"pycoral's runner cannot run it: {obstacle}", plan.file_name, "leave out --runner pycoral")
        self.devices = device_names(devices, len(pipeline.stages))
        self.interface = model_interface(opened.graph)
        self.state = state_of(self.interface.stateful, keep_state=keep_state)
        if self.state == RESET:
            what = "pycoral's runner cannot run it: it keeps state from input to input"
            raise PlanError(what, plan.file_name, "add --keep-state, or leave out --runner pycoral")
        self._module("pycoral.utils.edgetpu")
        self._runner: Any = None

    def __enter__(self) -> PycoralRunner:
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
        self._runner = None  # it closes itself when it goes; closing it twice raises

    def map(self, items: Iterable[Inputs]) -> Iterator[Result]:
        """Results in the order of the items."""
        names = [spec.name for spec in self.interface.inputs]

        def feed() -> None:
            for item in items:
                self._runner.push({name: item[name] for name in names})  # it goes by the order of the dict
            self._runner.push({})

        feeder = threading.Thread(target=feed, name="feeder", daemon=True)
        feeder.start()
        while (found := self._runner.pop()) is not None:
            yield {name: self._mended(name, value) for name, value in found.items()}
        feeder.join()

    def _mended(self, name: str, value: Any) -> Any:
        for segment in self.plan.segments:
            for tensor in segment.outputs:
                if tensor.tensor == name and tensor.shape is not None and value.nbytes == tensor.bytes:
                    return np.frombuffer(value.tobytes(), np.dtype(tensor.dtype)).reshape(tensor.shape)
        return value

    def _compiled(self, name: str) -> str:
        reported = self.plan.segment(name).reported
        if reported is None or reported.file is None or self.plan.directory is None:
            raise PlanError("is not compiled for the Edge TPU", name, "run `balancer compile` on the plan first")
        file_bytes(self.plan, reported.file, reported.sha256)
        return str(self.plan.directory / reported.file)

    def _module(self, name: str) -> Any:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            remedy = "install it from github.com/google-coral/pycoral or a fork (PyPI's pycoral is another project)"
            raise DependencyError("Google's pycoral is not installed", "--runner pycoral", remedy)
        return importlib.import_module(name)
