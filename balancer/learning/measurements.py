"""Files of measured times, and what the cost model predicts for each of their rows.

There are three kinds of file:

published       A CSV file with a row for each measured configuration of a synthetic model: family and width, the number
                of layers in each segment, and how inputs were fed.
simple          A CSV file with the columns `plan,stage,measured_ms`: a plan, one of its segments, and that segment's time
                in milliseconds (see `recorded`).
measured plan   A plan file, or its directory, whose segments have measured times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from balancer.cost.feeding import Feeding, StageCost, inference_ns, stage_cost
from balancer.cost.hardware import Hardware
from balancer.cost.segment import SegmentCosts
from balancer.documents import read_table
from balancer.errors import MeasurementError
from balancer.ground.file_kinds import kind_of_path, refused
from balancer.ground.opsets import OpSet, op_set
from balancer.learning.recorded import COLUMNS, REFUSAL, StageTime, stage_times, time_ns
from balancer.opened import open_plan
from balancer.plan import load_plan, names_plan
from balancer.runtime.provenance import MeasuredOn
from balancer.tflite import synth
from balancer.tflite.read import read_graph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from balancer.graph import Graph
    from balancer.opened import OpenedPlan

_PUBLISHED = {"family", "width", "n_layers", "input", "n_tpus", "batch", "partitioner", "layers_per_segment",
              "ms_per_inference", "timing", "off_chip_mib", "use"}  # fmt: skip
_WEIGHTED = {"FULLY_CONNECTED", "CONV_2D"}
_MOST_BATCH = 1 << 20


class MeasuredTime(Protocol):
    """One measured time, and its prediction for any hardware. Both in ns. source: on what it was measured, as text."""

    @property
    def measured_ns(self) -> float: ...

    @property
    def source(self) -> str: ...

    def predicted_ns(self, hardware: Hardware) -> float: ...


@dataclass(frozen=True)
class SyntheticRow:
    """One published configuration.

    inputs: shape of the model's input: "64", or "64x64x3". split: how many weight layers each segment has.
    partitioner: what chose the split; `google_profiling` lists its segments in no fixed order. measured_ns: for one
    inference. feeding: how the host fed inputs. streamed_mib: of each segment, as the compiler reported it.
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

    @property
    def source(self) -> str:
        return MeasuredOn.DEVICE.value

    def graph(self) -> Graph:
        """The model. A dense model has a float32 output if it is whole and int8 if it is segmented: so it was measured."""
        return _synthetic_graph(self.family, self.width, self.layers, self.inputs, self.n_tpus == 1)

    def stages(self, hardware: Hardware) -> tuple[StageCost, ...]:
        return _stages(self.graph(), hardware, self.split)

    def predicted_ns(self, hardware: Hardware) -> float:
        return inference_ns(self.stages(hardware), hardware, self.batch, self.feeding)


@dataclass(frozen=True)
class StageRow:
    """One measured stage of a plan. ops: of its segment. measured_ns: how long it was busy for one input. source: on what it
    was measured, as text.
    """

    plan: OpenedPlan
    ops: OpSet
    measured_ns: float
    source: str

    def predicted_ns(self, hardware: Hardware) -> float:
        return float(_costs(self.plan.graph, hardware).terms(self.ops).stage_ns)


def read_measurements(path: Path) -> list[SyntheticRow] | list[StageRow]:
    """The rows that the cost model can predict.

    path: a CSV file, a plan file, or a plan's directory. Of a published CSV file, rows count that have `use` = 1, a
    known split and a known way of feeding. Of a plan, the measured segments count.

    Raises MeasurementError if the file cannot be read, has neither format, or has a wrong row; PlanError if the model of a
    plan in it cannot be opened.
    """
    if names_plan(path):
        return _measured_segments(path)
    table = read_table(path, REFUSAL)
    if set(table.columns) >= _PUBLISHED:
        return [_synthetic_row(row, f"{path}, line {line}") for line, row in table.rows if _can_predict(row)]
    if set(table.columns) >= COLUMNS:
        return _stage_rows(stage_times(table, path))
    what, remedy = refused(REFUSAL.takes, REFUSAL.remedy, kind_of_path(path), "has neither format's columns")
    raise MeasurementError(what, str(path), remedy)


def hardware_of(rows: Sequence[SyntheticRow] | Sequence[StageRow]) -> Hardware | None:
    """The kind of Edge TPUs that the measured plans were predicted for; None for published measurements.

    Raises MeasurementError where the plans differ in it, PlanError where a plan lacks one of its constants.
    """
    plans = {id(row.plan): row.plan for row in rows if isinstance(row, StageRow)}.values()
    found: list[Hardware] = []
    for plan in plans:
        kinds = [kind for kind, _ in plan.devices.kinds if isinstance(kind, Hardware)]
        found += [kind for kind in kinds if kind not in found]
    if len(found) > 1:
        names = ", ".join(sorted(hardware.name for hardware in found))
        raise MeasurementError(
            f"are of plans for several kinds of hardware ({names})", "the times", "choose one with --from"
        )
    return found[0] if found else None


def _measured_segments(path: Path) -> list[StageRow]:
    """The segments of a plan that `balancer tune` has measured."""
    plan = load_plan(path)
    times = [StageTime(plan, s.name, s.measured.stage_ns, s.measured.source) for s in plan.segments if s.measured]
    rows = _stage_rows(times)
    if not rows or any(time.ns < 1 for time in times):
        what = "has no measured segments, or one with a measured time of 0"
        raise MeasurementError(what, str(path), "run `balancer tune` on the plan first")
    return rows


def _feeding(timing: str) -> Feeding | None:
    return next((f for f in Feeding if f.value == timing), None)


def _can_predict(row: Mapping[str, str]) -> bool:
    """Whether the row is to be used, and gives the layers of each segment and how inputs were fed."""
    layers = [int(n[:9]) for n in row["layers_per_segment"].split("-") if n.isdecimal()]
    split_known = str(sum(layers)) == row["n_layers"]
    return row["use"] == "1" and split_known and _feeding(row["timing"]) is not None


def _synthetic_row(row: Mapping[str, str], where: str) -> SyntheticRow:
    streamed = row["off_chip_mib"]
    try:
        measured = SyntheticRow(
            family=row["family"],
            width=int(row["width"]),
            layers=int(row["n_layers"]),
            inputs=row["input"],
            n_tpus=int(row["n_tpus"]),
            batch=int(row["batch"]),
            partitioner=row["partitioner"],
            split=tuple(int(n) for n in row["layers_per_segment"].split("-")),
            measured_ns=time_ns(row["ms_per_inference"], where),
            feeding=_feeding(row["timing"]) or Feeding.STEADY,
            streamed_mib=tuple(float(m) for m in streamed.split(";")) if streamed else None,
        )
        _check_synthetic(measured)
    except ValueError as error:
        raise MeasurementError(f"is not a measurement ({error})", where, "correct the row") from error
    return measured


def _check_synthetic(row: SyntheticRow) -> None:
    """Raises ValueError if the row's model, number of TPUs, batch or split is impossible."""
    if not (1 <= row.n_tpus <= _MOST_BATCH and 1 <= row.batch <= _MOST_BATCH):
        raise ValueError(f"n_tpus {row.n_tpus} and batch {row.batch} must be from 1 to {_MOST_BATCH}")
    if sum(row.split) != row.layers:
        raise ValueError(f"{sum(row.split)} layers in the split, {row.layers} in the model")
    if not all(0 <= mib < math.inf for mib in row.streamed_mib or ()):
        raise ValueError("off_chip_mib is not a list of sizes")
    _sizes(row.family, row.inputs, row.width, row.layers)


def _stage_rows(times: Sequence[StageTime]) -> list[StageRow]:
    opened: dict[int, OpenedPlan] = {}
    rows = []
    for time in times:
        plan = time.plan
        if id(plan) not in opened:
            opened[id(plan)] = open_plan(plan)
        rows.append(StageRow(opened[id(plan)], plan.segment(time.segment).ops, float(time.ns), time.source))
    return rows


def _sizes(family: str, inputs: str, width: int, layers: int) -> dict[str, int]:
    """The keyword arguments for `synth` besides the width. Raises ValueError if there is no such model."""
    if family == "fc":
        sizes = {"layers": layers, "inputs": int(inputs)}
        synth.check_fc(width, **sizes)
    elif family == "conv":
        size, _, channels = (int(n) for n in inputs.split("x"))
        sizes = {"layers": layers, "size": size, "channels": channels}
        synth.check_conv(width, **sizes)
    else:
        raise ValueError(f"family {family!r} is unknown")
    return sizes


@cache
def _synthetic_graph(family: str, width: int, layers: int, inputs: str, whole: bool) -> Graph:  # noqa: FBT001 - a cache key
    sizes = _sizes(family, inputs, width, layers)
    if family == "fc":
        data = synth.fc(width, output_type="float32" if whole else "int8", **sizes)
    else:
        data = synth.conv(width, **sizes)
    return read_graph(data, name=f"{family}_{width}")


class _ByIdentity:
    """A graph as a cache key, compared by identity: comparing large graphs by value would take too long."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __hash__(self) -> int:
        return id(self.graph)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.graph is self.graph


# Large enough for all models of the published measurements on one hardware.
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
    """The op sets of segments with these numbers of weight layers.

    split: weight layers of each segment; they must add up to the graph's. A layer is a dense or convolution op and the
    ops up to the next one. Ops before the first layer (quantising the input) belong to the first segment.

    Raises ValueError if the split does not have as many layers as the graph.
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
