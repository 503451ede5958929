"""What is said on a terminal of whether segments compile, and of what was given up for segments that do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.cli.drawing import COMPLETE, NOT_SEARCHED, milliseconds, short_size, tpus
from balancer.cost.capacity import TILES
from balancer.cost.compilable import sure_bytes
from balancer.ground.units import NS_PER_S
from balancer.plan.records import COMPILE_LEVELS

if TYPE_CHECKING:
    from balancer.plan import CompileJudgement, Plan

_SURELY, _PERHAPS, _SURELY_NOT = COMPILE_LEVELS
# By the worst segment of a plan: what no plan does, and what this one does.
_MISSING = {_PERHAPS: ("surely compiles", "this one may"), _SURELY_NOT: ("may compile", "this is the fastest")}


def compiling(plan: Plan) -> None:
    """Print which segments do not surely compile, and what was given up for segments that do."""
    none_better = _none_better(plan)
    if none_better:
        print(none_better)
    for segment in plan.segments:
        judged = segment.compiles
        if judged is not None and judged.tensor is not None:
            print(f"compiles {judged.level}: {segment.name},")
            print(f"    {_cause(judged, sure_bytes(plan.hardware.constants.get('narrow_bytes', 0) // TILES))}")
            print(f"    '{judged.tensor}'")
    given_up = _given_up(plan)
    if given_up:
        print(f"given up for segments that compile more surely: {given_up}")


def _none_better(plan: Plan) -> str:
    """That no plan compiles more surely than this one, in words. Empty if it surely compiles, if its segments were compiled or
    measured, or if the user asked for a level.
    """
    levels = {segment.compiles.level for segment in plan.segments if segment.compiles is not None}
    worst = max(levels, key=COMPILE_LEVELS.index, default=COMPILE_LEVELS[0])
    known = any(segment.reported or segment.measured for segment in plan.segments)
    asked = plan.held_to is None or plan.held_to.compilable is not None
    if asked or known or worst == COMPILE_LEVELS[0] or plan.solver.ended == NOT_SEARCHED:
        return ""
    missing, this = _MISSING[worst]
    if plan.solver.ended == COMPLETE:
        return f"no plan on {tpus(plan.n_tpus)} {missing}; {this}"
    return f"no plan on {tpus(plan.n_tpus)} that {missing} was found before the search ended; {this}"


def _cause(judged: CompileJudgement, limit_bytes: int) -> str:
    """Why a segment does not surely compile; the name of the tensor follows. limit_bytes: of a tile, where it would."""
    if (judged.tile_bytes or 0) <= limit_bytes:
        return "since behind ops on the chip an op is too large for it, which makes"
    need, limit = short_size(judged.tile_bytes or 0), short_size(limit_bytes)
    return f"since its activations need {need} of each tile (surely up to {limit}), most for"


def _given_up(plan: Plan) -> str:
    """What the plan that was passed over would have reached, in words; empty if there was none."""
    solver = plan.solver
    reached_ns = solver.objective_ns if solver.latency_bound_ns is None else plan.predicted.latency_ns
    # A search for it that was cut short may have found a slower one.
    if solver.passed_over_ns is None or solver.passed_over_ns >= reached_ns:
        return ""
    if solver.latency_bound_ns is not None:
        return f"latency {milliseconds(solver.passed_over_ns)} instead of {milliseconds(plan.predicted.latency_ns)} ms"
    faster, reached = NS_PER_S / max(1, solver.passed_over_ns), plan.predicted.throughput_per_s
    return f"{faster:.1f} instead of {reached:.1f} inferences/s"
