"""Whether Google's pycoral can run a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balancer.plan.records import Plan


def pycoral_obstacle(plan: Plan) -> str:
    """Why pycoral's PipelinedModelRunner cannot run the plan's pipelines, in words; empty if it can.

    The runner uses one Edge TPU for each stage. It passes all model inputs to the first segment and takes all model outputs
    from the last one. Every other output of a segment must be read by a later segment.
    """
    for stage in (stage for pipeline in plan.pipelines for stage in pipeline.stages):
        if not plan.is_compiled(stage.segment):
            return f"{stage.segment} runs on the CPU"
        if stage.replicas > 1:
            return f"{stage.replicas} TPUs share a stage"
    for partition in plan.partitions():
        first = {t.tensor for t in partition[0].inputs}
        for k, segment in enumerate(partition):
            late = [t.tensor for t in segment.inputs if t.source is None and t.tensor not in first]
            if late:
                return f"model input '{late[0]}' is first read in {segment.name}"
            read_later = {t.tensor for later in partition[k + 1 :] for t in later.inputs}
            unread = [t.tensor for t in segment.outputs if t.tensor not in read_later]
            if unread and segment is not partition[-1]:
                return f"model output '{unread[0]}' leaves before the last stage, in {segment.name}"
    return ""
