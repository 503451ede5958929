"""What runs one segment: an interpreter on the CPU or on an Edge TPU, a simulated TPU, or nothing at all.

An executor takes its inputs from an item's tensors by name and adds its outputs. A `Recipe` says how to make one, in
this process or in one of its own (see `remote`).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from balancer.errors import InterpreterError
from balancer.interpreter import PROVEN, Interpreter, Kernels, open_interpreter, open_on_tpu
from balancer.runtime.simulated import Behaviour, Recorded, SimulatedTpu, no_outputs, read_only

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from balancer.inputs import Array
    from balancer.runtime.simulated import Outputs
    from balancer.runtime.tensors import Tensors, TensorSpec

_LOG = logging.getLogger(__name__)
# Before each try to open a device. A USB device that loads its firmware disappears, and comes back with another number.
WAITS_S = (0.0, 0.5, 1.0, 2.0, 4.0)


class Executor(Protocol):
    """Runs a segment on one device, one item at a time."""

    def run(self, item: int, tensors: Tensors) -> None:
        """Add the segment's outputs to the tensors of an item. item: its number.

        Raises BalancerError where the item fails, WorkerLost where the device can run no more items.
        """

    def interrupt(self) -> None:
        """From another thread: end the running item as soon as possible, and run no more."""

    def close(self) -> None:
        """Give back the device and its memory. No item runs any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to make a segment's executor.

    device: a name as in `devices`, or "none". model: the file's bytes, compiled where the device is an Edge TPU; None
    where nothing is computed. kernels: what computes it on the CPU. keep_state: variable tensors keep their values from item
    to item. behaviour, recorded: of a simulated TPU, which gives recorded outputs if there are any, else computes the model
    if there is one.
    """

    segment: str
    device: str
    model: bytes | None = None
    outputs: tuple[TensorSpec, ...] = ()
    behaviour: Behaviour | None = None
    recorded: tuple[Mapping[str, Array], ...] = ()
    keep_state: bool = False
    kernels: Kernels = PROVEN


class Computed:
    """An interpreter as an executor. keep_state: variable tensors keep their values; else they are reset before each item."""

    def __init__(self, interpreter: Interpreter, *, keep_state: bool) -> None:
        self.interpreter = interpreter
        self._infer = interpreter.run_next if keep_state else interpreter.run

    def run(self, item: int, tensors: Tensors) -> None:
        self._infer([tensors[name] for name in self.interpreter.input_names])
        for name, value in zip(self.interpreter.output_names, self.interpreter.outputs(), strict=True):
            tensors[name] = value

    def interrupt(self) -> None:
        pass  # the interpreter has no way to end an inference early

    def close(self) -> None:
        self.interpreter.close()


class Idle:
    """Takes no time and gives the same arrays for every item, so that what is measured is the pipeline's own work."""

    def __init__(self, outputs: Sequence[TensorSpec]) -> None:
        self.arrays = {spec.name: read_only(np.zeros(spec.shape or (), np.dtype(spec.dtype))) for spec in outputs}

    def run(self, item: int, tensors: Tensors) -> None:
        for name, value in self.arrays.items():
            if name not in tensors:  # a shared frame has each tensor already: nothing is copied
                tensors[name] = value

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass


def make_executor(recipe: Recipe, seconds: float, die: Callable[[], None] | None = None) -> Executor:
    """The executor of a recipe. seconds: time limit of a simulated TPU that hangs. die: ends this process, for a
    simulated TPU that dies; None where it must not.

    Raises BalancerError where the device or the model is refused.
    """
    if recipe.device == "none":
        return Idle(recipe.outputs)
    if recipe.device == "cpu":
        return Computed(open_interpreter(recipe.model or b"", recipe.kernels), keep_state=recipe.keep_state)
    if recipe.device == "sim":
        return SimulatedTpu(recipe.segment, recipe.behaviour or Behaviour(stage_ns=0), _outputs(recipe), seconds, die)
    return Computed(open_with_retry(recipe.model or b"", recipe.device), keep_state=recipe.keep_state)


def _outputs(recipe: Recipe) -> Outputs:
    if recipe.recorded:
        return Recorded(recipe.recorded)
    if recipe.model is None:
        return no_outputs
    return Computed(open_interpreter(recipe.model), keep_state=recipe.keep_state).run


def open_with_retry(model: bytes, device: str, waits: Sequence[float] = WAITS_S) -> Interpreter:
    """An interpreter on an Edge TPU. waits: seconds before each try to open it.

    Raises what the last try raised: InterpreterError, or DependencyError at once; ValueError where there are no waits.
    """
    for k, wait in enumerate(waits):
        time.sleep(wait)
        try:
            return open_on_tpu(model, device)
        except InterpreterError as error:
            if k + 1 == len(waits):
                raise
            _LOG.info("%s: %s; trying again", device, error)
    raise ValueError("waits must have an entry for each try")
