"""What a model holds, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.ground.opsets import members

if TYPE_CHECKING:
    from balancer.graph import Graph


def left_on_cpu(graph: Graph) -> str:
    """Which ops run on the CPU if the model is one segment, and why: each reason with the ops that it holds for."""
    head = "on the CPU, if the model is one segment:"
    on_cpu = graph.on_cpu(graph.all_ops, graph.mapped)
    if not on_cpu:
        return f"{head} nothing"
    reasons: dict[str, list[int]] = {}
    for i in members(on_cpu & ~graph.mapped):
        reasons.setdefault(f"{graph.ops[i].type}: {graph.ops[i].unmapped}", []).append(i)
    lines = [f"    {', '.join(map(str, ops))} {reason}" for reason, ops in reasons.items()]
    after = (on_cpu & graph.mapped).bit_count()
    if after:
        lines.append(f"    {after} more that read results of these")
    return "\n".join([f"{head} {on_cpu.bit_count()} of {len(graph.ops)} ops", *lines])
