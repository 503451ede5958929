"""From a plan to what runs it: a recipe for each TPU of each stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from balancer.errors import PlanError
from balancer.graph import boundary_names
from balancer.ground.opsets import op_set, parse_op_ranges
from balancer.inputs import InputSpec
from balancer.plan import check_op_count, file_bytes
from balancer.runtime.executors import Recipe
from balancer.runtime.simulated import Behaviour
from balancer.runtime.tensors import TensorSpec
from balancer.tflite.read import read_graph

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from balancer.graph import Graph
    from balancer.ground.opsets import OpSet
    from balancer.plan import Plan, Segment

_MIB = 1 << 20
LIVE, RECORDED, NONE = "live", "recorded", "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What is true of simulated TPUs. behaviours: by segment, the plan's own stage times where there is none.

    outputs: "live" (computed on the CPU as they run, so that they take at least as long as it does), "recorded"
    (recordings: by segment, the outputs of item k at k % len), or "none": no results, for rates alone.
    """

    behaviours: Mapping[str, Behaviour] | None = None
    outputs: str = LIVE
    recordings: Mapping[str, Sequence[Mapping[str, Any]]] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for outputs that are none of these, or recorded ones without a record."""
        if self.outputs not in (LIVE, RECORDED, NONE):
            raise ValueError(f"outputs must be '{LIVE}', '{RECORDED}' or '{NONE}', not {self.outputs!r}")
        if self.outputs == RECORDED and not self.recordings:
            raise ValueError("recorded outputs need recordings")

    def beside(self, devices: Sequence[str]) -> Simulation:
        """As it is on these devices: what comes behind a simulated TPU, and is none itself, needs true inputs."""
        if self.outputs == NONE and not set(devices) <= {"sim", "none"}:
            return replace(self, outputs=LIVE)
        return self


@dataclass(frozen=True, slots=True)
class ModelInterface:
    """A model's inputs, and the names of its outputs, in the model's order. stateful: its ops that hold state."""

    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    stateful: OpSet = 0


def interface(model: bytes, name: str) -> ModelInterface:
    """Names are those of the segments' files."""
    return _interface_of(read_graph(model, name=name))


def _interface_of(graph: Graph) -> ModelInterface:
    names = boundary_names(graph, [])
    inputs = tuple(
        InputSpec(names[t], graph.tensors[t].shape or (), graph.tensors[t].dtype) for t in dict.fromkeys(graph.inputs)
    )
    return ModelInterface(inputs, tuple(names[t] for t in dict.fromkeys(graph.outputs)), graph.stateful)


def plan_interface(plan: Plan) -> ModelInterface:
    """The interface of a saved plan's model. Raises PlanError where it is not there, or where the plan's tensors are
    not those of the model: memory is laid out by what the plan says of them.
    """
    data = plan_model(plan)
    graph = read_graph(data, name=plan.stem)
    check_op_count(plan, len(graph.ops))
    sets = [op_set(parse_op_ranges(segment.ops, plan.model.ops)) for segment in plan.segments]
    names = boundary_names(graph, sets)
    for segment, ops in zip(plan.segments, sets, strict=True):
        for said, true in zip((segment.inputs, segment.outputs), graph.interface(ops), strict=True):
            wanted = [(names[t], graph.tensors[t].shape, graph.tensors[t].dtype, graph.tensors[t].bytes) for t in true]
            if [(t.tensor, t.shape, t.dtype, t.bytes) for t in said] != wanted:
                what = f"its tensors {[t.tensor for t in said]} are not as the model has them"
                raise PlanError(what, f"{plan.file_name}: {segment.name}", "solve again")
    return _interface_of(graph)


def plan_model(plan: Plan) -> bytes:
    """The model that lies beside the plan. Raises PlanError where it does not."""
    if plan.directory is None or plan.model.file is None:
        raise PlanError("is not saved", "plan", "save the plan to a directory first")
    return file_bytes(plan, plan.model.file, plan.model.sha256)


def recipes(plan: Plan, devices: Sequence[str], simulation: Simulation) -> list[list[list[Recipe]]]:
    """For each pipeline, stage and replica. devices: one for each TPU that the plan numbers.

    Raises PlanError where a file that is needed is not there.
    """
    known: dict[tuple[str, str], Recipe] = {}

    def made(segment: Segment, device: str) -> Recipe:
        kind = device if device in ("cpu", "sim", "none") else "tpu"
        if (segment.name, kind) not in known:
            known[segment.name, kind] = _recipe(plan, segment, device, simulation)
        found = known[segment.name, kind]
        return found if found.device == device else _on(found, device)

    return [
        [[made(plan.segment(stage.segment), devices[t]) for t in stage.tpus] for stage in pipeline.stages]
        for pipeline in plan.pipelines
    ]


def keeping_state(lines: list[list[list[Recipe]]], segments: Collection[str]) -> list[list[list[Recipe]]]:
    """The same, but that these segments keep their state from item to item."""
    return [[[replace(r, keep_state=r.segment in segments) for r in stage] for stage in line] for line in lines]


def _on(recipe: Recipe, device: str) -> Recipe:
    return Recipe(segment=recipe.segment, device=device, model=recipe.model, outputs=recipe.outputs)


def _recipe(plan: Plan, segment: Segment, device: str, simulation: Simulation) -> Recipe:
    outputs = tuple(TensorSpec(t.tensor, t.shape, t.dtype, t.bytes) for t in segment.outputs)
    if device == "none":
        return Recipe(segment=segment.name, device=device, outputs=outputs)
    if device == "sim":
        live = simulation.outputs == LIVE
        recorded = (simulation.recordings or {}).get(segment.name, ()) if simulation.outputs == RECORDED else ()
        return Recipe(
            segment=segment.name, device=device, model=_plain(plan, segment) if live else None, outputs=outputs,
            behaviour=(simulation.behaviours or {}).get(segment.name) or promised(plan, segment),
            recorded=tuple(recorded),
        )  # fmt: skip
    model = _plain(plan, segment) if device == "cpu" else _compiled(plan, segment)
    return Recipe(segment=segment.name, device=device, model=model, outputs=outputs)


def promised(plan: Plan, segment: Segment) -> Behaviour:
    """What the plan says of a TPU with this segment; the first inference also loads what stays on chip."""
    constants, predicted = plan.hardware.constants, segment.predicted
    load = predicted.cached_bytes * constants.get("load_ns_per_mib", 0) // _MIB + constants.get("load_ns", 0)
    return Behaviour(stage_ns=predicted.stage_ns, first_ns=load)


def _plain(plan: Plan, segment: Segment) -> bytes:
    if segment.file is None:
        raise PlanError("is not saved", segment.name, "save the plan to a directory first")
    return file_bytes(plan, segment.file, segment.sha256)


def _compiled(plan: Plan, segment: Segment) -> bytes:
    reported = segment.reported
    if reported is None or reported.file is None:
        raise PlanError("is not compiled for the Edge TPU", segment.name, "run `balancer compile` on the plan first")
    return file_bytes(plan, reported.file, reported.sha256)
