"""An executor in a process of its own, so that whatever the driver does, it does to that process alone.

Tensors lie in shared frames (`tensors`); only numbers, and tensors without a known shape, go over a socket:

    RemoteExecutor (parent)                                   host (child)

    starts the process, with a socket and the frames' memory
    (recipe, layout, count), pickled    ------------------>   maps the frames, opens the executor
                                        <------------------   OK, or REFUSED + (what, where, remedy), pickled; then it ends

    for each item, one at a time:
    CALL (item, frame) [+ tensors beside the frame, pickled] ->   runs the segment on the frame's tensors
                                        <------------------   OK
                                                              or BESIDE + outputs without a known shape, pickled
                                                              or REFUSED + (what, where, remedy), pickled

    closes its end of the socket, and kills the process

The child also ends when the parent ends, whatever it is doing (see `processes.children`). A process that dies or does not
answer in time is killed and started again, up to `restarts` times, and its item is tried once more. The child never
speaks first and answers each message once, so a reply always belongs to the last message. After a time-out a late reply
could break that order, which is why the process is killed and not waited for.
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
OK, BESIDE, REFUSED = b"o", b"b", b"r"  # the first byte of a reply
_T = TypeVar("_T")
_LAST_BYTES = 4096  # of the process's output, searched for its last line
_MOST_LETTERS = 160  # of that line
_ENDING_S = 5.0  # a process that closed its connection should end within this time
OPENING_S = 120.0  # time to open a device: firmware, retries and the first load included


class RemoteExecutor:
    """The parent's side. seconds: time that an inference may take. restarts: how often the process may be started again.

    `run` is called by one thread. `interrupt` and `close` may come from others, so they take the lock, as does every
    start and end of the process.
    """

    def __init__(self, recipe: Recipe, frames: SharedFrames, *, seconds: float, restarts: int) -> None:
        """Nothing is started yet. Raises StageError where the system has no file for the process's output."""
        self.recipe, self.frames, self.seconds = recipe, frames, seconds
        self.restarts_left = restarts
        self._lock = threading.Lock()
        self._closed = False  # set before the process is killed: it is not started again
        self._given_up: str | None = None  # why no process is started any more
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._output = self._asked(lambda: os.memfd_create("balancer-log"))  # of the process and the driver in it

    def open(self) -> None:
        """Start the process and wait until it has opened its device.

        Raises StageError where the process or the device refuses, or after `interrupt`.
        """
        self._start()

    def run(self, item: int, tensors: Tensors) -> None:
        """Raises StageError where this item fails, WorkerLost where the process cannot be kept alive."""
        if not isinstance(tensors, FrameTensors):
            raise TypeError("a process needs tensors in shared memory")
        for last in (False, True):
            ended = self._call(item, tensors)
            if ended is None:
                return
            self._restart(ended)
            if last:
                raise StageError(self._with_loss(ended), f"{self.recipe.segment}, item {item}", "see the system log")

    def interrupt(self) -> None:
        """Kill the process, whatever it is doing. A thread that waits in `run` sees the connection end."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def close(self) -> None:
        """From any thread, any number of times, once no thread is in `run`."""
        with self._lock:
            self._closed = True
            self._end()
            if self._output >= 0:
                os.close(self._output)
                self._output = -1  # the system may give the number to another file now

    def _call(self, item: int, tensors: FrameTensors) -> str | None:
        """Run one item. None where it was answered; else how the process failed to answer.

        Raises StageError where the segment refuses the item.
        """
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
            code = process.wait(_ENDING_S) if process else 0
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        last = self._last_line()
        return f"{how}: {last}" if last else how

    def _last_line(self) -> str:
        """The last line that the process printed; empty where it printed nothing."""
        size = os.fstat(self._output).st_size
        tail = os.pread(self._output, _LAST_BYTES, max(0, size - _LAST_BYTES)).decode("utf-8", "replace")
        return next((line.strip()[:_MOST_LETTERS] for line in reversed(tail.splitlines()) if line.strip()), "")

    def _with_loss(self, ended: str) -> str:
        return f"{ended}; the state that it held is lost" if self.recipe.keep_state else ended

    def _restart(self, ended: str) -> None:
        """Raises WorkerLost where the process may not, or cannot, be started again."""
        with self._lock:
            self._end()
            if self._closed or not self.restarts_left:
                self._given_up = ended
                raise WorkerLost(f"{self._where}: {self._with_loss(ended)}")
            self.restarts_left -= 1
        _LOG.warning(
            "%s on %s: %s; its process is started again, %d more times at most", self.recipe.segment, self.recipe.device,
            ended, self.restarts_left,
        )  # fmt: skip
        try:
            self._start()
        except BalancerError as error:
            self.restarts_left = 0
            raise WorkerLost(f"{self._where}: {error}") from error

    def _start(self) -> None:
        ours, theirs = self._asked(socket.socketpair)
        passed = (theirs.fileno(), self.frames.fd)
        command = python_command("balancer.runtime.host", *map(str, passed))
        with ours, theirs, self._lock:
            # Under the lock: `interrupt` either comes before and is seen here, or finds the process to kill.
            if self._closed:
                raise StageError("was stopped", self._where, "make a new pipeline")
            # The child is in a session of its own, so Ctrl-C reaches the parent alone.
            self._process = self._asked(
                lambda: Child(
                    command, pass_fds=passed, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT,
                    env=python_environment(),
                )
            )  # fmt: skip
            self._connection = connection = Connection(ours.detach())
        # Leaving the block closes the parent's copy of the child's end; otherwise a dead child would never be noticed.
        self._greet(connection)

    def _asked(self, make: Callable[[], _T]) -> _T:
        """What the system is asked for. Raises StageError where it refuses: files and processes have limits."""
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

    def _greet(self, connection: Connection) -> None:
        """Send the process its recipe, and wait until it has opened its device. Raises StageError, with the process ended."""
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
        """End the process and the connection, with the lock held."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
