"""What is said on a terminal of whether segments compile, and of what was given up for segments that do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.cli.drawing import milliseconds, short_size
from balancer.cost.capacity import TILES
from balancer.cost.compilable import sure_bytes
from balancer.ground.units import NS_PER_S

if TYPE_CHECKING:
    from balancer.plan import CompileJudgement, Plan


def compiling(plan: Plan) -> None:
    """Print which segments do not surely compile, and what was given up for segments that do."""
    for segment in plan.segments:
        judged = segment.compiles
        if judged is not None and judged.tensor is not None:
            print(f"compiles {judged.level}: {segment.name},")
            narrow_bytes = plan.devices_under(segment.name).constants.get("narrow_bytes", 0)
            print(f"    {_cause(judged, sure_bytes(narrow_bytes // TILES))}")
            print(f"    '{judged.tensor}'")
    given_up = _given_up(plan)
    if given_up:
        print(f"given up for segments that compile more surely: {given_up}")


def _cause(judged: CompileJudgement, limit_bytes: int) -> str:
    """Why a segment does not surely compile; the name of the tensor follows. limit_bytes: of a tile, where it would."""
    if (judged.tile_bytes or 0) <= limit_bytes:
        return "since behind ops on the chip an op is too large for it, which makes"
    need, limit = short_size(judged.tile_bytes or 0), short_size(limit_bytes)
    return f"since its activations need {need} of each tile (surely up to {limit}), most for"


def _given_up(plan: Plan) -> str:
    """What the plan that was passed over would have reached, in words; empty if there was none."""
    solver = plan.solver
    if solver.passed_over_ns is None:
        return ""
    if solver.latency_bound_ns is not None:
        return f"latency {milliseconds(solver.passed_over_ns)} instead of {milliseconds(plan.predicted.latency_ns)} ms"
    faster, reached = NS_PER_S / max(1, solver.passed_over_ns), plan.predicted.throughput_per_s
    return f"{faster:.1f} instead of {reached:.1f} inferences/s"
