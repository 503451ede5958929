"""An opened plan: the plan, its model decoded once, and the hardware and profile that it was predicted with.

Saving, verifying, compiling, tuning and running all take this record, so that none of them decodes the model again.
Opening checks that the model is the one that the plan was made for.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cost.capacity import UNBOUNDED
from balancer.cost.cpu_hardware import CpuHardware
from balancer.cost.devices import Devices
from balancer.cost.hardware import CONSTANTS, AnyHardware, Hardware
from balancer.cost.profile import OpCosts, Profile
from balancer.errors import PlanError
from balancer.graph import boundary_names
from balancer.plan import CPU, KnownCosts, KnownOp, Plan, check_op_count, file_bytes, load_plan
from balancer.tflite.opened import OpenedModel, opened_model
from balancer.tflite.read import read_model_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balancer.graph import Graph
    from balancer.plan import PlanDevices, Segment

AnyPlan = Plan | str | Path


@dataclass(frozen=True, eq=False)
class OpenedPlan:
    """A plan with its model, as `open_plan` returns it.

    `devices` and `profile` are made when they are first used: running a plan does not need them.
    """

    plan: Plan
    model: OpenedModel

    @property
    def graph(self) -> Graph:
        return self.model.graph

    @cached_property
    def boundary_names(self) -> Mapping[int, str]:
        """Index of a boundary tensor -> its name in the segments' files."""
        return boundary_names(self.graph, [segment.ops for segment in self.plan.segments])

    @cached_property
    def devices(self) -> Devices:
        """The devices that the plan was predicted for. Raises PlanError if the plan lacks one of their constants."""
        return devices_of_plan(self.plan)

    @property
    def hardware(self) -> AnyHardware:
        """The first kind of its devices. Raises PlanError as `devices` does."""
        return self.devices.kinds[0][0]

    @cached_property
    def profile(self) -> Profile | None:
        """The costs that replaced predicted ones when the plan was made; None if there were none."""
        return None if self.plan.costs is None else _profile(self.plan.costs)

    @property
    def is_saved(self) -> bool:
        """Whether all segments have files in the plan's directory."""
        return self.plan.directory is not None and all(segment.file for segment in self.plan.segments)

    def segment_file(self, segment: Segment) -> bytes:
        """Contents of the segment's .tflite file. A saved plan's file is read and checked against its hash; otherwise the
        segment is cut out of the model.

        Raises PlanError if the file is missing or has another hash.
        """
        if self.is_saved:
            return file_bytes(self.plan, segment.file or "", segment.sha256)
        return self.cut(segment)

    def cut(self, segment: Segment) -> bytes:
        """Contents of the segment's .tflite file, cut out of the model."""
        return self.model.cutter.cut(segment.ops, self.boundary_names)

    def compiled_file(self, segment: Segment) -> bytes:
        """Contents of the file that the vendor's compiler made of the segment.

        Raises PlanError if the segment was not compiled, or if the file is missing or has another hash.
        """
        made = self.plan.made.get(segment.compiled_name)
        if made is not None:
            return made
        reported = segment.reported
        if reported is None or reported.file is None:
            raise PlanError(
                "is not compiled for the Edge TPU", segment.name, "run `balancer compile` on the plan first"
            )
        return file_bytes(self.plan, reported.file, reported.sha256, remedy="compile the plan again")


def devices_of_plan(plan: Plan) -> Devices:
    """The devices that a plan was predicted for. Raises PlanError if it lacks one of their constants."""
    return Devices(tuple((_kind(plan, devices), devices.count) for devices in plan.devices))


def _kind(plan: Plan, devices: PlanDevices) -> AnyHardware:
    kind = CpuHardware if devices.device == CPU else Hardware
    missing = sorted(set(kind.constant_names()) - set(kind.defaults()) - set(devices.constants))
    if missing:
        raise PlanError(f"its hardware has no constant '{missing[0]}'", plan.file_name, "solve again")
    return kind.with_constants(devices.kind, devices.constants, rough=devices.rough)


def open_plan(plan: AnyPlan | OpenedPlan) -> OpenedPlan:
    """Open a plan: find its model, check it, and decode it.

    plan: a plan, its file, or its directory. An opened plan is returned unchanged.

    Raises PlanError if the plan cannot be read, or if its model is missing, has another hash, or has another number of
    ops; ModelError if the model is not one that balancer supports; TypeError for anything but a plan or a path.
    """
    if isinstance(plan, OpenedPlan):
        return plan
    if not isinstance(plan, (Plan, str, Path)):
        raise TypeError(f"plan must be a Plan, an OpenedPlan or a path, not {type(plan).__name__}")
    plan = plan if isinstance(plan, Plan) else load_plan(plan)
    model = _model_of(plan)
    check_op_count(plan, len(model.graph.ops))
    return OpenedPlan(plan, model)


def _model_of(plan: Plan) -> OpenedModel:
    """The plan's model. The hash is checked before decoding: a wrong file is to be reported as wrong, not as broken."""
    origin = plan.origin
    if origin is None:
        raise PlanError("does not say where its model is", "plan", "solve again")
    if plan.directory is not None and plan.model.file is not None:
        data = file_bytes(plan, plan.model.file, plan.model.sha256)
        return opened_model(data, plan.directory / plan.model.file, name=plan.stem)
    if isinstance(origin, OpenedModel) and origin.sha256 == plan.model.sha256:
        return origin
    path = origin if isinstance(origin, Path) else None
    data = read_model_bytes(origin) if isinstance(origin, Path) else origin.data
    if hashlib.sha256(data).hexdigest() != plan.model.sha256:
        what, where = "is not the model that the plan was made for (its hash differs)", str(path or "model")
        raise PlanError(what, where, "solve again")
    return opened_model(data, path, name=plan.stem)


def known_costs(profile: Profile | None) -> KnownCosts | None:
    """A profile in the form in which plans hold it."""
    if profile is None:
        return None
    most = profile.capacity_max_bytes
    return KnownCosts(
        label=profile.label, learnt_from=profile.learnt_from, constants=dict(profile.constants),
        room_per_million=profile.capacity_scale_per_million, room_more_bytes=max(0, profile.capacity_offset_bytes),
        room_fewer_bytes=max(0, -profile.capacity_offset_bytes), room_most_bytes=None if most >= UNBOUNDED else most,
        ops=tuple(KnownOp(op=i, **asdict(profile.ops[i])) for i in sorted(profile.ops)),
        device=profile.device,
    )  # fmt: skip


def _profile(costs: KnownCosts) -> Profile:
    """A plan's costs as a profile; the inverse of `known_costs`. Constants that this version does not know are dropped."""
    return Profile(
        costs.label,
        {o.op: OpCosts(o.ns, o.parameter_bytes, o.scratch_bytes, o.mapped) for o in costs.ops},
        costs.room_per_million,
        costs.room_more_bytes - costs.room_fewer_bytes,
        UNBOUNDED if costs.room_most_bytes is None else costs.room_most_bytes,
        {name: value for name, value in costs.constants.items() if name in CONSTANTS},
        costs.learnt_from,
        costs.device,
    )
