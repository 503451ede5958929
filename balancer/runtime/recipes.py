"""From a plan to what runs it: a recipe for each TPU of each stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from balancer.errors import PlanError
from balancer.ground.rates import load_ns
from balancer.runtime.assigning import kernels_on
from balancer.runtime.executors import Recipe
from balancer.runtime.simulated import Behaviour
from balancer.runtime.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from balancer.opened import OpenedPlan
    from balancer.plan import Plan, PlanStage, Segment
    from balancer.runtime.assigning import Assigned


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


def check_tensors(opened: OpenedPlan) -> None:
    """Raises PlanError where the plan's tensors are not those of the model: memory is laid out by what the plan says."""
    graph, names = opened.graph, opened.boundary_names
    for segment in opened.plan.segments:
        for said, true in zip((segment.inputs, segment.outputs), graph.interface(segment.ops), strict=True):
            wanted = [(names[t], graph.tensors[t].shape, graph.tensors[t].dtype, graph.tensors[t].bytes) for t in true]
            if [(t.tensor, t.shape, t.dtype, t.bytes) for t in said] != wanted:
                what = f"its tensors {[t.tensor for t in said]} are not as the model has them"
                raise PlanError(what, f"{opened.plan.file_name}: {segment.name}", "solve again")


def recipes(opened: OpenedPlan, devices: Assigned, simulation: Simulation) -> list[list[list[Recipe]]]:
    """For each pipeline, stage and replica. Raises PlanError where a file that is needed is not there."""
    plan, known = opened.plan, dict[tuple[str, str], Recipe]()

    def made(stage: PlanStage, device: str) -> Recipe:
        key = stage.segment, device if device in ("cpu", "sim", "none") else "tpu"
        if key not in known:
            # A segment stands on one kind of devices, so its stages have the same kernels.
            kernels = kernels_on(plan.devices_of(stage.kind), proven=devices.proven)
            known[key] = replace(_recipe(opened, plan.segment(stage.segment), device, simulation), kernels=kernels)
        return replace(known[key], device=device)

    return [
        [[made(stage, devices.names[t]) for t in plan.positions(stage)] for stage in pipeline.stages]
        for pipeline in plan.pipelines
    ]


def keeping_state(lines: list[list[list[Recipe]]], segments: Collection[str]) -> list[list[list[Recipe]]]:
    """The same, but that these segments keep their state from item to item."""
    return [[[replace(r, keep_state=r.segment in segments) for r in stage] for stage in line] for line in lines]


def _recipe(opened: OpenedPlan, segment: Segment, device: str, simulation: Simulation) -> Recipe:
    outputs = tuple(TensorSpec(t.tensor, t.shape, t.dtype, t.bytes) for t in segment.outputs)
    if device == "none":
        return Recipe(segment=segment.name, device=device, outputs=outputs)
    if device == "sim":
        live = simulation.outputs == LIVE
        recorded = (simulation.recordings or {}).get(segment.name, ()) if simulation.outputs == RECORDED else ()
        return Recipe(
            segment=segment.name, device=device, model=opened.segment_file(segment) if live else None, outputs=outputs,
            behaviour=(simulation.behaviours or {}).get(segment.name) or promised(opened.plan, segment),
            recorded=tuple(recorded),
        )  # fmt: skip
    model = opened.segment_file(segment) if device == "cpu" else opened.compiled_file(segment)
    return Recipe(segment=segment.name, device=device, model=model, outputs=outputs)


def promised(plan: Plan, segment: Segment) -> Behaviour:
    """What the plan says of a TPU with this segment; the first inference also loads what stays on chip."""
    constants, predicted = plan.devices_under(segment.name).constants, segment.predicted
    load = load_ns(predicted.cached_bytes, constants.get("load_ns_per_mib", 0), constants.get("load_ns", 0))
    return Behaviour(stage_ns=predicted.stage_ns, first_ns=load)
