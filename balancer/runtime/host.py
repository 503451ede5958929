"""The child process that an executor runs in: `python -m balancer.runtime.host SOCKET MEMORY`.

`remote` draws the protocol. SOCKET and MEMORY are the numbers of inherited files. The process handles one message after
the other and answers each once. It ends when the parent closes the socket. An error that is not expected of a segment
ends it with a traceback, of which the parent quotes the last line.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from balancer.errors import BalancerError
from balancer.runtime.executors import make_executor
from balancer.runtime.remote import BESIDE, CALL, OK, REFUSED
from balancer.runtime.tensors import FrameTensors, SharedFrames

if TYPE_CHECKING:
    from balancer.runtime.executors import Executor


def main(socket: int, memory: int) -> None:
    """Open what the parent's recipe says, then run items until the parent closes the socket."""
    connection = Connection(socket)
    recipe, layout, count = pickle.loads(connection.recv_bytes())
    frames = SharedFrames(layout, count, fd=memory)
    try:
        # No time limit: a simulated TPU that hangs does so until the parent, which has one, kills this process.
        executor = make_executor(recipe, 0.0, _die)
    except BalancerError as error:
        connection.send_bytes(REFUSED + pickle.dumps(error.args))
        return
    connection.send_bytes(OK)
    _serve(connection, executor, frames)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _serve(connection: Connection, executor: Executor, frames: SharedFrames) -> None:
    """Run items until the connection ends."""
    while True:
        try:
            call = connection.recv_bytes()
        except (EOFError, OSError):
            return
        item, frame = CALL.unpack_from(call)
        tensors = FrameTensors(frame, frames.view(frame))
        if len(call) > CALL.size:
            tensors.beside |= pickle.loads(call[CALL.size :])
        before = set(tensors.beside)
        try:
            executor.run(item, tensors)
        except BalancerError as error:
            connection.send_bytes(REFUSED + pickle.dumps(error.args))
            continue
        except (ValueError, KeyError, RuntimeError) as error:
            # Tensors of a shape that numpy cannot copy, or that are not there: the plan does not fit its segments.
            what = (f"{type(error).__name__}: {error}", "tensors", "compile or solve the plan again")
            connection.send_bytes(REFUSED + pickle.dumps(what))
            continue
        # Outputs in the frame are there already, as the parent maps the same memory.
        made = {name: value for name, value in tensors.beside.items() if name not in before}
        connection.send_bytes(BESIDE + pickle.dumps(made) if made else OK)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
