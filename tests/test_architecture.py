"""docs/architecture.md says of the code what is true: the modules, the ranks of the rooms, the formats of files."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.test_layers import APART, KNOWS, MODULES, RANK, ROOT

PAGE = Path(__file__).resolve().parents[1] / "docs" / "architecture.md"


def rows_under(heading: str) -> list[list[str]]:
    """The cells of all table rows of the sections that start with this heading, to the next one of its level."""
    level = heading.split(" ")[0]
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(f"\n{heading}\n")
    assert rest, f"the page has no heading '{heading}'"
    section = re.split(rf"\n{level} ", rest)[0]
    lines = (line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| ---"))
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")] for line in lines]


def names(cell: str) -> set[str]:
    return set(cell.split(", "))


def test_the_page_lists_each_module_once() -> None:
    listed = sorted(row[0] for row in rows_under("## Every module") if row[0] != "module")
    assert listed == sorted(path.relative_to(ROOT).as_posix() for path in MODULES)


def test_each_module_is_described() -> None:
    assert all(row[1] for row in rows_under("## Every module"))


def test_the_ranks_are_those_that_are_enforced() -> None:
    ranks = {
        name: int(row[0]) for row in rows_under("## Rooms and ranks") if row[0].isdecimal() for name in names(row[1])
    }
    assert ranks == RANK


def test_the_exceptions_are_those_that_are_enforced() -> None:
    rows = [row for row in rows_under("## Rooms and ranks") if not row[0].isdecimal()]
    assert {row[0]: names(row[1]) for row in rows if len(row) == 2 and row[0] not in ("rank", "room")} == KNOWS
    apart = [names(row[0]) for row in rows if len(row) == 1 and row[0] != "apart"]
    assert sorted(map(sorted, apart)) == sorted(map(sorted, APART))


@pytest.mark.parametrize(
    ("module", "name"), [("plan.records", "plan"), ("cost.hardware", "hardware"), ("cost.profile", "profile")]
)
def test_the_formats_are_those_that_are_written(module: str, name: str) -> None:
    home = importlib.import_module(f"balancer.{module}")
    assert f"balancer-{name}" == home.FORMAT
    assert any(row[1] == f"{home.FORMAT}, {home.VERSION}" for row in rows_under("## File formats"))


def test_the_records_are_where_the_page_says() -> None:
    rows = [row for row in rows_under("## The life of a plan") if row[0] != "record"]
    assert len(rows) > 5
    for records, home, _ in rows:
        module = importlib.import_module(f"balancer.{home}")
        assert all(hasattr(module, name) for name in names(records)), f"{records} in {home}"


def test_what_the_page_names_exists() -> None:
    """Modules such as `cost.segment`, files of the repository, and links."""
    text = PAGE.read_text(encoding="utf-8")
    rooms = "|".join(sorted({path.parent.name for path in MODULES} - {ROOT.name}))
    for room, module in re.findall(rf"`({rooms})[./](\w+)", text):
        home = ROOT / room
        assert (home / f"{module}.py").is_file() or (home / module).is_dir(), f"{room}.{module}"
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (PAGE.parent / target).exists(), target
