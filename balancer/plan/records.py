"""A plan as data: its segments and pipelines, what is predicted, reported and measured of them, and how it was solved.

The plan file is the JSON of `Plan`, with the same names. Times are integers in nanoseconds, sizes are integers in bytes.

predicted   by the cost model, when the plan is made
reported    by the vendor's compiler, when the plan is compiled
measured    on a device or a simulated device, when the plan is tuned
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from balancer.ground.opsets import OpSet, op_text
from balancer.ground.terms import SegmentTerms  # noqa: TC001 - `document` reads the types when it runs
from balancer.plan.document import OP_RANGES, UNSAVED, to_json

# `document` reads the types when it runs.
from balancer.plan.predictions import EnergyPrediction, PipelinePrediction, PlanPrediction  # noqa: TC001
from balancer.plan.remembered import HeldTo, KnownCosts, KnownRefusals  # noqa: TC001

FORMAT, VERSION = "balancer-plan", 2
EDGE_TPU, CPU = "edgetpu", "cpu"


class ModelSource(Protocol):
    """An opened model from which a plan was made. name: the file's name without ending. data: the file's bytes."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The model that the plan is for.

    file: its name in the plan's directory; null while the plan is not saved. sha256: hash of the file. ops: how many it
    has. parameter_bytes: of all its parameters, as the file holds them. macs: multiply-accumulates of one inference.
    """

    file: str | None
    sha256: str
    ops: int
    parameter_bytes: int
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareInfo:
    """The first kind of devices that the plan was predicted for: its name, and all its constants as they were."""

    name: str
    constants: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDevices:
    """The devices of one kind that the plan is for.

    kind: its name. device: "edgetpu" or "cpu". count: how many there are. rough: whether its constants are rough guesses.
    constants: all of them, as they were.
    """

    kind: str
    device: str
    count: int
    rough: bool
    constants: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundaryTensor:
    """An input or output of a segment.

    tensor: its name in the segments' files. shape: null if the model gives no static shape. bytes: for one input; 0 if the
    shape is null.
    """

    tensor: str
    shape: tuple[int, ...] | None
    dtype: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentInput(BoundaryTensor):
    """An input of a segment. source ("from" in the file): name of the segment that produces it; null for a model input."""

    source: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpOnCpu:
    """An op that the compiler left on the CPU. op: index in the model. reason: in the compiler's words."""

    op: int
    type: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentReport:
    """What the vendor's compiler reported of a segment, and the file that it wrote.

    cached_bytes, streamed_bytes: parameters on the chip, and sent with each inference. capacity_bytes: on-chip memory for
    parameters, used and unused. cpu_ops: how many ops it left on the CPU; not_mapped: which, and why. subgraphs: parts that
    run on the TPU. file, log: names of the compiled file and of the compiler's output in the plan's directory; null while
    they are not saved. sha256: of the compiled file. options: of the compiler.
    simulated: no compiler ran, a simulated one says this; then there is no compiled file. It stays out of the plan file.
    """

    cached_bytes: int
    streamed_bytes: int
    capacity_bytes: int
    cpu_ops: int
    subgraphs: int
    compiler_version: str
    file: str | None
    sha256: str
    log: str | None
    options: tuple[str, ...] = ()
    not_mapped: tuple[OpOnCpu, ...] = ()
    simulated: bool = field(default=False, metadata=UNSAVED)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentMeasurement:
    """The measured time of a segment.

    stage_ns: how long its TPU was busy for one input; the median. runs: how many inputs were measured. device: its name.
    source: "device", "simulated", "recorded" or "cpu".
    """

    stage_ns: int
    runs: int
    device: str
    source: str


COMPILE_LEVELS = ("surely", "perhaps", "surely not")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileJudgement:
    """Whether the compiler is expected to take a segment, judged before it runs.

    level: one of `COMPILE_LEVELS`. tensor: the name, in the model, of the activation that decides; null if the
    level is "surely". tile_bytes: the most that an op on the chip and all that is live there need of each tile's narrow
    memory.
    """

    level: str
    tensor: str | None
    tile_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A set of ops that becomes one .tflite file.

    name: of its file, without ending. ops: an op set; in the plan file it is written as closed ranges, "0-11,14". file,
    sha256: of the file in the plan's directory; null while the plan is not saved. inputs, outputs: in the order of the
    segment's file. compiles: null in plans of older versions. reported: null if it was not compiled. measured: null if it
    was not measured.
    """

    name: str
    ops: OpSet = field(metadata=OP_RANGES)
    file: str | None
    sha256: str | None
    inputs: tuple[SegmentInput, ...]
    outputs: tuple[BoundaryTensor, ...]
    predicted: SegmentTerms
    compiles: CompileJudgement | None = None
    reported: SegmentReport | None = None
    measured: SegmentMeasurement | None = None

    @property
    def op_ranges(self) -> str:
        """Its ops as text for messages and tables: "0-11,14"."""
        return op_text(self.ops)

    @property
    def compiled_name(self) -> str:
        """Name of the compiled file, in the form that libcoral and pycoral expect."""
        return f"{self.name}_edgetpu.tflite"

    @property
    def log_name(self) -> str:
        """Name of the file that holds the compiler's output."""
        return f"{self.name}_edgetpu.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStage:
    """A segment and the devices that run it, all of one kind. tpus: their numbers among the plan's devices of that kind, one
    for each replica.
    """

    segment: str
    replicas: int
    tpus: tuple[int, ...]
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPipeline:
    """One pipeline. stages: in the order of execution."""

    stages: tuple[PlanStage, ...]
    predicted: PipelinePrediction


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverReport:
    """How the plan was solved, and what is proved of it.

    name: of the solver. over: the set of plans that a claim of optimality covers, in words. status: "optimal" if the gap
    is 0, else "feasible". objective_ns: ns for each inference, the inverse of the rate. bound_ns: a lower bound on the
    objective of any plan in that set; null if nothing is claimed, as for baselines. gap: (objective - bound) / objective;
    if latency was minimised, the same with latency and its bound. statistics: counts of the solver's work, for people.
    latency_bound_ns: if latency was minimised, a lower bound on it; else null. ended: how the search ended: "complete",
    "limit_reached", "interrupted" or "down_sets_left_out". passed_over_ns: the objective of a faster plan that was passed
    over because its segments compile less surely, or its latency if that was minimised; null if there is none.
    """

    name: str
    over: str
    status: str
    objective_ns: int
    bound_ns: int | None
    gap: float
    statistics: dict[str, int]
    latency_bound_ns: int | None = None
    ended: str = "complete"
    passed_over_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """One way to use the devices, to compare the plan with.

    stand_in: whether it follows the compiler's known rule instead of a run of the compiler. The numbers are null if this
    way is impossible; note then says why. streamed_bytes: for one inference, over all segments. speedup_over_one_tpu: where
    there are several kinds of devices, over the single device that is fastest. breaks_limits: whether it breaks a limit that
    the compared plan was solved with. energy: of one inference, with all devices powered; null where a kind has no power data.
    """

    name: str
    stand_in: bool
    throughput_per_s: float | None
    latency_ns: int | None
    streamed_bytes: int | None
    speedup_over_one_tpu: float | None
    speedup_over_default: float | None
    note: str | None = None
    breaks_limits: bool = False
    energy: EnergyPrediction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to run a model on n_tpus devices.

    hardware: the first kind of them. devices: all kinds, in the order in which a user named them; n_tpus is the sum of
    their counts. costs: costs that replaced predicted ones; null if there were none. refusals: what the compiler refused
    while the plan was made; null if it refused nothing. held_to: the limits that the plan was solved with; null if they are
    not known. segments: by pipeline, then position; those of pipelines that cut alike, on the same kinds, stand once. state:
    "reset" or "kept" if the model has state, else null; see `plan.state`.

    Three fields are not written to the file. origin: the model, as a path or opened; None if it is not known. directory:
    where the plan was saved or loaded. made: contents of files that are not saved yet (compiled segments and the compiler's
    output), by name.
    """

    model: ModelInfo
    hardware: HardwareInfo
    costs: KnownCosts | None = None
    refusals: KnownRefusals | None = None
    n_tpus: int
    devices: tuple[PlanDevices, ...]
    held_to: HeldTo | None = None
    segments: tuple[Segment, ...]
    pipelines: tuple[PlanPipeline, ...]
    predicted: PlanPrediction
    solver: SolverReport
    comparison: tuple[ComparisonRow, ...]
    versions: dict[str, str]
    state: str | None = None
    origin: Path | ModelSource | None = field(default=None, repr=False, compare=False, metadata=UNSAVED)
    directory: Path | None = field(default=None, compare=False, metadata=UNSAVED)
    made: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False, metadata=UNSAVED)

    @property
    def stem(self) -> str:
        """The model's name without ending. The names of all the plan's files start with it."""
        if self.model.file:
            return Path(self.model.file).stem
        if self.origin is None:
            return "model"
        return self.origin.stem if isinstance(self.origin, Path) else self.origin.name

    @property
    def costs_label(self) -> str:
        """Where its predicted costs come from, as text: the kinds of devices, then what replaced their costs."""
        learnt = (self.costs.label, *self.costs.learnt_from) if self.costs else ()
        kinds = ", ".join(devices.kind + " (rough)" * devices.rough for devices in self.devices)
        return " + ".join(filter(None, (kinds, *learnt)))

    @property
    def file_name(self) -> str:
        """Name of the plan's own file."""
        return f"{self.stem}_plan_{self.n_tpus}.json"

    def devices_of(self, kind: str) -> PlanDevices:
        """The devices of that kind. Raises KeyError if there are none."""
        return {devices.kind: devices for devices in self.devices}[kind]

    @property
    def used_counts(self) -> dict[str, int]:
        """For each kind how many of its devices are in use. They are numbered from 0 on."""
        stages = [stage for pipeline in self.pipelines for stage in pipeline.stages]
        return {
            devices.kind: 1 + max((n for s in stages if s.kind == devices.kind for n in s.tpus), default=-1)
            for devices in self.devices
        }

    def positions(self, stage: PlanStage) -> tuple[int, ...]:
        """The positions of a stage's devices among all devices in use, one kind after the other."""
        before = 0
        for kind, count in self.used_counts.items():
            if kind == stage.kind:
                break
            before += count
        return tuple(before + number for number in stage.tpus)

    def devices_under(self, segment: str) -> PlanDevices:
        """The devices of the kind that runs the segment of that name."""
        stages = (stage for pipeline in self.pipelines for stage in pipeline.stages)
        return self.devices_of(next(stage.kind for stage in stages if stage.segment == segment))

    def is_compiled(self, segment: str) -> bool:
        """Whether a segment of that name runs on Edge TPUs, and so has to be compiled. Segments on the CPU have not."""
        return self.devices_under(segment).device == EDGE_TPU

    def segment(self, name: str) -> Segment:
        """The segment of that name. Raises KeyError if there is none."""
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise KeyError(name)

    def partitions(self) -> list[tuple[Segment, ...]]:
        """The different partitions of its pipelines, in the order of the pipelines."""
        all_partitions = [tuple(self.segment(stage.segment) for stage in p.stages) for p in self.pipelines]
        return list({tuple(s.name for s in partition): partition for partition in all_partitions}.values())

    def to_json(self) -> dict[str, Any]:
        """The JSON document of the plan file."""
        return {"format": FORMAT, "version": VERSION, **to_json(self)}
