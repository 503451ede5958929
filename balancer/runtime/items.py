"""Items of a pipeline: what a caller hands in, how it travels from stage to stage, and the result that comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from balancer.errors import InputError
from balancer.inputs import Array
from balancer.runtime.tensors import FrameTensors, Tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.inputs import InputSpec
    from balancer.runtime.executors import Executor
    from balancer.runtime.tensors import SharedFrames

Inputs = Mapping[str, ArrayLike]  # by tensor name, with the shape and element type of the model's inputs
Result = dict[str, Array]  # the model's outputs by tensor name


@dataclass(slots=True)
class PipelineItem:
    """An item on its way through the stages. number: from 0, in the order of `push`. tensors: those that it has so far."""

    number: int
    tensors: Tensors


def checked_inputs(inputs: Inputs, specs: Sequence[InputSpec]) -> Result:
    """The model's inputs as arrays, not copied; further names are left out.

    Raises InputError where an input is missing, or has another shape or element type than the model's.
    """
    wanted = f"give {[spec.name for spec in specs]}"
    if not isinstance(inputs, Mapping):
        raise InputError(f"{type(inputs).__name__} instead of arrays by tensor name", "item", wanted)
    checked = {}
    for spec in specs:
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


def new_item(number: int, inputs: Result, frames: SharedFrames | None) -> PipelineItem:
    """The item with copies of its inputs: in a frame, or in this process where there are no frames."""
    if frames is None:
        return PipelineItem(number, {name: np.array(value) for name, value in inputs.items()})
    # Items in flight have consecutive numbers, and there are no more of them than frames: this frame is free.
    frame = number % frames.count
    tensors = FrameTensors(frame, frames.view(frame))
    for name, value in inputs.items():
        tensors[name] = value
    return PipelineItem(number, tensors)


@dataclass(frozen=True, slots=True)
class InnerStage:
    """The work of a stage that is not the last of its line. dead: tensors that no later stage reads."""

    executor: Executor
    dead: tuple[str, ...]

    def __call__(self, item: PipelineItem) -> PipelineItem:
        """Run the segment on the item. Raises what the executor raises."""
        self.executor.run(item.number, item.tensors)
        for name in self.dead:
            item.tensors.pop(name, None)
        return item


@dataclass(frozen=True, slots=True)
class LastStage:
    """The work of a line's last stage. outputs: names of the tensors that make the result; those that were not computed
    are missing in it. copied: whether they lie in a frame, which another item uses once this one is taken.
    """

    executor: Executor
    outputs: tuple[str, ...]
    copied: bool

    def __call__(self, item: PipelineItem) -> Result:
        """Run the segment on the item. Raises what the executor raises."""
        self.executor.run(item.number, item.tensors)
        made = {name: item.tensors[name] for name in self.outputs if name in item.tensors}
        return {name: np.array(value) for name, value in made.items()} if self.copied else made
