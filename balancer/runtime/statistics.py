"""What was measured of a pipeline's stages, as values."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.plan import Plan
    from balancer.workers import StageTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatistics:
    """One stage. devices: of its replicas. stage_ns: median time of one item in the device.

    Means over items, in ns: busy in the device; queued before the stage. Means over the pauses of a replica: starved,
    waiting for the next item; blocked, waiting for a free place before the next stage.
    """

    pipeline: int
    stage: int
    segment: str
    devices: tuple[str, ...]
    items: int
    stage_ns: int
    busy_ns: int
    queued_ns: int
    starved_ns: int
    blocked_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStatistics:
    """All stages, by pipeline, then position. bottleneck: segment of the stage with the longest time per replica; None
    before any item came through.
    """

    stages: tuple[StageStatistics, ...]
    bottleneck: str | None


def statistics_of(plan: Plan, devices: Sequence[str], times: Sequence[Sequence[StageTimes]]) -> PipelineStatistics:
    """The statistics of a plan's stages. devices: by TPU. times: by pipeline and stage."""
    stages = []
    for p, pipeline in enumerate(plan.pipelines):
        for k, stage in enumerate(pipeline.stages):
            t = times[p][k]
            count = max(1, t.items)
            stages.append(
                StageStatistics(
                    pipeline=p, stage=k, segment=stage.segment, devices=tuple(devices[i] for i in plan.positions(stage)),
                    items=t.items, stage_ns=int(median(list(t.samples) or [0])), busy_ns=t.busy_ns // count,
                    queued_ns=t.queued_ns // count, starved_ns=t.starved_ns // count, blocked_ns=t.blocked_ns // count,
                )
            )  # fmt: skip
    worked = [s for s in stages if s.items]
    slowest = max(worked, key=lambda s: s.stage_ns / len(s.devices), default=None)
    return PipelineStatistics(stages=tuple(stages), bottleneck=slowest.segment if slowest else None)
