"""What a plan's segments compute on a CPU, to be replayed by simulated TPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from balancer.interpreter import open_interpreter
from balancer.opened import open_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.inputs import Item
    from balancer.opened import AnyPlan, OpenedPlan


def recorded_outputs(
    plan: AnyPlan | OpenedPlan, items: Sequence[Item], *, keep_state: bool = False
) -> dict[str, tuple[dict[str, Any], ...]]:
    """By segment its outputs for each of the items, with state reset before each or kept.

    Raises PlanError or InterpreterError where it cannot be run.
    """
    opened = open_plan(plan)
    found: dict[str, tuple[dict[str, Any], ...]] = {}
    for partition in opened.plan.partitions():
        values = [dict(item) for item in items]
        for segment in partition:
            interpreter = open_interpreter(opened.segment_file(segment))
            infer, outputs = interpreter.run_next if keep_state else interpreter.run, []
            for tensors in values:
                infer([tensors[name] for name in interpreter.input_names])
                outputs.append(dict(zip(interpreter.output_names, interpreter.outputs(), strict=True)))
                tensors |= outputs[-1]
            found[segment.name] = tuple(outputs)
            interpreter.close()
    return found
