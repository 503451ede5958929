"""What `edgetpu_compiler` prints, as data: found by label, never by line number.

Reports of compilers 1.0 to 16.0 differ in wording, lines, blank lines and order. Published copies also lose line breaks,
re-wrap paragraphs, stop early, or begin with lines of other programs. So each label is searched for by itself, and what a
report does not say is None. The operation log that the compiler writes beside its output (`Input:`, `Output:`, a table)
is read in the same way.

Sizes are printed with two decimals. A size of 1 MiB or more is therefore only known to within 5 KiB (`rounding_bytes`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from balancer.compiler.failures import KnownFailure, failures_in

if TYPE_CHECKING:
    from collections.abc import Mapping

MAPPED = "Mapped to Edge TPU"
_FOLLOWS = "More than one subgraph is not supported"  # of an op that reads what an unmapped op made

_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 1 << 10, "MB": 1 << 20}
_LABELS = {
    "Input model": "input_file",
    "Input": "input_file",
    "Output model": "output_file",
    "Output": "output_file",
    "Input size": "input_bytes",
    "Output size": "output_bytes",
    "On-chip memory available for caching model parameters": "available_bytes",
    "On-chip memory used for caching model parameters": "cached_bytes",
    "On-chip memory remaining for caching model parameters": "remaining_bytes",
    "Off-chip memory used for streaming uncached model parameters": "streamed_bytes",
    "Number of Edge TPU subgraphs": "subgraphs",
    "Total number of operations": "ops",
    "Operation log": "log_file",
    "Number of operations that will run on Edge TPU": "tpu_ops",
    "Number of operations that will run on CPU": "cpu_ops",
}
_FIRST = {"Input model", "Input"}  # labels that begin the part about a model
_VERSION = re.compile(r"Edge TPU Compiler version\s+(\d+(?:\.\d+)*)")
_HEADER = r"Operator\s+Count\s+Status"
# Line breaks that a copy has lost are put back before these.
_STARTS = re.compile(
    "|".join([*(re.escape(label) + ":" for label in sorted(_LABELS, key=len, reverse=True) if " " in label),
              "Edge TPU Compiler version", "Models? compiled successfully", "Model successfully compiled", _HEADER])
)  # fmt: skip
_LINE = re.compile(r"^\W*(" + "|".join(re.escape(label) for label in _LABELS) + r"):[ \t]*(.*)$")
_ROW = re.compile(r"^\W*([A-Za-z][\w:.]*)\s+(\d+)\s+(\S.*)$")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?i?B)\b")
_AFTER_COUNTS = re.compile(r"See the operation log file|" + _HEADER)
_SUCCEEDED, _FAILED = re.compile(r"Compilation succeeded!"), re.compile(r"Compilation failed!|Aborting!")
_MILLISECONDS = re.compile(r"(compiled successfully) in \d+ ms")


@dataclass(frozen=True, slots=True)
class OpStatus:
    """A row of the operator table: how many ops of a type share a status. One type may have several rows.

    status: in the compiler's words, which only this module compares.
    """

    type: str
    count: int
    status: str

    @property
    def mapped(self) -> bool:
        """Whether these ops run on the Edge TPU."""
        return self.status == MAPPED

    @property
    def follows(self) -> bool:
        """Whether these ops stay on the CPU because an op before them does: the Edge TPU runs one part of a model."""
        return self.status == _FOLLOWS


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """What a report says of one model or segment. None: not said.

    cached_bytes, remaining_bytes, streamed_bytes: parameters on chip, free memory on chip, parameters sent for each
    inference. tpu_ops, cpu_ops: where the report leaves out both counts and names no op that is not mapped, all ops run on
    the Edge TPU. statuses: rows of the operator table.
    """

    input_file: str | None = None
    output_file: str | None = None
    input_bytes: int | None = None
    output_bytes: int | None = None
    cached_bytes: int | None = None
    remaining_bytes: int | None = None
    streamed_bytes: int | None = None
    subgraphs: int | None = None
    ops: int | None = None
    tpu_ops: int | None = None
    cpu_ops: int | None = None
    log_file: str | None = None
    statuses: tuple[OpStatus, ...] = ()

    @property
    def capacity_bytes(self) -> int | None:
        """On-chip memory for parameters, used and free. None where one of them is not said."""
        if self.cached_bytes is None or self.remaining_bytes is None:
            return None
        return self.cached_bytes + self.remaining_bytes

    @property
    def has_memory(self) -> bool:
        """Whether it says how many bytes are cached and streamed. Without that, nothing was compiled."""
        return self.cached_bytes is not None and self.streamed_bytes is not None

    def reasons(self, op_type: str) -> tuple[str, ...]:
        """Why ops of this type were not mapped, in the compiler's words."""
        return tuple(dict.fromkeys(row.status for row in self.unmapped(op_type)))

    def unmapped(self, op_type: str) -> tuple[OpStatus, ...]:
        """The rows of ops of this type that stay on the CPU."""
        return tuple(row for row in self.statuses if row.type == op_type and not row.mapped)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole output. version: of the compiler. models: those that were compiled. failures: in the order of the output.

    succeeded: the last verdict that is printed; None without one, as in compilers before 16.0 and copies cut short.
    """

    version: str | None
    models: tuple[ModelReport, ...]
    failures: tuple[KnownFailure, ...]
    succeeded: bool | None

    def about(self, output_file: str) -> ModelReport | None:
        """What it says of the model that was written under this bare file name; the last try, if there were several."""
        tries = [
            m
            for m in self.models
            if m.output_file and _bare(m.output_file).strip() == output_file.strip() and m.has_memory
        ]
        return tries[-1] if tries else None


def rounding_bytes(count: int) -> int:
    """By how much a size may differ from what the report prints: half of the last of two decimals.

    >>> rounding_bytes(900), rounding_bytes(5000), rounding_bytes(3 << 20)
    (0, 6, 5243)
    """
    unit = max(size for size in _UNITS.values() if size <= max(count, 1))
    return 0 if unit == 1 else -(-unit // 200)


def parse_report(text: str) -> Report:
    """The data in an output of the compiler, or in its operation log. Raises nothing: what is not there is None."""
    lines = _STARTS.sub(lambda found: "\n" + found.group(), _COLOURS.sub("", text.replace("\r", "\n")))
    lines = re.sub(_HEADER, lambda found: found.group() + "\n", lines)
    version = _VERSION.search(lines)
    parts: list[_ModelLines] = []
    for line in lines.splitlines():
        _read_line(line, parts)
    verdicts = [found.re is _SUCCEEDED for found in _in_order(lines, _SUCCEEDED, _FAILED)]
    return Report(
        version=version.group(1) if version else None,
        models=tuple(part.report() for part in parts),
        failures=failures_in(lines),
        succeeded=verdicts[-1] if verdicts else None,
    )


def without_duration(text: str) -> str:
    """The output without the milliseconds that compiling took, so that the same compilation gives the same text.

    >>> without_duration("Model compiled successfully in 12 ms.")
    'Model compiled successfully.'
    """
    return _MILLISECONDS.sub(r"\1", text)


def _in_order(text: str, *patterns: re.Pattern[str]) -> list[re.Match[str]]:
    return sorted((found for pattern in patterns for found in pattern.finditer(text)), key=lambda found: found.start())


@dataclass
class _ModelLines:
    """What was read about a model so far. past_counts: the lines with the counts of ops are over."""

    values: dict[str, str] = field(default_factory=dict)
    statuses: list[OpStatus] = field(default_factory=list)
    past_counts: bool = False
    in_table: bool = False

    def report(self) -> ModelReport:
        """What was read, with sizes and counts as numbers."""
        values = self.values
        sizes = {
            name: _size(values, name) for name in ("input_bytes", "output_bytes", "cached_bytes", "streamed_bytes")
        }
        ops, tpu_ops, cpu_ops = (_count(values, name) for name in ("ops", "tpu_ops", "cpu_ops"))
        if (
            self.past_counts
            and ops is not None
            and tpu_ops is None
            and cpu_ops is None
            and all(s.mapped for s in self.statuses)
        ):
            tpu_ops, cpu_ops = ops, 0  # the two counts are printed only where an op stays on the CPU
        return ModelReport(
            input_file=values.get("input_file"), output_file=values.get("output_file"),
            remaining_bytes=_remaining(values, sizes["cached_bytes"]),
            subgraphs=_count(values, "subgraphs"), ops=ops, tpu_ops=tpu_ops, cpu_ops=cpu_ops,
            log_file=values.get("log_file"), statuses=tuple(self.statuses), **sizes,
        )  # fmt: skip


def _read_line(line: str, parts: list[_ModelLines]) -> None:
    """Add a line to the last part, or begin the next one."""
    found = _LINE.match(line)
    if found:
        if found.group(1) in _FIRST or not parts:
            parts.append(_ModelLines())
        parts[-1].values.setdefault(_LABELS[found.group(1)], found.group(2).strip())
        return
    if parts and _AFTER_COUNTS.search(line):
        parts[-1].past_counts = True
        parts[-1].in_table |= bool(re.search(_HEADER, line))
    row = _ROW.match(line)
    if row and parts and parts[-1].in_table and row.group(1) != "Operator":
        parts[-1].statuses.append(OpStatus(row.group(1), int(row.group(2)[:9]), row.group(3).strip()))


def _size(values: Mapping[str, str], name: str) -> int | None:
    found = _SIZE.match(values.get(name, ""))
    return round(float(found.group(1)[:20]) * _UNITS[found.group(2)]) if found and found.group(2) in _UNITS else None


def _remaining(values: Mapping[str, str], used: int | None) -> int | None:
    """Free on-chip memory. used: cached bytes. Compilers up to 2.0 print the whole capacity instead."""
    available = _size(values, "available_bytes")
    if available is None or used is None:
        return _size(values, "remaining_bytes")
    return max(0, available - used)


def _count(values: Mapping[str, str], name: str) -> int | None:
    found = re.match(r"\d{1,9}", values.get(name, ""))
    return int(found.group()) if found else None


def _bare(path: str) -> str:
    """The path without its folders.

    >>> _bare("out/a.tflite"), _bare("C:\\\\b.tflite")
    ('a.tflite', 'b.tflite')
    """
    return path.replace("\\", "/").rsplit("/", 1)[-1]
