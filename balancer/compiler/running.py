"""Running a program that may fail, hang or be stopped: no shell, a time limit, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from balancer.errors import CompilerError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_POLL_S = 0.02
_MOST_OUTPUT = 1 << 24
_OUTPUT = ".output"  # of the program, in its own working folder


@dataclass(frozen=True, slots=True)
class Finished:
    """exit_code: negative for the signal that ended it. output: stdout and stderr as they came. late: ended by us,
    past its time.
    """

    exit_code: int
    output: str
    late: bool = False


class Runner(Protocol):
    """How programs are run; tests put others in its place."""

    def __call__(self, arguments: Sequence[str], folder: Path, seconds: float, *, silent: bool = False) -> Finished:
        """Run to the end, in this working folder, for at most so many seconds (silent: without any output).

        Raises CompilerError where it cannot be started, Stopped after `stop`.
        """

    def stop(self) -> None:
        """End everything that runs, and start nothing more."""


class Stopped(Exception):
    """The runner was told to stop; the user has interrupted."""


class ProcessRunner:
    """Runs each program in a process group of its own, and ends the group with it: a wrapper's children, too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._stopped = False

    def __call__(self, arguments: Sequence[str], folder: Path, seconds: float, *, silent: bool = False) -> Finished:
        output = folder / _OUTPUT
        with output.open("wb") as sink:
            process = self._start(arguments, folder, sink.fileno())
        try:
            late = _wait(process, seconds, output if silent else None)
        finally:
            self._end(process)
        if self._stopped:
            raise Stopped
        with output.open("rb") as source:
            text = source.read(_MOST_OUTPUT).decode("utf-8", "replace")
        return Finished(process.returncode, text, late)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for group in self._running:
                _kill(group)

    def _start(self, arguments: Sequence[str], folder: Path, sink: int) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise Stopped
            try:
                process = subprocess.Popen(
                    list(arguments), cwd=folder, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                reason = error.strerror or str(error)
                remedy = "on another machine than x86-64, compile elsewhere or give a wrapper that emulates it"
                raise CompilerError(f"cannot be run ({reason})", arguments[0], remedy) from error
            self._running.add(process.pid)
            return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            _kill(process.pid)
            self._running.discard(process.pid)
        process.wait()


def _wait(process: subprocess.Popen[bytes], seconds: float, output: Path | None) -> bool:
    """Wait for the end; whether the time was up first. output: a file whose growth starts the time anew."""
    end, size = time.monotonic() + seconds, 0
    # Not reaped yet, so that its number stays its own until the whole group is ended.
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if output is not None and (grown := output.stat().st_size) > size:
            end, size = time.monotonic() + seconds, grown
        if time.monotonic() > end:
            return True
        time.sleep(_POLL_S)
    return False


def _kill(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it has ended by itself
        os.killpg(group, signal.SIGKILL)
