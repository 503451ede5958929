"""Temporary folders that are removed after use, or, where their process was killed, by the next process.

Beside each folder lies a lock file (`flock`):

    1. the lock file is made and locked       a process that sweeps sees it locked, and leaves it alone
    2. the folder is made, used, removed
    3. the lock file is removed and unlocked

The kernel unlocks the file when its process ends in any way. A lock file that is not locked therefore belongs to a dead
process, whatever its age, and is removed with its folder. A folder without a lock file is never touched.
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
    """Remove the working folders of processes that were killed."""
    with suppress(FileNotFoundError):  # there is no folder for temporary files
        sweep(Path(tempfile.gettempdir()), _PREFIX)


@contextmanager
def scratch(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder whose name begins with the prefix. Raises OSError where it cannot be made."""
    while True:
        folder = parent / f"{prefix}{os.urandom(6).hex()}"
        with held(_lock_of(folder)) as is_ours:
            if is_ours:  # else a sweep found the file before it was locked here: try another name
                try:
                    folder.mkdir(mode=0o700)
                    yield folder
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
                return


def sweep(parent: Path, prefix: str) -> None:
    """Remove the scratch folders of dead processes whose names begin with the prefix."""
    for lock in parent.glob(f"{prefix}*{_LOCK}"):
        with suppress(OSError):
            entry = lock.lstat()
            if stat.S_ISREG(entry.st_mode) and entry.st_uid == os.getuid():
                _remove_dead(lock)


def _remove_dead(lock: Path) -> None:
    """Remove a lock file and its folder. Raises BlockingIOError where its process lives."""
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
    """Make and lock a file, and remove it afterwards. Gives False where another process or thread holds it.

    Raises OSError where the file cannot be written.
    """
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if not _locked(file):
                yield False
                return
            # Between `open` and `flock` its last holder may have removed it: then a lock on it protects nothing.
            if _is_there(lock, file):
                try:
                    yield True
                finally:
                    lock.unlink(missing_ok=True)
                return
        finally:
            os.close(file)


def _locked(file: int) -> bool:
    """Lock a file. False where it is locked already. A file system without locks counts as locked: no sweep works there."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_there(lock: Path, file: int) -> bool:
    """Whether the open file still has this name."""
    try:
        return os.path.samestat(lock.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)
