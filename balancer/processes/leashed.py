"""Run as a script: puts itself on a leash, then becomes the program that it is given. See `children`.

    python -I -S leashed.py LEASH SAYING PROGRAM [ARGUMENT ...]

LEASH: a pipe's end to read from, in which nothing is ever written; the parent alone holds the other end. When that is
gone, the kernel kills this process group. SAYING: a pipe's end that gets the number of the error where the program
cannot be started, and is closed where it can.
"""

import fcntl
import os
import select
import signal
import sys


def main(leash: int, saying: int, command: list[str]) -> None:
    """Returns only where there is nothing more to do: the parent has gone, or the program cannot be started."""
    fcntl.fcntl(saying, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    try:
        fcntl.fcntl(leash, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(leash, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(leash, fcntl.F_SETFL, os.O_ASYNC)
    except OSError:
        pass  # a sandbox without such signals still runs the program
    # Who was gone before the leash was on sends no signal any more.
    gone = select.poll()
    gone.register(leash, 0)
    if gone.poll(0):
        return
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python alone
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(saying, str(error.errno).encode("ascii"))


main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
