"""What runs one segment: an interpreter on the CPU or on an Edge TPU, a simulated TPU, or nothing at all.

An executor takes its inputs from an item's tensors by name and adds its outputs. A `Recipe` says how to make one, here
or in a process of its own (see `remote`).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from balancer.errors import InterpreterError
from balancer.interpreter import Interpreter, open_interpreter, open_on_tpu
from balancer.runtime.simulated import Behaviour, Recorded, SimulatedTpu, no_outputs, read_only

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from balancer.runtime.simulated import Outputs
    from balancer.runtime.tensors import Tensors, TensorSpec

_LOG = logging.getLogger(__name__)
WAITS_S = (0.0, 0.5, 1.0, 2.0, 4.0)  # before each try to open a device; a USB one comes back under another number


class Executor(Protocol):
    def run(self, item: int, tensors: Tensors) -> None:
        """Add the segment's outputs for these tensors of the item with this number. Raises BalancerError."""

    def interrupt(self) -> None:
        """End what is under way, from another thread, as soon as that can be; no more is run."""

    def close(self) -> None:
        """Give back what it holds; nothing is under way any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to make a segment's executor. device: a name as in `devices`, or "none". model: the bytes to run: compiled
    for an Edge TPU, else not; None where nothing is computed. keep_state: from item to item. behaviour, recorded: of a
    simulated TPU; it computes the model live where there is one and no record.
    """

    segment: str
    device: str
    model: bytes | None = None
    outputs: tuple[TensorSpec, ...] = ()
    behaviour: Behaviour | None = None
    recorded: tuple[Mapping[str, Any], ...] = ()
    keep_state: bool = False


class Computed:
    """An interpreter as an executor. keep_state: from item to item; else it is reset before each."""

    def __init__(self, interpreter: Interpreter, *, keep_state: bool) -> None:
        self.interpreter = interpreter
        self._infer = interpreter.run_next if keep_state else interpreter.run

    def run(self, item: int, tensors: Tensors) -> None:
        self._infer([tensors[name] for name in self.interpreter.input_names])
        for name, value in zip(self.interpreter.output_names, self.interpreter.outputs(), strict=True):
            tensors[name] = value

    def interrupt(self) -> None:
        pass  # an inference cannot be ended before its time

    def close(self) -> None:
        self.interpreter.close()


class Idle:
    """Takes no time and gives the same arrays every time: what is left is the pipeline's own."""

    def __init__(self, outputs: Sequence[TensorSpec]) -> None:
        self.arrays = {spec.name: read_only(np.zeros(spec.shape or (), np.dtype(spec.dtype))) for spec in outputs}

    def run(self, item: int, tensors: Tensors) -> None:
        for name, value in self.arrays.items():
            if name not in tensors:  # in shared memory it is there already, by reference
                tensors[name] = value

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass


def make_executor(recipe: Recipe, seconds: float, die: Callable[[], None] | None = None) -> Executor:
    """seconds: after which a simulated TPU that hangs is given up. die: how one ends its process, if it may.

    Raises BalancerError where device or model is refused.
    """
    if recipe.device == "none":
        return Idle(recipe.outputs)
    if recipe.device == "cpu":
        return Computed(open_interpreter(recipe.model or b""), keep_state=recipe.keep_state)
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
    """An interpreter on an Edge TPU, tried again after growing waits while the device is refused.

    Raises what the last try raised."""
    for k, wait in enumerate(waits):
        time.sleep(wait)
        try:
            return open_on_tpu(model, device)
        except InterpreterError as error:
            if k + 1 == len(waits):
                raise
            _LOG.info("%s: %s; trying again", device, error)
    raise ValueError("there must be a try")
