"""Segments against the whole model, on a CPU, bit for bit, at every boundary.

On each input the whole model runs once with all its tensors kept; the segments run one after the other, a thread
each; and each tensor that a segment hands on or gives out is compared with what the whole model computed there, so
that a mismatch names the first segment and tensor that differ.

Where the interpreter has no kernel for an op, it is left out on both sides with all that depends on it. What remains is
compared; the result names the op.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.errors import BalancerError, InterpreterError, ModelError
from balancer.graph import Graph, boundary_names
from balancer.ground.opsets import OpSet, members, op_set
from balancer.interpreter import Interpreter, open_interpreter, open_keeping_all, runtime_label
from balancer.plan import state_of
from balancer.tflite.cut import Cutter
from balancer.workers import Failure, run_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from balancer.inputs import Item
    from balancer.tflite.opened import OpenedModel

    Infer = Callable[[Interpreter, Sequence[Any]], None]


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A segment to verify: the ops that it should hold and the bytes of its file."""

    name: str
    ops: OpSet
    data: bytes


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first tensor that differs. item: index of the input; elements: how many of its elements differ."""

    segment: str
    tensor: str
    item: int
    elements: int
    largest_difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """verified_segments: those of which every output was compared and equal. stopped_by: ops that no interpreter here
    runs.

    compared_tensors: how many were compared and equal, over all items. state: "reset" before each input or "kept", on
    both sides, where the model has some.
    """

    items: int
    compared_tensors: int
    runtime: str
    verified_segments: tuple[str, ...]
    mismatch: Mismatch | None
    stopped_by: tuple[str, ...]
    state: str | None = None

    @property
    def bit_exact(self) -> bool:
        """Every output of every segment was compared and equal."""
        return self.mismatch is None and not self.stopped_by


def verify_partition(
    model: OpenedModel,
    segments: Sequence[SegmentFile],
    items: Sequence[Item],
    progress: Callable[[int], None] = lambda done: None,
    *,
    keep_state: bool = False,
) -> Verification:
    """Compare the chained segments with the whole model on these items.

    keep_state: both sides keep variable tensors from item to item; else both are reset before each.

    items: inputs by tensor name, see `inputs.model_interface`. progress: called with the number of items done.
    Raises InterpreterError or ModelError where a file cannot be opened for another reason than a missing kernel.
    """
    cutter = model.cutter
    names = boundary_names(cutter.graph, [s.ops for s in segments])
    infer = Interpreter.run_next if keep_state else Interpreter.run
    reference = _Reference(model.data, cutter, names, infer)
    runners = [_SegmentRunner(s, infer) for s in segments]
    _check_interfaces(cutter.graph, segments, runners, names)
    equal: Counter[str] = Counter()
    mismatch: Mismatch | None = None
    for done, outcome in enumerate(run_all([reference.run, *(r.run for r in runners)], items)):
        if isinstance(outcome, Failure):
            raise outcome.error
        found, of_item = _compare(outcome, runners, done)
        mismatch = mismatch or found
        equal += of_item
        progress(done + 1)
    return Verification(
        items=len(items),
        compared_tensors=equal.total(),
        runtime=runtime_label(),
        verified_segments=tuple(r.name for r in runners if equal[r.name] == len(items) * len(r.interface[1])),
        mismatch=mismatch,
        stopped_by=reference.blocked,
        state=state_of(cutter.graph.stateful, keep_state=keep_state),
    )


@dataclass(slots=True)
class _Run:
    """One item on its way: what the whole model computed at the boundaries, and what the segments have so far."""

    expected: dict[str, Any]
    values: dict[str, Any]


class _Reference:
    """The whole model, or what of it the interpreter can run. blocked: the ops that it cannot."""

    def __init__(self, model: bytes, cutter: Cutter, names: Mapping[int, str], infer: Infer) -> None:
        graph, self.infer = cutter.graph, infer
        self.blocked: tuple[str, ...] = ()
        self.inputs = [names[t] for t in graph.interface(graph.all_ops).inputs]
        try:
            self.interpreter = open_keeping_all(model)
            self.index = {name: t for t, name in names.items()}
        except InterpreterError:
            blocked, kept = _runnable(cutter)
            self.blocked = tuple(f"op {i} {graph.ops[i].type}" for i in members(blocked))
            self.inputs = [names[t] for t in graph.interface(kept).inputs]
            self.interpreter = open_keeping_all(cutter.cut(kept, names))
            known = self.interpreter.tensor_indices
            self.index = {name: known[name] for name in names.values() if name in known}

    def run(self, item: Item) -> _Run:
        self.infer(self.interpreter, [item[name] for name in self.inputs])
        return _Run({name: self.interpreter.tensor(t) for name, t in self.index.items()}, dict(item))


class _SegmentRunner:
    """One segment's file, or what of it the interpreter can run. gives: the outputs that it computes."""

    def __init__(self, segment: SegmentFile, infer: Infer) -> None:
        self.name, self.infer = segment.name, infer
        cutter = Cutter(segment.data, where=segment.name)
        graph, ops = cutter.graph, cutter.graph.all_ops
        self.interface = _names(graph, ops)
        try:
            self.interpreter = open_interpreter(segment.data)
        except InterpreterError:
            _, ops = _runnable(cutter)
            self.interpreter = open_interpreter(cutter.cut(ops))
        self.complete = ops == graph.all_ops
        self.takes, self.gives = _names(graph, ops)

    def run(self, run: _Run) -> _Run:
        if all(name in run.values for name in self.takes):
            self.infer(self.interpreter, [run.values[name] for name in self.takes])
            run.values |= dict(zip(self.gives, self.interpreter.outputs(), strict=True))
        return run


def _names(graph: Graph, ops: OpSet) -> tuple[tuple[str, ...], tuple[str, ...]]:
    inputs, outputs = graph.interface(ops)
    return tuple(graph.tensors[t].name for t in inputs), tuple(graph.tensors[t].name for t in outputs)


def _compare(run: _Run, runners: Sequence[_SegmentRunner], item: int) -> tuple[Mismatch | None, Counter[str]]:
    """The first mismatch of an item, and how many tensors of each segment were compared and equal."""
    equal: Counter[str] = Counter()
    for runner in runners:
        for name in runner.gives:
            if name not in run.expected or name not in run.values:
                continue
            expected, found = run.expected[name], run.values[name]
            if expected.dtype != found.dtype or expected.tobytes() != found.tobytes():
                return _mismatch(runner.name, name, item, expected, found), equal
            equal[runner.name] += 1
    return None, equal


def _mismatch(segment: str, tensor: str, item: int, expected: Any, found: Any) -> Mismatch:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return Mismatch(segment, tensor, item, max(expected.size, found.size), float("inf"))
    difference = np.abs(expected.astype(np.float64) - found.astype(np.float64))
    return Mismatch(segment, tensor, item, int((expected != found).sum()), float(difference.max(initial=0.0)))


def _check_interfaces(
    graph: Graph, segments: Sequence[SegmentFile], runners: Sequence[_SegmentRunner], names: Mapping[int, str]
) -> None:
    """Each file must take and give what its place in the partition says."""
    for segment, runner in zip(segments, runners, strict=True):
        inputs, outputs = (tuple(names[t] for t in side) for side in graph.interface(segment.ops))
        if runner.interface != (inputs, outputs):
            raise ModelError(
                f"takes {list(runner.interface[0])} and gives {list(runner.interface[1])}, the plan says {list(inputs)} "
                f"and {list(outputs)}", segment.name, "solve again",
            )  # fmt: skip


def _runnable(cutter: Cutter) -> tuple[OpSet, OpSet]:
    """The ops for which the interpreter has no kernel, and the ops that neither are such nor depend on one.

    Found by opening one op of each code alone. Raises InterpreterError where that explains nothing or leaves nothing.
    """
    graph = cutter.graph
    works: dict[tuple[str, int], bool] = {}
    for op in graph.ops:
        if not op.folded and (op.type, op.version) not in works:
            works[op.type, op.version] = _opens(cutter.cut(1 << op.index))
    blocked = op_set(op.index for op in graph.ops if not op.folded and not works[op.type, op.version])
    kept = _without(graph, blocked)
    if not blocked or not kept & ~graph.folded:
        open_interpreter(cutter.cut(graph.all_ops))  # says why
        raise InterpreterError("opens now and did not before", graph.name, "try again")
    return blocked, kept


def _opens(model: bytes) -> bool:
    try:
        open_interpreter(model)
    except BalancerError:
        return False
    return True


def _without(graph: Graph, blocked: OpSet) -> OpSet:
    """All ops but these and what depends on them."""
    gone = blocked
    for op in graph.ops:
        if graph.before[op.index] & gone:
            gone |= 1 << op.index
    return graph.all_ops & ~gone
