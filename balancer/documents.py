"""Text files that anybody may have written: one function reads JSON, one reads CSV.

Both check the file before a reader sees its values:

- The file is UTF-8 and at most 16 MiB.
- JSON is nested at most 32 levels deep. Its numbers are finite and fit 64 bits. No object has a key twice.
- Every row of a CSV file has exactly the columns that the first line names.

balancer's own JSON files also say of which format and version they are; `read_document` checks both.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from balancer.ground.file_kinds import MEASURED_TIMES, kind_of, kind_of_path, refused

if TYPE_CHECKING:
    from balancer.errors import BalancerError

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = "dict[str, JsonValue]"

_MOST_BYTES = 16 << 20  # twenty times the largest plan or profile; parsed, it takes about 400 MiB
_DEEPEST = 32  # a plan has 7 levels
_MOST_DIGITS = 20  # Python's int() takes quadratic time: longer numbers are refused before they are converted
_LARGEST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Refusal:
    """The error that a reader raises for a file that it cannot take.

    remedy: for a file with the wrong content. takes: what the reader takes, such as "a plan file". unread, unread_remedy:
    message and remedy for a file that cannot be read.
    """

    error: type[BalancerError]
    remedy: str
    takes: str
    unread: str = "cannot be read"
    unread_remedy: str = "check the path"

    def of(self, data: bytes, where: str, otherwise: str) -> BalancerError:
        """The error for a file with these bytes, which says what the file is. otherwise: what is wrong if that is unknown."""
        what, remedy = refused(self.takes, self.remedy, kind_of(data), otherwise)
        return self.error(what, where, remedy)


@dataclass(frozen=True, slots=True)
class DocumentKind:
    """One kind of JSON file that balancer writes itself, such as a plan.

    format: the value of its key "format". versions: the values of "version" that can be read. version_remedy: for an unknown
    version.
    """

    format: str
    versions: tuple[int, ...]
    refusal: Refusal
    version_remedy: str = "update balancer"


@dataclass(frozen=True, slots=True)
class CsvTable:
    """A CSV file.

    columns: their names, in order. rows: for each row the number of its last line in the file, and its fields by column.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]


def read_document(path: str | Path, kind: DocumentKind) -> JsonObject:
    """The top-level object of a JSON file of this kind.

    Raises the kind's error if the file cannot be read, is not JSON, has another format, or an unknown version.
    """
    return parse_document(_bytes(path, kind.refusal), str(path), kind)


def parse_document(data: bytes, where: str, kind: DocumentKind) -> JsonObject:
    """The same for a file's bytes. where: the file's name in messages."""
    value, refusal = parse_json(data, where, kind.refusal), kind.refusal
    if not isinstance(value, dict) or value.get("format") != kind.format:
        raise refusal.of(data, where, f"not {refusal.takes} (no format '{kind.format}')")
    if value.get("version") not in kind.versions:
        raise refusal.error(f"version {value.get('version')!r} is unknown", where, kind.version_remedy)
    return value


def read_json(path: str | Path, refusal: Refusal) -> JsonValue:
    """The value in a JSON file. Raises the refusal's error if the file cannot be read or breaks a rule of this module."""
    return parse_json(_bytes(path, refusal), str(path), refusal)


def parse_json(data: bytes, where: str, refusal: Refusal) -> JsonValue:
    """The same for a file's bytes. where: the file's name in messages."""
    try:
        value: JsonValue = json.loads(
            data.decode("utf-8-sig"), parse_int=_whole, parse_float=_finite, parse_constant=_finite,
            object_pairs_hook=_unique,
        )  # fmt: skip
        _check_depth(value)
    except RecursionError as error:
        raise refusal.of(data, where, "not JSON (nested too deeply)") from error
    except ValueError as error:
        raise refusal.of(data, where, f"not JSON ({error})") from error
    return value


def read_table(path: str | Path, refusal: Refusal) -> CsvTable:
    """A CSV file whose first line names its columns. Blank lines are skipped.

    Raises the refusal's error if the file cannot be read, is not CSV, names a column twice, or if a row has more or
    fewer fields than the first line.
    """
    data, where = _bytes(path, refusal), str(path)
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        lines = [(reader.line_num, fields) for fields in reader if fields]
    except (ValueError, csv.Error) as error:
        raise refusal.of(data, where, f"not a CSV file ({error})") from error
    columns = [name.strip() for name in lines[0][1]] if lines else []
    if len(set(columns)) < len(columns):
        raise refusal.error("names a column twice", where, refusal.remedy)
    for line, fields in lines[1:]:
        if len(fields) != len(columns):
            if kind_of(data) not in (None, MEASURED_TIMES):
                raise refusal.of(data, where, "")
            what = f"has {len(fields)} fields, the first line {len(columns)}"
            raise refusal.error(what, f"{where}, line {line}", "correct the row")
    return CsvTable(
        tuple(columns), tuple((line, dict(zip(columns, fields, strict=True))) for line, fields in lines[1:])
    )


def _bytes(path: str | Path, refusal: Refusal) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: the path contains a NUL character
        reason = getattr(error, "strerror", None) or error
        otherwise = f"{refusal.unread} ({reason})"
        kind = kind_of_path(Path(path)) if isinstance(error, IsADirectoryError) else None
        remedy = refusal.unread_remedy if kind is None else refusal.remedy
        what, remedy = refused(refusal.takes, remedy, kind, otherwise)
        raise refusal.error(what, str(path), remedy) from error
    if len(data) > _MOST_BYTES:
        raise refusal.error(f"is larger than {_MOST_BYTES >> 20} MiB", str(path), refusal.remedy)
    return data


def _whole(text: str) -> int:
    """An integer of JSON, e.g. '12'. Raises ValueError if it does not fit 64 bits."""
    if len(text) > _MOST_DIGITS or abs(int(text)) > _LARGEST:
        raise ValueError(f"{text[:_MOST_DIGITS]} is too large a number")
    return int(text)


def _finite(text: str) -> float:
    """A number of JSON with a point or an exponent, or one of Python's NaN and Infinity, which raise ValueError."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:_MOST_DIGITS]} is not a finite number")
    return value


def _unique(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
    made: JsonObject = {}
    for key, value in pairs:
        if key in made:  # Python's json would silently keep the last one
            raise ValueError(f"'{key[:40]}' stands twice in one object")
        made[key] = value
    return made


def _check_depth(value: JsonValue) -> None:
    """Raises ValueError for values nested too deeply. Walks level by level, since recursion could itself overflow."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise ValueError(f"nested more than {_DEEPEST} levels deep")


def _children(value: JsonValue) -> list[JsonValue]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
