"""What a plan remembers, to and from its document: what it was costed with, and what it was held to."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from balancer.cost.capacity import UNBOUNDED
from balancer.cost.hardware import CONSTANTS, Hardware
from balancer.cost.profile import OpCosts, Profile
from balancer.directory.saving import model_bytes
from balancer.errors import PlanError
from balancer.ground.opsets import members, op_ranges, op_set, parse_op_ranges
from balancer.plan import KEPT, HeldTo, KnownCosts, KnownOp, Limits, OpAtStage, Plan, check_op_count
from balancer.plan.remembered import LARGEST
from balancer.planning.setting import Setting
from balancer.solve import Constraints, SolverOptions
from balancer.tflite.read import read_graph

if TYPE_CHECKING:
    from collections.abc import Iterable


def setting_of(plan: Plan) -> Setting:
    """The plan's model with the costs that the plan was made with.

    Raises PlanError where its model is gone, or where it does not hold all constants of its hardware.
    """
    data = model_bytes(plan)
    constants = plan.hardware.constants
    missing = sorted(set(CONSTANTS) - set(constants))
    if missing:
        raise PlanError(f"its hardware has no constant '{missing[0]}'", plan.file_name, "solve again")
    hardware = Hardware.with_constants(plan.hardware.name, constants)
    origin = plan.origin if plan.origin is not None else data
    graph = read_graph(data, name=plan.stem)
    check_op_count(plan, len(graph.ops))
    return Setting(data, origin, graph, hardware, _profile(plan.costs), keep_state=plan.state == KEPT)


def known_costs(profile: Profile | None) -> KnownCosts | None:
    """A profile as plans hold it."""
    if profile is None:
        return None
    most = profile.capacity_max_bytes
    return KnownCosts(
        label=profile.label, learnt_from=profile.learnt_from, constants=dict(profile.constants),
        room_per_million=profile.capacity_scale_per_million, room_more_bytes=max(0, profile.capacity_offset_bytes),
        room_fewer_bytes=max(0, -profile.capacity_offset_bytes), room_most_bytes=None if most >= UNBOUNDED else most,
        ops=tuple(KnownOp(op=i, **dataclasses.asdict(profile.ops[i])) for i in sorted(profile.ops)),
    )  # fmt: skip


def _profile(costs: KnownCosts | None) -> Profile | None:
    if costs is None:
        return None
    return Profile(
        costs.label,
        {o.op: OpCosts(o.ns, o.parameter_bytes, o.scratch_bytes, o.mapped) for o in costs.ops},
        costs.room_per_million,
        costs.room_more_bytes - costs.room_fewer_bytes,
        UNBOUNDED if costs.room_most_bytes is None else costs.room_most_bytes,
        {name: value for name, value in costs.constants.items() if name in CONSTANTS},
        costs.learnt_from,
    )


def held_to(options: SolverOptions, overflow: str | None) -> HeldTo:
    """What a plan is held to that is solved with these options. overflow: as in `balance`."""
    return HeldTo(
        pipelines=options.max_pipelines, replicas=options.max_replicas, stages=options.stages, overflow=overflow,
        limits=_limits(options.constraints) if options.constraints else None,
    )  # fmt: skip


def options_of(held: HeldTo, n_ops: int) -> SolverOptions:
    """The options of a plan that was held to this, for a model of n_ops ops."""
    return SolverOptions(
        max_pipelines=held.pipelines, max_replicas=held.replicas, stages=held.stages,
        constraints=_constraints(held.limits, n_ops) if held.limits else Constraints(),
    )  # fmt: skip


def _limits(constraints: Constraints) -> Limits:
    return Limits(
        pinned=_placed(constraints.pinned.items()), kept_from=_placed(constraints.kept_from),
        together=tuple(op_ranges(members(group)) for group in constraints.together),
        max_boundary_tensors=_stored(constraints.max_boundary_tensors),
        max_boundary_bytes=_stored(constraints.max_boundary_bytes),
        max_segment_bytes=_stored(constraints.max_segment_bytes), max_latency_ns=_stored(constraints.max_latency_ns),
        max_objective_ns=_stored(constraints.max_objective_ns),
    )  # fmt: skip


def _stored(most: int | None) -> int | None:
    """A limit as a file can hold it: a larger one would limit nothing, either."""
    return None if most is None else min(most, LARGEST)


def _constraints(limits: Limits, n_ops: int) -> Constraints:
    return Constraints(
        pinned={p.op: p.stage for p in limits.pinned},
        kept_from=frozenset((p.op, p.stage) for p in limits.kept_from),
        together=tuple(op_set(parse_op_ranges(group, n_ops)) for group in limits.together),
        max_boundary_tensors=limits.max_boundary_tensors, max_boundary_bytes=limits.max_boundary_bytes,
        max_segment_bytes=limits.max_segment_bytes, max_latency_ns=limits.max_latency_ns,
        max_objective_ns=limits.max_objective_ns,
    )  # fmt: skip


def _placed(pairs: Iterable[tuple[int, int]]) -> tuple[OpAtStage, ...]:
    return tuple(OpAtStage(op=op, stage=stage) for op, stage in sorted(pairs))
