"""How the compiler's own `--num_segments` splits a model, read from the files that it writes.

The comparison usually has a stand-in: the compiler's rule as far as it is known. This is the compiler itself.
"""

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
    """Run the compiler with `--num_segments` on the plan's whole model, for as many segments as the plan has TPUs.

    plan: a plan, its file, or its directory. The result is for `refine` and `comparison`. If the compiler fails on the
    model, the result has no pipelines, and its note says why.

    Raises PlanError if the plan cannot be opened, CompilerError or OutputError if the compiler cannot be run at all.
    """
    opened = open_plan(plan)
    graph, n_tpus = opened.graph, opened.plan.n_tpus
    if n_tpus == 1:
        return DefaultSplit((), {}, "one TPU: nothing to split")
    split = compiler.split(graph.name, opened.model.inline, n_tpus)
    if split.failure:
        return DefaultSplit((), {}, f"failed in the compiler: {split.failure}")
    partition = _partition(graph, split.outputs)
    if not all(partition):
        return DefaultSplit((), {}, "the segments that the compiler wrote are not parts of this model")
    reports = {ops: segment_report(ops, graph, compiler, c) for ops, c in zip(partition, split.segments, strict=True)}
    return DefaultSplit(
        [PipelineSpec(tuple(StageSpec(ops, opened.plan.hardware.name) for ops in partition))], reports, None
    )


def _partition(graph: Graph, outputs: Sequence[Sequence[str]]) -> list[OpSet]:
    """The op sets of segments, from the names of their output tensors.

    A segment holds all ops that its outputs depend on and that no earlier segment holds; the last holds all that are
    left. An empty set means that the names fit no segment of this graph.
    """
    made_by = {graph.tensors[t].name: op for t, op in graph.producer.items()}
    held, partition = 0, []
    for k, names in enumerate(outputs):
        needed = _needed(graph, (made_by[name] for name in names if name in made_by), held)
        ops = graph.all_ops & ~held if k == len(outputs) - 1 else needed
        partition.append(ops)
        held |= ops
    return partition


def _needed(graph: Graph, last: Iterable[int], held: OpSet) -> OpSet:
    """These ops and all that they depend on, without ops in `held`."""
    needed, waiting = 0, op_set(last) & ~held
    while waiting:
        op = waiting.bit_length() - 1
        needed |= 1 << op
        waiting = (waiting | graph.before[op]) & ~needed & ~held
    return needed
