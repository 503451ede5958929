"""Turns a solver's solution into a plan: names of segments, boundary tensors, numbers of TPUs, predictions."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from balancer.graph import Graph, boundary_names
from balancer.ground.opsets import OpSet
from balancer.ground.rates import latency_ns, load_ns, pipeline_rate, shared_rates
from balancer.opened import known_costs
from balancer.plan import (
    BoundaryTensor,
    ComparisonRow,
    HardwareInfo,
    HeldTo,
    ModelInfo,
    PipelinePrediction,
    Plan,
    PlanPipeline,
    PlanPrediction,
    PlanStage,
    Segment,
    SegmentInput,
    SegmentPrediction,
    SolverReport,
)
from balancer.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from balancer.planning.setting import Setting
    from balancer.solve import PipelineSpec, Solution

Partition = tuple[OpSet, ...]
DECIMALS = 6  # of rates and ratios in files: much finer than any prediction is accurate


def assemble(
    setting: Setting,
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
    named = dict(zip(partitions, _segments(setting, partitions), strict=True))
    graph, hardware, value = setting.graph, setting.hardware, solution.value
    return Plan(
        model=ModelInfo(
            file=None,
            sha256=setting.model.sha256,
            ops=len(graph.ops),
            parameter_bytes=graph.parameter_bytes,
            macs=graph.macs,
        ),
        hardware=HardwareInfo(name=hardware.name, constants=hardware.constants),
        costs=known_costs(setting.profile),
        n_tpus=n_tpus,
        held_to=held,
        segments=tuple(segment for segments in named.values() for segment in segments),
        pipelines=_pipelines(setting, solution.pipelines, named),
        predicted=_plan_prediction(setting, solution.pipelines, named),
        solver=SolverReport(
            name=solution.solver,
            over=solution.over,
            status=solution.status,
            objective_ns=value.objective_ns,
            bound_ns=solution.bound_ns,
            gap=round(solution.gap, DECIMALS),
            statistics=solution.statistics,
            latency_bound_ns=solution.latency_bound_ns,
            ended=solution.ended.value,
        ),
        comparison=tuple(comparison),
        versions={"balancer": VERSION},
        state=setting.state,
        origin=setting.model,
    )


def _partition(pipeline: PipelineSpec) -> Partition:
    return tuple(stage.ops for stage in pipeline.stages)


def _segments(setting: Setting, partitions: Sequence[Partition]) -> list[list[Segment]]:
    """The segments of each partition.

    Segments are named by their position and number, so two partitions with equally many segments would get the same
    names. The second one gets the suffix -b in the stem, the third -c, and so on.
    """
    names = boundary_names(setting.graph, (ops for p in partitions for ops in p))
    uses: Counter[int] = Counter()
    by_partition = []
    for partition in partitions:
        alike = uses[len(partition)]
        uses[len(partition)] += 1
        stem = setting.graph.name + (f"-{_suffix(alike)}" if alike else "")
        by_partition.append(_named_segments(setting, partition, stem, names))
    return by_partition


def _suffix(alike: int) -> str:
    return chr(ord("a") + alike) if alike < 26 else str(alike + 1)


def _named_segments(setting: Setting, partition: Partition, stem: str, names: Mapping[int, str]) -> list[Segment]:
    graph, made_in, segments = setting.graph, dict[int, str](), []
    for k, ops in enumerate(partition):
        name = f"{stem}_segment_{k}_of_{len(partition)}"
        inputs, outputs = graph.interface(ops)
        terms = setting.costs.terms(ops)
        segments.append(
            Segment(
                name=name,
                ops=ops,
                file=None,
                sha256=None,
                inputs=tuple(SegmentInput(**_boundary(graph, t, names), source=made_in.get(t)) for t in inputs),
                outputs=tuple(BoundaryTensor(**_boundary(graph, t, names)) for t in outputs),
                predicted=SegmentPrediction(**asdict(terms), stage_ns=terms.stage_ns),
            )
        )
        made_in |= dict.fromkeys(outputs, name)
    return segments


def _boundary(graph: Graph, t: int, names: Mapping[int, str]) -> dict[str, Any]:
    tensor = graph.tensors[t]
    return {"tensor": names[t], "shape": tensor.shape, "dtype": tensor.dtype, "bytes": tensor.bytes}


def _pipelines(
    setting: Setting, pipelines: Sequence[PipelineSpec], named: Mapping[Partition, list[Segment]]
) -> tuple[PlanPipeline, ...]:
    """The plan's pipelines. TPUs are numbered from 0: by pipeline, then stage, then replica."""
    tpu, numbered = 0, []
    for pipeline in pipelines:
        segments, stages = named[_partition(pipeline)], []
        for stage, segment in zip(pipeline.stages, segments, strict=True):
            tpus = tuple(range(tpu, tpu + stage.replicas))
            stages.append(PlanStage(segment=segment.name, replicas=stage.replicas, tpus=tpus))
            tpu += stage.replicas
        numbered.append(PlanPipeline(stages=tuple(stages), predicted=_pipeline_prediction(setting, pipeline, segments)))
    return tuple(numbered)


def _stage_ns(segments: Sequence[Segment]) -> list[int]:
    return [s.predicted.stage_ns for s in segments]


def _latency_ns(setting: Setting, segments: Sequence[Segment]) -> int:
    return latency_ns(_stage_ns(segments), setting.hardware.host.handover_ns)


def _first_inference_ns(setting: Setting, segments: Sequence[Segment]) -> int:
    """Latency of the first input. It also waits until the cached parameters are loaded, one segment after the other."""
    link = setting.hardware.link
    loads = (load_ns(s.predicted.cached_bytes, link.load_ns_per_mib, link.load_ns) for s in segments)
    return _latency_ns(setting, segments) + sum(loads)


def _rate(pipeline: PipelineSpec, segments: Sequence[Segment]) -> Fraction:
    return pipeline_rate(_stage_ns(segments), [stage.replicas for stage in pipeline.stages])


def _pipeline_prediction(setting: Setting, pipeline: PipelineSpec, segments: Sequence[Segment]) -> PipelinePrediction:
    stages = zip(segments, pipeline.stages, strict=True)
    slowest = max(stages, key=lambda pair: Fraction(pair[0].predicted.stage_ns, pair[1].replicas))
    return PipelinePrediction(
        throughput_per_s=round(float(_rate(pipeline, segments)), DECIMALS),
        latency_ns=_latency_ns(setting, segments),
        host_ns=setting.hardware.host.host_ns_per_stage * len(segments),
        bottleneck=slowest[0].name,
    )


def _plan_prediction(
    setting: Setting, pipelines: Sequence[PipelineSpec], named: Mapping[Partition, list[Segment]]
) -> PlanPrediction:
    """The prediction for all pipelines together: the rate that one host allows, the latency of the slowest pipeline, and
    the host's work for one inference, averaged over the pipelines by their rates.
    """
    segments = [named[_partition(p)] for p in pipelines]
    rates = [_rate(p, s) for p, s in zip(pipelines, segments, strict=True)]
    hosts = [setting.hardware.host.host_ns_per_stage * len(s) for s in segments]
    shared = shared_rates(rates, hosts)
    mean_host = sum((r * h for r, h in zip(shared, hosts, strict=True)), Fraction(0)) / sum(shared, Fraction(0))
    return PlanPrediction(
        throughput_per_s=round(float(sum(shared)), DECIMALS),
        latency_ns=max(_latency_ns(setting, s) for s in segments),
        host_ns=math.ceil(mean_host),
        first_inference_ns=max(_first_inference_ns(setting, s) for s in segments),
        tpus_used=sum(p.devices for p in pipelines),
    )
