"""What the compiler's own `--num_segments` makes of a model: read from what it wrote, not from a rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.directory.compiling import segment_report
from balancer.ground.opsets import OpSet, op_set
from balancer.solve import PipelineSpec, StageSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.compiler import Compiler
    from balancer.graph import Graph
    from balancer.plan import SegmentReport
    from balancer.planning.setting import Setting


@dataclass(frozen=True, slots=True)
class DefaultSplit:
    """A pipeline of single TPUs with what was reported of its segments; without them, note says why."""

    pipelines: Sequence[PipelineSpec]
    reports: dict[OpSet, SegmentReport]
    note: str | None


def default_split(setting: Setting, n_tpus: int, compiler: Compiler) -> DefaultSplit:
    """Run `--num_segments` on the whole model. Raises CompilerError or OutputError where it cannot be run at all."""
    if n_tpus == 1:
        return DefaultSplit((), {}, "one TPU: nothing to split")
    found = compiler.split(setting.graph.name, setting.data, n_tpus)
    if found.failure:
        return DefaultSplit((), {}, f"failed in the compiler: {found.failure}")
    partition = _partition(setting.graph, found.outputs)
    if not all(partition):
        return DefaultSplit((), {}, "the segments that it wrote are not parts of this model")
    reports = {
        ops: segment_report(ops, setting.graph, compiler, c) for ops, c in zip(partition, found.segments, strict=True)
    }
    return DefaultSplit(
        [PipelineSpec(tuple(StageSpec(ops, setting.hardware.name) for ops in partition))], reports, None
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
