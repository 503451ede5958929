"""Folders for work under way: gone with it; or, where their process was killed, at the next start.

Beside each folder lies a lock file, locked (`flock`) for as long as its process lives and there before the folder: what
is not locked belongs to nobody any more, whatever its age. A folder without a lock file is never touched.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX, _LOCK = "balancer-", ".lock"


@contextmanager
def working_folder(purpose: str) -> Iterator[Path]:
    """A new folder in the system's folder for temporary files. Raises OSError where it cannot be made."""
    remove_left_over()
    with scratch(Path(tempfile.gettempdir()), f"{_PREFIX}{purpose}-") as folder:
        yield folder


def remove_left_over() -> None:
    """Remove the working folders of processes that were killed, where there are any."""
    with suppress(FileNotFoundError):  # there is no folder for temporary files
        sweep(Path(tempfile.gettempdir()), _PREFIX)


@contextmanager
def scratch(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder of a name that begins so. Raises OSError where it cannot be made."""
    while True:
        folder = parent / f"{prefix}{os.urandom(6).hex()}"
        with held(_lock_of(folder)) as is_ours:
            if is_ours:  # else somebody sweeps, and has found the file before it was locked
                try:
                    folder.mkdir(mode=0o700)
                    yield folder
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
                return


def sweep(parent: Path, prefix: str) -> None:
    """Remove the scratch folders of names that begin so whose processes are dead."""
    for lock in parent.glob(f"{prefix}*{_LOCK}"):
        with suppress(OSError):
            found = lock.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid():
                _remove_dead(lock)


def _remove_dead(lock: Path) -> None:
    file = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_there(lock, file):
            shutil.rmtree(lock.with_name(lock.name.removesuffix(_LOCK)), ignore_errors=True)
            lock.unlink()
    finally:
        os.close(file)


@contextmanager
def held(lock: Path) -> Iterator[bool]:
    """Hold a lock file, made for it and removed after it: whether we do, or another one does.

    Raises OSError where it cannot be written.
    """
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if not _locked(file):
                yield False
                return
            if _is_there(lock, file):  # else it was removed by who held it, before we did
                try:
                    yield True
                finally:
                    lock.unlink(missing_ok=True)
                return
        finally:
            os.close(file)


def _locked(file: int) -> bool:
    """Lock it, unless another one has. Where the file system has no locks, it is ours: nobody can sweep there."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_there(lock: Path, file: int) -> bool:
    """Whether the open file still bears this name."""
    try:
        return os.path.samestat(lock.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)
