"""`save`: writes a plan's directory, either all of it or nothing.

All files are first written to a temporary folder inside the directory and then renamed into place, the plan file last.
So a reader finds either no plan file or one whose files are all there.
"""

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

from balancer.directory.writing import check_all_free, is_same, put_file
from balancer.errors import OutputError, PlanError
from balancer.opened import AnyPlan, OpenedPlan, open_plan
from balancer.plan import Plan, Segment, file_bytes, plan_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_PARTIAL = ".balancer-plan-"


def save(plan: AnyPlan | OpenedPlan, directory: str | Path, *, force: bool = False) -> Plan:
    """Write a plan's directory: the model, the segments, compiled files if there are any, and the plan file.

    plan: a plan, its file, or its directory. directory: created if it does not exist. force: replace existing files.
    Returns the plan as saved, with file names, hashes and its directory.

    Raises OutputError if a file exists (without force) or cannot be written, and PlanError if the plan cannot be opened
    or one of its compiled files is missing. After an error the directory is as it was before. The one exception is a disk
    that fails while finished files are renamed into place; then at least no new plan file stands beside old segments.
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
    """Names of compiled files and logs that an earlier plan left here and that do not fit the new segments.

    Segments of different plans have the same names. An old compiled file beside a new segment would be taken for its own.
    """
    stale = []
    for segment in plan.segments:
        old = target / f"{segment.name}.tflite"
        if segment.compiled_name not in compiled and not (
            old.is_file() and old.read_bytes() == (partial / old.name).read_bytes()
        ):
            stale += [segment.compiled_name, segment.log_name]
    return stale


def save_compiled(plan: Plan) -> Plan:
    """Write the files in `plan.made` and the plan file into the directory of a saved plan. Returns the plan as saved.

    Raises PlanError if the plan is not saved, OutputError if something cannot be written.
    """
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


def save_logs(directory: str | Path, logs: Mapping[str, str]) -> list[Path]:
    """Write what a compiler printed. logs: by file name. The directory is created if it does not exist; files of an earlier
    run are replaced. Returns the paths. Raises OutputError if a file cannot be written.
    """
    target = Path(directory)
    with _directory(target):
        for name, text in logs.items():
            put_file(target / name, text.encode("utf-8", "replace"), force=True)
    return [target / name for name in logs]


def compiled_files(opened: OpenedPlan) -> dict[str, bytes]:
    """Contents of a plan's compiled segments and logs, by file name: those in `made`, and those in its directory.

    Raises PlanError if a file of a saved plan is missing or has another hash.
    """
    plan, files = opened.plan, dict[str, bytes]()
    for segment in plan.segments:
        reported = segment.reported
        if reported and reported.file and reported.log:
            files[reported.file] = file_bytes(plan, reported.file, reported.sha256, remedy="compile the plan again")
            files[reported.log] = file_bytes(plan, reported.log, None)
    return files | plan.made


def _with_files(segment: Segment, made: Mapping[str, bytes]) -> Segment:
    """The segment with the names of its compiled file and log in its report. made: the files that exist, by name."""
    if segment.reported is None or segment.compiled_name not in made:
        return segment
    return replace(segment, reported=replace(segment.reported, file=segment.compiled_name, log=segment.log_name))


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """A temporary folder inside the target directory, so that files can be renamed into place.

    Meanwhile the directory is locked, and a second writer waits. Folders left by killed processes are removed.
    """
    held = os.open(target, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        # Only with the lock: before, such a folder may belong to a writer that is still at work.
        for left in target.glob(f"{_PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=target) as partial:
            yield Path(partial)
    finally:
        os.close(held)


def _place(names: Iterable[str], partial: Path, target: Path) -> None:
    """Rename finished files into place in this order. The plan file is last: no plan names files that do not exist yet."""
    for name in names:
        os.replace(partial / name, target / name)


@contextmanager
def _directory(target: Path) -> Iterator[None]:
    """Create the directory if it does not exist. If the work in it fails, folders created here are removed again.

    Turns errors of the file system into OutputError.
    """
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
    """Create the directory and its parents. Returns the topmost folder that was created, None if all existed."""
    missing = [p for p in (target, *target.parents) if not p.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be created ({error.strerror})", str(target), "choose another directory") from error
    return missing[-1] if missing else None


def _write(opened: OpenedPlan, compiled: Mapping[str, bytes], partial: Path) -> Plan:
    """Write all files into the temporary folder. Returns the plan with their names and hashes."""
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
