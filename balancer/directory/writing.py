"""Writing files and folders of results: each file is complete or absent, never half-written.

A file is written to a temporary folder beside its place and then renamed, which the operating system does in one step.
The checks here are made before long work, so that a result is not lost because it cannot be written.
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
    """Raise OutputError if `name` exists in the directory (without force), or if the directory cannot be written."""
    _check_takes_files(directory)
    check_all_free(directory, [name], None, force=force)


def _check_takes_files(target: Path) -> None:
    """Raise OutputError if the target is not a directory, or could not be created or written.

    It is tried with a temporary file. Permission bits alone do not tell: root ignores them, and network file systems add
    rules of their own.
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
    """Raise OutputError if the file exists (without force), or if its folder does not exist."""
    check_all_free(path.parent, [path.name], None, force=force)
    if not path.parent.is_dir():
        raise OutputError("its folder does not exist", str(path), "create it, or choose another place")


def check_folder(target: Path, *, force: bool) -> None:
    """Raise OutputError if a plan's directory cannot be written, or if it exists and is not empty (without force)."""
    _check_takes_files(target)
    if target.is_dir() and not force and any(target.iterdir()):
        raise OutputError("exists already", str(target), "use --force to replace it, or choose another directory")


@contextmanager
def result_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for the results of one run, which `put_file` writes. Temporary files of killed runs are removed.

    Raises OutputError if another run has locked the folder, or if it cannot be written.
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
                "another run writes its results there", str(folder), "wait for its end, or choose another folder"
            )
        yield


def write_file(path: Path, data: bytes, *, force: bool = False) -> None:
    """Write a file in one step, and remove temporary files that killed processes left in its folder.

    Raises OutputError if it exists with other contents (without force), or if it cannot be written.
    """
    sweep(path.parent, _SCRATCH)
    put_file(path, data, force=force)


def put_file(path: Path, data: bytes, *, force: bool = False) -> None:
    """Write a file in one step, as `write_file`, but without removing temporary files: for many files in one folder."""
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
    """A temporary folder, removed at the end. purpose: a word for its name.

    Raises OutputError if it cannot be created. An OutputError raised inside gets a remedy that names TMPDIR: only files in
    this folder may be written inside.
    """
    remedy = "free some disk space, or set TMPDIR to another folder"
    with ExitStack() as holding:
        try:
            folder = holding.enter_context(working_folder(purpose))
        except OSError as error:
            what = f"a temporary folder cannot be created ({error.strerror or error})"
            raise OutputError(what, os.environ.get("TMPDIR", "/tmp"), remedy) from error
        try:
            yield folder
        except OutputError as error:
            what, where, _ = error.args
            raise OutputError(what, where, remedy) from error


def check_all_free(target: Path, names: Sequence[str], model: bytes | None, *, force: bool) -> None:
    """Raise OutputError if one of the names is a directory, or exists as a file (without force).

    model: contents that the first name may already have; it need not be replaced then.
    """
    for name in names:
        path = target / name
        if path.is_dir():
            raise OutputError("is a directory", str(path), "remove it, or choose another directory")
        if path.exists() and not force and not is_same(path, model if name == names[0] else None):
            raise OutputError("exists already", str(path), "use --force to replace it, or choose another directory")


def is_same(path: Path, data: bytes | None) -> bool:
    """Whether the file exists with these contents. data: None is never the same."""
    return data is not None and path.is_file() and path.read_bytes() == data
