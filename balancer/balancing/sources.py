"""Where stage times come from: a pipeline of devices, simulated ones, another truth, or a recorded file. One form.

A source takes a plan and says what each of its segments takes, and what a compiler reports of their memory, where it
knows. What was measured once is not measured again by the same source.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from balancer.balancing.compiling import compile_plan
from balancer.balancing.recorded import read_stage_times
from balancer.balancing.saving import save, temporary_folder
from balancer.balancing.simulating import report_of
from balancer.errors import CompilerError, MeasurementError
from balancer.graph import OpSet, op_set
from balancer.inputs import random_items
from balancer.plan import Plan, SegmentMeasurement, parse_op_ranges
from balancer.runtime.devices import device_names
from balancer.runtime.measuring import SIMULATED, measure, segment_measurements
from balancer.runtime.options import RunOptions
from balancer.runtime.pipeline import Pipeline
from balancer.runtime.recipes import Simulation, promised

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from balancer.balancing.setting import Setting
    from balancer.compiler import Compiler
    from balancer.runtime.simulated import Behaviour

RECORDED = "recorded"


@dataclass(frozen=True, slots=True)
class Seen:
    """plan: with measured segments, and reports where the source knows them. throughput_per_s: None where it is not
    measured by itself.
    """

    plan: Plan
    throughput_per_s: float | None = None


class Source(Protocol):
    def __call__(self, plan: Plan, /) -> Seen:
        """Measure a plan's segments. Raises BalancerError where that cannot be."""


def segment_sets(plan: Plan) -> dict[str, OpSet]:
    """The ops of each segment."""
    return {s.name: op_set(parse_op_ranges(s.ops, plan.model.ops)) for s in plan.segments}


@dataclass(frozen=True, slots=True)
class TrueCosts:
    """A truth that is known: other costs than the planner's."""

    truth: Setting

    def __call__(self, plan: Plan) -> Seen:
        sets, segments = segment_sets(plan), []
        for segment in plan.segments:
            terms = self.truth.costs.terms(sets[segment.name])
            measured = SegmentMeasurement(stage_ns=terms.stage_ns, runs=1, device="sim", source=SIMULATED)
            segments.append(replace(segment, reported=report_of(terms), measured=measured))
        return Seen(replace(plan, segments=tuple(segments)))

    def behaviours(self, plan: Plan) -> dict[str, Behaviour]:
        """How simulated TPUs behave with the plan's segments."""
        seen = self(plan).plan.segments
        return {s.name: replace(promised(plan, s), stage_ns=s.measured.stage_ns) for s in seen if s.measured}


@dataclass(slots=True)
class RecordedTimes:
    """The simple file: columns plan,stage,measured_ms; plan is a plan file beside it, stage one of its segments."""

    path: Path
    known: dict[tuple[str, OpSet], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for time in read_stage_times(self.path):
            ops = op_set(parse_op_ranges(time.plan.segment(time.segment).ops, time.plan.model.ops))
            self.known[time.plan.model.sha256, ops] = time.ns

    def __call__(self, plan: Plan) -> Seen:
        sets, segments = segment_sets(plan), []
        for segment in plan.segments:
            ns = self.known.get((plan.model.sha256, sets[segment.name]))
            if ns is None:
                what = f"holds no time of the segment with ops {segment.ops}"
                raise MeasurementError(what, str(self.path), "measure it, and add a row")
            measured = SegmentMeasurement(stage_ns=ns, runs=1, device="file", source=RECORDED)
            segments.append(replace(segment, measured=measured))
        return Seen(replace(plan, segments=tuple(segments)))


@dataclass(slots=True)
class PipelineTimes:
    """A pipeline on devices, for so many seconds each time. compiler: finds the one for Edge TPUs, when a plan is not
    compiled yet; None where none is needed. truth: of simulated TPUs.
    """

    devices: str | Sequence[str] | None
    seconds: float = 5.0
    options: RunOptions = field(default_factory=RunOptions)
    compiler: Callable[[], Compiler] | None = None
    truth: TrueCosts | None = None

    def __call__(self, plan: Plan) -> Seen:
        device_names(self.devices, 1 + max(t for p in plan.pipelines for stage in p.stages for t in stage.tpus))
        if self.compiler is not None and not all(s.reported for s in plan.segments):
            plan = self._compiled(plan, self.compiler())
        options = self.options
        if self.truth is not None:
            plan = replace(self.truth(plan).plan, made=plan.made)
            options = replace(options, simulation=Simulation(behaviours=self.truth.behaviours(plan)))
        with temporary_folder("balancer-tune-") as folder:
            saved = save(replace(plan, segments=tuple(replace(s, measured=None) for s in plan.segments)), folder)
            with Pipeline(saved, self.devices, options) as pipeline:
                found = measure(pipeline, random_items(pipeline.interface.inputs, 4), seconds=self.seconds)
        return Seen(with_measured(plan, segment_measurements(found)), found.throughput_per_s)

    def _compiled(self, plan: Plan, compiler: Compiler) -> Plan:
        done = compile_plan(replace(plan, directory=None), compiler)
        if done.refused:
            first = done.refused[0]
            raise CompilerError(f"cannot be compiled: {first.reason}", first.name, first.remedy)
        return done.plan


def with_measured(plan: Plan, measured: Mapping[str, SegmentMeasurement]) -> Plan:
    """The plan with these in its segments."""
    return replace(plan, segments=tuple(replace(s, measured=measured.get(s.name)) for s in plan.segments))
