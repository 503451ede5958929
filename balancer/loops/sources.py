"""Sources of measured stage times for `tune`: a pipeline on devices, a recorded file, or known true costs.

A source is called with a plan. It returns the plan with the measured time of each segment and, if it knows it, with what
a compiler reported of the segment's memory. A time belongs to the ops of a model (known by its hash), never to a
segment's name: another plan of the same model gives the same names to other ops.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from balancer.directory.compiling import compile_plan, to_compile
from balancer.errors import CompilerError, MeasurementError
from balancer.inputs import model_interface, random_items
from balancer.learning.recorded import read_stage_times
from balancer.loops.simulating import report_of
from balancer.opened import OpenedPlan, open_plan
from balancer.plan import EDGE_TPU, KEPT, Plan, SegmentMeasurement
from balancer.runtime.assigning import assigned_devices
from balancer.runtime.measuring import measure, segment_measurements
from balancer.runtime.options import RunOptions
from balancer.runtime.pipeline import Pipeline
from balancer.runtime.provenance import MeasuredOn
from balancer.runtime.recipes import NONE, Simulation, promised
from balancer.runtime.recipes import RECORDED as REPLAYED
from balancer.runtime.recording import recorded_outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from balancer.compiler import Compiler
    from balancer.ground.opsets import OpSet
    from balancer.inputs import Item
    from balancer.learning.recorded import StageTime
    from balancer.planning.costed_model import CostedModel
    from balancer.runtime.simulated import Behaviour

_ITEMS = 4  # different random inputs, used in turn


@dataclass(frozen=True, slots=True)
class Seen:
    """What a source returns.

    plan: with measured segments, and with reports if the source knows them. throughput_per_s: the measured rate of the
    whole plan; None if only the stages were measured.
    """

    plan: Plan
    throughput_per_s: float | None = None


class Source(Protocol):
    """What `tune` gets times from: a function from a plan to the plan with measured segments."""

    def __call__(self, plan: Plan, /) -> Seen:
        """Measure a plan's segments. Raises BalancerError if they cannot be measured."""


@dataclass(frozen=True, slots=True)
class TrueCosts:
    """A source that computes times from costs which count as true. truth: a costed model with these costs."""

    truth: CostedModel

    def __call__(self, plan: Plan) -> Seen:
        segments = []
        for segment in plan.segments:
            kind = plan.devices_under(segment.name)
            terms = self.truth.costs_by_kind[kind.kind].terms(segment.ops)
            measured = SegmentMeasurement(
                stage_ns=terms.stage_ns, runs=1, device="sim", source=MeasuredOn.SIMULATED.value
            )
            reported = report_of(terms) if kind.device == EDGE_TPU else None
            segments.append(replace(segment, reported=reported, measured=measured))
        return Seen(replace(plan, segments=tuple(segments)))


def behaviours(plan: Plan, truth: Source, jitter: float = 0.0) -> dict[str, Behaviour]:
    """How simulated TPUs are to behave, by the name of the segment in this plan.

    truth: a source that says how long each segment takes. jitter: standard deviation of each time, as a share of it.
    Raises what the source raises for a segment that it does not know.
    """
    segments = [s for s in truth(plan).plan.segments if s.measured]
    return {
        s.name: replace(promised(plan, s), stage_ns=s.measured.stage_ns, jitter=jitter) for s in segments if s.measured
    }


@dataclass(slots=True)
class RecordedTimes:
    """Times from a CSV file as `balancer bench --csv` writes it (see `learning.recorded`).

    known: (hash of the model, ops of the segment) -> the last of its times in `path`.
    Creating it raises MeasurementError if the file, or a plan that it names, cannot be read. Calling it raises
    MeasurementError for a plan with a segment that the file has no time for.
    """

    path: Path
    known: dict[tuple[str, OpSet], StageTime] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for time in read_stage_times(self.path):
            self.known[time.plan.model.sha256, time.plan.segment(time.segment).ops] = time

    def __call__(self, plan: Plan) -> Seen:
        segments = []
        for segment in plan.segments:
            time = self.known.get((plan.model.sha256, segment.ops))
            if time is None:
                what = f"holds no time of the segment with ops {segment.op_ranges}"
                measured_by = f": `balancer bench {plan.directory} --csv {self.path}`" if plan.directory else ""
                remedy = f"measure its plan{measured_by}"
                raise MeasurementError(what, str(self.path), remedy)
            measured = SegmentMeasurement(stage_ns=time.ns, runs=1, device="file", source=time.source)
            segments.append(replace(segment, measured=measured))
        return Seen(replace(plan, segments=tuple(segments)))


@dataclass(slots=True)
class PipelineTimes:
    """Times that are measured by running the plan as a pipeline on devices.

    devices: see `Pipeline`. seconds: how long each plan is measured. options: how plans are run; their `simulation` is
    replaced. compiler: a function that returns the compiler; it is called for plans that are not compiled yet. None if
    the devices need no compiled files.

    The rest is about simulated TPUs. truth: a source that says how long each segment takes; None for the times that the
    measured plan predicts. jitter: standard deviation of each time, as a share of it. outputs: "none", or "recorded" to
    replay outputs that were computed before measuring; they are recorded in any case if other devices need true inputs.
    Outputs are never computed while measuring: the time that this CPU takes would count as the TPU's.

    Creating it raises ValueError for other outputs. Calling it raises DeviceError if devices are missing, CompilerError if
    a segment cannot be compiled, StageError if a stage fails.
    """

    devices: str | Sequence[str] | None
    seconds: float = 5.0
    options: RunOptions = field(default_factory=RunOptions)
    compiler: Callable[[], Compiler] | None = None
    truth: Source | None = None
    jitter: float = 0.0
    outputs: str = NONE

    def __post_init__(self) -> None:
        """Raises ValueError for outputs other than "none" and "recorded"."""
        if self.outputs not in (NONE, REPLAYED):
            raise ValueError(f"outputs must be '{NONE}' or '{REPLAYED}', not {self.outputs!r}")

    def __call__(self, plan: Plan) -> Seen:
        assigned = assigned_devices(plan, self.devices)
        devices = assigned.names
        if self.compiler is not None and not all(s.reported for s in to_compile(plan)):
            plan = self._compiled(plan, self.compiler())
        elif self.compiler is None and self.truth is not None and "sim" in devices:
            plan = replace(self.truth(plan).plan, made=plan.made)  # with the reports of the simulated compiler
        opened = open_plan(replace(plan, segments=tuple(replace(s, measured=None) for s in plan.segments)))
        items = random_items(model_interface(opened.graph).inputs, _ITEMS)
        options = replace(self.options, simulation=self._simulation(opened, devices, items))
        with Pipeline(opened, assigned, options) as pipeline:
            measured = measure(pipeline, items, seconds=self.seconds)
        return Seen(with_measured(plan, segment_measurements(measured)), measured.throughput_per_s)

    def _simulation(self, opened: OpenedPlan, devices: Sequence[str], items: Sequence[Item]) -> Simulation:
        """How simulated TPUs behave with the segments of this plan. items: the inputs of recorded outputs."""
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
    """The plan with these measured times, by the name of the segment; None for segments that are not named."""
    return replace(plan, segments=tuple(replace(s, measured=measured.get(s.name)) for s in plan.segments))
