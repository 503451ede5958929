"""One pipeline of a given number of stages as a CP-SAT model of the cost's structure.

Blocks b are ops that no cut separates, stages j run from 0 to S - 1, kinds of devices are k, with n[k] devices of each.
All times are whole ns. The variables:

    x[b, j]         block b stands in stage j or an earlier one; x[b, S - 1] = 1
    on[j, k, r]     stage j stands on r devices of kind k
    period          of the pipeline
    out, into       [t, j]: stage j sends tensor t; stage j receives it
    stays           [p, j]: the parameters p stay on the device of stage j
    handed          [b, j]: stage j hands b, which stands there, to the host

Partitions, with in(b, j) = x[b, j] - x[b, j - 1]:

    x[b, j] <= x[b, j + 1]                          stages fill up in order
    x[b, j] <= x[a, j]                              b reads from a, which stands no later
    sum over b of in(b, j) >= 1                     no stage is empty
    sum over k, r of on[j, k, r] = 1
    sum over j, r of r * on[j, k, r] <= n[k]

Times:

    time[j, k] = stage_ns + surplus[j] + sum over b of work[b] * in(b, j)
               + sum over b of (handed_ns - work) * handed[b, j] + (usual_ns - work) * (in(b, j) - handed[b, j])
               + sum over t of send_ns * out[t, j] + receive_ns * into[t, j]
               + sum over p of spill_ns * (in(p, j) - stays[p, j]) + spill_start_ns * starts[j]
    out[t, j]  >= in(made, j) - x[r, j]             made here, and reader r stands later
    into[t, j] >= in(r, j) + x[made, j - 1] - 1     made earlier, and reader r stands here
    handed[b, j] = in(b, j) and any in(a, j)        a: the ops after which b is handed over
    stays[p, j] <= in(p, j), and the sizes of those that stay sum to at most the capacity
    time[j, k] <= r * period                        where on[j, k, r] = 1
    sum over j of time[j] <= period * sum over k of n[k]

The last line is implied by the others. It is what makes the linear relaxation strong. surplus[j] is what `exact` adds to the
structure. It is free at first, and grows by `exclude` once a partition was found whose stages really take longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from balancer.solve.cpsat_times import hold_at_most, time_expressions
from balancer.solve.cpsat_variables import at_least, block_places, device_choices

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ortools.sat.python.cp_model import CpModel, CpSolver, IntVar
    from ortools.sat.python.cp_model_helper import Literal

    from balancer.ground.opsets import OpSet
    from balancer.solve.cpsat_times import TimeExpressions
    from balancer.solve.cpsat_variables import BlockPlaces, DeviceChoices, Expression
    from balancer.solve.problem import Constraints, PipelineSpec, Problem, Value
    from balancer.solve.structure import Structure


class Criterion(Enum):
    """A quantity to minimise. The values are the names of the fields of `Value`."""

    RATE = "objective_ns"
    DEVICES = "devices"
    RELUCTANT = "reluctant"
    STREAMED = "streamed_bytes"
    LATENCY = "latency_ns"

    def of(self, value: Value) -> int:
        return int(getattr(value, self.value))


@dataclass(frozen=True)
class StageModel:
    """A model with its variables. period: a variable, in ns. latency: an expression, in ns.

    structures: of each kind of the problem's devices, in their order.
    """

    model: CpModel
    problem: Problem
    structures: Sequence[Structure]
    places: BlockPlaces
    choices: DeviceChoices
    times: TimeExpressions
    period: IntVar
    latency: Expression

    @property
    def stages(self) -> int:
        return self.places.stages

    def criterion(self, criterion: Criterion) -> Expression:
        """What a criterion minimises, as an expression. Streamed bytes are those of all replicas."""
        if criterion is Criterion.RATE:
            return self.period
        if criterion is Criterion.LATENCY:
            return self.latency
        if criterion is Criterion.DEVICES:
            return sum(r * literal for here in self.choices.options for _, r, literal in here)
        if criterion is Criterion.RELUCTANT:
            kinds = [kind in self.problem.reluctant for kind, _ in self.problem.devices]
            return sum(r * literal for here in self.choices.options for k, r, literal in here if kinds[k])
        return self._streamed_bytes()

    def _streamed_bytes(self) -> Expression:
        most = sum(kept.size_bytes for structure in self.structures for kept in structure.kept)
        streamed = [
            self.model.new_int_var(0, most * len(here), f"streamed{j}") for j, here in enumerate(self.choices.options)
        ]
        for j, here in enumerate(self.choices.options):
            for k, r, literal in here:
                self.model.add(streamed[j] >= r * self.times.spilled[k][j]).only_enforce_if(literal)
        return sum(streamed)

    def exclude(self, ops: OpSet, before: OpSet, kind: int, least_ns: int | None) -> None:
        """Learn what `exact` says of one segment, wherever it stands.

        A stage of exactly these ops, after exactly the ops in `before`, takes at least least_ns on the kind. None: it may
        not stand there.
        """
        for j in range(self.stages):
            literals = [*self._is_prefix(before, j - 1), *self._is_prefix(before | ops, j)]
            if any(literal is False for literal in literals):
                continue
            wanted = [literal for literal in literals if not isinstance(literal, bool)]
            if len(self.structures) > 1:
                wanted.append(self.choices.on[j][kind])
            if least_ns is None:
                self.model.add_bool_or([literal.negated() for literal in wanted])
            else:
                self.model.add(self.times.anywhere[j] >= least_ns).only_enforce_if(wanted)

    def _is_prefix(self, ops: OpSet, j: int) -> Iterator[Literal | bool]:
        """Literals, or constants, that are all true where the stages up to j hold exactly these ops."""
        for b, block in enumerate(self.places.blocks):
            inside = bool(block.ops & ops)
            value = self.places.by(b, j)
            if isinstance(value, int):
                yield bool(value) == inside
            else:
                yield value if inside else value.negated()

    def hint(self, pipeline: PipelineSpec) -> None:
        """Start the search from a pipeline with as many stages as the model."""
        done: OpSet = 0
        kinds = [kind for kind, _ in self.problem.devices]
        for j, stage in enumerate(pipeline.stages):
            done |= stage.ops
            if j < self.stages - 1:
                for b, block in enumerate(self.places.blocks):
                    self.model.add_hint(self.places.x[b][j], int(bool(block.ops & done)))
            if len(kinds) > 1:
                for k, r, literal in self.choices.options[j]:
                    self.model.add_hint(literal, int((kinds[k], r) == (stage.kind, stage.replicas)))

    def partition(self, solver: CpSolver) -> list[tuple[OpSet, int, int]]:
        """The solution of a solved model: the ops of each stage, its kind and its replicas."""
        stages, done = [], 0
        for j in range(self.stages):
            prefix = sum(block.ops for b, block in enumerate(self.places.blocks) if solver.value(self.places.by(b, j)))
            options = self.choices.options[j]
            kind, replicas = next((k, r) for k, r, literal in options if solver.boolean_value(literal))
            stages.append((prefix & ~done, kind, replicas))
            done = prefix
        return stages


def stage_model(  # noqa: PLR0913 - one model's data
    problem: Problem,
    structures: Sequence[Structure],
    constraints: Constraints,
    *,
    stages: int,
    devices: Sequence[int],
    most_replicas: int,
    most_ns: int,
) -> StageModel:
    """Build the model of one pipeline. Nothing is minimised yet.

    structures, devices: of each kind of the problem's devices, in their order. most_replicas: of one stage. most_ns: the
    longest period.
    """
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    places = block_places(model, problem, constraints.together, stages)
    choices = device_choices(places, problem, structures, devices, most_replicas)
    times = time_expressions(places, choices, structures, problem.before)
    of_kind = [(problem.host_ns.get(kind, 0), problem.handover_ns.get(kind, 0)) for kind, _ in problem.devices]
    period = model.new_int_var(min(host_ns for host_ns, _ in of_kind) * stages, most_ns, "period")
    if len(of_kind) > 1:
        host_ns: Expression = sum(of_kind[k][0] * literal for here in choices.options for k, _, literal in here)
        model.add(host_ns <= period)
    for j, here in enumerate(choices.options):
        for k, r, literal in here:
            bound = model.add(times.on_kind[k][j] <= r * period)
            if len(here) > 1:
                bound.only_enforce_if(literal)
    model.add(sum(times.anywhere) <= sum(devices) * period)
    handover_ns: Expression = of_kind[0][1] * stages
    if len(of_kind) > 1:
        handover_ns = sum(of_kind[k][1] * literal for here in choices.options for k, _, literal in here)
    latency = sum(times.anywhere) + handover_ns
    built = StageModel(model, problem, structures, places, choices, times, period, latency)
    _constrain(built, constraints)
    return built


def _constrain(built: StageModel, constraints: Constraints) -> None:
    model, places = built.model, built.places
    for op, stage in constraints.pinned.items():
        _place(places, op, stage, inside=True)
    for op, stage in sorted(constraints.kept_from):
        _place(places, op, stage, inside=False)
    if constraints.max_segment_bytes is not None:
        for j in range(places.stages):
            hold_at_most(places, built.problem.op_bytes, constraints.max_segment_bytes, j)
    tensors, size = constraints.max_boundary_tensors, constraints.max_boundary_bytes
    if tensors is not None or size is not None:
        for j in range(places.stages - 1):
            crossing = _crossing(places, built.structures[0], j)
            if tensors is not None:
                model.add(sum(literal for literal, _ in crossing) <= tensors)
            if size is not None:
                model.add(sum(literal * size_bytes for literal, size_bytes in crossing) <= size)
    if constraints.max_latency_ns is not None:
        model.add(built.latency <= constraints.max_latency_ns)
    if constraints.max_objective_ns is not None:
        model.add(built.period <= constraints.max_objective_ns)


def _place(places: BlockPlaces, op: int, stage: int, *, inside: bool) -> None:
    if stage < places.stages:
        places.model.add(places.op_inside(op, stage) == int(inside))
    elif inside:
        places.model.add_bool_or([])  # there is no such stage: the model is infeasible


def _crossing(places: BlockPlaces, structure: Structure, j: int) -> list[tuple[IntVar, int]]:
    """For each tensor a literal that is 1 where it crosses the cut after stage j, and its bytes."""
    crossing = []
    for transfer in structure.transfers:
        if transfer.producer is not None and transfer.readers:
            made = places.by(places.block_of[transfer.producer], j)
            unread = [made - places.by(places.block_of[r], j) for r in transfer.readers]
            crossing.append((at_least(places.model, unread), transfer.size_bytes))
    return crossing
