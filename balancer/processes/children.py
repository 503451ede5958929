"""Starts programs so that they never outlive this process, and Python programs so that they import what this one does.

A child is on a leash:

    this process                          child (`leashed`, which then becomes the program)
    holds the writing end of a pipe  ---> reads from it, and has asked the kernel to kill its process group
    and never writes to it                when something happens to the pipe (`O_ASYNC` with `F_SETSIG`)

However this process ends, SIGKILL and a crash included, the kernel closes its end of the pipe, which kills the child's
group. Other ways do not hold for every program:

- A parent-death signal (`PR_SET_PDEATHSIG`) is sent when the *thread* that forked ends, and threads of a pipeline come and
  go. Grandchildren do not inherit it, and the vendor's compiler is a wrapper that starts the real program.
- A thread of the child that watches the pipe cannot run while a driver hangs with the interpreter's lock held.
- A separate process that watches can be killed together with this one, as by `pkill -9 -f balancer`.

The leash works on every Linux since 2.4. It does not reach a program that closes all files it was given, or a process that
has left the group. A process that a user's program forks without exec holds the writing end, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEASHED = Path(__file__).resolve().with_name("leashed.py")
_ROOT = str(Path(__file__).resolve().parents[2])
# What `python -m` does, without the working folder on the path; the option -P for that is younger than Python 3.10.
_RUN_MODULE = """\
import sys
sys.path[:] = filter(None, sys.path)
import runpy
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)"""


class Child(subprocess.Popen[bytes]):
    """A program in a session of its own. Its whole process group is killed when this process ends.

    Raises OSError where the program cannot be started, as Popen does.
    """

    def __init__(self, command: Sequence[str], *, pass_fds: Sequence[int] = (), **options: Any) -> None:
        with ExitStack() as ours, ExitStack() as theirs:
            leash, self._held = _pipe(theirs, ours)
            said, saying = _pipe(ours, theirs)
            ends = (leash.fileno(), saying.fileno())
            super().__init__(
                [sys.executable, "-I", "-S", str(_LEASHED), *map(str, ends), *command],
                pass_fds=(*pass_fds, *ends), start_new_session=True, **options,
            )  # fmt: skip
            theirs.close()
            error = self._await_start(said)
            said.close()
            ours.pop_all()
        if error:
            self.wait()
            raise OSError(int(error), os.strerror(int(error)), command[0])

    def _await_start(self, said: FileIO) -> bytes:
        """The number of the error, if the program could not be started; else nothing. `exec` closes the pipe's other end."""
        try:
            return said.read()
        except BaseException:
            self.kill()
            self.wait()
            raise

    def wait(self, timeout: float | None = None) -> int:
        """As Popen's. Then the leash is let go, which kills what is left of the process group."""
        code = super().wait(timeout)
        self._held.close()
        return code


def _pipe(reading: ExitStack, writing: ExitStack) -> tuple[FileIO, FileIO]:
    """A new pipe's two ends; each is closed by its exit stack."""
    first, second = os.pipe()
    return reading.enter_context(FileIO(first, "rb")), writing.enter_context(FileIO(second, "wb"))


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module as `python -m` does, except that nothing is imported from the working folder.

    It needs `python_environment`.
    """
    return [sys.executable, "-c", _RUN_MODULE, module, *arguments]


def python_environment() -> dict[str, str]:
    """This process's environment, in which Python finds the modules that this process finds.

    Entries that were added to PYTHONPATH since this process started come first.
    """
    path = [entry for entry in sys.path if entry]
    since = [e for e in os.environ.get("PYTHONPATH", "").split(os.pathsep) if e and str(Path(e).absolute()) not in path]
    # balancer itself may not be on that path: where it was imported from the working folder ("" on the path), which may
    # have changed since, or by an editable install.
    root = [] if _ROOT in path else [_ROOT]
    return os.environ | {"PYTHONPATH": os.pathsep.join([*since, *root, *path])}
