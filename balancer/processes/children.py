"""Starting programs so that nothing of them outlives us, and Python so that it imports what we import.

A child is on a leash: it reads from a pipe whose other end this process holds, and has asked the kernel to kill its
process group when that end is gone (`O_ASYNC` with `F_SETSIG`; see `leashed`). However we end, SIGKILL and a crash
included, the end goes with us. Of the ways to do this it is the one that holds for a foreign program:

- A parent-death signal (`PR_SET_PDEATHSIG`) is sent when the *thread* ends that has forked, and ours come and go. Its
  children do not inherit it, and the vendor's compiler is a wrapper around the program that works.
- A thread of the child that waits for the end cannot run while a driver hangs with the interpreter's lock held.
- One more process that watches can be killed with us, as by `pkill -9 -f balancer`.

It is the same on every Linux since 2.4 and on every machine. It does not reach a program that closes all files it was
given, or a process that has left the group; a process that a user's program forks off without exec holds our end, too.
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
    """A program in a session of its own, which ends with its whole process group when this process ends.

    Raises OSError where it cannot be started, as Popen does.
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
        """What the script says before the program takes its place, which closes the pipe: nothing, or an error."""
        try:
            return said.read()
        except BaseException:
            self.kill()
            self.wait()
            raise

    def wait(self, timeout: float | None = None) -> int:
        """As Popen does; what is left of its process group ends with it."""
        code = super().wait(timeout)
        self._held.close()
        return code


def _pipe(reading: ExitStack, writing: ExitStack) -> tuple[FileIO, FileIO]:
    """Its two ends, each closed by one of these."""
    first, second = os.pipe()
    return reading.enter_context(FileIO(first, "rb")), writing.enter_context(FileIO(second, "wb"))


def python_command(module: str, *arguments: str) -> list[str]:
    """Runs a module of ours as `python -m` does, but that nothing is imported from the working folder. With
    `python_environment`.
    """
    return [sys.executable, "-c", _RUN_MODULE, module, *arguments]


def python_environment() -> dict[str, str]:
    """Ours, with the modules that we can import, and before them those that PYTHONPATH was given since we started."""
    path = [entry for entry in sys.path if entry]
    since = [e for e in os.environ.get("PYTHONPATH", "").split(os.pathsep) if e and str(Path(e).absolute()) not in path]
    # Imported from the working folder ("" on the path), which may be another one by now; or by an editable install.
    root = [] if _ROOT in path else [_ROOT]
    return os.environ | {"PYTHONPATH": os.pathsep.join([*since, *root, *path])}
