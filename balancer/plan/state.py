"""State that a model keeps from one input to the next (variable tensors of SVDF, LSTM and others).

State is reset before each input, or kept. It can only be kept if one device holds it and sees all items in their order.
So a plan that keeps state has one pipeline, and no replicas up to the last stage that holds state: replicas pass items
on in the order in which they finish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.errors import PlanError

if TYPE_CHECKING:
    from balancer.ground.opsets import OpSet
    from balancer.plan.records import Plan

RESET, KEPT = "reset", "kept"
STATE_WORDS = {
    RESET: "state: variable tensors are reset before each input; --keep-state keeps them",
    KEPT: "state: variable tensors are kept from input to input",
}


def state_of(stateful: OpSet, *, keep_state: bool) -> str | None:
    """What happens to the state of a model: KEPT, RESET, or None if it has no stateful ops.

    stateful: the ops that hold state. keep_state: whether the user asked to keep it.
    """
    if not stateful:
        return None
    return KEPT if keep_state else RESET


def segments_with_state(plan: Plan, stateful: OpSet) -> frozenset[str]:
    """Names of the segments that hold state. stateful: the model's stateful ops. Raises PlanError if the plan cannot keep
    state.
    """
    held = {s.name for s in plan.segments if s.ops & stateful}
    remedy = "solve with --keep-state"
    if held and len(plan.pipelines) > 1:
        raise PlanError(f"cannot keep state: it has {len(plan.pipelines)} pipelines", plan.file_name, remedy)
    stages = plan.pipelines[0].stages
    last = max((k for k, stage in enumerate(stages) if stage.segment in held), default=-1)
    for stage in stages[: last + 1]:
        if stage.replicas > 1:
            what = f"cannot keep state: {stage.segment} has {stage.replicas} replicas"
            raise PlanError(what, plan.file_name, remedy)
    return frozenset(held)
