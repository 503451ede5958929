"""How the compiler's own `--num_segments` splits a model, read from the files that it writes.

The comparison usually has a stand-in: the compiler's rule as far as it is known. This is the compiler itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.directory.compiling import segment_report
from balancer.errors import CompilerError, InfeasibleError
from balancer.ground.opsets import OpSet, op_set
from balancer.loops.refining import RefineRound, refine
from balancer.opened import AnyPlan, OpenedPlan, open_plan
from balancer.plan import EDGE_TPU
from balancer.planning.comparing import OURS, DefaultSplit, comparison
from balancer.planning.costed_model import costed_model_of
from balancer.planning.solved import pipelines_of
from balancer.solve import PipelineSpec, StageSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from balancer.compiler import Compiler
    from balancer.graph import Graph
    from balancer.plan import ComparisonRow


def default_split(plan: AnyPlan | OpenedPlan, compiler: Compiler) -> DefaultSplit:
    """Run the compiler with `--num_segments` on the plan's whole model, for as many segments as the plan has Edge TPUs of the
    first kind.

    Where there are TPUs of several kinds, those of the first one count.

    plan: a plan, its file, or its directory. The result is for `refine` and `comparison`. If the compiler fails on the
    model, the result has no pipelines, and its note says why.

    Raises PlanError if the plan cannot be opened, CompilerError or OutputError if the compiler cannot be run at all.
    """
    opened = open_plan(plan)
    graph, tpus = opened.graph, next((d for d in opened.plan.devices if d.device == EDGE_TPU), None)
    if tpus is None or tpus.count == 1:
        return DefaultSplit((), {}, f"{'one' if tpus else 'no'} TPU: nothing to split")
    split = compiler.split(graph.name, opened.model.inline, tpus.count)
    if split.failure:
        return DefaultSplit((), {}, f"failed in the compiler: {split.failure}")
    partition = _partition(graph, split.outputs)
    if not all(partition):
        return DefaultSplit((), {}, "the segments that the compiler wrote are not parts of this model")
    reports = {ops: segment_report(ops, graph, compiler, c) for ops, c in zip(partition, split.segments, strict=True)}
    return DefaultSplit([PipelineSpec(tuple(StageSpec(ops, tpus.kind) for ops in partition))], reports, None)


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


def compare_compiled(
    plan: AnyPlan | OpenedPlan, compiler: Compiler, *, on_round: Callable[[RefineRound], None] = lambda finished: None
) -> tuple[ComparisonRow, ...]:
    """The comparison of the refined plan, with a row for the split that the compiler's own `--num_segments` makes.

    plan: a plan, its file, or its directory. on_round: called after each round of refining. If no plan can be compiled,
    the rows are those of the given plan, and its own row says why.

    Raises PlanError if the plan cannot be opened, CompilerError if the compiler cannot be run at all.
    """
    opened = open_plan(plan)
    default = default_split(opened, compiler)
    try:
        return refine(opened, compiler, default=default, on_round=on_round).plan.comparison
    except (CompilerError, InfeasibleError) as error:
        rows = comparison(costed_model_of(opened), pipelines_of(opened.plan), default=default)
        return tuple(replace(row, note=str(error)) if row.name == OURS else row for row in rows)
