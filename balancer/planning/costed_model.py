"""A model on devices with its costs: what every plan is made from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import TYPE_CHECKING

from balancer.cost.compilable import LEVELS, Compilable
from balancer.cost.devices import Devices
from balancer.cost.hardware import AnyHardware, Hardware
from balancer.cost.profile import Profile, load_profile
from balancer.cost.segment import SegmentCosts
from balancer.opened import AnyPlan, OpenedPlan, open_plan
from balancer.plan import KEPT, state_of
from balancer.planning.asked_devices import devices_asked
from balancer.planning.forbidding import ANYTHING_ALLOWED, Forbidden, forbidden_of, without
from balancer.planning.problem import problem_of
from balancer.planning.shared_work import SharedWork
from balancer.planning.taken import with_taken
from balancer.tflite.opened import OpenedModel, open_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from balancer.cost.activation_sizes import Measure
    from balancer.cost.compilable import Judgement
    from balancer.graph import Graph
    from balancer.ground.opsets import OpSet
    from balancer.solve import Problem

STREAM, ERROR = "stream", "error"
OVERFLOW = (STREAM, ERROR)
# What a caller may ask of the segments of a plan, and the worst judgement that each allows.
COMPILABLE = {"any": Compilable.SURELY_NOT, "likely": Compilable.PERHAPS, "sure": Compilable.SURELY}


@dataclass(frozen=True)
class CostedModel:
    """A model, and what its segments cost on given devices.

    devices: as they were given; `costs.hardware` also has the constants that the profile replaces. profile: costs that
    replace predicted ones on the devices that it is for. keep_state: whether variable tensors keep their values from input
    to input. forbidden: segments that plans must not have, since the compiler refuses them. compiled: op sets of segments
    that it has compiled, which count as surely compiling.
    """

    model: OpenedModel
    devices: Devices
    profile: Profile | None = None
    keep_state: bool = False
    forbidden: Forbidden = ANYTHING_ALLOWED
    compiled: frozenset[OpSet] = frozenset()

    @property
    def graph(self) -> Graph:
        return self.model.graph

    @property
    def state(self) -> str | None:
        """The `state` of plans: "reset", "kept", or None if the model has no state."""
        return state_of(self.graph.stateful, keep_state=self.keep_state)

    @property
    def hardware(self) -> AnyHardware:
        """The first kind of its devices."""
        return self.devices.kinds[0][0]

    @cached_property
    def costs_by_kind(self) -> dict[str, SegmentCosts]:
        """The costs of the model's segments on each kind, by the kind's name."""
        return {kind.name: self._costs_on(kind) for kind, _ in self.devices.kinds}

    def _costs_on(self, kind: AnyHardware) -> SegmentCosts:
        return SegmentCosts(self.graph, kind, self.profile_of(kind))

    @property
    def compiled_kinds(self) -> tuple[str, ...]:
        """The names of its kinds of Edge TPUs, whose segments are compiled."""
        return tuple(kind.name for kind, _ in self.devices.kinds if isinstance(kind, Hardware))

    def profile_of(self, kind: AnyHardware) -> Profile | None:
        """The profile, if it is for devices such as those of this kind."""
        return self.profile if self.profile is not None and self.profile.device == kind.DEVICE else None

    @property
    def costs(self) -> SegmentCosts:
        """The costs of the model's segments on the first kind of Edge TPUs; on the first kind, where there are none."""
        return self.costs_by_kind[next(iter(self.compiled_kinds), self.hardware.name)]

    @property
    def compiled_costs(self) -> dict[str, SegmentCosts]:
        """The costs on the kinds whose segments the vendor's compiler compiles, by name."""
        kinds = (kind for kind, _ in self.devices.kinds if isinstance(kind, Hardware))
        return {kind.name: self.costs_by_kind[kind.name] for kind in kinds}

    @cached_property
    def shared_work(self) -> SharedWork:
        """What segments take of what the devices share."""
        return SharedWork(self.costs_by_kind, self.devices.counts)

    def on(self, devices: Devices | int) -> CostedModel:
        """The same on other devices, or on this number of the first kind."""
        if not isinstance(devices, Devices):
            devices = Devices(((self.hardware, devices),))
        other = replace(self, devices=devices)
        # Costs do not depend on how many devices there are: those that are known are kept.
        known = self.costs_by_kind
        same = {kind.name: known[kind.name] for kind, _ in devices.kinds if (kind in dict(self.devices.kinds))}
        if len(same) == len(devices.kinds):
            other.__dict__["costs_by_kind"] = same
        return other

    def problem(self, *, overflow: str = STREAM, worst: Compilable = Compilable.SURELY_NOT) -> Problem:
        """The solver's problem on its devices.

        overflow: "error" forbids segments that stream for lack of on-chip memory. worst: the worst that a segment may be
        judged on whether it compiles.
        """
        costs, counts, may_overflow = self.costs_by_kind, self.devices.counts, overflow == STREAM
        problem = problem_of(costs, counts, self.shared_work, may_overflow=may_overflow, worst=worst)
        if self.compiled and worst is not LEVELS[-1]:
            anything = problem_of(costs, counts, self.shared_work, may_overflow=may_overflow)
            problem = with_taken(problem, anything, self.compiled, self.compiled_costs)
        return without(problem, self.forbidden, self.compiled_costs)

    def level(self, ops: OpSet) -> Compilable:
        """How surely the segment with these ops compiles."""
        return Compilable.SURELY if ops in self.compiled else self.costs.judgement(ops).level

    @cached_property
    def best_judgement(self) -> Judgement:
        """The best judgement that the worst segment of a partition can have, as far as that is known."""
        if not self.compiled:
            return self.costs.best_judgement
        # Ops that a compiled segment holds say nothing of others.
        elsewhere = reduce(lambda ops, segment: ops & ~segment, self.compiled, self.costs.sure_on_tpu)
        return self.costs.compile_rule.best(elsewhere)

    @cached_property
    def without_forbidden(self) -> CostedModel:
        """The same, with all segments allowed: to value plans, whatever became of them."""
        return replace(self, forbidden=ANYTHING_ALLOWED) if self.forbidden else self

    def with_limits(self, limits: Mapping[Measure, int]) -> CostedModel:
        """The same, with these limits on the sizes of activations in place of its own."""
        if limits == self.forbidden.limits:
            return self
        return replace(self, forbidden=replace(self.forbidden, limits=limits))


def open_costed_model(model: str | Path | bytes, hardware: str | Path | AnyHardware | Devices) -> CostedModel:
    """A costed model without a profile. model: path or contents of a .tflite file. hardware: devices, or one of a kind: a
    preset's name, a file, a record.

    Raises ModelError or HardwareError if one of them cannot be read.
    """
    devices = hardware if isinstance(hardware, Devices) else devices_asked(1, hardware)
    return CostedModel(open_model(model), devices)


def costed_model_of(plan: AnyPlan | OpenedPlan) -> CostedModel:
    """The costed model that a plan was made with. plan: a plan, its file, its directory, or an opened plan.

    Raises PlanError if the plan cannot be opened, or if it lacks a constant of its hardware.
    """
    opened = open_plan(plan)
    keeps, refused = opened.plan.state == KEPT, forbidden_of(opened.plan.refusals)
    return CostedModel(opened.model, opened.devices, opened.profile, keep_state=keeps, forbidden=refused)


def with_profile(costed: CostedModel, path: str | Path) -> CostedModel:
    """The costed model with the costs of a profile file. Raises ProfileError if it cannot be read or is for another model."""
    return replace(costed, profile=load_profile(path, costed.graph, costed.model.sha256))
