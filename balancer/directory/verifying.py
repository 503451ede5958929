"""`verify`: a plan's segments compute what its model computes, bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.directory.saving import compiled_files, model_bytes, segment_files
from balancer.errors import InputError
from balancer.ground.opsets import op_set, parse_op_ranges
from balancer.inputs import InputSpec, Item, load_items, random_items
from balancer.plan import KEPT, STATE_WORDS, Plan, check_op_count, file_bytes, segments_with_state, state_of
from balancer.tflite.read import read_graph
from balancer.verification import SegmentFile, Verification, input_specs, verify_partition

if TYPE_CHECKING:
    from collections.abc import Callable


_LOG = logging.getLogger(__name__)


def verify(
    plan: Plan,
    inputs: str | Path | int | Sequence[Item] = 3,
    *,
    keep_state: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Verification:
    """Run the plan's segments beside its model and compare every boundary tensor, bit for bit.

    inputs: a .npy or .npz file, a list of inputs by tensor name, or how many random ones to make. A saved plan's
    files, compiled ones as well, are read from its directory and checked against their hashes; otherwise the segments
    are cut in memory.
    keep_state: variable tensors go on from input to input on both sides, instead of being reset before each.
    progress: called with the number of items done, for each different partition. Raises PlanError, InputError,
    InterpreterError or DependencyError where it cannot be done.
    """
    data = model_bytes(plan)
    compiled_files(plan)  # are those that the plan was made with, or it raises
    graph = read_graph(data, name=plan.stem)
    check_op_count(plan, len(graph.ops))
    state = state_of(graph.stateful, keep_state=keep_state)
    if state == KEPT:
        segments_with_state(plan, graph.stateful)  # the plan can be run so, or it raises
    if state is not None:
        _LOG.info("%s: %s", plan.file_name, STATE_WORDS[state])
    specs = input_specs(graph)
    items = _items(inputs, specs)
    found = [verify_partition(data, part, items, progress, keep_state=keep_state) for part in _partitions(plan, data)]
    return replace(
        found[0],
        compared_tensors=sum(v.compared_tensors for v in found),
        verified_segments=tuple(name for v in found for name in v.verified_segments),
        mismatch=next((v.mismatch for v in found if v.mismatch), None),
        stopped_by=tuple(dict.fromkeys(op for v in found for op in v.stopped_by)),
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


def _partitions(plan: Plan, data: bytes) -> list[list[SegmentFile]]:
    saved = plan.directory is not None and all(s.file for s in plan.segments)
    if saved:
        files = {s.name: file_bytes(plan, s.file or "", s.sha256) for s in plan.segments}
    else:
        files = {s.name: content for s, content in segment_files(plan, data)}
    return [
        [SegmentFile(s.name, op_set(parse_op_ranges(s.ops, plan.model.ops)), files[s.name]) for s in partition]
        for partition in plan.partitions()
    ]
