"""The outcome of a compilation: the report and the compiled file, compared with each other and with the segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.compiler.failures import About, KnownFailure
from balancer.compiler.report import ModelReport, parse_report, rounding_bytes
from balancer.errors import ModelError
from balancer.ground.wording import counted
from balancer.tflite.package import COMPILED, Package, describe, is_compiled, read_package

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balancer.tflite.package import FileOps

_MOST_PADDING = 4  # the report counts whole groups of 64 outputs, the file stores groups of 16


@dataclass(frozen=True, slots=True)
class NotMapped:
    """An op that stayed on the CPU. position: in the segment's order. reason: in the compiler's words."""

    position: int
    type: str
    reason: str


@dataclass(frozen=True, slots=True)
class Compiled:
    """A segment that was compiled. data: the file. output: what the compiler printed. version: of the compiler. package:
    what the file holds for the Edge TPU; None where nothing was mapped. doubts: sentences about differences between
    report, file and segment.
    """

    name: str
    data: bytes
    output: str
    version: str
    report: ModelReport
    package: Package | None
    not_mapped: tuple[NotMapped, ...]
    doubts: tuple[str, ...]

    @property
    def cached_bytes(self) -> int:
        """As the report counts them: in whole groups of 64 outputs, rounded as printed."""
        return self.report.cached_bytes or 0

    @property
    def streamed_bytes(self) -> int:
        """From the file, which is exact; from the report where the file holds nothing for the Edge TPU."""
        return self.package.streamed_bytes if self.package else self.report.streamed_bytes or 0

    @property
    def capacity_bytes(self) -> int:
        """Used and free, as the report says; only what is used where it does not say what is free."""
        capacity = self.report.capacity_bytes
        return self.cached_bytes if capacity is None else capacity


@dataclass(frozen=True, slots=True)
class Refused:
    """A segment that was not compiled, and why.

    output: what the compiler printed. passing: whether the next try may succeed. about: what the failure tells about.
    """

    name: str
    reason: str
    remedy: str
    output: str
    about: About
    passing: bool = False


def examine(name: str, source: bytes | None, data: bytes, output: str) -> Compiled | Refused:
    """The outcome, from the compiled file's data and the compiler's output. source: the segment's file, if it is known.

    A file without a package was handed back uncompiled, unless the report says that no op could be mapped.
    """
    whole = parse_report(output)
    report = whole.about(f"{name}_edgetpu.tflite")
    if whole.succeeded is False:
        unknown = KnownFailure("the compiler says that it failed", "", About.SEGMENT)
        last = whole.failures[-1] if whole.failures else unknown
        return Refused(name, last.reason, "compile again, or cut elsewhere", output, last.about, passing=True)
    if report is None:
        what = "the compiler wrote a file, but no report about it"
        return _not_the_vendors(name, what, output)
    try:
        package = read_package(data, name=name, where=name) if is_compiled(data, name) else None
        made, given = describe(data, name), describe(source, name) if source is not None else None
    except ModelError as error:
        what = f"the compiled file can't be read ({error.args[0]})"
        return Refused(name, what, "compile again", output, About.COMPILER, passing=True)
    if given is not None and (set(made.inputs), set(made.outputs)) != (set(given.inputs), set(given.outputs)):
        what = "the compiled file has other inputs or outputs than the segment"
        return _not_the_vendors(name, what, output)
    if package is None and not _says_that_nothing_was_mapped(report):
        what = "the compiled file holds nothing for the Edge TPU, and the report does not say that nothing was mapped"
        return _not_the_vendors(name, what, output)
    doubts = [*_doubts_of_memory(report, package), *_doubts_of_ops(report, made, given)]
    return Compiled(
        name, data, output, whole.version or "", report, package, _not_mapped(report, made, given), tuple(doubts)
    )


def _not_the_vendors(name: str, what: str, output: str) -> Refused:
    """A file that the vendor's compiler would not write."""
    remedy = "give the vendor's edgetpu_compiler"
    return Refused(name, what, remedy, output, About.COMPILER, passing=True)


def _says_that_nothing_was_mapped(report: ModelReport) -> bool:
    """Whether the report says so as the vendor's compiler does: no subgraph or no op for the Edge TPU (edgetpu#225), and no
    memory and no mapped op either.
    """
    counts = (report.subgraphs, report.tpu_ops)
    none_said_to_be = 0 in counts and not any(counts)
    return none_said_to_be and not (
        report.cached_bytes or report.streamed_bytes or any(s.mapped for s in report.statuses)
    )


def _not_mapped(report: ModelReport, made: FileOps, given: FileOps | None) -> tuple[NotMapped, ...]:
    """The ops that the compiled file still holds, found in the segment by the tensors that they make.

    The report's table gives reasons by type of op, not by op. An op that reads what another unmapped op makes is unmapped
    because it follows that one. Any other op gets one of the remaining reasons that are listed for its type.
    """
    if given is None:
        return ()
    left = {op.makes for op in made.ops if op.type != COMPILED}
    not_mapped, made_outside = [], set[str]()
    for k, op in enumerate(given.ops):
        if op.makes in left:
            rows = report.unmapped(op.type.split(":")[0])
            follows = bool(made_outside & set(op.reads))
            reasons = dict.fromkeys(row.status for row in [r for r in rows if r.follows == follows] or rows)
            not_mapped.append(NotMapped(k, op.type, " or ".join(reasons) or "no reason given"))
            made_outside |= set(op.makes)
    return tuple(not_mapped)


def _doubts_of_memory(report: ModelReport, package: Package | None) -> Iterator[str]:
    if package is None:
        yield "nothing was mapped to the Edge TPU"
        return
    said, held = report.streamed_bytes or 0, package.streamed_bytes
    if abs(said - held) > rounding_bytes(said):
        yield f"the report says that {said} bytes stream, the compiled file {held}"
    said, held = report.cached_bytes or 0, package.cached_bytes
    if not held - rounding_bytes(said) <= said <= _MOST_PADDING * held + rounding_bytes(said):
        yield f"the report says that {said} bytes are cached, the compiled file {held}"


def _doubts_of_ops(report: ModelReport, made: FileOps, given: FileOps | None) -> Iterator[str]:
    outside = sum(op.type != COMPILED for op in made.ops)
    if report.cpu_ops is not None and report.cpu_ops != outside:
        yield f"ops on the CPU: {report.cpu_ops} by the report, {outside} in the compiled file"
    if report.statuses and report.ops is not None and sum(s.count for s in report.statuses) != report.ops:
        yield f"the report's table does not add up to its {counted(report.ops, 'op')}"
    if given is None:
        return
    if report.ops is not None and report.ops != len(given.ops):
        yield f"the report counts {counted(report.ops, 'op')}, the segment has {len(given.ops)}"
