"""`verify`: a plan's segments compute what its model computes, bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.directory.saving import compiled_files
from balancer.errors import InputError
from balancer.inputs import InputSpec, Item, load_items, model_interface, random_items
from balancer.opened import AnyPlan, OpenedPlan, open_plan
from balancer.plan import KEPT, STATE_WORDS, segments_with_state, state_of
from balancer.verification import SegmentFile, Verification, verify_partition

if TYPE_CHECKING:
    from collections.abc import Callable


_LOG = logging.getLogger(__name__)


def verify(
    plan: AnyPlan | OpenedPlan,
    inputs: str | Path | int | Sequence[Item] = 3,
    *,
    keep_state: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Verification:
    """Run the plan's segments beside its model and compare every boundary tensor, bit for bit.

    plan: a plan, its file, or its directory.
    inputs: a .npy or .npz file, a list of inputs by tensor name, or how many random ones to make. A saved plan's
    files, compiled ones as well, are read from its directory and checked against their hashes; otherwise the segments
    are cut in memory.
    keep_state: variable tensors go on from input to input on both sides, instead of being reset before each.
    progress: called with the number of items done, for each different partition. Raises PlanError, InputError,
    InterpreterError or DependencyError where it cannot be done.
    """
    opened = open_plan(plan)
    compiled_files(opened)  # are those that the plan was made with, or it raises
    interface = model_interface(opened.graph)
    state = state_of(interface.stateful, keep_state=keep_state)
    if state == KEPT:
        segments_with_state(opened.plan, interface.stateful)  # the plan can be run so, or it raises
    if state is not None:
        _LOG.info("%s: %s", opened.plan.file_name, STATE_WORDS[state])
    items = _items(inputs, interface.inputs)
    parts = [
        verify_partition(opened.model, files, items, progress, keep_state=keep_state) for files in _partitions(opened)
    ]
    return replace(
        parts[0],
        compared_tensors=sum(part.compared_tensors for part in parts),
        verified_segments=tuple(name for part in parts for name in part.verified_segments),
        mismatch=next((part.mismatch for part in parts if part.mismatch), None),
        stopped_by=tuple(dict.fromkeys(op for part in parts for op in part.stopped_by)),
    )


def _items(inputs: str | Path | int | Sequence[Item], specs: Sequence[InputSpec]) -> Sequence[Item]:
    if isinstance(inputs, int):
        if inputs < 1:
            raise ValueError(f"at least one random input is needed, not {inputs}")
        return random_items(specs, inputs)
    if isinstance(inputs, (str, Path)):
        return load_items(Path(inputs), specs)
    given = [dict(item) for item in inputs if isinstance(item, Mapping)] if isinstance(inputs, Sequence) else None
    if given is None or len(given) < len(inputs):
        raise InputError("are no list of inputs by tensor name", "inputs", "give a file, a number, or such a list")
    if not given:
        raise InputError("are none", "inputs", "give at least one: nothing compared is nothing shown")
    missing = next((spec.name for item in given for spec in specs if spec.name not in item), None)
    if missing is not None:
        raise InputError(f"there is no array '{missing}'", "inputs", "give one for each of the model's inputs")
    return given


def _partitions(opened: OpenedPlan) -> list[list[SegmentFile]]:
    plan = opened.plan
    files = {
        segment.name: SegmentFile(segment.name, segment.ops, opened.segment_file(segment)) for segment in plan.segments
    }
    return [[files[segment.name] for segment in partition] for partition in plan.partitions()]
