"""`verify`: shows that a plan's segments compute what its model computes, bit for bit."""

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
    """Run the plan's segments and its whole model on the CPU, and compare every boundary tensor bit for bit.

    plan: a plan, its file, or its directory. inputs: a .npy or .npz file; or a list with a dict for each input, from
    tensor name to array; or a number of random inputs. keep_state: variable tensors keep their values from input to
    input on both sides, instead of being reset before each. progress: called with the number of inputs done, starting
    again for each different partition of the plan.

    A saved plan's files, compiled ones included, are read from its directory and checked against their hashes. Segments of
    a plan that is not saved are cut in memory.

    Raises PlanError if the plan cannot be opened, or one of its files is missing or has another hash; InputError if the
    inputs do not fit the model; InterpreterError or DependencyError if there is no interpreter that can run the model.
    """
    opened = open_plan(plan)
    compiled_files(opened)  # only for the check of their hashes: compiled files cannot run on a CPU
    interface = model_interface(opened.graph)
    state = state_of(interface.stateful, keep_state=keep_state)
    if state == KEPT:
        segments_with_state(opened.plan, interface.stateful)  # raises PlanError for a plan that cannot keep state
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
        what = "are not a list of dicts from tensor name to array"
        raise InputError(what, "inputs", "give a file, a number, or such a list")
    if not given:
        raise InputError("the list is empty", "inputs", "give at least one: without inputs nothing is compared")
    missing = next((spec.name for item in given for spec in specs if spec.name not in item), None)
    if missing is not None:
        raise InputError(f"there is no array '{missing}'", "inputs", "give one for each of the model's inputs")
    return given


def _partitions(opened: OpenedPlan) -> list[list[SegmentFile]]:
    """The segment files of each different partition."""
    plan = opened.plan
    files = {
        segment.name: SegmentFile(segment.name, segment.ops, opened.segment_file(segment)) for segment in plan.segments
    }
    return [[files[segment.name] for segment in partition] for partition in plan.partitions()]
