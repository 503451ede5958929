"""`balancer profile --measure`: the time of each op of a model on this machine's CPU.

The interpreter's profiler is not in its Python interface, and would show one op for all that the delegate takes. So each op
is cut out as a segment of its own and timed; one that the delegate joins to a neighbour is timed with it, and counts 0. What
an invocation takes besides its ops is taken off. Last, all times are scaled by one factor so that they add up to the time of
the whole model: in one piece, caches and fusion may make it faster or slower than its parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.cost.cpu_work import joined_to
from balancer.ground.opsets import OpSet, interval_set
from balancer.learning.cpu_calibrating import BENCH, companion_run, inputs_of, reference_run
from balancer.learning.interleaved import TimingLimits, beside, interleaved
from balancer.tflite.read import read_graph

if TYPE_CHECKING:
    from collections.abc import Callable

    from balancer.cost.cpu_hardware import CpuHardware
    from balancer.graph import Graph
    from balancer.learning.cpu_calibrating import Bench
    from balancer.tflite.opened import OpenedModel

LIMITS = TimingLimits(rounds=12, seconds=90.0, least_rounds=3)


@dataclass(frozen=True, slots=True)
class OpTimes:
    """What was measured. ns: of each op, 0 for folded and joined ones. whole_ns: of the whole model without invocation.
    factor: by which the times of single ops were multiplied, so that they add up to it.
    """

    ns: tuple[int, ...]
    whole_ns: int
    factor: float


def time_ops(
    model: OpenedModel, cpu: CpuHardware, *, limits: TimingLimits = LIMITS, bench: Bench = BENCH,
    progress: Callable[[int], None] = lambda done: None,
) -> OpTimes:  # fmt: skip
    """The time of each op of the model on this machine. cpu: says what an invocation and its boundary tensors take.
    progress: called with the number of rounds that are done.

    Raises DependencyError if there is no interpreter, InterpreterError if it refuses an op.
    """
    graph = model.graph
    groups = _groups(graph)
    sets = [*groups.values(), interval_set(0, len(graph.ops))]
    files = [model.cutter.cut(ops) for ops in sets]
    runs = [bench.opened(data, inputs_of(read_graph(data, name=graph.name))) for data in files]
    with beside(companion_run(bench)):
        timed = interleaved(runs, reference_run(bench), limits, clocks=bench.clocks, progress=progress)
    *alone, whole = (max(1, ns - _around_ns(graph, ops, cpu)) for ns, ops in zip(timed.ns, sets, strict=True))
    factor = whole / sum(alone)
    times = [0] * len(graph.ops)
    for first, ns in zip(groups, alone, strict=True):
        times[first] = round(ns * factor)
    return OpTimes(tuple(times), whole, factor)


def _groups(graph: Graph) -> dict[int, OpSet]:
    """For each op that takes time, the ops of its segment: itself, and those that are joined to it."""
    groups = {op.index: 1 << op.index for op in graph.ops if not op.folded and joined_to(graph, op) is None}
    for op in graph.ops:
        host = joined_to(graph, op)
        if host in groups:
            groups[host] |= 1 << op.index
    return groups


def _around_ns(graph: Graph, ops: OpSet, cpu: CpuHardware) -> int:
    """ns of one inference of a segment besides its ops: the invocation, and copying its boundary tensors."""
    boundary = graph.interface(ops)
    size = sum(graph.tensors[t].bytes for t in (*boundary.inputs, *boundary.outputs))
    return cpu.running.invoke_ns + (size * cpu.running.boundary_ns_per_mib >> 20)
