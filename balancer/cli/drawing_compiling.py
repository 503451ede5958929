"""What is said on a terminal of compiling: whether segments compile, what the compiler reported, and what it refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.cli.drawing import COMPLETE, NOT_SEARCHED, Listing, in_lines, milliseconds, short_size
from balancer.cost.capacity import TILES
from balancer.cost.compilable import sure_bytes
from balancer.ground.units import NS_PER_S
from balancer.ground.wording import counted
from balancer.plan.records import COMPILE_LEVELS

if TYPE_CHECKING:
    from collections.abc import Collection

    from balancer.learning.refusals import RefusedSegment
    from balancer.loops.refining import RefineRound
    from balancer.plan import CompileJudgement, Plan

_UNDER_ROUND = " " * 9  # below the words of a round, behind its number
_SURELY, _PERHAPS, _SURELY_NOT = COMPILE_LEVELS
# By the worst segment of a plan: what no plan does, and what this one does.
_MISSING = {_PERHAPS: ("surely compiles", "this one may"), _SURELY_NOT: ("may compile", "this is the fastest")}


def compiling(plan: Plan) -> None:
    """Print which segments do not surely compile, and what was given up for segments that do. What was compiled needs no
    judgement.
    """
    none_better = _none_better(plan)
    if none_better:
        print(none_better)
    for segment in plan.segments:
        judged = segment.compiles
        if judged is not None and judged.tensor is not None and segment.reported is None:
            print(f"compiles {judged.level}: {segment.name},")
            narrow_bytes = plan.devices_under(segment.name).constants.get("narrow_bytes", 0)
            print(f"    {_cause(judged, sure_bytes(narrow_bytes // TILES))}")
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
        return f"no plan on {counted(plan.n_tpus, 'TPU')} {missing}; {this}"
    return f"no plan on {counted(plan.n_tpus, 'TPU')} that {missing} was found before the search ended; {this}"


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


def reported(plan: Plan, refused: Collection[str] = ()) -> None:
    """Print what the compiler reported of each segment, each number beside the predicted one.

    refused: names of segments that it does not compile now; what it reported of them before is not shown.
    """
    shown = {s.name: s.reported for s in plan.segments if s.reported and s.name not in refused}
    versions = sorted({said.compiler_version for said in shown.values()})
    table = Listing(
        f"reported by edgetpu_compiler {', '.join(versions)}, beside predicted" if versions else "nothing was compiled",
        ("", "cached", "(pred.)", "streamed", "(pred.)", "room", "(pred.)", "CPU"),
    )
    for segment in plan.segments:
        said, expected = shown.get(segment.name), segment.predicted
        name = segment.name.removeprefix(plan.stem).removeprefix("_").replace("segment_", "")
        if said is None:
            table.row(name, "none" if plan.is_compiled(segment.name) else "on a CPU", *[""] * 6)
            continue
        pairs = ((said.cached_bytes, expected.cached_bytes), (said.streamed_bytes, expected.streamed_bytes),
                 (said.capacity_bytes, expected.capacity_bytes))  # fmt: skip
        table.row(name, *(short_size(count) for pair in pairs for count in pair), str(said.cpu_ops))
    table.print()


def round_line(done: RefineRound) -> str:
    """One round of compiling and solving, as text of several lines."""
    head = f"round {done.number}: {counted(done.segments, 'segment')}; "
    if done.refused:
        lines = (f"\n{_not_compiled(refused)}" for refused in done.refused)
        return f"{head}{done.predicted_per_s:.1f}/s predicted{''.join(lines)}"
    differing = len(done.contradicted)
    verdict = f"costs corrected by {counted(differing, 'segment')}" if differing else "nothing to correct"
    before, after = short_size(done.predicted_streamed_bytes), short_size(done.reported_streamed_bytes)
    streamed = f"streamed {before} predicted, {after} reported"
    rates = f"{done.predicted_per_s:.1f}/s predicted, {done.reported_per_s:.1f}/s with the reported memory"
    cpu = f"{counted(done.cpu_ops, 'op')} on the CPU; {verdict}"
    return f"{head}{streamed};\n{_UNDER_ROUND}{rates};\n{_UNDER_ROUND}{cpu}"


def _not_compiled(refused: RefusedSegment) -> str:
    """Why a segment was not compiled, and where it has most live activations, as far as that is judged."""
    end = "" if refused.tensor is None else ";"
    line = in_lines(f"not compiled: {refused.name}: {refused.reason}{end}", f"{_UNDER_ROUND}    ", _UNDER_ROUND)
    if refused.tensor is None:
        return line
    size = short_size(refused.live_bytes)
    alone = f", which {refused.alone} needs by itself" if refused.alone else ""
    return (
        f"{line}\n{_UNDER_ROUND}most is live around '{refused.tensor}':\n{_UNDER_ROUND}    {size} of each tile{alone}"
    )
