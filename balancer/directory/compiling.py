"""`compile_plan`: a plan's segments through the vendor's compiler, and what it reported, in the plan."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from balancer.compiler import Compiled, Compiler, Outcome, Refused
from balancer.directory.saving import save_compiled
from balancer.ground.opsets import members
from balancer.opened import AnyPlan, OpenedPlan, open_plan
from balancer.plan import OpOnCpu, Plan, SegmentReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from balancer.graph import Graph
    from balancer.ground.opsets import OpSet


@dataclass(frozen=True, slots=True)
class Compilation:
    """A plan with what its compiler reported of each segment. refused: the segments that were not compiled. doubts:
    (segment, where report, compiled file and segment do not agree).
    """

    plan: Plan
    refused: tuple[Refused, ...]
    doubts: tuple[tuple[str, str], ...]


def compile_plan(
    plan: AnyPlan | OpenedPlan,
    compiler: Compiler,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> Compilation:
    """Compile each segment of a plan by itself. A saved plan's directory gets the compiled files, their logs, and the
    plan with what was reported; otherwise they are in the plan's `made`, and `save` writes them.

    plan: or its file, or its directory. progress: called with how many are done. Where segments are refused, the others
    are kept. Raises PlanError, OutputError or CompilerError.
    """
    opened = open_plan(plan)
    sources = [(segment.name, opened.segment_file(segment)) for segment in opened.plan.segments]
    outcomes = compiler.compile_all(sources, progress=progress)
    done = with_outcomes(opened.plan, opened.graph, compiler, outcomes)
    return Compilation(
        plan=save_compiled(done) if done.directory is not None else done,
        refused=tuple(o for o in outcomes if isinstance(o, Refused)),
        doubts=tuple((o.name, doubt) for o in outcomes if isinstance(o, Compiled) for doubt in o.doubts),
    )


def with_outcomes(plan: Plan, graph: Graph, compiler: Compiler, outcomes: list[Outcome]) -> Plan:
    """The plan with a report for each segment that was compiled, and the files in its `made`. What was compiled before
    stays where it failed now.
    """
    segments, made = [], {}
    for segment, outcome in zip(plan.segments, outcomes, strict=True):
        reported = segment.reported
        if reported is None or isinstance(outcome, Compiled):
            made[segment.log_name] = outcome.output.encode("utf-8")
        if isinstance(outcome, Compiled):
            made[segment.compiled_name] = outcome.data
            reported = segment_report(segment.ops, graph, compiler, outcome)
        segments.append(replace(segment, reported=reported))
    return replace(plan, segments=tuple(segments), made=made)


def segment_report(ops: OpSet, graph: Graph, compiler: Compiler, outcome: Compiled) -> SegmentReport:
    """What a plan says of a compiled segment with these ops, its file names apart."""
    computed = list(members(ops & ~graph.folded))  # what the segment's file holds, in its order
    on_cpu = tuple(OpOnCpu(op=computed[n.position], type=n.type, reason=n.reason) for n in outcome.not_mapped)
    subgraphs = outcome.report.subgraphs
    return SegmentReport(
        cached_bytes=outcome.cached_bytes,
        streamed_bytes=outcome.streamed_bytes,
        capacity_bytes=outcome.capacity_bytes,
        cpu_ops=len(on_cpu),
        subgraphs=int(outcome.package is not None) if subgraphs is None else subgraphs,
        compiler_version=outcome.version or compiler.version,
        file=None,
        sha256=hashlib.sha256(outcome.data).hexdigest(),
        log=None,
        options=compiler.options.flags,
        not_mapped=on_cpu,
    )
