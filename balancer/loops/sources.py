"""Where stage times come from: a pipeline of devices, simulated ones, another truth, or a recorded file. One form.

A source takes a plan and says what each of its segments takes, and what a compiler reports of their memory, where it
knows. A time belongs to ops of a model (given by its hash), never to a segment's name: other plans give the same names
to other ops.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from balancer.directory.compiling import compile_plan
from balancer.errors import CompilerError, MeasurementError
from balancer.inputs import model_interface, random_items
from balancer.learning.recorded import read_stage_times
from balancer.loops.simulating import report_of
from balancer.opened import OpenedPlan, open_plan
from balancer.plan import KEPT, Plan, SegmentMeasurement
from balancer.runtime.devices import device_names
from balancer.runtime.measuring import measure, segment_measurements
from balancer.runtime.options import RunOptions
from balancer.runtime.pipeline import Pipeline
from balancer.runtime.provenance import SIMULATED
from balancer.runtime.recipes import NONE, Simulation, promised
from balancer.runtime.recipes import RECORDED as REPLAYED
from balancer.runtime.recording import recorded_outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from balancer.compiler import Compiler
    from balancer.ground.opsets import OpSet
    from balancer.inputs import Item
    from balancer.planning.setting import Setting
    from balancer.runtime.simulated import Behaviour

RECORDED = "recorded"
_ITEMS = 4  # different inputs


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


@dataclass(frozen=True, slots=True)
class TrueCosts:
    """A truth that is known: other costs than the planner's."""

    truth: Setting

    def __call__(self, plan: Plan) -> Seen:
        segments = []
        for segment in plan.segments:
            terms = self.truth.costs.terms(segment.ops)
            measured = SegmentMeasurement(stage_ns=terms.stage_ns, runs=1, device="sim", source=SIMULATED)
            segments.append(replace(segment, reported=report_of(terms), measured=measured))
        return Seen(replace(plan, segments=tuple(segments)))


def behaviours(plan: Plan, truth: Source, jitter: float = 0.0) -> dict[str, Behaviour]:
    """How simulated TPUs behave with this plan's segments, by their names in it. truth: what each of them takes.

    Raises what the truth raises where it does not know one of them.
    """
    segments = [s for s in truth(plan).plan.segments if s.measured]
    return {
        s.name: replace(promised(plan, s), stage_ns=s.measured.stage_ns, jitter=jitter) for s in segments if s.measured
    }


@dataclass(slots=True)
class RecordedTimes:
    """The simple file: columns plan,stage,measured_ms; plan is a plan file beside it, stage one of its segments."""

    path: Path
    known: dict[tuple[str, OpSet], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for time in read_stage_times(self.path):
            self.known[time.plan.model.sha256, time.plan.segment(time.segment).ops] = time.ns

    def __call__(self, plan: Plan) -> Seen:
        segments = []
        for segment in plan.segments:
            ns = self.known.get((plan.model.sha256, segment.ops))
            if ns is None:
                what = f"holds no time of the segment with ops {segment.op_ranges}"
                raise MeasurementError(what, str(self.path), "measure it, and add a row")
            measured = SegmentMeasurement(stage_ns=ns, runs=1, device="file", source=RECORDED)
            segments.append(replace(segment, measured=measured))
        return Seen(replace(plan, segments=tuple(segments)))


@dataclass(slots=True)
class PipelineTimes:
    """A pipeline on devices, for so many seconds each time. compiler: finds the one for Edge TPUs, when a plan is not
    compiled yet; None where none is needed.

    truth: of simulated TPUs, for whatever plan is measured; None: what that plan predicts. jitter: of their latencies.
    outputs: "none", or "recorded" to replay what was computed before, as they do anyhow where other devices need true
    inputs. Nothing is computed live: that would take this CPU's time, not theirs. The options' simulation does not count.
    """

    devices: str | Sequence[str] | None
    seconds: float = 5.0
    options: RunOptions = field(default_factory=RunOptions)
    compiler: Callable[[], Compiler] | None = None
    truth: Source | None = None
    jitter: float = 0.0
    outputs: str = NONE

    def __post_init__(self) -> None:
        """Raises ValueError for outputs that say nothing of devices."""
        if self.outputs not in (NONE, REPLAYED):
            raise ValueError(f"outputs must be '{NONE}' or '{REPLAYED}', not {self.outputs!r}")

    def __call__(self, plan: Plan) -> Seen:
        tpus = 1 + max(t for p in plan.pipelines for stage in p.stages for t in stage.tpus)
        devices = device_names(self.devices, tpus)
        if self.compiler is not None and not all(s.reported for s in plan.segments):
            plan = self._compiled(plan, self.compiler())
        elif self.compiler is None and self.truth is not None and "sim" in devices:
            plan = replace(self.truth(plan).plan, made=plan.made)  # with what a simulated compiler reports
        opened = open_plan(replace(plan, segments=tuple(replace(s, measured=None) for s in plan.segments)))
        items = random_items(model_interface(opened.graph).inputs, _ITEMS)
        options = replace(self.options, simulation=self._simulation(opened, devices, items))
        with Pipeline(opened, devices, options) as pipeline:
            measured = measure(pipeline, items, seconds=self.seconds)
        return Seen(with_measured(plan, segment_measurements(measured)), measured.throughput_per_s)

    def _simulation(self, opened: OpenedPlan, devices: Sequence[str], items: Sequence[Item]) -> Simulation:
        """What is true of simulated TPUs with the segments of this plan."""
        if "sim" not in devices:
            return Simulation()
        plan = opened.plan
        if self.truth is None:
            known = {s.name: replace(promised(plan, s), jitter=self.jitter) for s in plan.segments}
        else:
            known = behaviours(plan, self.truth, self.jitter)
        if self.outputs == NONE and set(devices) == {"sim"}:
            return Simulation(behaviours=known, outputs=NONE)
        recordings = recorded_outputs(opened, items, keep_state=plan.state == KEPT)
        return Simulation(behaviours=known, outputs=REPLAYED, recordings=recordings)

    def _compiled(self, plan: Plan, compiler: Compiler) -> Plan:
        done = compile_plan(replace(plan, directory=None), compiler)
        if done.refused:
            first = done.refused[0]
            raise CompilerError(f"cannot be compiled: {first.reason}", first.name, first.remedy)
        return done.plan


def with_measured(plan: Plan, measured: Mapping[str, SegmentMeasurement]) -> Plan:
    """The plan with these in its segments."""
    return replace(plan, segments=tuple(replace(s, measured=measured.get(s.name)) for s in plan.segments))
