"""Whether Google's own runner can run a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balancer.plan.records import Plan


def pycoral_obstacle(plan: Plan) -> str:
    """Why pycoral's PipelinedModelRunner could not run a pipeline of this plan; empty if it can.

    It has one TPU for each stage, and needs every model input in the first segment and every model output in the last;
    what else a segment gives must be read later.
    """
    for stage in (stage for pipeline in plan.pipelines for stage in pipeline.stages):
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
