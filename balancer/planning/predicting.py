"""`predict`: the cost of a partition that the user gives."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cost.devices import Devices
from balancer.errors import PlanError
from balancer.ground.opsets import OpSet, interval_set, op_set
from balancer.ground.wording import counted
from balancer.planning.asked_devices import kind_named
from balancer.planning.assembling import assemble
from balancer.planning.costed_model import open_costed_model
from balancer.solve import Ended, PipelineSpec, Solution, StageSpec, evaluate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.cost.hardware import AnyHardware
    from balancer.graph import Graph
    from balancer.plan import Plan
    from balancer.planning.costed_model import CostedModel
    from balancer.solve import Kind

_REMEDY = "give each op once, in segments that read only from earlier ones"


def predict(
    model: str | Path | bytes,
    segments: Sequence[Iterable[int]],
    *,
    hardware: str | Path | AnyHardware = "pcie",
    on: Sequence[str | Path | AnyHardware] | None = None,
) -> Plan:
    """The plan of one pipeline with these segments, one device for each.

    model, hardware: as for `balance`. segments: the op indices of each; `cut_segments` makes them from cuts. on: the kind of
    device of each segment, in their order, where they stand on several kinds; None if all stand on `hardware`.

    Raises PlanError if they are not a partition of the model, if a segment is not allowed, or if `on` names more or fewer
    kinds than there are segments; ModelError or HardwareError if a file cannot be used.
    """
    kinds = [_kind(source) for source in ([hardware] * len(segments) if on is None else on)]
    if len(kinds) != len(segments):
        raise PlanError(
            f"{counted(len(kinds), 'kind')} for {counted(len(segments), 'segment')}", "kinds of devices",
            "name one kind for each segment, in their order",
        )  # fmt: skip
    costed = open_costed_model(model, _one_for_each(kinds))
    partition = [op_set(ops) for ops in _checked(costed.graph, segments)]
    names = [kind.name for kind in kinds]
    for k, (ops, name) in enumerate(zip(partition, names, strict=True)):
        if not costed.costs_by_kind[name].allowed(ops):
            raise PlanError(
                "computes nothing, has no output, separates ops that share state, or cuts a tensor of unknown shape",
                f"segment {k}",
                "move its cuts",
            )
    plan = _plan_of(costed, partition, names)
    if plan is None:
        raise PlanError("has a segment whose cost cannot be predicted", "the partition", "move its cuts")
    return plan


def _kind(source: str | Path | AnyHardware) -> AnyHardware:
    return kind_named(source) if isinstance(source, (str, Path)) else source


def _one_for_each(kinds: Sequence[AnyHardware]) -> Devices:
    """One device for each of these kinds, each time that it is named."""
    return Devices(tuple((kind, kinds.count(kind)) for kind in dict.fromkeys(kinds)))


def partition_plan(costed: CostedModel, partition: Sequence[OpSet]) -> Plan | None:
    """The plan of one pipeline with these segments, one device of the first kind for each; None if a segment is not allowed."""
    return _plan_of(costed.on(len(partition)), partition, [costed.hardware.name] * len(partition))


def _plan_of(costed: CostedModel, partition: Sequence[OpSet], kinds: Sequence[Kind]) -> Plan | None:
    """The plan of one pipeline with these segments, each on one device of its kind; None if a segment is not allowed."""
    pipeline = PipelineSpec(tuple(StageSpec(ops, kind) for ops, kind in zip(partition, kinds, strict=True)))
    value = evaluate(costed.problem(), [pipeline])
    if value is None:
        return None
    given = Solution(
        solver="given", pipelines=(pipeline,), value=value, bound_ns=None, over="nothing", ended=Ended.NOT_SEARCHED
    )
    return assemble(costed, given, ())


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
