"""A plan, opened: with its model decoded once, and the hardware and profile that it was costed with.

Saving, verifying, compiling, tuning and running take this one record. What it holds was checked when it was opened: the
model is the one that the plan was made for, and has as many ops.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cost.capacity import UNBOUNDED
from balancer.cost.hardware import CONSTANTS, Hardware
from balancer.cost.profile import OpCosts, Profile
from balancer.errors import PlanError
from balancer.graph import boundary_names
from balancer.plan import KnownCosts, KnownOp, Plan, check_op_count, file_bytes, load_plan
from balancer.tflite.opened import OpenedModel, opened_model
from balancer.tflite.read import read_model_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balancer.graph import Graph
    from balancer.plan import Segment

AnyPlan = Plan | str | Path


@dataclass(frozen=True, eq=False)
class OpenedPlan:
    """A plan with its model. What costs need (`hardware`, `profile`) is worked out when it is asked for: running a plan
    does without.
    """

    plan: Plan
    model: OpenedModel

    @property
    def graph(self) -> Graph:
        return self.model.graph

    @cached_property
    def boundary_names(self) -> Mapping[int, str]:
        """Tensor -> its name in the segments' files."""
        return boundary_names(self.graph, [segment.ops for segment in self.plan.segments])

    @cached_property
    def hardware(self) -> Hardware:
        """What the plan was predicted for. Raises PlanError where a constant is missing."""
        constants = self.plan.hardware.constants
        missing = sorted(set(CONSTANTS) - set(constants))
        if missing:
            raise PlanError(f"its hardware has no constant '{missing[0]}'", self.plan.file_name, "solve again")
        return Hardware.with_constants(self.plan.hardware.name, constants)

    @cached_property
    def profile(self) -> Profile | None:
        """What replaced predicted costs, None for nothing."""
        return None if self.plan.costs is None else _profile(self.plan.costs)

    @property
    def is_saved(self) -> bool:
        """Whether the segments have files in a directory."""
        return self.plan.directory is not None and all(segment.file for segment in self.plan.segments)

    def segment_file(self, segment: Segment) -> bytes:
        """The segment's .tflite file: from the plan's directory, checked against its hash, or cut out of the model.

        Raises PlanError where it is gone or is another file.
        """
        if self.is_saved:
            return file_bytes(self.plan, segment.file or "", segment.sha256)
        return self.cut(segment)

    def cut(self, segment: Segment) -> bytes:
        """The segment's .tflite file, cut out of the model."""
        return self.model.cutter.cut(segment.ops, self.boundary_names)

    def compiled_file(self, segment: Segment) -> bytes:
        """What the vendor's compiler made of the segment. Raises PlanError where it was not compiled, or the file is gone."""
        made = self.plan.made.get(segment.compiled_name)
        if made is not None:
            return made
        reported = segment.reported
        if reported is None or reported.file is None:
            raise PlanError(
                "is not compiled for the Edge TPU", segment.name, "run `balancer compile` on the plan first"
            )
        return file_bytes(self.plan, reported.file, reported.sha256, remedy="compile the plan again")


def open_plan(plan: AnyPlan | OpenedPlan) -> OpenedPlan:
    """A plan with its model. plan: a plan, its file, or its directory; one that is open is returned as it is.

    Raises PlanError where the plan cannot be read, or where its model is gone, is another one, or has another number of
    ops; ModelError where the model cannot be taken.
    """
    if isinstance(plan, OpenedPlan):
        return plan
    plan = plan if isinstance(plan, Plan) else load_plan(plan)
    model = _model_of(plan)
    check_op_count(plan, len(model.graph.ops))
    return OpenedPlan(plan, model)


def _model_of(plan: Plan) -> OpenedModel:
    """The plan's model. Its hash is checked before it is decoded: another file is no broken model."""
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
    """A profile as plans hold it."""
    if profile is None:
        return None
    most = profile.room_most_bytes
    return KnownCosts(
        label=profile.label, learnt_from=profile.learnt_from, constants=dict(profile.constants),
        room_per_million=profile.room_per_million, room_more_bytes=max(0, profile.room_more_bytes),
        room_fewer_bytes=max(0, -profile.room_more_bytes), room_most_bytes=None if most >= UNBOUNDED else most,
        ops=tuple(KnownOp(op=i, **asdict(profile.ops[i])) for i in sorted(profile.ops)),
    )  # fmt: skip


def _profile(costs: KnownCosts) -> Profile:
    """The other way round."""
    return Profile(
        costs.label,
        {o.op: OpCosts(o.ns, o.parameter_bytes, o.scratch_bytes, o.mapped) for o in costs.ops},
        costs.room_per_million,
        costs.room_more_bytes - costs.room_fewer_bytes,
        UNBOUNDED if costs.room_most_bytes is None else costs.room_most_bytes,
        {name: value for name, value in costs.constants.items() if name in CONSTANTS},
        costs.learnt_from,
    )
