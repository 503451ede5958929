"""`edgetpu_compiler`: finding it, compiling segments, and having it split a model itself.

An exit code of 0 does not mean success: the compiler also gives it when hardly an op was mapped. A segment is compiled
where the output has a report about the expected file, with its memory lines, and that file holds a readable package.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.compiler.cache import Cache, Entry, default_folder
from balancer.compiler.checking import Compiled, Refused, examine
from balancer.compiler.failures import About, KnownFailure
from balancer.compiler.report import parse_report, without_duration
from balancer.compiler.running import FinishedRun, ProcessRunner
from balancer.errors import CompilerError, OutputError
from balancer.processes.scratch import working_folder
from balancer.tflite.package import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from balancer.compiler.running import Runner

NAME = "edgetpu_compiler"
SUFFIX = "_edgetpu"
_INSTALL = (
    "install it from https://coral.ai/docs/edgetpu/compiler on x86-64 Linux (Debian package edgetpu-compiler), "
    "or name it with --edgetpu_compiler_binary"
)
_VERSION_SECONDS = 60
_SHELL_SIGNAL = 128  # a shell's exit code is this plus the number of the signal that ended its child
_SAYS_NOTHING = re.compile(r"Compilation failed!|Compilation child process completed")  # of the reason for a failure
_LOG = logging.getLogger(__name__)

Outcome = Compiled | Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class CompilerOptions:
    """What the compiler is told. seconds: its time limit for one try, and for printing its version. search_delegate: where
    a model cannot be compiled as a whole, let the Edge TPU's part end earlier, by search_step ops at a time.
    runtime_version: the oldest runtime that must be able to run the file; None for the compiler's default.
    """

    seconds: int = 180
    search_delegate: bool = False
    search_step: int = 1
    runtime_version: int | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags that change the compiled file."""
        search = ("--search_delegate", "--delegate_search_step", str(self.search_step)) if self.search_delegate else ()
        runtime = ("--min_runtime_version", str(self.runtime_version)) if self.runtime_version is not None else ()
        return (*search, *runtime)

    @property
    def patience_s(self) -> int:
        """Seconds after which it is ended from outside: somewhat later than by its own limit, whose message says more."""
        return self.seconds + max(1, self.seconds // 10)


@dataclass(frozen=True, slots=True)
class Split:
    """What `--num_segments` made. outputs: names of each segment's outputs. failure: why there are no segments; else
    empty.
    """

    segments: tuple[Compiled, ...]
    outputs: tuple[tuple[str, ...], ...]
    failure: str


@dataclass(frozen=True, slots=True)
class Compiler:
    """One compiler with its options. identity: path, size and time of the program. jobs: segments compiled at a time.
    What is in the cache is not compiled again.
    """

    program: Path
    version: str
    options: CompilerOptions
    identity: tuple[str | int, ...]
    runner: Runner
    cache: Cache
    jobs: int

    def compile(self, name: str, data: bytes) -> Outcome:
        """Compile a segment, with a second try where that may help. Raises RunStopped after the runner's `stop`."""
        key = self._key(name, data)
        kept = self.cache.find(key)
        if kept:
            found = examine(name, data, kept.data, kept.output)
            if isinstance(found, Compiled):
                return found
        outcome = self._try(name, data)
        if isinstance(outcome, Refused) and outcome.passing:
            _LOG.info("%s: %s; trying once more", name, outcome.reason)
            outcome = self._try(name, data)
        if isinstance(outcome, Compiled):
            self.cache.keep(key, Entry(outcome.data, outcome.output))
        return outcome

    def compile_all(
        self, models: Sequence[tuple[str, bytes]], *, progress: Callable[[int], None] = lambda done: None
    ) -> list[Outcome]:
        """Compile models (name, bytes), `jobs` at a time; outcomes in the models' order. progress: gets how many are done.

        KeyboardInterrupt ends the running compilers; what is done is in the cache.
        """
        pool = ThreadPoolExecutor(max_workers=self.jobs)
        try:
            tasks = [pool.submit(self.compile, name, data) for name, data in models]
            for done, task in enumerate(as_completed(tasks), 1):
                task.result()
                progress(done)
            return [task.result() for task in tasks]
        except BaseException:
            self.runner.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def split(self, name: str, data: bytes, segments: int) -> Split:
        """The model as the compiler itself splits it with `--num_segments`."""
        with _working_folder() as folder:
            finished = self._run(name, data, folder, "--num_segments", str(segments))
            made, outputs = [], []
            for i in range(segments):
                part = f"{name}_segment_{i}_of_{segments}"
                found = _read_part(folder, part, finished.output)
                if found is None:
                    return Split((), (), _failure(finished, made=False).reason)
                made.append(found[0])
                outputs.append(found[1])
        return Split(tuple(made), tuple(outputs), "")

    def _try(self, name: str, data: bytes) -> Outcome:
        with _working_folder() as folder:
            finished = self._run(name, data, folder)
            made = folder / f"{name}{SUFFIX}.tflite"
            if finished.ended or finished.exit_code or not made.is_file():
                return self._refused(name, finished, folder, made=made.is_file())
            return examine(name, data, made.read_bytes(), finished.output)

    def _run(self, name: str, data: bytes, folder: Path, *more: str) -> FinishedRun:
        source = f"{name}.tflite"
        (folder / source).write_bytes(data)
        arguments = (
            str(self.program), "--show_operations", "--timeout_sec", str(self.options.seconds), "--out_dir", ".",
            *self.options.flags, *more, f"./{source}",
        )  # fmt: skip
        # The time limit holds for each try of a search, and for each segment.
        several = self.options.search_delegate or bool(more)
        finished = self.runner(arguments, folder, self.options.patience_s, each_try=several)
        return FinishedRun(finished.exit_code, without_duration(finished.output), finished.ended)

    def _refused(self, name: str, finished: FinishedRun, folder: Path, *, made: bool) -> Refused:
        failure = _failure(finished, made=made)
        if shutil.disk_usage(folder).free < 1 << 20:
            remedy = f"make room in {folder.parent}, and call again"
            failure = KnownFailure("the disk is full", remedy, About.COMPILER)
        return Refused(name, failure.reason, failure.remedy, finished.output, failure.about, passing=failure.passing)

    def _key(self, name: str, data: bytes) -> str:
        identity = (*self.identity, self.version, self.options.flags, name)
        return hashlib.sha256(repr(identity).encode("utf-8", "surrogateescape") + b"\0" + data).hexdigest()


def find_compiler(
    binary: str | Path | None = None, options: CompilerOptions | None = None, *, runner: Runner | None = None,
    cache: str | Path | None = None, jobs: int | None = None,
) -> Compiler:  # fmt: skip
    """The compiler. binary: the program; None for `edgetpu_compiler` on the PATH.

    cache: a folder for compiled segments; None for the user's own. jobs: segments compiled at a time; None for the number
    of CPUs. Raises CompilerError where there is no compiler, or it does not print its version.
    """
    found = shutil.which(str(binary or NAME))
    if found is None and binary is not None and Path(binary).is_file():
        found = shutil.which(str(Path(binary).resolve()))  # a bare name in the working folder
    if found is None:
        raise CompilerError(*_missing(binary))
    program = Path(found).resolve()
    runner, chosen = runner or ProcessRunner(), options or CompilerOptions()
    with _working_folder() as folder:
        finished = runner([str(program), "--version"], folder, min(_VERSION_SECONDS, chosen.patience_s))
    version = parse_report(finished.output).version
    if finished.ended:
        raise CompilerError(
            f"does not answer --version: ended {finished.ended}", str(program), "check what it waits for"
        )
    if version is None:
        said = " ".join(finished.output.split())[:80] or f"exit code {finished.exit_code}"
        raise CompilerError(
            f"does not print its version, but: {said}", str(program), "give the vendor's edgetpu_compiler"
        )
    kept_in = Path(cache) if cache else default_folder()
    status = program.stat()
    identity = (str(program), status.st_size, status.st_mtime_ns)
    return Compiler(program, version, chosen, identity, runner, Cache(kept_in), jobs or os.cpu_count() or 1)


def _missing(binary: str | Path | None) -> tuple[str, str, str]:
    where = str(binary or NAME)
    if binary is not None:
        return "is not a program that can be run", where, "check the path and its permissions"
    if platform.machine() not in ("x86_64", "AMD64"):
        what = f"is not installed, and the vendor has none for {platform.machine()}"
        return what, where, "compile on an x86-64 Linux machine and copy the plan's directory here"
    return "is not installed", where, _INSTALL


def _failure(finished: FinishedRun, *, made: bool) -> KnownFailure:
    """The first failure that the output names, a general one only if there is no other; else what the exit code tells.

    made: whether a file was written.
    """
    report = parse_report(finished.output)
    if finished.ended:
        remedy = "raise --timeout_sec, or use --search_delegate"
        return KnownFailure(f"it was ended {finished.ended}", remedy, About.COMPILER)
    if report.failures:
        return next((failure for failure in report.failures if not failure.general), report.failures[0])
    killed_by = -finished.exit_code if finished.exit_code < 0 else finished.exit_code - _SHELL_SIGNAL
    if killed_by > 0:
        what = f"the compiler was ended by signal {killed_by}"
        return KnownFailure(what, "compile again, or cut elsewhere", About.COMPILER, passing=True)
    refuses = report.succeeded is False
    what = "fails" if refuses else f"ends with exit code {finished.exit_code}"
    what += "" if made else " and writes no file"
    said = [line.strip() for line in finished.output.splitlines() if line.strip() and not _SAYS_NOTHING.search(line)]
    last = said[-1][:100] if said else "nothing"
    return KnownFailure(
        f"the compiler {what}; the last that it says: {last}", "try --search_delegate, or cut elsewhere",
        About.SEGMENT if refuses else About.COMPILER, passing=True,
    )  # fmt: skip


def _read_part(folder: Path, part: str, output: str) -> tuple[Compiled, tuple[str, ...]] | None:
    """A segment that the compiler has cut and compiled, with its outputs' names; None where it was not compiled."""
    path = folder / f"{part}{SUFFIX}.tflite"
    if not path.is_file():
        return None
    data = path.read_bytes()
    found = examine(part, None, data, output)
    return (found, describe(data, part).outputs) if isinstance(found, Compiled) else None


@contextmanager
def _working_folder() -> Iterator[Path]:
    """A folder for one run. Raises OutputError where it cannot be written."""
    try:
        with working_folder("compile") as folder:
            yield folder
    except OSError as error:
        remedy = "make room, or set TMPDIR to another folder"
        raise OutputError(f"cannot be written ({error.strerror or error})", tempfile.gettempdir(), remedy) from error
