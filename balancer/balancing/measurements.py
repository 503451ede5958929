"""Files of measured times, and what the cost model predicts for each of their rows.

Two formats. The published one: synthetic models by family and width, with the layers of each segment and how inputs
were fed. The simple one, `plan,stage,measured_ms`: a plan file beside the CSV, the name of one of its segments, and
its time in milliseconds. A plan file with measured segments is taken as well.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, TypeVar

from balancer.balancing.saving import model_bytes
from balancer.cost.pipeline import Feeding, StageCost, inference_ns, stage_cost
from balancer.cost.segment import SegmentCosts
from balancer.errors import MeasurementError
from balancer.graph import Graph, OpSet, op_set
from balancer.plan import load_plan, names_plan, parse_op_ranges
from balancer.tflite import synth
from balancer.tflite.read import read_graph

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from balancer.cost.hardware import Hardware

_SIMPLE = {"plan", "stage", "measured_ms"}
_PUBLISHED = {"family", "width", "n_layers", "input", "n_tpus", "batch", "partitioner", "layers_per_segment",
              "ms_per_inference", "timing", "off_chip_mib", "use"}  # fmt: skip
_WEIGHTED = {"FULLY_CONNECTED", "CONV_2D"}
_NS_PER_MS = 1e6


class Measurement(Protocol):
    """One measured time."""

    @property
    def measured_ns(self) -> float: ...

    def predicted_ns(self, hardware: Hardware) -> float: ...


@dataclass(frozen=True)
class SyntheticRow:
    """One published configuration. split: weight layers of each segment. streamed_mib: of each segment, as reported.

    partitioner: how the split was found; google_profiling lists its segments in no fixed order.
    """

    family: str
    width: int
    layers: int
    inputs: str
    n_tpus: int
    batch: int
    partitioner: str
    split: tuple[int, ...]
    measured_ns: float
    feeding: Feeding
    streamed_mib: tuple[float, ...] | None

    def graph(self) -> Graph:
        """Whole dense models give float32, segmented ones int8, as they were measured."""
        return _synthetic_graph(self.family, self.width, self.layers, self.inputs, self.n_tpus == 1)

    def stages(self, hardware: Hardware) -> tuple[StageCost, ...]:
        return _stages(self.graph(), hardware, self.split)

    def predicted_ns(self, hardware: Hardware) -> float:
        return inference_ns(self.stages(hardware), hardware, self.batch, self.feeding)


@dataclass(frozen=True)
class StageRow:
    """One stage of a plan."""

    graph: Graph
    ops: OpSet
    measured_ns: float

    def predicted_ns(self, hardware: Hardware) -> float:
        return float(_costs(self.graph, hardware).terms(self.ops).stage_ns)


def read_measurements(path: Path) -> list[SyntheticRow] | list[StageRow]:
    """The rows of a file that can be predicted: of the published CSV format those with `use` = 1, a known split and
    feeding; of a plan (its file, or its directory) the measured segments.

    Raises MeasurementError where the file cannot be read, has neither format, or a row is not what it should be.
    """
    if names_plan(path):
        return _measured_segments(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise MeasurementError(f"cannot be read ({reason})", str(path), "give a CSV file") from error
    if columns >= _PUBLISHED:
        return [_checked(_synthetic_row, row, path, k) for k, row in enumerate(rows, start=2) if _can_predict(row)]
    if columns >= _SIMPLE:
        return [_checked(_stage_row, row, path, k) for k, row in enumerate(rows, start=2)]
    raise MeasurementError("has neither format's columns", str(path), "give plan,stage,measured_ms")


def _measured_segments(path: Path) -> list[StageRow]:
    """What `balancer tune` or `bench` has measured of a plan."""
    plan, (graph, sets) = load_plan(path), _plan_ops(path)
    rows = [StageRow(graph, sets[s.name], float(s.measured.stage_ns)) for s in plan.segments if s.measured]
    if not rows:
        raise MeasurementError("has no measured segments", str(path), "run `balancer tune` on the plan first")
    return rows


_R = TypeVar("_R", SyntheticRow, StageRow)


def _checked(make: Callable[[dict[str, str], Path], _R], row: dict[str, str], path: Path, line: int) -> _R:
    try:
        return make(row, path)
    except (ValueError, TypeError, KeyError) as error:
        raise MeasurementError(f"is not a measurement ({error})", f"{path}, line {line}", "correct the row") from error


def _feeding(timing: str) -> Feeding | None:
    return next((f for f in Feeding if f.value == timing), None)


def _can_predict(row: dict[str, str]) -> bool:
    """A row without a split, or with one that does not hold the model's layers, says nothing of a segment."""
    layers = [int(n) for n in row["layers_per_segment"].split("-") if n.isdigit()]
    split_known = str(sum(layers)) == row["n_layers"]
    return row["use"] == "1" and split_known and _feeding(row["timing"]) is not None


def _synthetic_row(row: dict[str, str], path: Path) -> SyntheticRow:
    streamed = row["off_chip_mib"]
    return SyntheticRow(
        family=row["family"],
        width=int(row["width"]),
        layers=int(row["n_layers"]),
        inputs=row["input"],
        n_tpus=int(row["n_tpus"]),
        batch=int(row["batch"]),
        partitioner=row["partitioner"],
        split=tuple(int(n) for n in row["layers_per_segment"].split("-")),
        measured_ns=float(row["ms_per_inference"]) * _NS_PER_MS,
        feeding=_feeding(row["timing"]) or Feeding.STEADY,
        streamed_mib=tuple(float(m) for m in streamed.split(";")) if streamed else None,
    )


def _stage_row(row: dict[str, str], path: Path) -> StageRow:
    graph, sets = _plan_ops(path.parent / row["plan"])
    if row["stage"] not in sets:
        raise ValueError(f"the plan has no segment {row['stage']!r}")
    measured = float(row["measured_ms"]) * _NS_PER_MS
    if not 0 < measured < float("inf"):
        raise ValueError(f"measured_ms is {row['measured_ms']!r}")
    return StageRow(graph, sets[row["stage"]], measured)


@cache
def _plan_ops(path: Path) -> tuple[Graph, dict[str, OpSet]]:
    plan = load_plan(path)
    graph = read_graph(model_bytes(plan), name=plan.stem, where=str(path))
    return graph, {s.name: op_set(parse_op_ranges(s.ops, len(graph.ops))) for s in plan.segments}


@cache
def _synthetic_graph(family: str, width: int, layers: int, inputs: str, whole: bool) -> Graph:  # noqa: FBT001 - a cache key
    if family == "fc":
        output = "float32" if whole else "int8"
        data = synth.fc(width, layers=layers, inputs=int(inputs), output_type=output)
    elif family == "conv":
        size, _, channels = (int(n) for n in inputs.split("x"))
        data = synth.conv(width, layers=layers, size=size, channels=channels)
    else:
        raise ValueError(f"family {family!r} is unknown")
    return read_graph(data, name=f"{family}_{width}")


class _ByIdentity:
    """A graph as a key: graphs are large, and never equal unless they are the same."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __hash__(self) -> int:
        return id(self.graph)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.graph is self.graph


# Enough for all models of the published measurements on one hardware.
@lru_cache(maxsize=2048)
def _cached_costs(key: _ByIdentity, hardware: Hardware) -> SegmentCosts:
    return SegmentCosts(key.graph, hardware)


def _costs(graph: Graph, hardware: Hardware) -> SegmentCosts:
    return _cached_costs(_ByIdentity(graph), hardware)


def _stages(graph: Graph, hardware: Hardware, split: tuple[int, ...]) -> tuple[StageCost, ...]:
    return _cached_stages(_ByIdentity(graph), hardware, split)


@lru_cache(maxsize=8192)
def _cached_stages(key: _ByIdentity, hardware: Hardware, split: tuple[int, ...]) -> tuple[StageCost, ...]:
    costs = _cached_costs(key, hardware)
    return tuple(stage_cost(costs.terms(ops)) for ops in layer_segments(key.graph, split))


def layer_segments(graph: Graph, split: tuple[int, ...]) -> list[OpSet]:
    """Op sets for so many weight layers each, a layer with its activation; the op that quantises the input goes
    first.
    """
    starts = [op.index for op in graph.ops if op.type in _WEIGHTED]
    if sum(split) != len(starts):
        raise ValueError(f"{sum(split)} layers in the split, {len(starts)} in the model")
    starts.append(len(graph.ops))
    edges, taken = [0], 0
    for count in split[:-1]:
        taken += count
        edges.append(starts[taken])
    return [op_set(range(a, b)) for a, b in pairwise([*edges, len(graph.ops)])]
