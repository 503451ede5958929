"""What compiled packages record beside what is predicted of them: instructions, narrow memory, scratch in host memory, and the
ops left on the CPU.

The packages stand in a table, one in a row; `--models` is a folder, with those below it, where their source models are looked
for by name. Rows without a source model are left out. Of a package that the compiler's `--num_segments` made, the source is the
whole model, which is cut by the compiler's rule.
"""

from __future__ import annotations

import csv
import re
import statistics
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from balancer.cost.hardware import load_hardware
from balancer.cost.instructions import BASE_BYTES, instruction_bytes
from balancer.errors import MeasurementError
from balancer.ground.opsets import OpSet, members, op_set
from balancer.planning.costed_model import CostedModel, open_costed_model
from balancer.planning.ways import default_cuts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from sampling import Sample

_COLUMNS = {"package", "instruction_bytes", "narrow_bytes_per_tile", "scratch_bytes", "cpu_ops", "cpu_op_types"}
_SUFFIX = re.compile(r"(?:_cocompiled_with_\w[\w.]*)?_edgetpu(?:\.tflite)?$")
_SEGMENT = re.compile(r"_segment_(\d+)_of_(\d+)$")


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that packages record, and how it is predicted for the ops of a segment.

    column: where the table has it. predicted: from the costed model and the segment's ops.
    """

    name: str
    column: str
    predicted: Callable[[CostedModel, OpSet], int]


def predicted_instruction_bytes(costed: CostedModel, ops: OpSet) -> int:
    on_tpu = ops & costed.costs.mapped & ~costed.costs.on_cpu(ops)
    return BASE_BYTES + sum(instruction_bytes(costed.graph, costed.graph.ops[i]) for i in members(on_tpu))


# Each is scored by its relative error.
FIGURES = (
    Figure("instructions", "instruction_bytes", predicted_instruction_bytes),
    Figure("narrow", "narrow_bytes_per_tile", lambda costed, ops: costed.costs.activation_bytes(ops)),
)


@dataclass(frozen=True, slots=True)
class Row:
    """A package whose source model is at hand: what it records, and what is predicted, by the names of `FIGURES`.

    scratch_recorded, scratch_predicted: bytes in host memory. cpu_recorded, cpu_predicted: how many ops of each type are left
    on the CPU.
    """

    package: str
    recorded: Mapping[str, int]
    predicted: Mapping[str, int]
    scratch_recorded: int
    scratch_predicted: int
    cpu_recorded: Counter[str]
    cpu_predicted: Counter[str]

    @property
    def family(self) -> str:
        """The first word of the package's name: packages of one family resemble each other."""
        return re.split(r"[_ .\d-]", self.package, maxsplit=1)[0]

    def ratio(self, name: str) -> float:
        return self.predicted[name] / max(1, self.recorded[name])

    @property
    def scratch_right(self) -> bool:
        """Whether scratch is present or absent as predicted."""
        return (self.scratch_recorded > 0) == (self.scratch_predicted > 0)

    @property
    def cpu_right(self) -> bool:
        return self.cpu_recorded.total() == self.cpu_predicted.total()


def read_packages(path: Path) -> list[dict[str, str]]:
    """The table's rows. Raises MeasurementError where the file cannot be read or has other columns."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise MeasurementError(f"cannot be read ({error})", str(path), "give a CSV file") from error
    if not rows or not set(rows[0]) >= _COLUMNS:
        raise MeasurementError(f"has no columns {', '.join(sorted(_COLUMNS))}", str(path), "give such a file")
    return rows


def source_of(package: str, models: Mapping[str, Path]) -> tuple[Path, tuple[int, int] | None] | None:
    """The source model of a package, and which segment of how many it holds; None if it is not at hand.

    models: files by their names without ending.
    """
    name = _SUFFIX.sub("", package)
    if name in models:
        return models[name], None
    segment = _SEGMENT.search(name)
    if segment is None or name[: segment.start()] not in models:
        return None
    return models[name[: segment.start()]], (int(segment[1]), int(segment[2]))


def segment_of(costed: CostedModel, segment: tuple[int, int] | None) -> OpSet:
    """The ops of the k-th segment of N, or all. segment: k, counted from 0, and N."""
    if segment is None:
        return costed.graph.all_ops
    edges = [0, *default_cuts(costed, segment[1]), len(costed.graph.ops)]
    start, end = list(pairwise(edges))[segment[0]]
    return op_set(range(start, end))


def compared(record: Mapping[str, str], costed: CostedModel, ops: OpSet) -> Row:
    on_cpu = costed.costs.on_cpu(ops)
    return Row(
        record["package"],
        {figure.name: int(record[figure.column]) for figure in FIGURES},
        {figure.name: figure.predicted(costed, ops) for figure in FIGURES},
        int(record["scratch_bytes"]),
        costed.costs.terms(ops).scratch_bytes,
        _counted(record["cpu_op_types"]),
        Counter(costed.graph.ops[i].type for i in members(on_cpu)),
    )


def _counted(text: str) -> Counter[str]:
    """How many ops of each type, from text such as "ADD:2 CUSTOM:Decoder:1"."""
    counts: Counter[str] = Counter()
    for entry in text.split():
        kind, _, count = entry.rpartition(":")
        counts[kind] += int(count)
    return counts


def rows_of(table: Path, models: Path) -> list[Row]:
    """The packages of the table whose source models are below this folder."""
    sources = {path.stem: path for path in sorted(models.rglob("*.tflite"))}
    rows: list[Row] = []
    opened: dict[Path, CostedModel] = {}
    for record in read_packages(table):
        source = source_of(record["package"], sources)
        if source is None:
            continue
        path, segment = source
        if path not in opened:
            opened[path] = open_costed_model(path, load_hardware("pcie"))
        rows.append(compared(record, opened[path], segment_of(opened[path], segment)))
    return rows


def scale_without(rows: Iterable[Row], family: str, name: str) -> float:
    """What all predictions would have to be multiplied with to fit the other families: one over their median ratio."""
    others = [row.ratio(name) for row in rows if row.family != family]
    return 1 / statistics.median(others) if others else 1.0


def score_packages(table: Path, models: Path) -> list[Sample]:
    """Print each figure of each package, predicted beside recorded, and the medians; return them."""
    rows = rows_of(table, models)
    for row in rows:
        figures = " ".join(
            f"{f.name} {row.predicted[f.name]:8} {row.recorded[f.name]:8} {100 * (row.ratio(f.name) - 1):+7.1f} %"
            for f in FIGURES
        )
        cpu = f"on CPU {row.cpu_predicted.total():3} {row.cpu_recorded.total():3}"
        scratch = f"scratch {row.scratch_predicted:7} {row.scratch_recorded:7}"
        print(f"{row.package[:60]:60} {figures} {scratch} {cpu} {_difference(row)}")
    if not rows:
        print("no source model of any package is below the folder of --models")
    for figure in FIGURES:
        print_errors(rows, figure.name)
    print(f"scratch present or absent: right in {sum(row.scratch_right for row in rows)} of {len(rows)}")
    print(f"ops left on the CPU: right in {sum(row.cpu_right for row in rows)} of {len(rows)}")
    return [
        {
            "score": "packages", "package": row.package, "predicted": dict(row.predicted), "recorded": dict(row.recorded),
            "predicted_scratch_bytes": row.scratch_predicted, "recorded_scratch_bytes": row.scratch_recorded,
            "predicted_cpu_ops": row.cpu_predicted.total(), "recorded_cpu_ops": row.cpu_recorded.total(),
        }
        for row in rows
    ]  # fmt: skip


def _difference(row: Row) -> str:
    """Which types of ops differ in number, predicted first; empty if none."""
    kinds = sorted(row.cpu_predicted.keys() | row.cpu_recorded.keys())
    unequal = [kind for kind in kinds if row.cpu_predicted[kind] != row.cpu_recorded[kind]]
    return " ".join(f"{kind} {row.cpu_predicted[kind]}/{row.cpu_recorded[kind]}" for kind in unequal)


def print_errors(rows: Sequence[Row], name: str) -> None:
    """The median error of a figure, over all and by family, and of each family if scaled to fit the others."""
    if not rows:
        return
    print(
        f"{name}: median error {100 * statistics.median(abs(row.ratio(name) - 1) for row in rows):.1f} % over {len(rows)}"
    )
    for family in sorted({row.family for row in rows}):
        ratios = [row.ratio(name) for row in rows if row.family == family]
        scale = scale_without(rows, family, name)
        plain = 100 * statistics.median(abs(ratio - 1) for ratio in ratios)
        scaled = 100 * statistics.median(abs(ratio * scale - 1) for ratio in ratios)
        print(
            f"    {family:14} {len(ratios):3} packages {plain:6.1f} %   scaled to fit the other families {scaled:6.1f} %"
        )
