"""`predict`: the cost of a partition that the user gives."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from balancer.errors import PlanError
from balancer.ground.opsets import OpSet, interval_set, op_set
from balancer.planning.assembling import assemble
from balancer.planning.costed_model import open_costed_model
from balancer.solve import Ended, PipelineSpec, Solution, StageSpec, evaluate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from balancer.cost.hardware import AnyHardware
    from balancer.graph import Graph
    from balancer.plan import Plan
    from balancer.planning.costed_model import CostedModel

_REMEDY = "give each op once, in segments that read only from earlier ones"


def predict(
    model: str | Path | bytes, segments: Sequence[Iterable[int]], *, hardware: str | Path | AnyHardware = "pcie"
) -> Plan:
    """The plan of one pipeline with these segments, one TPU for each.

    model, hardware: as for `balance`. segments: the op indices of each; `cut_segments` makes them from cuts.

    Raises PlanError if they are not a partition of the model or a segment is not allowed, ModelError or HardwareError if a
    file cannot be used.
    """
    costed = open_costed_model(model, hardware)
    partition = [op_set(ops) for ops in _checked(costed.graph, segments)]
    for k, ops in enumerate(partition):
        if not costed.costs.allowed(ops):
            raise PlanError(
                "computes nothing, has no output, separates ops that share state, or cuts a tensor of unknown shape",
                f"segment {k}",
                "move its cuts",
            )
    plan = partition_plan(costed, partition)
    if plan is None:
        raise PlanError("has a segment whose cost cannot be predicted", "the partition", "move its cuts")
    return plan


def partition_plan(costed: CostedModel, partition: Sequence[OpSet]) -> Plan | None:
    """The plan of one pipeline with these segments, one TPU for each; None if one of the segments is not allowed."""
    pipeline = PipelineSpec(tuple(StageSpec(ops, costed.hardware.name) for ops in partition))
    value = evaluate(costed.on(len(partition)).problem(), [pipeline])
    if value is None:
        return None
    given = Solution(
        solver="given", pipelines=(pipeline,), value=value, bound_ns=None, over="nothing", ended=Ended.NOT_SEARCHED
    )
    return assemble(costed.on(len(partition)), given, ())


def cut_segments(cuts: Sequence[int], n_ops: int) -> list[range]:
    """The segments between cuts: [12, 57] of 100 ops gives ops 0-11, 12-56 and 57-99.

    cuts: the first op of each segment but the first, ascending. Raises PlanError if they do not ascend within 1 to
    n_ops - 1.
    """
    edges = [0, *cuts, n_ops]
    if any(a >= b for a, b in pairwise(edges)):
        raise PlanError(
            f"cuts {','.join(map(str, cuts))} do not ascend within 1 to {n_ops - 1}", "cuts",
            "give the first op of each segment but the first",
        )  # fmt: skip
    return [range(a, b) for a, b in pairwise(edges)]


def _checked(graph: Graph, segments: Sequence[Iterable[int]]) -> list[list[int]]:
    """The segments as lists. Raises PlanError unless each op stands once and no segment reads from a later one."""
    lists = [list(ops) for ops in segments]
    seen: OpSet = 0
    for k, ops in enumerate(lists):
        for i in ops:
            if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(graph.ops):
                raise PlanError(f"op {i!r} does not exist", f"segment {k}", _REMEDY)
            if seen >> i & 1:
                raise PlanError(f"op {i} is listed twice", f"segment {k}", _REMEDY)
            seen |= 1 << i
        for i in ops:
            late = graph.before[i] & ~seen
            if late:
                first = (late & -late).bit_length() - 1
                raise PlanError(f"op {i} reads from op {first} of a later segment", f"segment {k}", _REMEDY)
    if seen != interval_set(0, len(graph.ops)):
        missing = ~seen & interval_set(0, len(graph.ops))
        raise PlanError(f"op {(missing & -missing).bit_length() - 1} is in no segment", "segments", _REMEDY)
    return lists
