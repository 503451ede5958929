"""Compares the segments with the whole model, on a CPU, bit for bit, at every boundary.

On each input the whole model runs once, with all its tensors kept, and the segments run one after the other, each in a
thread. Each output of a segment is compared with the same tensor of the whole model, so that a mismatch names the first
segment and tensor that differ.

An op for which the interpreter has no kernel is left out on both sides, with all ops that depend on it. The rest is
compared, and the result names the op.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

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

    from balancer.inputs import Array, Item
    from balancer.tflite.opened import OpenedModel


class Infer(Protocol):
    """One inference: `Interpreter.run`, which resets state first, or `Interpreter.run_next`."""

    def __call__(self, interpreter: Interpreter, values: Sequence[Array], /) -> None:
        """Run the interpreter on these inputs. Raises InterpreterError."""


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A segment to verify: the ops that it should hold and the bytes of its file."""

    name: str
    ops: OpSet
    data: bytes


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first tensor that differs. item: index of the input. elements: how many of the tensor's elements differ."""

    segment: str
    tensor: str
    item: int
    elements: int
    largest_difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a comparison showed.

    items: inputs that ran. compared_tensors: tensors that were compared and equal, over all items. runtime: the
    interpreter. verified_segments: those whose outputs were all compared and equal. mismatch: the first one. stopped_by:
    ops that the interpreter cannot run. state: "reset" before each input or "kept", on both sides; None for a model
    without state.
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

    items: inputs by tensor name, see `inputs.model_interface`. progress: gets the number of items done. keep_state: on
    both sides, variable tensors keep their values from item to item; else they are reset before each.

    Raises ModelError where a file is not the segment that it should be, InterpreterError where one cannot be opened for
    another reason than a missing kernel.
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
        first, of_item = _compare(outcome, runners, done)
        mismatch = mismatch or first
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
class _ItemRun:
    """One item on its way. expected: what the whole model computed at the boundaries. values: what the segments have
    computed so far, and the model's inputs.
    """

    expected: Item
    values: Item


class _Reference:
    """The whole model, or the part of it that the interpreter can run. blocked: the ops that it has no kernel for."""

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

    def run(self, item: Item) -> _ItemRun:
        """Run the model. Raises InterpreterError."""
        self.infer(self.interpreter, [item[name] for name in self.inputs])
        return _ItemRun({name: self.interpreter.tensor(t) for name, t in self.index.items()}, dict(item))


class _SegmentRunner:
    """One segment's file, or the part of it that the interpreter can run. interface: names of the file's inputs and
    outputs. takes, gives: the same of the part that runs.
    """

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
        self.takes, self.gives = _names(graph, ops)

    def run(self, run: _ItemRun) -> _ItemRun:
        """Add the segment's outputs, where its inputs could be computed. Raises InterpreterError."""
        if all(name in run.values for name in self.takes):
            self.infer(self.interpreter, [run.values[name] for name in self.takes])
            run.values |= dict(zip(self.gives, self.interpreter.outputs(), strict=True))
        return run


def _names(graph: Graph, ops: OpSet) -> tuple[tuple[str, ...], tuple[str, ...]]:
    inputs, outputs = graph.interface(ops)
    return tuple(graph.tensors[t].name for t in inputs), tuple(graph.tensors[t].name for t in outputs)


def _compare(run: _ItemRun, runners: Sequence[_SegmentRunner], item: int) -> tuple[Mismatch | None, Counter[str]]:
    """The first mismatch of an item, and how many tensors of each segment were compared and equal."""
    equal: Counter[str] = Counter()
    for runner in runners:
        for name in runner.gives:
            if name not in run.expected or name not in run.values:
                continue
            expected, made = run.expected[name], run.values[name]
            # Bytes, not ==: a NaN equals itself, and 0.0 differs from -0.0.
            if expected.dtype != made.dtype or expected.tobytes() != made.tobytes():
                return _mismatch(runner.name, name, item, expected, made), equal
            equal[runner.name] += 1
    return None, equal


def _mismatch(segment: str, tensor: str, item: int, expected: Array, made: Array) -> Mismatch:
    if expected.shape != made.shape or expected.dtype != made.dtype:
        return Mismatch(segment, tensor, item, max(expected.size, made.size), float("inf"))
    difference = np.abs(expected.astype(np.float64) - made.astype(np.float64))
    return Mismatch(segment, tensor, item, int((expected != made).sum()), float(difference.max(initial=0.0)))


def _check_interfaces(
    graph: Graph, segments: Sequence[SegmentFile], runners: Sequence[_SegmentRunner], names: Mapping[int, str]
) -> None:
    """Raises ModelError where a file's inputs or outputs are not those that the segment's ops have in the model."""
    for segment, runner in zip(segments, runners, strict=True):
        inputs, outputs = (tuple(names[t] for t in side) for side in graph.interface(segment.ops))
        if runner.interface != (inputs, outputs):
            raise ModelError(
                f"takes {list(runner.interface[0])} and gives {list(runner.interface[1])}, the plan says {list(inputs)} "
                f"and {list(outputs)}", segment.name, "solve again",
            )  # fmt: skip


def _runnable(cutter: Cutter) -> tuple[OpSet, OpSet]:
    """The ops for which the interpreter has no kernel, and the ops that do not depend on any of them.

    Opens one op of each type and version alone. Raises InterpreterError where all of these open, or no op is left.
    """
    graph = cutter.graph
    works: dict[tuple[str, int], bool] = {}
    for op in graph.ops:
        if not op.folded and (op.type, op.version) not in works:
            works[op.type, op.version] = _opens(cutter.cut(1 << op.index))
    blocked = op_set(op.index for op in graph.ops if not op.folded and not works[op.type, op.version])
    kept = _without(graph, blocked)
    if not blocked or not kept & ~graph.folded:
        open_interpreter(cutter.cut(graph.all_ops))  # raises the interpreter's own reason
        raise InterpreterError("opens now and did not before", graph.name, "try again")
    return blocked, kept


def _opens(model: bytes) -> bool:
    try:
        open_interpreter(model)
    except BalancerError:
        return False
    return True


def _without(graph: Graph, blocked: OpSet) -> OpSet:
    """All ops but the blocked ones and those that depend on them."""
    gone = blocked
    for op in graph.ops:
        if graph.before[op.index] & gone:
            gone |= 1 << op.index
    return graph.all_ops & ~gone
