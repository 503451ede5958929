"""A plan as data, and its file: what was decided, what is predicted of it, and how it was found.

Everything that is needed to use a plan's directory on another machine is in the plan file or beside it. Times are
integers in nanoseconds, sizes in bytes. Unknown keys in a file are ignored; an unknown version is refused.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from balancer.errors import PlanError

FORMAT, VERSION = "balancer-plan", 1
_MOST_OPS = 1_000_000
_FLOAT_BITS = 53  # what a float holds exactly; far larger integers overflow it
_KEYS = {"source": "from"}  # a Python keyword in the file


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
class SegmentPrediction:
    """What the cost model says of a segment; stage_ns is the sum of the other times."""

    parameter_bytes: int
    cached_bytes: int
    streamed_bytes: int
    overflow_bytes: int
    capacity_bytes: int
    compute_ns: int
    streaming_ns: int
    input_ns: int
    output_ns: int
    overhead_ns: int
    cpu_ns: int
    stage_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """ops: closed ranges, "0-11,14". reported: what the compiler said. measured: on a device."""

    name: str
    ops: str
    file: str | None
    sha256: str | None
    inputs: tuple[SegmentInput, ...]
    outputs: tuple[BoundaryTensor, ...]
    predicted: SegmentPrediction
    reported: dict[str, Any] | None = None
    measured: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
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
class Pipeline:
    stages: tuple[Stage, ...]
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
    """over: what a claim of optimality is about."""

    name: str
    over: str
    status: str
    objective_ns: int
    bound_ns: int
    gap: float
    statistics: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """One way to use the TPUs. stand_in: a rule in place of the compiler's own run. Numbers are null where it cannot
    be.
    """

    name: str
    stand_in: bool
    throughput_per_s: float | None
    latency_ns: int | None
    streamed_bytes: int | None
    speedup_over_one_tpu: float | None
    speedup_over_default: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to run a model on n_tpus TPUs. Segments are listed by pipeline, then position; each partition once.

    origin: where the model's bytes are found (a path, or the bytes); directory: where the plan was saved or loaded.
    Both stay out of the file.
    """

    model: ModelInfo
    hardware: HardwareInfo
    n_tpus: int
    segments: tuple[Segment, ...]
    pipelines: tuple[Pipeline, ...]
    predicted: PlanPrediction
    solver: SolverReport
    comparison: tuple[ComparisonRow, ...]
    versions: dict[str, str]
    origin: Path | bytes | None = field(default=None, repr=False, compare=False)
    directory: Path | None = field(default=None, compare=False)

    @property
    def stem(self) -> str:
        """The model's name without ending, from which all file names are made."""
        if self.model.file:
            return Path(self.model.file).stem
        return self.origin.stem if isinstance(self.origin, Path) else "model"

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
        document = {"format": FORMAT, "version": VERSION}
        document |= {f.name: _to_json(getattr(self, f.name)) for f in fields(self) if f.name not in _UNSAVED}
        return document


_UNSAVED = ("origin", "directory")


def plan_text(plan: Plan) -> str:
    """The plan file's text: the same plan gives the same bytes."""
    return json.dumps(plan.to_json(), indent=2, ensure_ascii=False) + "\n"


def load_plan(path: str | Path) -> Plan:
    """The plan in this file; its directory and the model beside it are noted. Files are not opened: see `file_bytes`.

    Raises PlanError where the file cannot be read, is no plan, is of an unknown version, or contradicts itself.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise PlanError(f"cannot be read ({error.strerror})", str(path), "check the path") from error
    except (ValueError, RecursionError) as error:
        raise PlanError(f"not JSON ({error})", str(path), "give a plan file that balancer wrote") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise PlanError(
            f"not a plan file (no format '{FORMAT}')", str(path), "give a *_plan_*.json that balancer wrote"
        )
    if document.get("version") != VERSION:
        raise PlanError(f"version {document.get('version')!r} is unknown", str(path), "update balancer, or solve again")
    plan: Plan = _from_json(Plan, document, str(path))
    _check(plan, str(path))
    origin = path.parent / plan.model.file if plan.model.file else None
    return replace(plan, origin=origin, directory=path.parent)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number in JSON")


def file_bytes(plan: Plan, name: str, sha256: str | None) -> bytes:
    """A file of the plan's directory, checked against its hash. Raises PlanError where it is absent or another."""
    if plan.directory is None:
        raise PlanError("is not saved", "plan", "save the plan to a directory first")
    path = plan.directory / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PlanError(f"cannot be read ({error.strerror})", str(path), "copy the whole plan directory") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise PlanError("is not the file that the plan was made with (its hash differs)", str(path), "solve again")
    return data


def op_ranges(ops: typing.Iterable[int]) -> str:
    """Ascending op indices as closed ranges: "0-11,14"."""
    ranges: list[list[int]] = []
    for i in ops:
        if ranges and i == ranges[-1][1] + 1:
            ranges[-1][1] = i
        else:
            ranges.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def parse_op_ranges(text: str, n_ops: int) -> list[int]:
    """The indices of "0-11,14", in that order. Raises ValueError with what is wrong."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isascii() and first.isdigit() and (not dash or (last.isascii() and last.isdigit()))):
            raise ValueError(f"'{part.strip()}' is neither an op index nor a range like 3-7")
        a, b = int(first[:9]), int((last if dash else first)[:9])
        if b < a or b >= n_ops:
            raise ValueError(f"'{part.strip()}' is not within ops 0 to {n_ops - 1}")
        if len(found) + b - a + 1 > n_ops:
            raise ValueError(f"'{part.strip()}' lists ops a second time")
        found.extend(range(a, b + 1))
    return found


def _to_json(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {_KEYS.get(f.name, f.name): _to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_to_json(v) for v in value]
    return value


def _from_json(kind: Any, value: Any, where: str) -> Any:
    """A value of this type from JSON, checked all the way down."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _from_json(next(a for a in arguments if a is not type(None)), value, where)
    if is_dataclass(kind):
        return _record(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_from_json(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {k: v if arguments[1] is Any else _from_json(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= _FLOAT_BITS:
        return float(value)
    # In Python 3.10 `tuple[int, ...]` claims to be a type.
    if (
        origin is None
        and isinstance(kind, type)
        and isinstance(value, kind)
        and not (kind is int and isinstance(value, bool))
    ):
        return value
    raise PlanError(f"{json.dumps(value)[:40]} is not what belongs here", where, "solve again, or mend the file")


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise PlanError("is not an object", where, "solve again, or mend the file")
    hints, made = typing.get_type_hints(kind), {}
    for f in fields(kind):
        key = _KEYS.get(f.name, f.name)
        if f.name in _UNSAVED:
            continue
        if key not in value:
            raise PlanError(f"'{key}' is missing", where, "solve again, or mend the file")
        made[f.name] = _from_json(hints[f.name], value[key], f"{where}: {key}")
    return kind(**made)


def _check(plan: Plan, where: str) -> None:
    """What the parts of a plan must be to each other."""
    names = [s.name for s in plan.segments]
    if len(set(names)) < len(names) or not plan.pipelines:
        raise PlanError("segments are named twice, or there is no pipeline", where, "solve again")
    if not 1 <= plan.model.ops <= _MOST_OPS:
        raise PlanError(f"a model of {plan.model.ops} ops is impossible", where, "solve again")
    for file in (plan.model.file, *(s.file for s in plan.segments)):
        if file is not None and not _is_bare(file):
            raise PlanError(f"'{file}' is not a bare file name", where, "keep all files beside the plan")
    tpus = [t for p in plan.pipelines for stage in p.stages for t in stage.tpus]
    if len(set(tpus)) < len(tpus) or any(not 0 <= t < plan.n_tpus for t in tpus):
        raise PlanError(f"a TPU is used twice, or is not among the {plan.n_tpus}", where, "solve again")
    for pipeline in plan.pipelines:
        _check_pipeline(plan, pipeline, where)


def _is_bare(file: str) -> bool:
    """Whether it can name a file in the plan's own folder, on any system."""
    known = file.encode("utf-8", "ignore").decode()
    return file == known == Path(file).name and file not in ("", "..") and not set(file) & {"\\", "\0"}


def _check_pipeline(plan: Plan, pipeline: Pipeline, where: str) -> None:
    known = {s.name: s for s in plan.segments}
    if not pipeline.stages or any(stage.segment not in known for stage in pipeline.stages):
        raise PlanError("a pipeline names no segment, or one that is not there", where, "solve again")
    if any(stage.replicas < 1 or len(stage.tpus) != stage.replicas for stage in pipeline.stages):
        raise PlanError("a stage does not have one TPU for each replica", where, "solve again")
    held = [i for stage in pipeline.stages for i in _ops(known[stage.segment], plan.model.ops, where)]
    if sorted(held) != list(range(plan.model.ops)):
        raise PlanError("a pipeline does not hold each op once", where, "solve again")


def _ops(segment: Segment, n_ops: int, where: str) -> list[int]:
    try:
        return parse_op_ranges(segment.ops, n_ops)
    except ValueError as error:
        raise PlanError(str(error), f"{where}: {segment.name}", "solve again") from error


def pycoral_obstacle(plan: Plan) -> str:
    """Why pycoral's PipelinedModelRunner could not run a pipeline of this plan; empty if it can.

    It needs every model input in the first segment and every model output in the last; what else a segment gives must
    be read later.
    """
    for partition in plan.partitions():
        first = {t.tensor for t in partition[0].inputs}
        for k, segment in enumerate(partition):
            late = [t.tensor for t in segment.inputs if t.source is None and t.tensor not in first]
            if late:
                return f"model input '{late[0]}' is first read in {segment.name}"
            read_later = {t.tensor for later in partition[k + 1 :] for t in later.inputs}
            unread = [t.tensor for t in segment.outputs if t.tensor not in read_later]
            if unread and segment is not partition[-1]:
                return f"model output '{unread[0]}' leaves before the last stage, in {segment.name}"
    return ""
