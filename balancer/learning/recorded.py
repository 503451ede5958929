"""The simple file of measured times: a CSV file with the columns `plan,stage,measured_ms`.

plan: the name of a plan file, relative to the CSV file's folder. stage: the name of one of the plan's segments.
measured_ms: how long that segment was busy for one input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.documents import CsvTable, Refusal, read_table
from balancer.errors import MeasurementError
from balancer.plan import load_plan

if TYPE_CHECKING:
    from pathlib import Path

    from balancer.plan import Plan

COLUMNS = frozenset({"plan", "stage", "measured_ms"})
REFUSAL = Refusal(MeasurementError, "give a CSV file with the columns plan,stage,measured_ms")
_NS_PER_MS = 1e6
_LONGEST_MS = 1e9  # eleven days


@dataclass(frozen=True, slots=True)
class StageTime:
    """The measured time of one segment of a plan."""

    plan: Plan
    segment: str
    ns: int


def read_stage_times(path: Path) -> list[StageTime]:
    """The rows of such a file. Raises MeasurementError, which names the row, or PlanError if a plan cannot be read."""
    table = read_table(path, REFUSAL)
    if not table.columns >= COLUMNS:
        raise MeasurementError("lacks one of the columns", str(path), REFUSAL.remedy)
    return stage_times(table, path)


def stage_times(table: CsvTable, path: Path) -> list[StageTime]:
    """The rows of a table that has these columns. path: where it was read from. Raises as `read_stage_times` does."""
    plans: dict[str, Plan] = {}
    times = []
    for line, row in table.rows:
        name, where = row["plan"], f"{path}, line {line}"
        if name not in plans:
            plans[name] = load_plan(path.parent / name)
        if row["stage"] not in {s.name for s in plans[name].segments}:
            raise MeasurementError(f"the plan has no segment {row['stage']!r}", where, "correct the row")
        times.append(StageTime(plans[name], row["stage"], round(time_ns(row["measured_ms"], where))))
    return times


def time_ns(milliseconds: str, where: str) -> float:
    """From a field in milliseconds to nanoseconds.

    where: file and line, for the message. Raises MeasurementError if it is not a number, is under 1 ns or over 11 days.
    """
    try:
        ns = float(milliseconds) * _NS_PER_MS
    except ValueError:
        ns = -1
    if not 1 <= ns <= _LONGEST_MS * _NS_PER_MS:
        what = f"{milliseconds[:40]!r} is not a time in milliseconds"
        raise MeasurementError(what, where, "correct the row")
    return ns
