"""Turns a solver's solution into a plan: names of segments, boundary tensors, numbers of TPUs, predictions."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from balancer.cost.cpu_hardware import CpuHardware
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
    PlanDevices,
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
    from collections.abc import Iterator, Mapping, Sequence

    from balancer.cost.devices import Devices
    from balancer.cost.segment import SegmentCosts
    from balancer.planning.costed_model import CostedModel
    from balancer.solve import PipelineSpec, Solution

# The segments of a pipeline, each with the kind of device that it stands on: its predictions depend on both.
Partition = tuple[tuple[OpSet, str], ...]


def assemble(
    costed: CostedModel,
    solution: Solution,
    comparison: Sequence[ComparisonRow],
    held: HeldTo | None = None,
) -> Plan:
    """The plan that a solution describes.

    comparison: rows to store in the plan. held: the limits that the solution was solved with; None if they are not known.
    """
    partitions = list(dict.fromkeys(_partition(p) for p in solution.pipelines))
    named = dict(zip(partitions, _segments(costed, partitions), strict=True))
    kinds, shared = {kind.name: kind for kind, _ in costed.devices.kinds}, costed.shared_work
    pipelines = [
        [
            CostedStage(segment, stage.replicas, kinds[stage.kind], shared.exact(stage.ops, stage.kind))
            for segment, stage in zip(named[_partition(p)], p.stages, strict=True)
        ]
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
        n_tpus=costed.devices.total,
        devices=_plan_devices(costed.devices),
        held_to=held,
        segments=tuple(segment for segments in named.values() for segment in segments),
        pipelines=_pipelines(pipelines),
        predicted=plan_prediction(pipelines, costed.devices, shared.resources),
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


def _plan_devices(devices: Devices) -> tuple[PlanDevices, ...]:
    return tuple(
        PlanDevices(kind=kind.name, device=kind.DEVICE, count=count, rough=kind.rough, constants=kind.constants)
        for kind, count in devices.kinds
    )


def _partition(pipeline: PipelineSpec) -> Partition:
    return tuple((stage.ops, stage.kind) for stage in pipeline.stages)


def _segments(costed: CostedModel, partitions: Sequence[Partition]) -> list[list[Segment]]:
    """The segments of each partition.

    Segments are named by their position and number, so two partitions with equally many segments would get the same
    names. The second one gets the suffix -b in the stem, the third -c, and so on.
    """
    names = boundary_names(costed.graph, (ops for p in partitions for ops, _ in p))
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
    for k, (ops, kind) in enumerate(partition):
        costs = costed.costs_by_kind[kind]
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
                predicted=replace(costs.terms(ops), activation_bytes=costs.activation_bytes(ops)),
                compiles=_compiles(costs, ops),
            )
        )
        made_in |= dict.fromkeys(outputs, name)
    return segments


def _compiles(costs: SegmentCosts, ops: OpSet) -> CompileJudgement | None:
    if isinstance(costs.hardware, CpuHardware):
        return None  # nothing compiles it
    judged = costs.judgement(ops)
    return CompileJudgement(level=judged.level.value, tensor=judged.tensor, tile_bytes=judged.tile_bytes)


def _boundary(graph: Graph, t: int, names: Mapping[int, str]) -> dict[str, Any]:
    tensor = graph.tensors[t]
    return {"tensor": names[t], "shape": tensor.shape, "dtype": tensor.dtype, "bytes": tensor.bytes}


def _pipelines(costed: Sequence[Sequence[CostedStage]]) -> tuple[PlanPipeline, ...]:
    """The plan's pipelines. The devices of each kind are numbered from 0: by pipeline, then stage, then replica."""
    numbers: defaultdict[str, Iterator[int]] = defaultdict(count)
    pipelines = []
    for stages in costed:
        planned = tuple(
            PlanStage(
                segment=s.segment.name,
                replicas=s.replicas,
                tpus=tuple(islice(numbers[s.kind.name], s.replicas)),
                kind=s.kind.name,
            )
            for s in stages
        )
        pipelines.append(PlanPipeline(stages=planned, predicted=pipeline_prediction(stages)))
    return tuple(pipelines)
