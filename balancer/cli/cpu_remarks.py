"""What the CPU does in a plan: a warning where it is most of the time, and TPUs that have nothing to multiply."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from balancer.errors import PlanError
from balancer.ground.opsets import members

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balancer.graph import Graph, Op
    from balancer.ground.opsets import OpSet
    from balancer.plan import Plan, PlanPipeline, Segment

_LOG = logging.getLogger(__name__)
_MOST_PERCENT = 50  # of the predicted time of an inference
_CHANNELS_LAST = "convert it with pictures as 1xHxWx3 (Ultralytics: format=edgetpu)"
_ELSEWHERE = "allow more TPUs, so that a cut may come before it, or convert the model without it"


def warn_of_cpu(plan: Plan) -> None:
    """Log a warning where the CPU works for more than half of the predicted time of an inference."""
    pipeline = max(plan.pipelines, key=lambda each: _cpu_percent(plan, each))
    percent = _cpu_percent(plan, pipeline)
    if percent <= _MOST_PERCENT:
        return
    what = f"the CPU works for {percent:.0f} % of the predicted time of an inference"
    longest = max((plan.segment(s.segment) for s in pipeline.stages), key=lambda segment: segment.predicted.cpu_ns)
    graph = _graph(plan)
    op = _first_left_out(graph, longest) if graph else None
    if graph is None or op is None:
        _LOG.warning("%s; `balancer inspect` shows which ops it takes", what)
        return
    remedy = _CHANNELS_LAST if _turns_input(graph, op) else _ELSEWHERE
    _LOG.warning("%s, from op %d %s on: %s", what, op.index, op.type, remedy)


def idle_stages(plan: Plan) -> None:
    """Print which stages of pipelines multiply nothing, and what their TPUs are there for."""
    graph = _graph(plan)
    if graph is not None:
        lines = (line for pipeline in plan.pipelines for line in _idle_stages(graph, plan, pipeline))
        print("".join(dict.fromkeys(lines)), end="")


def _idle_stages(graph: Graph, plan: Plan, pipeline: PlanPipeline) -> Iterator[str]:
    """A text for each stage of a pipeline of several that has nothing to multiply."""
    if len(pipeline.stages) == 1:
        return
    for k, stage in enumerate(pipeline.stages):
        ops = plan.segment(stage.segment).ops
        on_chip = ops & graph.mapped & ~graph.on_cpu(ops, graph.mapped)
        kept_apart = _kept_apart(graph, on_chip)
        if not on_chip:
            yield f"stage {k} needs no TPU: all its ops run on the CPU\n"
        elif kept_apart is not None and not any(graph.ops[i].macs for i in members(ops)):
            yield (
                f"stage {k} multiplies nothing: its TPU only keeps op {kept_apart.index} {kept_apart.type} from sending\n"
                "    later ops to the CPU, and would not be needed in a model without that op\n"
            )


def _kept_apart(graph: Graph, on_chip: OpSet) -> Op | None:
    """The first op that would send others to the CPU if it were in one segment with these; None if there is none."""
    ending = graph.ending(graph.all_ops, graph.mapped)
    return next((graph.ops[i] for i in members(ending) if graph.ancestors[i] & on_chip), None)


def _cpu_percent(plan: Plan, pipeline: PlanPipeline) -> float:
    """The CPU's share of the time that the stages of a pipeline take for one inference."""
    terms = [plan.segment(stage.segment).predicted for stage in pipeline.stages]
    return 100 * sum(t.cpu_ns for t in terms) / max(1, sum(t.stage_ns for t in terms))


def _first_left_out(graph: Graph, segment: Segment) -> Op | None:
    """The first op of the segment that the CPU takes: as reported, if it was compiled, else as predicted."""
    if segment.reported is not None:
        return next((graph.ops[entry.op] for entry in segment.reported.not_mapped), None)
    left_out = graph.ending(segment.ops, graph.mapped) or segment.ops & ~graph.mapped & ~graph.folded
    return next((graph.ops[i] for i in members(left_out)), None)


def _turns_input(graph: Graph, op: Op) -> bool:
    """Whether the op changes the order of an input's axes, before anything is computed."""
    before = members(graph.ancestors[op.index])
    return op.type == "TRANSPOSE" and all(graph.ops[i].type == "QUANTIZE" for i in before)


def _graph(plan: Plan) -> Graph | None:
    """The plan's model; None where it is not at hand: such a plan is shown all the same."""
    from balancer.opened import open_plan

    try:
        return open_plan(plan).graph
    except PlanError:
        return None
