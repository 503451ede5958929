"""The simple file of measured times: a CSV file with the columns `plan,stage,measured_ms`. plan is a plan file beside
it, stage the name of one of the plan's segments.
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
    """What one segment of a plan took."""

    plan: Plan
    segment: str
    ns: int


def read_stage_times(path: Path) -> list[StageTime]:
    """The rows of such a file. Raises MeasurementError naming the row, PlanError where a plan cannot be taken."""
    table = read_table(path, REFUSAL)
    if not table.columns >= COLUMNS:
        raise MeasurementError("has other columns", str(path), REFUSAL.remedy)
    return stage_times(table, path)


def stage_times(table: CsvTable, path: Path) -> list[StageTime]:
    """The same of a table that was read."""
    plans: dict[str, Plan] = {}
    found = []
    for line, row in table.rows:
        name, where = row["plan"], f"{path}, line {line}"
        if name not in plans:
            plans[name] = load_plan(path.parent / name)
        if row["stage"] not in {s.name for s in plans[name].segments}:
            raise MeasurementError(f"the plan has no segment {row['stage']!r}", where, "correct the row")
        found.append(StageTime(plans[name], row["stage"], round(time_ns(row["measured_ms"], where))))
    return found


def time_ns(milliseconds: str, where: str) -> float:
    """A field of milliseconds in nanoseconds, at least one. Raises MeasurementError where it is no time."""
    try:
        ns = float(milliseconds) * _NS_PER_MS
    except ValueError:
        ns = -1
    if not 1 <= ns <= _LONGEST_MS * _NS_PER_MS:
        what = f"{milliseconds[:40]!r} is no time in milliseconds"
        raise MeasurementError(what, where, "correct the row")
    return ns
