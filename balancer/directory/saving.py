"""`save`: a plan's directory, written whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.errors import OutputError, PlanError
from balancer.graph import boundary_names
from balancer.ground.opsets import op_set, parse_op_ranges
from balancer.plan import Plan, Segment, check_op_count, file_bytes, plan_text
from balancer.processes.scratch import held, scratch, sweep, working_folder
from balancer.tflite.cut import Cutter
from balancer.tflite.read import read_model_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


_PARTIAL = ".balancer-plan-"
_SCRATCH = ".balancer-"


def save(plan: Plan, directory: str | Path, *, force: bool = False) -> Plan:
    """Write the model, its segments, what was compiled of them, and the plan file into a directory, made if need be.

    Returns the plan as saved: with file names, hashes and its directory. force: replace files that are there. Raises
    OutputError where a file is in the way or cannot be written; then nothing has changed, unless the disk itself
    fails while finished files are put in place: then no new plan file stands beside old segments.
    """
    target = Path(directory)
    data, compiled = model_bytes(plan), compiled_files(plan)
    model = f"{plan.stem}.tflite"
    names = [model, *(f"{s.name}.tflite" for s in plan.segments), *compiled, plan.file_name]
    with _directory(target):
        _check_free(target, names, data, force=force)
        with _partial(target) as partial:
            saved = _write(plan, data, compiled, partial)
            if _is_same(target / model, data):
                names.remove(model)
            stale = _stale(plan, compiled, partial, target)
            _place(names, partial, target)
            for name in stale:
                (target / name).unlink(missing_ok=True)
    return replace(saved, directory=target, origin=target / model)


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


def compiled_files(plan: Plan) -> dict[str, bytes]:
    """Compiled segments and logs of a plan, by name: made just now, or from its directory.

    Raises PlanError where one of a saved plan is gone or is another file.
    """
    files = {}
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
    """A folder for files to come, in the directory that is to get them; what others left when they were killed goes.

    One writer at a time: others wait.
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


def check_free(directory: Path, name: str, *, force: bool) -> None:
    """Raises OutputError where a file is in the way, or nothing can be written there: before the work, not after it."""
    _check_takes_files(directory)
    _check_free(directory, [name], None, force=force)


def _check_takes_files(target: Path) -> None:
    """Raises OutputError where a directory is none, or could not be made or written.

    It is tried with a file, which goes at once: permissions alone say too little of what root, or a network, may do.
    """
    try:
        there = next(p for p in (target, *target.absolute().parents) if p.exists() or p.is_symlink())
        if not there.is_dir():
            raise OutputError("is not a directory", str(there), "choose another directory")
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise OutputError(what, str(target), "choose another directory") from error


def check_writable(path: Path, *, force: bool) -> None:
    """Raises OutputError where a file exists (without force), or where its folder does not: before the work, not
    after it.
    """
    _check_free(path.parent, [path.name], None, force=force)
    if not path.parent.is_dir():
        raise OutputError("its folder does not exist", str(path), "make it, or choose another place")


def check_folder(target: Path, *, force: bool) -> None:
    """Raises OutputError where a plan's directory could not be written, or holds files (without force): before the
    work, not after it.
    """
    _check_takes_files(target)
    if target.is_dir() and not force and any(target.iterdir()):
        raise OutputError("is there already", str(target), "use --force to replace it, or choose another directory")


@contextmanager
def result_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for the results of one run, which `put_file` writes. What killed runs left in it goes.

    Raises OutputError where another run holds it, or it cannot be written.
    """
    with ExitStack() as holding:
        try:
            sweep(folder, _SCRATCH)
            is_ours = holding.enter_context(held(folder / f"{_SCRATCH}run.lock"))
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"cannot be written ({reason})", str(folder), "choose another folder") from error
        if not is_ours:
            raise OutputError(
                "gets the results of another run", str(folder), "wait for its end, or choose another folder"
            )
        yield


def write_file(path: Path, data: bytes, *, force: bool = False) -> None:
    """Write a file whole or not at all, and remove what killed processes left there of others.

    Raises OutputError where it exists (without force) or cannot be written.
    """
    sweep(path.parent, _SCRATCH)
    put_file(path, data, force=force)


def put_file(path: Path, data: bytes, *, force: bool = False) -> None:
    """The same where many are written, without looking for what was left."""
    _check_free(path.parent, [path.name], data, force=force)
    try:
        with scratch(path.parent, _SCRATCH) as partial:
            (partial / path.name).write_bytes(data)
            os.replace(partial / path.name, path)
    except OSError as error:
        raise OutputError(
            f"cannot be written ({error.strerror or error})", str(path), "choose another place"
        ) from error


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A folder for files that are needed for a while, and alone are written meanwhile. Raises OutputError where it, or
    one of them, cannot be written.
    """
    remedy = "make room, or set TMPDIR to another folder"
    with ExitStack() as holding:
        try:
            folder = holding.enter_context(working_folder(purpose))
        except OSError as error:
            what = f"no temporary folder can be made ({error.strerror or error})"
            raise OutputError(what, os.environ.get("TMPDIR", "/tmp"), remedy) from error
        try:
            yield folder
        except OutputError as error:
            what, where, _ = error.args
            raise OutputError(what, where, remedy) from error


def model_bytes(plan: Plan) -> bytes:
    """The bytes of the plan's model. Raises PlanError where they are gone or are another model's."""
    if plan.origin is None:
        raise PlanError("does not say where its model is", "plan", "solve again")
    data = plan.origin if isinstance(plan.origin, bytes) else read_model_bytes(plan.origin)
    if hashlib.sha256(data).hexdigest() != plan.model.sha256:
        raise PlanError("is not the model that the plan was made for (its hash differs)", _origin(plan), "solve again")
    return data


def segment_files(plan: Plan, data: bytes) -> Iterator[tuple[Segment, bytes]]:
    """The segments of a plan and their files, cut one at a time."""
    cutter = Cutter(data, name=plan.stem, where=_origin(plan))
    n_ops = len(cutter.graph.ops)
    check_op_count(plan, n_ops)
    sets = {s.name: op_set(parse_op_ranges(s.ops, n_ops)) for s in plan.segments}
    names = boundary_names(cutter.graph, sets.values())
    for segment in plan.segments:
        yield segment, cutter.cut(sets[segment.name], names)


def _origin(plan: Plan) -> str:
    return str(plan.origin) if isinstance(plan.origin, Path) else "model"


def _make(target: Path) -> Path | None:
    """Make the directory; the topmost folder that was not there before, or None."""
    missing = [p for p in (target, *target.parents) if not p.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be made ({error.strerror})", str(target), "choose another directory") from error
    return missing[-1] if missing else None


def _is_same(path: Path, data: bytes | None) -> bool:
    return data is not None and path.is_file() and path.read_bytes() == data


def _check_free(target: Path, names: list[str], model: bytes | None, *, force: bool) -> None:
    for name in names:
        path = target / name
        if path.is_dir():
            raise OutputError("is a directory", str(path), "remove it, or choose another directory")
        if path.exists() and not force and not _is_same(path, model if name == names[0] else None):
            raise OutputError("exists already", str(path), "use --force to replace it, or choose another directory")


def _write(plan: Plan, data: bytes, compiled: Mapping[str, bytes], partial: Path) -> Plan:
    model = f"{plan.stem}.tflite"
    (partial / model).write_bytes(data)
    segments = []
    for segment, content in segment_files(plan, data):
        file = f"{segment.name}.tflite"
        (partial / file).write_bytes(content)
        named = replace(segment, file=file, sha256=hashlib.sha256(content).hexdigest())
        segments.append(_with_files(named, compiled))
    for name, content in compiled.items():
        (partial / name).write_bytes(content)
    saved = replace(plan, segments=tuple(segments), model=replace(plan.model, file=model), made={})
    (partial / plan.file_name).write_text(plan_text(saved), encoding="utf-8")
    return saved
