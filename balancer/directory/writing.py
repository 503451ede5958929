"""Files and folders of results, written whole or not at all.

A file is written beside its place and then put there by renaming, which the system does at once. Whether something can be
written is asked before the work that makes it.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from balancer.errors import OutputError
from balancer.processes.scratch import held, scratch, sweep, working_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_SCRATCH = ".balancer-"


def check_free(directory: Path, name: str, *, force: bool) -> None:
    """Raises OutputError where a file is in the way, or nothing can be written there: before the work, not after it."""
    _check_takes_files(directory)
    check_all_free(directory, [name], None, force=force)


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
    check_all_free(path.parent, [path.name], None, force=force)
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
    check_all_free(path.parent, [path.name], data, force=force)
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


def check_all_free(target: Path, names: Sequence[str], model: bytes | None, *, force: bool) -> None:
    for name in names:
        path = target / name
        if path.is_dir():
            raise OutputError("is a directory", str(path), "remove it, or choose another directory")
        if path.exists() and not force and not is_same(path, model if name == names[0] else None):
            raise OutputError("exists already", str(path), "use --force to replace it, or choose another directory")


def is_same(path: Path, data: bytes | None) -> bool:
    return data is not None and path.is_file() and path.read_bytes() == data
