"""A plan as data: what was decided, what is predicted, reported and measured of it, and how it was found.

Times are integers in nanoseconds, sizes in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from balancer.ground.opsets import OpSet, op_text
from balancer.ground.terms import SegmentTerms  # noqa: TC001 - `document` reads the types when it runs
from balancer.plan.document import OP_RANGES, UNSAVED, to_json
from balancer.plan.remembered import HeldTo, KnownCosts  # noqa: TC001 - `document` reads the types when it runs

FORMAT, VERSION = "balancer-plan", 1


class ModelSource(Protocol):
    """The model that a plan was just made from, opened. name: its stem. data: the file's bytes."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """file: bare name, null while the plan is not saved."""

    file: str | None
    sha256: str
    ops: int
    parameter_bytes: int
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareInfo:
    name: str
    constants: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundaryTensor:
    """tensor: its name in the segments' files. shape: null where the file gives no static one."""

    tensor: str
    shape: tuple[int, ...] | None
    dtype: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentInput(BoundaryTensor):
    """source ("from" in the file): the segment that produces the tensor, null for a model input."""

    source: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpOnCpu:
    """An op that the compiler left on the CPU, and why, in its words. op: index in the model."""

    op: int
    type: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentReport:
    """What the vendor's compiler reported of a segment, and the file that it made.

    cached_bytes, streamed_bytes: of parameters; capacity_bytes: room for them. cpu_ops: how many stay on the CPU;
    not_mapped: which. options: the compiler's. file, log: beside the plan, null while it is not saved.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentMeasurement:
    """What a segment took on a device. stage_ns: median, busy for one input. runs: how many were measured. source:
    "device", "simulated", "recorded" or "cpu".
    """

    stage_ns: int
    runs: int
    device: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A set of ops that becomes one file. reported: what the compiler said of it. measured: on a device. Both are null
    where nobody compiled or measured it.

    ops: an op set; closed ranges in the file, "0-11,14".
    """

    name: str
    ops: OpSet = field(metadata=OP_RANGES)
    file: str | None
    sha256: str | None
    inputs: tuple[SegmentInput, ...]
    outputs: tuple[BoundaryTensor, ...]
    predicted: SegmentTerms
    reported: SegmentReport | None = None
    measured: SegmentMeasurement | None = None

    @property
    def op_ranges(self) -> str:
        """Its ops as text, to be shown."""
        return op_text(self.ops)

    @property
    def compiled_name(self) -> str:
        """Name of the compiled file, as libcoral and pycoral expect it."""
        return f"{self.name}_edgetpu.tflite"

    @property
    def log_name(self) -> str:
        """Name of what the compiler printed."""
        return f"{self.name}_edgetpu.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStage:
    segment: str
    replicas: int
    tpus: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinePrediction:
    throughput_per_s: float
    latency_ns: int
    host_ns: int
    bottleneck: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPipeline:
    stages: tuple[PlanStage, ...]
    predicted: PipelinePrediction


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPrediction:
    throughput_per_s: float
    latency_ns: int
    host_ns: int
    first_inference_ns: int
    tpus_used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverReport:
    """How a plan was found, and what is proven about it.

    over: the plans that the claim is about, in words. status: "optimal" or "feasible". bound_ns: no plan of these has a
    smaller objective_ns; null where nothing is claimed, as for baselines. latency_bound_ns: a bound on the latency, where
    latency is what was minimised. gap: how far the plan is above its bound, as a share. ended: how the search ended,
    "complete", "limit_reached", "interrupted" or "down_sets_left_out". statistics: counts of work, for people.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """One way to use the TPUs. stand_in: a rule in place of the compiler's own run. Numbers are null where it cannot
    be; note: why. breaks_limits: it does not keep to what was asked of the plan that it is compared with.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to run a model on n_tpus TPUs. Segments are listed by pipeline, then position; each partition once.

    state: of a model that has some: "reset" before each input, or "kept", which the plan was solved for.

    origin: the model (its file, or the opened model that a plan was just made from), null where nobody knows; directory:
    where the plan was saved or loaded; made: contents of files that are not saved yet (compiled segments and logs), by
    name. These three stay out of the file.
    costs: what replaced the costs that the hardware's constants give, null for nothing. held_to: what the plan had to
    keep to, null where nobody knows.
    """

    model: ModelInfo
    hardware: HardwareInfo
    costs: KnownCosts | None = None
    n_tpus: int
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
        """The model's name without ending, from which all file names are made."""
        if self.model.file:
            return Path(self.model.file).stem
        if self.origin is None:
            return "model"
        return self.origin.stem if isinstance(self.origin, Path) else self.origin.name

    @property
    def costs_label(self) -> str:
        """Where its predicted costs come from, to be shown."""
        learnt = (self.costs.label, *self.costs.learnt_from) if self.costs else ()
        return " + ".join(filter(None, (self.hardware.name, *learnt)))

    @property
    def file_name(self) -> str:
        """Name of the plan's own file."""
        return f"{self.stem}_plan_{self.n_tpus}.json"

    def segment(self, name: str) -> Segment:
        """The segment of that name. Raises KeyError."""
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise KeyError(name)

    def partitions(self) -> list[tuple[Segment, ...]]:
        """The different partitions of its pipelines, in order."""
        found = [tuple(self.segment(stage.segment) for stage in p.stages) for p in self.pipelines]
        return list({tuple(s.name for s in partition): partition for partition in found}.values())

    def to_json(self) -> dict[str, Any]:
        """The plan file's document."""
        return {"format": FORMAT, "version": VERSION, **to_json(self)}
