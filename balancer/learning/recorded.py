"""The simple file of measured times: a CSV file with a row for each measured segment, as `balancer bench --csv` writes it.

    plan,stage,measured_ms
    plan/net_plan_2.json,0,9.412

plan          A plan file or a plan's directory, relative to the CSV file's folder.
stage         One of the plan's segments: its name, or the number of its stage.
measured_ms   How long that segment was busy for one input.

Two more columns may follow. ops: of the segment, such as "0-190,193-200"; a row is refused whose plan has been solved
anew since and has other ops in that stage. source: on what the time was measured, as `runtime.provenance` writes it;
without it, nothing is known but that the time was recorded.
"""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.documents import CsvTable, Refusal, read_table
from balancer.errors import MeasurementError, PlanError
from balancer.ground.file_kinds import kind_of_path, refused
from balancer.ground.units import NS_PER_MS
from balancer.plan import load_plan
from balancer.runtime.provenance import MeasuredOn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from balancer.plan import Plan, Segment, SegmentMeasurement

_NEEDED, _FURTHER = ("plan", "stage", "measured_ms"), ("ops", "source")
COLUMNS = frozenset(_NEEDED)
REFUSAL = Refusal(
    MeasurementError, "give a CSV file with the columns plan,stage,measured_ms, as `balancer bench PLAN --csv` writes it",
    "a CSV file of measured times",
)  # fmt: skip
_CORRECT = "correct the row"
_LONGEST_MS = 1e9  # eleven days
_LONGEST_SOURCE = 200


@dataclass(frozen=True, slots=True)
class StageTime:
    """The measured time of one segment of a plan. source: on what it was measured, see `runtime.provenance`."""

    plan: Plan
    segment: str
    ns: int
    source: str = MeasuredOn.RECORDED.value


def read_stage_times(path: Path) -> list[StageTime]:
    """The rows of such a file. Raises MeasurementError, which names file and line."""
    return stage_times(_table(path), path)


def stage_times(table: CsvTable, path: Path) -> list[StageTime]:
    """The rows of a table that has these columns. path: where it was read from. Raises as `read_stage_times` does."""
    plans: dict[str, Plan] = {}
    times = []
    for line, row in table.rows:
        name, where = row["plan"].strip(), f"{path}, line {line}"
        if name not in plans:
            plans[name] = _plan(path.parent / name, where)
        segment = _segment(plans[name], row["stage"].strip(), where)
        if row.get("ops") not in (None, "", segment.op_ranges):
            what = f"stage {row['stage']} of the plan has ops {segment.op_ranges} now, not {row['ops'][:80]}"
            raise MeasurementError(what, where, "measure the plan again, or remove its rows")
        ns = round(time_ns(row["measured_ms"], where))
        times.append(StageTime(plans[name], segment.name, ns, _source(row.get("source", ""), where)))
    return times


def file_with_times(path: Path, plan: Plan, measured: Mapping[str, SegmentMeasurement]) -> bytes:
    """The contents of a file of measured times with rows for a plan's segments: those of the file so far, except rows of
    the same plan, and then the new ones.

    path: of the file, which need not exist. plan: a saved one. measured: by the segment's name. Raises MeasurementError
    if the file exists and has other columns, ValueError if the plan is not saved.
    """
    if plan.directory is None:
        raise ValueError("the plan is not saved")
    file = plan.directory / plan.file_name
    old = _table(path) if path.exists() else CsvTable(_NEEDED, ())
    columns = (*old.columns, *(name for name in _FURTHER if name not in old.columns))
    rows = [row for _, row in old.rows if not _names(path.parent / row["plan"].strip(), file)]
    relative = os.path.relpath(file.resolve(), path.parent.resolve())
    rows += [_row(relative, plan.segment(name), found) for name, found in measured.items()]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _row(plan: str, segment: Segment, found: SegmentMeasurement) -> dict[str, str]:
    milliseconds = f"{found.stage_ns / NS_PER_MS:.6f}"
    values = (plan, segment.name, milliseconds, segment.op_ranges, found.source)
    return dict(zip((*_NEEDED, *_FURTHER), values, strict=True))


def _table(path: Path) -> CsvTable:
    table = read_table(path, REFUSAL)
    missing = [name for name in _NEEDED if name not in table.columns]
    if missing:
        what, remedy = refused(
            REFUSAL.takes, REFUSAL.remedy, kind_of_path(path), f"line 1 names no column {missing[0]}"
        )
        raise MeasurementError(what, str(path), remedy)
    return table


def _plan(path: Path, where: str) -> Plan:
    try:
        return load_plan(path)
    except PlanError as error:
        what, plan, _ = error.args
        remedy = "name a plan file or a plan's directory, relative to the CSV file's folder"
        raise MeasurementError(f"its plan {plan} {what}", where, remedy) from error


def _segment(plan: Plan, text: str, where: str) -> Segment:
    """The segment that a row names. Raises MeasurementError if there is none, or if a number could mean several."""
    by_name = {segment.name: segment for segment in plan.segments}
    if text in by_name:
        return by_name[text]
    partitions = plan.partitions()
    if text.isdecimal() and len(text) < 5:
        if len(partitions) > 1:
            what = f"the plan has pipelines that are cut differently, so that several segments are stage {text}"
            raise MeasurementError(what, where, f"name one of {_listed(plan)}")
        if int(text) < len(partitions[0]):
            return partitions[0][int(text)]
    raise MeasurementError(f"the plan has no segment {text[:80]!r}", where, f"name one of {_listed(plan)}")


def _listed(plan: Plan) -> str:
    names = [segment.name for segment in plan.segments]
    stages = f"the stages 0 to {len(names) - 1}, or of " if len(plan.partitions()) == 1 else ""
    return stages + ", ".join(names)


def _source(text: str, where: str) -> str:
    """The field `source`, or what stands for none. Raises MeasurementError for text that no terminal should print."""
    if len(text) > _LONGEST_SOURCE or not text.isprintable():
        raise MeasurementError("its source is not a short text", where, _CORRECT)
    return text or MeasuredOn.RECORDED.value


def _names(path: Path, file: Path) -> bool:
    """Whether a path, of a plan file or a plan's directory, stands for this plan file."""
    return path.resolve() in (file.resolve(), file.parent.resolve())


def time_ns(milliseconds: str, where: str) -> float:
    """From a field in milliseconds to nanoseconds.

    where: file and line, for the message. Raises MeasurementError if it is not a number, is under 1 ns or over 11 days.
    """
    try:
        ns = float(milliseconds) * NS_PER_MS
    except ValueError:
        ns = -1
    if not 1 <= ns <= _LONGEST_MS * NS_PER_MS:
        what = f"{milliseconds[:40]!r} is not a time in milliseconds"
        raise MeasurementError(what, where, _CORRECT)
    return ns
