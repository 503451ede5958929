"""The plan's file, and those beside it: read, checked, written.

Everything that is needed to use a plan's directory on another machine is in the plan file or beside it. Unknown keys
in a file are ignored; an unknown version is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.documents import Refusal, read_json
from balancer.errors import PlanError
from balancer.ground.opsets import interval_set
from balancer.plan.document import MOST_OPS, from_json
from balancer.plan.records import FORMAT, VERSION, Plan, PlanPipeline
from balancer.plan.remembered import check_remembered
from balancer.plan.state import STATE_WORDS

if TYPE_CHECKING:
    from balancer.ground.opsets import OpSet

_MOST_TPUS = 1024
_LARGEST_CONSTANT = 10**10  # as in hardware files: times of thousands of ops fit 64 bits
_REFUSAL = Refusal(PlanError, "give a plan file that balancer wrote")
_NAME = re.compile(r".+_plan_\d+\.json", re.DOTALL)  # as `Plan.file_name` makes it


def plan_text(plan: Plan) -> str:
    """The plan file's text: the same plan gives the same bytes."""
    return json.dumps(plan.to_json(), indent=2, ensure_ascii=False) + "\n"


def load_plan(path: str | Path) -> Plan:
    """The plan in this file, or in this directory; the directory and the model in it are noted. Other files are not
    opened: see `file_bytes`.

    Raises PlanError where a directory does not hold just one plan file, where the file cannot be read, is no plan, is
    of an unknown version, or contradicts itself.
    """
    path = _plan_file(Path(path))
    document = read_json(path, _REFUSAL)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise PlanError(
            f"not a plan file (no format '{FORMAT}')", str(path), "give a *_plan_*.json that balancer wrote"
        )
    if document.get("version") != VERSION:
        raise PlanError(f"version {document.get('version')!r} is unknown", str(path), "update balancer, or solve again")
    plan: Plan = from_json(Plan, document, str(path))
    _check(plan, str(path))
    origin = path.parent / plan.model.file if plan.model.file else None
    return replace(plan, origin=origin, directory=path.parent)


def names_plan(path: Path) -> bool:
    """Whether a path is one that `load_plan` is meant for: a directory, or a JSON file."""
    try:
        return path.suffix == ".json" or path.is_dir()
    except OSError:
        return False


def _plan_file(path: Path) -> Path:
    """The path itself, or the one plan file in it where it is a directory."""
    try:
        if not path.is_dir():
            return path
        found = sorted(entry.name for entry in path.iterdir() if _NAME.fullmatch(entry.name) and entry.is_file())
    except OSError as error:
        raise PlanError(f"cannot be read ({error.strerror})", str(path), "check the path") from error
    if not found:
        raise PlanError("holds no plan file (*_plan_N.json)", str(path), "name the plan file, or solve with -o first")
    if len(found) > 1:
        raise PlanError(f"holds {len(found)} plan files: {', '.join(found)}", str(path), "name the one that you mean")
    return path / found[0]


def file_bytes(plan: Plan, name: str, sha256: str | None, *, remedy: str = "solve again") -> bytes:
    """A file of the plan's directory, checked against its hash. Raises PlanError where it is absent or another."""
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
    """Raises PlanError where the plan speaks of another number of ops than its model has."""
    if plan.model.ops != n_ops:
        raise PlanError(f"speaks of {plan.model.ops} ops, its model has {n_ops}", plan.file_name, "solve again")


def _check(plan: Plan, where: str) -> None:
    """What the parts of a plan must be to each other."""
    names = [s.name for s in plan.segments]
    if len(set(names)) < len(names) or not plan.pipelines:
        raise PlanError("segments are named twice, or there is no pipeline", where, "solve again")
    if not 1 <= plan.n_tpus <= _MOST_TPUS:
        raise PlanError(f"a plan for {plan.n_tpus} TPUs is impossible", where, "solve again")
    if not 1 <= plan.model.ops <= MOST_OPS:
        raise PlanError(f"a model of {plan.model.ops} ops is impossible", where, "solve again")
    if plan.state not in (None, *STATE_WORDS):
        raise PlanError(f"state '{plan.state}' is none of {', '.join(STATE_WORDS)}", where, "solve again")
    for name, value in plan.hardware.constants.items():
        if value > _LARGEST_CONSTANT:
            what = f"its hardware's constant '{name}' is {value}, more than {_LARGEST_CONSTANT}"
            raise PlanError(what, where, "solve again")
    for file in (plan.model.file, *(file for s in plan.segments for file in (s.name, s.file))):
        if file is not None and not _is_bare(file):
            raise PlanError(f"'{file}' is not a bare file name", where, "keep all files beside the plan")
    for segment in plan.segments:
        reported = segment.reported
        if reported and reported.file not in (None, segment.compiled_name):
            what = f"'{reported.file}' is not the name of a compiled segment"
            raise PlanError(what, where, f"name it {segment.compiled_name}, as runners expect")
        if reported and reported.log not in (None, segment.log_name):
            raise PlanError(f"'{reported.log}' is not the log of {segment.name}", where, "compile the plan again")
    tpus = [t for p in plan.pipelines for stage in p.stages for t in stage.tpus]
    if len(set(tpus)) < len(tpus) or any(not 0 <= t < plan.n_tpus for t in tpus):
        raise PlanError(f"a TPU is used twice, or is not among the {plan.n_tpus}", where, "solve again")
    if set(names) != {stage.segment for p in plan.pipelines for stage in p.stages}:
        raise PlanError("a pipeline names no segment, or a segment stands in none", where, "solve again")
    for segment in plan.segments:
        if segment.ops >> plan.model.ops:
            what = f"'{segment.op_ranges}' is not within ops 0 to {plan.model.ops - 1}"
            raise PlanError(what, f"{where}: {segment.name}", "solve again")
    for pipeline in plan.pipelines:
        _check_pipeline(plan, pipeline, where)
    check_remembered(plan.costs, plan.held_to, plan.model.ops, plan.n_tpus, where)


def _is_bare(file: str) -> bool:
    """Whether it can name a file in the plan's own folder, on any system."""
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
