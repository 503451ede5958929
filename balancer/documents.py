"""Files of text that anybody may have written: one door for JSON, one for CSV.

Past a door a reader meets plain values alone. The file has a size that memory takes and is UTF-8. JSON is not nested
deeply, its numbers are finite and fit 64 bits, no key stands twice in an object. Each row of a table has all columns
and no more.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from balancer.errors import BalancerError

_MOST_BYTES = 16 << 20  # twenty times the largest plan or profile; as Python's objects some 400 MiB
_DEEPEST = 32  # a plan has 7 levels
_MOST_DIGITS = 20
_LARGEST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a reader refuses a file. remedy: of one that is not what it should be. unread: what is said of one that
    cannot be read, and unread_remedy what helps.
    """

    error: type[BalancerError]
    remedy: str
    unread: str = "cannot be read"
    unread_remedy: str = "check the path"


@dataclass(frozen=True, slots=True)
class CsvTable:
    """A CSV file: its columns, and for each row the line in the file where it ends and its fields by column."""

    columns: frozenset[str]
    rows: tuple[tuple[int, dict[str, str]], ...]


def read_json(path: str | Path, refusal: Refusal) -> Any:
    """The value in a JSON file. Raises the refusal's error where the file cannot be read or is not fit JSON."""
    return parse_json(_bytes(path, refusal), str(path), refusal)


def parse_json(data: bytes, where: str, refusal: Refusal) -> Any:
    """The value in these bytes of JSON; see `read_json`."""
    try:
        value = json.loads(
            data.decode("utf-8-sig"), parse_int=_whole, parse_float=_finite, parse_constant=_finite,
            object_pairs_hook=_unique,
        )  # fmt: skip
        _check_depth(value)
    except RecursionError as error:
        raise refusal.error("not JSON (nested too deeply)", where, refusal.remedy) from error
    except ValueError as error:
        raise refusal.error(f"not JSON ({error})", where, refusal.remedy) from error
    return value


def read_table(path: str | Path, refusal: Refusal) -> CsvTable:
    """The rows of a CSV file, whose first line names its columns. Blank lines are none.

    Raises the refusal's error where the file cannot be read, is no CSV, names a column twice, or a row has not as many
    fields as there are columns.
    """
    data, where = _bytes(path, refusal), str(path)
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        lines = [(reader.line_num, fields) for fields in reader if fields]
    except (ValueError, csv.Error) as error:
        raise refusal.error(f"is no CSV file ({error})", where, refusal.remedy) from error
    columns = lines[0][1] if lines else []
    if len(set(columns)) < len(columns):
        raise refusal.error("names a column twice", where, refusal.remedy)
    for line, fields in lines[1:]:
        if len(fields) != len(columns):
            what = f"has {len(fields)} fields, the first line {len(columns)}"
            raise refusal.error(what, f"{where}, line {line}", "correct the row")
    return CsvTable(
        frozenset(columns), tuple((line, dict(zip(columns, fields, strict=True))) for line, fields in lines[1:])
    )


def _bytes(path: str | Path, refusal: Refusal) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # a ValueError: a path with a NUL
        reason = getattr(error, "strerror", None) or error
        raise refusal.error(f"{refusal.unread} ({reason})", str(path), refusal.unread_remedy) from error
    if len(data) > _MOST_BYTES:
        raise refusal.error(f"is larger than {_MOST_BYTES >> 20} MiB", str(path), refusal.remedy)
    return data


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS or abs(int(text)) > _LARGEST:
        raise ValueError(f"{text[:_MOST_DIGITS]} is too large a number")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:_MOST_DIGITS]} is not a finite number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"'{key[:40]}' stands twice in one object")
        found[key] = value
    return found


def _check_depth(value: Any) -> None:
    """Level by level: recursion is what is guarded against."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise ValueError(f"nested more than {_DEEPEST} levels deep")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
