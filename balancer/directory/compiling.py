"""`compile_plan`: compiles a plan's segments with the vendor's compiler, and puts what it reports into the plan."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from balancer.compiler import Compiled, Compiler, Outcome, Refused
from balancer.compiler.failures import NO_CUT_HELPS, About
from balancer.directory.saving import save_compiled
from balancer.ground.opsets import members
from balancer.opened import AnyPlan, OpenedPlan, open_plan
from balancer.plan import OpOnCpu, Plan, Segment, SegmentReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from balancer.graph import Graph
    from balancer.ground.opsets import OpSet


@dataclass(frozen=True, slots=True)
class Compilation:
    """The result of `compile_plan`.

    plan: with the compiler's report in each segment that was compiled, now or before. refused: the segments that were not
    compiled, each with the reason. doubts: (name of a segment, how its report, its compiled file and the segment contradict
    each other).
    """

    plan: Plan
    refused: tuple[Refused, ...]
    doubts: tuple[tuple[str, str], ...]

    @property
    def kept(self) -> dict[str, SegmentReport]:
        """By name of refused segment the report of an earlier compilation, whose files are kept."""
        reports = {segment.name: segment.reported for segment in self.plan.segments}
        return {r.name: report for r in self.refused if (report := reports[r.name]) is not None}


def compile_plan(
    plan: AnyPlan | OpenedPlan,
    compiler: Compiler,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> Compilation:
    """Compile each segment of a plan by itself. Segments that run on the CPU are left as they are.

    plan: a plan, its file, or its directory. compiler: see `find_compiler`. progress: called with the number of segments
    that are done.

    If the plan is saved, the compiled files, the compiler's logs and the plan with the reports are written to its
    directory. Otherwise the files are in the result's `plan.made`, and `save` writes them. If the compiler refuses some
    segments, the others are kept.

    Raises PlanError if the plan cannot be opened, CompilerError if the compiler cannot be run, OutputError if the
    directory cannot be written.
    """
    opened = open_plan(plan)
    sources = [(segment.name, opened.segment_file(segment)) for segment in to_compile(opened.plan)]
    outcomes = [
        _advised(outcome, segment.ops & ~opened.graph.folded)
        for segment, outcome in zip(
            to_compile(opened.plan), compiler.compile_all(sources, progress=progress), strict=True
        )
    ]
    done = with_outcomes(opened.plan, opened.graph, compiler, outcomes)
    return Compilation(
        plan=save_compiled(done) if done.directory is not None else done,
        refused=tuple(o for o in outcomes if isinstance(o, Refused)),
        doubts=tuple((o.name, doubt) for o in outcomes if isinstance(o, Compiled) for doubt in o.doubts),
    )


def to_compile(plan: Plan) -> list[Segment]:
    """The plan's segments on Edge TPUs."""
    return [segment for segment in plan.segments if plan.is_compiled(segment.name)]


def _advised(outcome: Outcome, ops: OpSet) -> Outcome:
    """The outcome, with a remedy that fits a segment of one op: it cannot be cut."""
    if isinstance(outcome, Refused) and outcome.about is About.ACTIVATIONS and ops.bit_count() == 1:
        return replace(outcome, remedy=NO_CUT_HELPS)
    return outcome


def with_outcomes(plan: Plan, graph: Graph, compiler: Compiler, outcomes: list[Outcome]) -> Plan:
    """The plan with a report for each segment that was compiled, and with the compiled files and logs in its `made`. outcomes:
    of the segments of `to_compile`.

    A segment that fails now, and was compiled before, keeps its earlier report and files.
    """
    done, made = dict[str, Segment](), dict[str, bytes]()
    for segment, outcome in zip(to_compile(plan), outcomes, strict=True):
        reported = segment.reported
        if reported is None or isinstance(outcome, Compiled):
            made[segment.log_name] = outcome.output.encode("utf-8")
        if isinstance(outcome, Compiled):
            made[segment.compiled_name] = outcome.data
            reported = segment_report(segment.ops, graph, compiler, outcome)
        done[segment.name] = replace(segment, reported=reported)
    return replace(plan, segments=tuple(done.get(segment.name, segment) for segment in plan.segments), made=made)


def segment_report(ops: OpSet, graph: Graph, compiler: Compiler, outcome: Compiled) -> SegmentReport:
    """The report of a compiled segment with these ops, as plans hold it. File names are left empty until it is saved."""
    # Compiler and file count the segment's ops from 0. Folded ops are constants in the file, and so are not counted.
    computed = list(members(ops & ~graph.folded))
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
