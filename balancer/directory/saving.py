"""`save`: a plan's directory, written whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.directory.writing import check_all_free, is_same
from balancer.errors import OutputError, PlanError
from balancer.opened import AnyPlan, OpenedPlan, open_plan
from balancer.plan import Plan, Segment, file_bytes, plan_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_PARTIAL = ".balancer-plan-"


def save(plan: AnyPlan | OpenedPlan, directory: str | Path, *, force: bool = False) -> Plan:
    """Write the model, its segments, what was compiled of them, and the plan file into a directory, made if need be.

    Returns the plan as saved: with file names, hashes and its directory. force: replace files that are there. Raises
    OutputError where a file is in the way or cannot be written; then nothing has changed, unless the disk itself
    fails while finished files are put in place: then no new plan file stands beside old segments. Raises PlanError where
    the plan's model or a compiled file is gone.
    """
    opened, target = open_plan(plan), Path(directory)
    plan, data, compiled = opened.plan, opened.model.data, compiled_files(opened)
    model = f"{plan.stem}.tflite"
    names = [model, *(f"{s.name}.tflite" for s in plan.segments), *compiled, plan.file_name]
    with _directory(target):
        check_all_free(target, names, data, force=force)
        with _partial(target) as partial:
            saved = _write(opened, compiled, partial)
            if is_same(target / model, data):
                names.remove(model)
            stale = _stale(plan, compiled, partial, target)
            _place(names, partial, target)
            for name in stale:
                (target / name).unlink(missing_ok=True)
    return replace(saved, directory=target, origin=opened.model)


def _stale(plan: Plan, compiled: Mapping[str, bytes], partial: Path, target: Path) -> list[str]:
    """Compiled files and logs, of a plan that was here before, whose segments are about to become others."""
    found = []
    for segment in plan.segments:
        old = target / f"{segment.name}.tflite"
        if segment.compiled_name not in compiled and not (
            old.is_file() and old.read_bytes() == (partial / old.name).read_bytes()
        ):
            found += [segment.compiled_name, segment.log_name]
    return found


def save_compiled(plan: Plan) -> Plan:
    """Write what was compiled of a saved plan, and its plan file, into its directory. Raises OutputError."""
    target = plan.directory
    if target is None:
        raise PlanError("is not saved", "plan", "save the plan to a directory first")
    saved = replace(plan, segments=tuple(_with_files(s, plan.made) for s in plan.segments), made={})
    with _directory(target), _partial(target) as partial:
        for name, content in plan.made.items():
            (partial / name).write_bytes(content)
        (partial / plan.file_name).write_text(plan_text(saved), encoding="utf-8")
        _place([*plan.made, plan.file_name], partial, target)
    return saved


def compiled_files(opened: OpenedPlan) -> dict[str, bytes]:
    """Compiled segments and logs of a plan, by name: made just now, or from its directory.

    Raises PlanError where one of a saved plan is gone or is another file.
    """
    plan, files = opened.plan, dict[str, bytes]()
    for segment in plan.segments:
        reported = segment.reported
        if reported and reported.file and reported.log:
            files[reported.file] = file_bytes(plan, reported.file, reported.sha256, remedy="compile the plan again")
            files[reported.log] = file_bytes(plan, reported.log, None)
    return files | plan.made


def _with_files(segment: Segment, made: Mapping[str, bytes]) -> Segment:
    """With the names that its compiled file and its log have in a plan's directory, where they were made."""
    if segment.reported is None or segment.compiled_name not in made:
        return segment
    return replace(segment, reported=replace(segment.reported, file=segment.compiled_name, log=segment.log_name))


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """A folder for unfinished files, inside the directory that they are for. Leftovers of killed processes are removed.

    The directory is locked meanwhile: a second writer waits.
    """
    held = os.open(target, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        for left in target.glob(f"{_PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=target) as partial:
            yield Path(partial)
    finally:
        os.close(held)


def _place(names: Iterable[str], partial: Path, target: Path) -> None:
    """Put finished files in place, in this order: with the plan file last, no plan speaks of files that are not there."""
    for name in names:
        os.replace(partial / name, target / name)


@contextmanager
def _directory(target: Path) -> Iterator[None]:
    """The directory, made if need be; what was made is removed again if the work in it fails."""
    made = _make(target)
    try:
        yield
    except BaseException as error:
        if made:
            shutil.rmtree(made, ignore_errors=True)
        if isinstance(error, UnicodeEncodeError):
            raise OutputError("the model's name is not UTF-8, as plan files are", str(target), "rename it") from error
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise OutputError(f"cannot be written ({reason})", str(target), "choose another directory") from error
        raise


def _make(target: Path) -> Path | None:
    """Make the directory; the topmost folder that was not there before, or None."""
    missing = [p for p in (target, *target.parents) if not p.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be made ({error.strerror})", str(target), "choose another directory") from error
    return missing[-1] if missing else None


def _write(opened: OpenedPlan, compiled: Mapping[str, bytes], partial: Path) -> Plan:
    plan, model = opened.plan, f"{opened.plan.stem}.tflite"
    (partial / model).write_bytes(opened.model.data)
    segments = []
    for segment in plan.segments:
        content, file = opened.cut(segment), f"{segment.name}.tflite"
        (partial / file).write_bytes(content)
        named = replace(segment, file=file, sha256=hashlib.sha256(content).hexdigest())
        segments.append(_with_files(named, compiled))
    for name, content in compiled.items():
        (partial / name).write_bytes(content)
    saved = replace(plan, segments=tuple(segments), model=replace(plan.model, file=model), made={})
    (partial / plan.file_name).write_text(plan_text(saved), encoding="utf-8")
    return saved
