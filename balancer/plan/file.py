"""Reading, checking and writing a plan's file, and reading the files beside it.

A plan's directory holds everything that another machine needs: the plan file, the model, the segments. A reader ignores
keys that it does not know, and refuses a version that it does not know.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.documents import DocumentKind, Refusal, read_document
from balancer.errors import PlanError
from balancer.ground.file_kinds import PLAN_NAME, kind_of_path
from balancer.ground.opsets import interval_set
from balancer.ground.wording import counted
from balancer.plan.document import MOST_OPS, from_json
from balancer.plan.records import COMPILE_LEVELS, CPU, EDGE_TPU, FORMAT, VERSION, Plan, PlanPipeline, Segment
from balancer.plan.remembered import check_refusals, check_remembered
from balancer.plan.state import STATE_WORDS

if TYPE_CHECKING:
    from balancer.documents import JsonObject, JsonValue
    from balancer.ground.opsets import OpSet

_MOST_TPUS = 1024
_LARGEST_CONSTANT = 10**10  # as in hardware files: the times of thousands of ops add up to less than 2^63 ns
_KIND = DocumentKind(
    FORMAT,
    (1, VERSION),
    Refusal(PlanError, "give a plan's directory, or the *_plan_N.json in it", "a plan file"),
    version_remedy="update balancer, or solve again",
)
# The values of `SolverReport.ended` other than "complete". Plans of version 0.1.0 have them as keys of the statistics.
_CUT_SHORT = ("interrupted", "limit_reached", "down_sets_left_out")
_ENDED = ("complete", "not_searched", *_CUT_SHORT)
REFUSED_LOG = "{}_refused.log"  # in a plan's directory: what the compiler printed of a segment that it refused


def plan_text(plan: Plan) -> str:
    """The text of the plan file. Equal plans give equal text."""
    return json.dumps(plan.to_json(), indent=2, ensure_ascii=False) + "\n"


def load_plan(path: str | Path) -> Plan:
    """The plan in a file, or in a directory that holds one plan file.

    The plan knows its directory and where its model is; neither the model nor the segments are opened.

    Raises PlanError if a directory does not hold exactly one plan file, or if the file cannot be read, is not a plan
    file, has an unknown version, or contradicts itself.
    """
    path = _plan_file(Path(path))
    document = read_document(path, _KIND)
    plan: Plan = _modern(from_json(Plan, _with_devices(document), str(path)))
    _check(plan, str(path))
    origin = path.parent / plan.model.file if plan.model.file else None
    return replace(plan, origin=origin, directory=path.parent)


def _with_devices(document: JsonObject) -> JsonObject:
    """The document in the form of version 2. Plans of version 1 have devices of one kind, an Edge TPU's."""
    hardware, pipelines = document.get("hardware"), document.get("pipelines")
    if document["version"] != 1 or not isinstance(hardware, dict) or not isinstance(pipelines, list):
        return document  # what is missing is reported later
    name = hardware.get("name")
    devices: JsonObject = {
        "kind": name, "device": EDGE_TPU, "count": document.get("n_tpus"), "rough": False,
        "constants": hardware.get("constants"),
    }  # fmt: skip
    return document | {"devices": [devices], "pipelines": [_on_kind(pipeline, name) for pipeline in pipelines]}


def _on_kind(pipeline: JsonValue, kind: JsonValue) -> JsonValue:
    """A pipeline of version 1 with the kind of each stage."""
    stages = pipeline.get("stages") if isinstance(pipeline, dict) else None
    if not isinstance(pipeline, dict) or not isinstance(stages, list):
        return pipeline
    return pipeline | {"stages": [s | {"kind": kind} if isinstance(s, dict) else s for s in stages]}


def _modern(plan: Plan) -> Plan:
    """The plan in the form of today. Version 0.1.0 wrote a bound of 0 for no bound, and wrote into the statistics how the
    search ended.
    """
    solver = plan.solver
    told = next((name for name in _CUT_SHORT if solver.statistics.get(name)), solver.ended)
    bound_ns = None if solver.bound_ns == 0 else solver.bound_ns
    if bound_ns is None and solver.over == "nothing":
        told = "not_searched"
    return replace(plan, solver=replace(solver, bound_ns=bound_ns, ended=told))


def names_plan(path: Path) -> bool:
    """Whether a path looks like a plan: a directory, or a file whose name ends in .json. The file is not opened."""
    try:
        return path.suffix == ".json" or path.is_dir()
    except OSError:
        return False


def _plan_file(path: Path) -> Path:
    """The path itself or, for a directory, the one plan file in it."""
    try:
        if not path.is_dir():
            return path
        plan_files = sorted(
            entry.name for entry in path.iterdir() if PLAN_NAME.fullmatch(entry.name) and entry.is_file()
        )
    except OSError as error:
        raise PlanError(f"cannot be read ({error.strerror})", str(path), "check the path") from error
    if not plan_files and any(path.glob(REFUSED_LOG.format("*"))):
        what = f"holds no plan, only what the compiler printed of segments that it refused ({REFUSED_LOG.format('*')})"
        raise PlanError(what, str(path), "read that with `balancer inspect FILE.log`, and solve with -o again")
    if not plan_files:
        kind = kind_of_path(path)
        remedy = "name the plan file, or solve with -o first"
        if kind is not None and kind.name != "a folder":
            remedy = f"it is {kind.name}; {kind.hint}"
        raise PlanError("holds no plan file (*_plan_N.json)", str(path), remedy)
    if len(plan_files) > 1:
        raise PlanError(
            f"holds {len(plan_files)} plan files: {', '.join(plan_files)}", str(path), "name the one that you mean"
        )
    return path / plan_files[0]


def file_bytes(plan: Plan, name: str, sha256: str | None, *, remedy: str = "solve again") -> bytes:
    """Contents of a file in the plan's directory.

    sha256: the hash that it must have; None if any will do. remedy: what the user can do if it has another. Raises
    PlanError if the plan has no directory, or if the file cannot be read or has another hash.
    """
    if plan.directory is None:
        raise PlanError("is not saved", "plan", "save the plan to a directory first")
    path = plan.directory / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PlanError(f"cannot be read ({error.strerror})", str(path), "copy the whole plan directory") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise PlanError("is not the file that the plan was made with (its hash differs)", str(path), remedy)
    return data


def check_op_count(plan: Plan, n_ops: int) -> None:
    """Raise PlanError if the plan was made for another number of ops than its model has."""
    if plan.model.ops != n_ops:
        raise PlanError(f"is for {counted(plan.model.ops, 'op')}, its model has {n_ops}", plan.file_name, "solve again")


def _check(plan: Plan, where: str) -> None:
    """Raise PlanError if parts of the plan contradict each other."""
    names = [s.name for s in plan.segments]
    if len(set(names)) < len(names) or not plan.pipelines:
        raise PlanError("two segments have the same name, or there is no pipeline", where, "solve again")
    if not 1 <= plan.n_tpus <= _MOST_TPUS:
        raise PlanError(f"a plan for {plan.n_tpus} TPUs is impossible", where, "solve again")
    if not 1 <= plan.model.ops <= MOST_OPS:
        raise PlanError(f"a model of {plan.model.ops} ops is impossible", where, "solve again")
    if plan.solver.ended not in _ENDED:
        raise PlanError(f"solver.ended is '{plan.solver.ended}'", where, f"make it one of {', '.join(_ENDED)}")
    if plan.state not in (None, *STATE_WORDS):
        raise PlanError(f"state '{plan.state}' is not one of {', '.join(STATE_WORDS)}", where, "solve again")
    _check_devices(plan, where)
    for file in (plan.model.file, *(file for s in plan.segments for file in (s.name, s.file))):
        if file is not None and not _is_bare(file):
            raise PlanError(f"'{file}' is not a bare file name", where, "keep all files beside the plan")
    for segment in plan.segments:
        _check_outcomes(segment, where)
    if set(names) != {stage.segment for p in plan.pipelines for stage in p.stages}:
        raise PlanError(
            "a pipeline names a segment that does not exist, or a segment stands in no pipeline", where, "solve again"
        )
    for segment in plan.segments:
        if segment.ops >> plan.model.ops:
            what = f"'{segment.op_ranges}' is not within ops 0 to {plan.model.ops - 1}"
            raise PlanError(what, f"{where}: {segment.name}", "solve again")
    for pipeline in plan.pipelines:
        _check_pipeline(plan, pipeline, where)
    check_remembered(plan.costs, plan.held_to, plan.model.ops, plan.n_tpus, where)
    if plan.refusals is not None:
        check_refusals(plan.refusals, plan.model.ops, where)


def _check_devices(plan: Plan, where: str) -> None:
    """Check the kinds, their constants, and which devices the stages use."""
    kinds, count = [devices.kind for devices in plan.devices], sum(devices.count for devices in plan.devices)
    if len(set(kinds)) < len(kinds) or count != plan.n_tpus or plan.hardware.name not in kinds[:1]:
        raise PlanError("its devices contradict `hardware` or `n_tpus`", where, "solve again")
    for devices in plan.devices:
        if devices.device not in (EDGE_TPU, CPU):
            raise PlanError(f"there is no device '{devices.device}'", where, f"make it {EDGE_TPU} or {CPU}")
    for constants in (plan.hardware.constants, *(devices.constants for devices in plan.devices)):
        for name, value in constants.items():
            if value > _LARGEST_CONSTANT:
                what = f"its hardware's constant '{name}' is {value}, more than {_LARGEST_CONSTANT}"
                raise PlanError(what, where, "solve again")
    used: set[tuple[str, int]] = set()
    for stage in (stage for p in plan.pipelines for stage in p.stages):
        if stage.kind not in kinds:
            raise PlanError(f"there are no devices of kind '{stage.kind}'", where, "solve again")
        count, here = plan.devices_of(stage.kind).count, {(stage.kind, number) for number in stage.tpus}
        if used & here or len(here) < len(stage.tpus) or any(not 0 <= number < count for number in stage.tpus):
            raise PlanError(f"a TPU is used twice, or its number is above {count - 1}", where, "solve again")
        used |= here


def _check_outcomes(segment: Segment, where: str) -> None:
    """Check what is expected of the compiler, and what it reported."""
    reported, expected = segment.reported, segment.compiles
    if expected is not None and expected.level not in COMPILE_LEVELS:
        raise PlanError(f"compiles.level is '{expected.level}'", where, f"make it one of {', '.join(COMPILE_LEVELS)}")
    if reported and reported.file not in (None, segment.compiled_name):
        what = f"'{reported.file}' is not the name of a compiled segment"
        raise PlanError(what, where, f"name it {segment.compiled_name}, as runners of pipelines expect")
    if reported and reported.log not in (None, segment.log_name):
        raise PlanError(f"'{reported.log}' is not the log of {segment.name}", where, "compile the plan again")


def _is_bare(file: str) -> bool:
    """Whether it names a file in the plan's own folder, on any operating system: no path, and no text beyond UTF-8."""
    known = file.encode("utf-8", "ignore").decode()
    return file == known == Path(file).name and file not in ("", "..") and not set(file) & {"\\", "\0"}


def _check_pipeline(plan: Plan, pipeline: PlanPipeline, where: str) -> None:
    if any(stage.replicas < 1 or len(stage.tpus) != stage.replicas for stage in pipeline.stages):
        raise PlanError("a stage does not have one TPU for each replica", where, "solve again")
    seen: OpSet = 0
    for stage in pipeline.stages:
        ops = plan.segment(stage.segment).ops
        if ops & seen:
            raise PlanError("a pipeline does not hold each op once", where, "solve again")
        seen |= ops
    if seen != interval_set(0, plan.model.ops):
        raise PlanError("a pipeline does not hold each op once", where, "solve again")
