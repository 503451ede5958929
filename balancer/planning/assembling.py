"""Turns a solver's solution into a plan: names of segments, boundary tensors, numbers of TPUs, predictions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from balancer.graph import Graph, boundary_names
from balancer.ground.opsets import OpSet
from balancer.opened import known_costs
from balancer.plan import (
    BoundaryTensor,
    ComparisonRow,
    CompileJudgement,
    HardwareInfo,
    HeldTo,
    ModelInfo,
    Plan,
    PlanPipeline,
    PlanStage,
    Segment,
    SegmentInput,
    SolverReport,
)
from balancer.planning.forbidding import known_refusals
from balancer.planning.prediction import DECIMALS, CostedStage, pipeline_prediction, plan_prediction
from balancer.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from balancer.cost.constant_groups import Host
    from balancer.planning.costed_model import CostedModel
    from balancer.solve import PipelineSpec, Solution

Partition = tuple[OpSet, ...]


def assemble(
    costed: CostedModel,
    solution: Solution,
    n_tpus: int,
    comparison: Sequence[ComparisonRow],
    held: HeldTo | None = None,
) -> Plan:
    """The plan that a solution describes.

    n_tpus: how many TPUs the plan is for; the solution may use fewer. comparison: rows to store in the plan. held: the
    limits that the solution was solved with; None if they are not known.
    """
    partitions = list(dict.fromkeys(_partition(p) for p in solution.pipelines))
    named = dict(zip(partitions, _segments(costed, partitions), strict=True))
    pipelines = [
        [CostedStage(s, stage.replicas) for s, stage in zip(named[_partition(p)], p.stages, strict=True)]
        for p in solution.pipelines
    ]
    graph, hardware = costed.graph, costed.hardware
    return Plan(
        model=ModelInfo(
            file=None,
            sha256=costed.model.sha256,
            ops=len(graph.ops),
            parameter_bytes=graph.parameter_bytes,
            macs=graph.macs,
        ),
        hardware=HardwareInfo(name=hardware.name, constants=hardware.constants),
        costs=known_costs(costed.profile),
        refusals=known_refusals(costed.forbidden),
        n_tpus=n_tpus,
        held_to=held,
        segments=tuple(segment for segments in named.values() for segment in segments),
        pipelines=_pipelines(pipelines, hardware.host),
        predicted=plan_prediction(pipelines, hardware),
        solver=_solver_report(solution),
        comparison=tuple(comparison),
        versions={"balancer": VERSION},
        state=costed.state,
        origin=costed.model,
    )


def _solver_report(solution: Solution) -> SolverReport:
    return SolverReport(
        name=solution.solver,
        over=solution.over,
        status=solution.status,
        objective_ns=solution.value.objective_ns,
        bound_ns=solution.bound_ns,
        gap=round(solution.gap, DECIMALS),
        statistics=solution.statistics,
        latency_bound_ns=solution.latency_bound_ns,
        ended=solution.ended.value,
        passed_over_ns=solution.passed_over_ns,
    )


def _partition(pipeline: PipelineSpec) -> Partition:
    return tuple(stage.ops for stage in pipeline.stages)


def _segments(costed: CostedModel, partitions: Sequence[Partition]) -> list[list[Segment]]:
    """The segments of each partition.

    Segments are named by their position and number, so two partitions with equally many segments would get the same
    names. The second one gets the suffix -b in the stem, the third -c, and so on.
    """
    names = boundary_names(costed.graph, (ops for p in partitions for ops in p))
    uses: Counter[int] = Counter()
    by_partition = []
    for partition in partitions:
        alike = uses[len(partition)]
        uses[len(partition)] += 1
        stem = costed.graph.name + (f"-{_suffix(alike)}" if alike else "")
        by_partition.append(_named_segments(costed, partition, stem, names))
    return by_partition


def _suffix(alike: int) -> str:
    return chr(ord("a") + alike) if alike < 26 else str(alike + 1)


def _named_segments(costed: CostedModel, partition: Partition, stem: str, names: Mapping[int, str]) -> list[Segment]:
    graph, made_in, segments = costed.graph, dict[int, str](), []
    for k, ops in enumerate(partition):
        name = f"{stem}_segment_{k}_of_{len(partition)}"
        inputs, outputs = graph.interface(ops)
        segments.append(
            Segment(
                name=name,
                ops=ops,
                file=None,
                sha256=None,
                inputs=tuple(SegmentInput(**_boundary(graph, t, names), source=made_in.get(t)) for t in inputs),
                outputs=tuple(BoundaryTensor(**_boundary(graph, t, names)) for t in outputs),
                predicted=replace(costed.costs.terms(ops), activation_bytes=costed.costs.activation_bytes(ops)),
                compiles=_compiles(costed, ops),
            )
        )
        made_in |= dict.fromkeys(outputs, name)
    return segments


def _compiles(costed: CostedModel, ops: OpSet) -> CompileJudgement:
    judged = costed.costs.judgement(ops)
    return CompileJudgement(level=judged.level.value, tensor=judged.tensor, tile_bytes=judged.tile_bytes)


def _boundary(graph: Graph, t: int, names: Mapping[int, str]) -> dict[str, Any]:
    tensor = graph.tensors[t]
    return {"tensor": names[t], "shape": tensor.shape, "dtype": tensor.dtype, "bytes": tensor.bytes}


def _pipelines(costed: Sequence[Sequence[CostedStage]], host: Host) -> tuple[PlanPipeline, ...]:
    """The plan's pipelines. TPUs are numbered from 0: by pipeline, then stage, then replica."""
    numbers, pipelines = count(), []
    for stages in costed:
        planned = tuple(
            PlanStage(segment=s.segment.name, replicas=s.replicas, tpus=tuple(islice(numbers, s.replicas)))
            for s in stages
        )
        pipelines.append(PlanPipeline(stages=planned, predicted=pipeline_prediction(stages, host)))
    return tuple(pipelines)
