"""An executor in a process of its own: what the driver does to it, it does to that process alone.

Tensors lie in shared frames; only the numbers of item and frame go over a socket. The process ends when the socket is
closed, from whichever side, and, whatever it is at, when this one ends (see `processes`). One that died or does not
answer is started anew, so many times; the item is tried again once.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import threading
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, TypeVar

from balancer.errors import BalancerError, StageError
from balancer.processes.children import Child, python_command, python_environment
from balancer.runtime.tensors import FrameTensors, SharedFrames
from balancer.workers import WorkerLost

if TYPE_CHECKING:
    from collections.abc import Callable

    from balancer.runtime.executors import Recipe
    from balancer.runtime.tensors import Tensors

_LOG = logging.getLogger(__name__)
CALL = struct.Struct("<qq")  # item, frame
OK, BESIDE, REFUSED = b"o", b"b", b"r"
_T = TypeVar("_T")
_LAST_BYTES = 4096
_LOST = "; the state that it held is lost"
OPENING_S = 120.0  # firmware, retries and the first load included


class RemoteExecutor:
    """The parent's side. seconds: that an inference may take; restarts: how often the process may be started anew."""

    def __init__(self, recipe: Recipe, frames: SharedFrames, *, seconds: float, restarts: int) -> None:
        self.recipe, self.frames, self.seconds = recipe, frames, seconds
        self.restarts_left = restarts
        self._lock = threading.Lock()
        self._closed = False
        self._given_up = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._said = self._made(lambda: os.memfd_create("balancer-log"))  # what the process and the driver in it print

    def open(self) -> None:
        """Start the process. Raises StageError where it cannot be started, cannot open what it needs, or was interrupted."""
        self._start()

    def run(self, item: int, tensors: Tensors) -> None:
        """Raises StageError where this item fails, WorkerLost where the process cannot be kept alive."""
        if not isinstance(tensors, FrameTensors):
            raise TypeError("a process needs tensors in shared memory")
        for last in (False, True):
            reason = self._call(item, tensors)
            if reason is None:
                return
            if self.recipe.keep_state and _LOST not in reason:
                reason += _LOST
            self._restart(reason)
            if last:
                raise StageError(reason, f"{self.recipe.segment}, item {item}", "see the system log")

    def interrupt(self) -> None:
        """End the process, whatever it is at; who waits for it learns that it is gone."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def close(self) -> None:
        """From any thread, any number of times; nobody is in `run` any more."""
        with self._lock:
            self._closed = True
            self._end()
            if self._said >= 0:
                os.close(self._said)
                self._said = -1  # by now the number may be a stranger's

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def _call(self, item: int, tensors: FrameTensors) -> str | None:
        """Run one item; what happened to the process, or None. Raises StageError where the segment refuses the item."""
        connection = self._connection
        if connection is None:
            return self._given_up or "its process is gone"
        try:
            connection.send_bytes(
                CALL.pack(item, tensors.frame) + (pickle.dumps(tensors.beside) if tensors.beside else b"")
            )
            if not connection.poll(self.seconds):
                return f"its process did not answer within {self.seconds:g} s"
            reply = connection.recv_bytes()
        except (OSError, EOFError):
            return f"its process ended ({self._how_it_ended()})"
        if reply[:1] == BESIDE:
            tensors.beside |= pickle.loads(reply[1:])
        elif reply[:1] == REFUSED:
            what, where, remedy = pickle.loads(reply[1:])
            raise StageError(what, f"{self.recipe.segment}, item {item} ({where})", remedy)
        return None

    def _how_it_ended(self) -> str:
        process = self._process
        try:
            code = process.wait(5) if process else 0
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        last = self._last_words()
        return f"{how}: {last}" if last else how

    def _last_words(self) -> str:
        """The last line that the process printed, as far as it helps."""
        size = os.fstat(self._said).st_size
        tail = os.pread(self._said, _LAST_BYTES, max(0, size - _LAST_BYTES)).decode("utf-8", "replace")
        return next((line.strip()[:160] for line in reversed(tail.splitlines()) if line.strip()), "")

    def _restart(self, reason: str) -> None:
        with self._lock:
            self._end()
            if self._closed or not self.restarts_left:
                self._given_up = reason
                raise WorkerLost(f"{self._where}: {reason}")
            self.restarts_left -= 1
        _LOG.warning(
            "%s on %s: %s; started anew, %d more times at most", self.recipe.segment, self.recipe.device, reason,
            self.restarts_left,
        )  # fmt: skip
        try:
            self._start()
        except BalancerError as error:
            self.restarts_left = 0
            raise WorkerLost(f"{self._where}: {error}") from error

    def _start(self) -> None:
        ours, theirs = self._made(socket.socketpair)
        passed = (theirs.fileno(), self.frames.fd)
        command = python_command("balancer.runtime.host", *map(str, passed))
        with ours, theirs, self._lock:
            if self._closed:
                raise StageError("was stopped", self._where, "make a new pipeline")
            # A session of its own: Ctrl-C is the parent's to answer.
            self._process = self._made(
                lambda: Child(
                    command, pass_fds=passed, stdin=subprocess.DEVNULL, stdout=self._said, stderr=subprocess.STDOUT,
                    env=python_environment(),
                )
            )  # fmt: skip
            self._connection = Connection(ours.detach())
        self._greet()

    def _made(self, make: Callable[[], _T]) -> _T:
        """What the system gives, if it does: files, memory and processes have limits."""
        try:
            return make()
        except OSError as error:
            what = f"its process cannot be started ({error.strerror or error})"
            raise StageError(
                what, self._where, "end other programs, or raise the limits (ulimit -n, ulimit -u)"
            ) from error

    @property
    def _where(self) -> str:
        return f"{self.recipe.segment} on {self.recipe.device}"

    def _greet(self) -> None:
        """Hand the process its work, and wait until it has opened what it needs."""
        connection = self._connection
        assert connection is not None
        what, remedy = "its process did not open it in time", "see `balancer devices`, which names what is wrong"
        try:
            connection.send_bytes(pickle.dumps((self.recipe, self.frames.layout, self.frames.count)))
            if connection.poll(OPENING_S):
                reply = connection.recv_bytes()
                if reply[:1] == OK:
                    return
                reason, place, remedy = pickle.loads(reply[1:])
                what = f"{place}: {reason}"
        except (OSError, EOFError):
            what = f"its process ended while it opened ({self._how_it_ended()})"
        with self._lock:
            self._end()
        raise StageError(what, self._where, remedy)

    def _end(self) -> None:
        """With the lock held."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
