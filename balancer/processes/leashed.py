"""Run as a script: puts its process group on a leash, then becomes the given program. `children` explains the leash.

    python -I -S leashed.py LEASH SAYING PROGRAM [ARGUMENT ...]

LEASH: the reading end of a pipe to which nothing is ever written. The parent alone holds the writing end; when that is
closed, the kernel kills this process group. SAYING: the writing end of a pipe. It gets the number of the error if the
program cannot be started, and is closed without one if it can.
"""

import fcntl
import os
import select
import signal
import sys


def main(leash: int, saying: int, command: list[str]) -> None:
    """Returns only if the parent has ended, or the program cannot be started."""
    fcntl.fcntl(saying, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    try:
        fcntl.fcntl(leash, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(leash, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(leash, fcntl.F_SETFL, os.O_ASYNC)
    except OSError:
        pass  # a sandbox may refuse such signals; the program runs all the same
    # A parent that ended before the leash was on causes no signal any more, so it is looked for once.
    gone = select.poll()
    gone.register(leash, 0)
    if gone.poll(0):
        return
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these two; another program expects the default
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(saying, str(error.errno).encode("ascii"))


main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
