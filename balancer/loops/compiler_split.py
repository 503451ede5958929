"""What the compiler's own `--num_segments` makes of a model: read from what it wrote, not from a rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.directory.compiling import segment_report
from balancer.ground.opsets import OpSet, op_set
from balancer.opened import AnyPlan, OpenedPlan, open_plan
from balancer.planning.comparing import DefaultSplit
from balancer.solve import PipelineSpec, StageSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.compiler import Compiler
    from balancer.graph import Graph


def default_split(plan: AnyPlan | OpenedPlan, compiler: Compiler) -> DefaultSplit:
    """Run `--num_segments` on the plan's whole model, for as many segments as the plan has TPUs.

    Raises CompilerError or OutputError where it cannot be run at all.
    """
    opened = open_plan(plan)
    graph, n_tpus = opened.graph, opened.plan.n_tpus
    if n_tpus == 1:
        return DefaultSplit((), {}, "one TPU: nothing to split")
    found = compiler.split(graph.name, opened.model.data, n_tpus)
    if found.failure:
        return DefaultSplit((), {}, f"failed in the compiler: {found.failure}")
    partition = _partition(graph, found.outputs)
    if not all(partition):
        return DefaultSplit((), {}, "the segments that it wrote are not parts of this model")
    reports = {ops: segment_report(ops, graph, compiler, c) for ops, c in zip(partition, found.segments, strict=True)}
    return DefaultSplit(
        [PipelineSpec(tuple(StageSpec(ops, opened.plan.hardware.name) for ops in partition))], reports, None
    )


def _partition(graph: Graph, outputs: Sequence[Sequence[str]]) -> list[OpSet]:
    """The ops of segments with these outputs: what each needs and no earlier one holds; the last takes all the rest."""
    made_by = {graph.tensors[t].name: op for t, op in graph.producer.items()}
    held, found = 0, []
    for k, names in enumerate(outputs):
        needed = _needed(graph, (made_by[name] for name in names if name in made_by), held)
        ops = graph.all_ops & ~held if k == len(outputs) - 1 else needed
        found.append(ops)
        held |= ops
    return found


def _needed(graph: Graph, last: Iterable[int], held: OpSet) -> OpSet:
    """These ops and all that they depend on, but for those that are held."""
    found, waiting = 0, op_set(last) & ~held
    while waiting:
        op = waiting.bit_length() - 1
        found |= 1 << op
        waiting = (waiting | graph.before[op]) & ~found & ~held
    return found
