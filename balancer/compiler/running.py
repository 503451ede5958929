"""Running a program that may fail, hang or be stopped: no shell, a time limit, and no process left behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from balancer.errors import CompilerError
from balancer.processes.children import Child

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_POLL_S = 0.02
_MOST_OUTPUT = 1 << 26  # bytes; a program that prints more is ended
_LARGEST_FILE = 1 << 31  # bytes; no model is larger
_KEPT_OUTPUT = 1 << 20  # bytes of the beginning, and of the end
_NEW_TRY = (b"Try to compile segment", b"Started a compilation timeout timer")
_OUTPUT = ".output"  # name of the file in the working folder that gets what the program prints


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A program that has ended. exit_code: negative for the signal that ended it. output: stdout and stderr as they came.
    ended: "after ..." where it was ended before its time; else empty.
    """

    exit_code: int
    output: str
    ended: str = ""


class Runner(Protocol):
    """How programs are run; tests put others in its place."""

    def __call__(
        self, arguments: Sequence[str], folder: Path, seconds: float, *, each_try: bool = False
    ) -> FinishedRun:
        """Run a program to its end, in this working folder, for at most `seconds`.

        each_try: the time starts again with each try that the program's output names. Raises CompilerError where the
        program cannot be started, RunStopped after `stop`.
        """

    def stop(self) -> None:
        """End all running programs, and start no more."""


class RunStopped(Exception):
    """The runner was told to stop, as after Ctrl-C."""


class ProcessRunner:
    """Runs each program in a process group of its own, and ends the whole group with it, a wrapper's children included.

    Where this process is killed, the kernel ends the groups (see `processes.children`).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._stopped = False

    def __call__(
        self, arguments: Sequence[str], folder: Path, seconds: float, *, each_try: bool = False
    ) -> FinishedRun:
        output = folder / _OUTPUT
        with output.open("wb") as sink:
            process = self._start(arguments, folder, sink.fileno())
        try:
            ended = _wait(process, seconds, output, each_try=each_try)
        finally:
            self._end(process)
        if self._stopped:
            raise RunStopped
        return FinishedRun(process.returncode, _text(output), ended)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for group in self._running:
                _kill(group)

    def _start(self, arguments: Sequence[str], folder: Path, sink: int) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise RunStopped
            try:
                process = Child(arguments, cwd=folder, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT)
            except OSError as error:
                reason = error.strerror or str(error)
                remedy = "on another machine than x86-64, compile elsewhere or give a wrapper that emulates it"
                raise CompilerError(f"cannot be run ({reason})", arguments[0], remedy) from error
            # A limit of the kernel's, since files can grow faster than `_wait` looks at them.
            with suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (_LARGEST_FILE, _LARGEST_FILE))
            self._running.add(process.pid)
            return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            _kill(process.pid)
            self._running.discard(process.pid)
        process.wait()


def _wait(process: subprocess.Popen[bytes], seconds: float, output: Path, *, each_try: bool) -> str:
    """Wait until the program ends; empty. Where it takes too long or prints too much: "after ..." the time or size.

    each_try: the time starts again with each try that the output names.
    """
    end, read = time.monotonic() + seconds, 0
    # WNOWAIT leaves the process unreaped: its number cannot be given to another one before its group is killed.
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        size = output.stat().st_size
        if size > _MOST_OUTPUT:
            return f"after printing {size >> 20} MiB"
        if each_try and size > read:
            if _speaks_of_a_try(output, read, size):
                end = time.monotonic() + seconds
            read = size
        if time.monotonic() > end:
            return f"after {seconds:g} s"
        time.sleep(_POLL_S)
    return ""


def _speaks_of_a_try(output: Path, start: int, end: int) -> bool:
    """Whether the output between these offsets names a try. It is not read beyond `end`, as it may grow all the time."""
    # A mark may have been printed in two parts, the first of them before `start`.
    start = max(0, start - max(map(len, _NEW_TRY)))
    with output.open("rb") as source:
        source.seek(start)
        fresh = source.read(end - start)
    return any(mark in fresh for mark in _NEW_TRY)


def _text(output: Path) -> str:
    """What was printed; of a long output, the beginning and the end."""
    size = output.stat().st_size
    with output.open("rb") as source:
        kept = source.read(2 * _KEPT_OUTPUT)
        if size > 2 * _KEPT_OUTPUT:
            source.seek(size - _KEPT_OUTPUT)
            kept = kept[:_KEPT_OUTPUT] + b"\n[...]\n" + source.read(_KEPT_OUTPUT)
    return kept.decode("utf-8", "replace")


def _kill(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # the group has ended already
        os.killpg(group, signal.SIGKILL)
