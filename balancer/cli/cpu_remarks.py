"""What the CPU does in a plan's stages on Edge TPUs: a warning where it is most of the time, and TPUs that have nothing to
multiply. Stages that a plan puts on the CPU are meant to be there: nothing is said of them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from balancer.errors import PlanError
from balancer.ground.opsets import members

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balancer.cost.segment import SegmentCosts
    from balancer.graph import Op
    from balancer.ground.opsets import OpSet
    from balancer.plan import Plan, PlanPipeline, PlanStage, Segment

_LOG = logging.getLogger(__name__)
_MOST_PERCENT = 50  # of the predicted time of an inference
_CHANNELS_LAST = "convert it with pictures as 1xHxWx3 (Ultralytics: format=edgetpu)"
_CUT = "allow more TPUs, so that a cut may come behind it, or convert the model without it"
_WITHOUT = "convert the model without it, or with smaller tensors"


def warn_of_cpu(plan: Plan) -> None:
    """Log a warning where the CPU works for more than half of the predicted time of an inference on Edge TPUs."""
    pipeline = max(plan.pipelines, key=lambda each: _cpu_percent(plan, each))
    percent = _cpu_percent(plan, pipeline)
    if percent <= _MOST_PERCENT:
        return
    what = f"the CPU works for {percent:.0f} % of the predicted time of an inference"
    longest = max(
        (plan.segment(s.segment) for s in _on_tpus(plan, pipeline)), key=lambda segment: segment.predicted.cpu_ns
    )
    costs = _costs(plan)
    op = _first_left_out(costs, longest) if costs else None
    if costs is None or op is None:
        _LOG.warning("%s; `balancer inspect` shows which ops it takes", what)
    else:
        _LOG.warning("%s, from op %d %s on: %s", what, op.index, op.type, _remedy(costs, longest.ops, op))


def idle_stages(plan: Plan) -> None:
    """Print which stages of pipelines multiply nothing, and what their TPUs are there for."""
    costs = _costs(plan) if any(len(pipeline.stages) > 1 for pipeline in plan.pipelines) else None
    if costs is not None:
        lines = (line for pipeline in plan.pipelines for line in _idle_stages(costs, plan, pipeline))
        print("".join(dict.fromkeys(lines)), end="")


def _idle_stages(costs: SegmentCosts, plan: Plan, pipeline: PlanPipeline) -> Iterator[str]:
    """A text for each stage of a pipeline of several that has nothing to multiply."""
    if len(pipeline.stages) == 1:
        return
    on_tpus = _on_tpus(plan, pipeline)
    for k, stage in ((k, stage) for k, stage in enumerate(pipeline.stages) if stage in on_tpus):
        ops = plan.segment(stage.segment).ops
        on_chip = ops & costs.mapped & ~costs.on_cpu(ops)
        kept_apart = _kept_apart(costs, on_chip)
        if not on_chip:
            yield f"stage {k} needs no TPU: all its ops run on the CPU\n"
        elif kept_apart is not None and not any(costs.graph.ops[i].macs for i in members(ops)):
            yield (
                f"stage {k} multiplies nothing: its TPU only keeps op {kept_apart.index} {kept_apart.type} from sending\n"
                "    later ops to the CPU, and would not be needed in a model without that op\n"
            )


def _kept_apart(costs: SegmentCosts, on_chip: OpSet) -> Op | None:
    """The first op that would send others to the CPU if it were in one segment with these; None if there is none."""
    graph = costs.graph
    ending = graph.ending(graph.all_ops, costs.mapped)
    return next((graph.ops[i] for i in members(ending) if graph.ancestors[i] & on_chip), None)


def _on_tpus(plan: Plan, pipeline: PlanPipeline) -> list[PlanStage]:
    """The stages on Edge TPUs."""
    return [stage for stage in pipeline.stages if plan.is_compiled(stage.segment)]


def _cpu_percent(plan: Plan, pipeline: PlanPipeline) -> float:
    """The CPU's share of the time that the stages of a pipeline on Edge TPUs take for one inference."""
    terms = [plan.segment(stage.segment).predicted for stage in _on_tpus(plan, pipeline)]
    return 100 * sum(t.cpu_ns for t in terms) / max(1, sum(t.stage_ns for t in terms))


def _first_left_out(costs: SegmentCosts, segment: Segment) -> Op | None:
    """The first op of the segment that the CPU takes: as reported, if it was compiled, else as predicted."""
    ops = costs.graph.ops
    if segment.reported is not None:
        return next((ops[entry.op] for entry in segment.reported.not_mapped), None)
    left_out = costs.graph.ending(segment.ops, costs.mapped) or segment.ops & costs.unmapped
    return next((ops[i] for i in members(left_out)), None)


def _remedy(costs: SegmentCosts, segment: OpSet, op: Op) -> str:
    """What helps where this op leaves most of the work of a segment to the CPU."""
    if op.type == "TRANSPOSE" and not _kinds(costs, costs.ancestors[op.index]) - {"QUANTIZE"}:
        return _CHANNELS_LAST  # it turns an input of the model
    on_cpu = costs.on_cpu(segment)
    own_ns, sent_ns = (
        sum(costs.op_terms[i].cpu_ns for i in members(on_cpu & ops)) for ops in (costs.unmapped, costs.mapped)
    )
    return _CUT if sent_ns > own_ns else _WITHOUT


def _kinds(costs: SegmentCosts, ops: OpSet) -> set[str]:
    return {costs.graph.ops[i].type for i in members(ops)}


def _costs(plan: Plan) -> SegmentCosts | None:
    """The costs of the plan's model on Edge TPUs; None where that is not at hand: such a plan is shown all the same."""
    from balancer.planning.costed_model import costed_model_of

    try:
        return costed_model_of(plan).costs
    except PlanError:
        return None
