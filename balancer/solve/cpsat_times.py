"""The time of each stage in the CP-SAT model, as linear expressions. `cpsat_model` gives the formulas."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

from balancer.ground.opsets import members
from balancer.solve.cpsat_variables import at_least

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ortools.sat.python.cp_model import Constraint, IntVar

    from balancer.ground.opsets import OpSet
    from balancer.solve.cpsat_variables import BlockPlaces, DeviceChoices, Expression
    from balancer.solve.structure import Structure, Transfer


LONGEST_NS = 1 << 42  # of a stage: over an hour


@dataclass(frozen=True)
class TimeExpressions:
    """Expressions for each kind and stage, in ns and bytes.

    on_kind: times, if the stage stands on that kind. anywhere: for each stage, its time on the kind where it stands.
    spilled: bytes of one replica on each kind; from below alone where the structure is relaxed.
    """

    on_kind: list[list[Expression]]
    anywhere: list[Expression]
    spilled: list[list[Expression]]


@dataclass(frozen=True)
class _Terms:
    """The model as far as it is built, and what is collected while the terms of one kind after the other are added.

    moves: a literal for each tensor that a stage sends or receives. All kinds of devices share them.
    """

    places: BlockPlaces
    choices: DeviceChoices
    moves: dict[tuple[str | int | None, ...], IntVar] = field(default_factory=dict)

    def hold_on(self, constraint: Constraint, stage: int, kind: int) -> None:
        """Hold to a constraint only where the stage stands on that kind."""
        if len(self.choices.on[stage]) > 1:
            constraint.only_enforce_if(self.choices.on[stage][kind])

    def move(
        self, way: str, stage: int, made: int | None, readers: Sequence[int], expressions: Sequence[Expression]
    ) -> IntVar:
        """A literal that is 1 where one of the expressions is. made, readers: blocks of the tensor, which identify it."""
        key = (way, stage, made, *readers)
        if key not in self.moves:
            self.moves[key] = at_least(self.places.model, expressions)
        return self.moves[key]


def time_expressions(
    places: BlockPlaces, choices: DeviceChoices, structures: Sequence[Structure], before: Sequence[OpSet]
) -> TimeExpressions:
    """Add the variables and constraints that the times need.

    structures: of each kind of device. before: for each op those that it reads from.
    """
    model, stages = places.model, places.stages
    # What `exact` adds to the structure. `StageModel.exclude` raises it where that is known.
    surplus = [model.new_int_var(0, LONGEST_NS, f"surplus{j}") for j in range(stages)]
    terms = _Terms(places, choices)
    on_kind: list[list[Expression]] = []
    spilled: list[list[Expression]] = []
    for k, structure in enumerate(structures):
        sums: list[list[Expression]] = [[structure.stage_ns, surplus[j]] for j in range(stages)]
        _add_work(terms, k, structure, sums)
        sending = _add_handoffs(terms, structure, before, sums)
        _keep_apart(terms, k, structure, before)
        _add_memory_limit(terms, k, structure)
        for transfer in structure.transfers:
            _add_transfer(terms, transfer, sums)
        spilled.append(_add_spills(terms, structure, sums, sending))
        on_kind.append([sum(parts) for parts in sums])
    return TimeExpressions(on_kind, on_kind[0] if len(structures) == 1 else _times_anywhere(terms, on_kind), spilled)


def _times_anywhere(terms: _Terms, on_kind: Sequence[Sequence[Expression]]) -> list[Expression]:
    model = terms.places.model
    times = [model.new_int_var(0, LONGEST_NS, f"time{j}") for j in range(terms.places.stages)]
    for k, own in enumerate(on_kind):
        for j, time in enumerate(own):
            terms.hold_on(model.add(times[j] == time), j, k)
    return [*times]


def _add_work(terms: _Terms, kind: int, structure: Structure, sums: Sequence[list[Expression]]) -> None:
    """Add to each stage's sum the time of its ops themselves, and keep blocks off the kind that have an op it cannot run."""
    places = terms.places
    for b, block in enumerate(places.blocks):
        work = sum(structure.op_ns[i] or 0 for i in members(block.ops))
        barred = any(structure.op_ns[i] is None for i in members(block.ops))
        for j in range(places.stages):
            inside = places.inside(b, j)
            if work:
                sums[j].append(work * inside)
            if barred:
                terms.hold_on(places.model.add(inside == 0), j, kind)


def _add_handoffs(
    terms: _Terms, structure: Structure, before: Sequence[OpSet], sums: Sequence[list[Expression]]
) -> list[list[Expression]]:
    """What ops take beyond their least time, on the host or not. Returns for each stage what is 1 where one of them sends
    parameters.

    A stage that holds an op and one of its ancestors holds all ops between them. So of the ops after which others are
    handed over, only the latest need a look.
    """
    places, model = terms.places, terms.places.model
    latest = [(_latest(handoff.after, before), handoff.followers) for handoff in structure.handoffs]
    sending: list[list[Expression]] = [[] for _ in range(places.stages)]
    for i in members(reduce(or_, (followers for _, followers in latest), 0)):
        least_ns = structure.op_ns[i] or 0
        causes = reduce(or_, (after for after, followers in latest if followers >> i & 1))
        for j in range(places.stages):
            here = places.op_inside(i, j)
            others = [places.op_inside(other, j) for other in members(causes)]
            handed = at_least(model, [here + other - 1 for other in others])
            model.add(handed <= here)
            model.add(handed <= sum(others))
            kept = here - handed
            sums[j].append((structure.handed_ns[i] - least_ns) * handed + (structure.usual_ns[i] - least_ns) * kept)
            if i in structure.host_only:
                model.add(kept == 0)
            elif i in structure.usually_streaming:
                sending[j].append(kept)
    return sending


def _keep_apart(terms: _Terms, kind: int, structure: Structure, before: Sequence[OpSet]) -> None:
    """Ops that may not share a stage with some of their ancestors; only the latest of these count, as in `_add_handoffs`."""
    places = terms.places
    for op, ancestors in structure.apart:
        for other in members(_latest(ancestors, before)):
            for j in range(places.stages):
                together = places.op_inside(op, j) + places.op_inside(other, j)
                terms.hold_on(places.model.add(together <= 1), j, kind)


def _latest(ops: OpSet, before: Sequence[OpSet]) -> OpSet:
    """Those of these ops on which no other of them depends. before: for each op those that it reads from."""
    passed, latest = 0, 0
    for i in reversed(range(ops.bit_length())):
        if ops & ~passed & 1 << i:
            latest |= 1 << i
        if (ops | passed) >> i & 1:
            passed |= before[i]
    return latest


def _add_memory_limit(terms: _Terms, kind: int, structure: Structure) -> None:
    if structure.limit_bytes is not None:
        for j in range(terms.places.stages):
            terms.hold_on(hold_at_most(terms.places, structure.op_bytes, structure.limit_bytes, j), j, kind)


def hold_at_most(places: BlockPlaces, op_bytes: Sequence[int], most: int, stage: int) -> Constraint:
    """Limit the bytes of the ops in a stage."""
    return places.model.add(sum(size * places.op_inside(i, stage) for i, size in enumerate(op_bytes) if size) <= most)


def _add_transfer(terms: _Terms, transfer: Transfer, sums: Sequence[list[Expression]]) -> None:
    """One tensor: the stage that makes it sends it once, and each later stage that reads it receives it once."""
    places = terms.places
    readers = sorted({places.block_of[r] for r in transfer.readers})
    made = None if transfer.producer is None else places.block_of[transfer.producer]
    for j in range(places.stages):
        here = [places.inside(r, j) for r in readers]
        if made is None:
            if transfer.receive_ns and readers:
                sums[j].append(transfer.receive_ns * terms.move("in", j, made, readers, here))
            continue
        makes = places.inside(made, j)
        if transfer.leaves and transfer.send_ns:
            sums[j].append(transfer.send_ns * makes)
        elif readers and j < places.stages - 1 and transfer.send_ns:
            unread = [makes - places.by(r, j) for r in readers]
            sums[j].append(transfer.send_ns * terms.move("out", j, made, readers, unread))
        if readers and j and transfer.receive_ns:
            earlier = places.by(made, j - 1)
            crossing = [reads + earlier - 1 for reads in here]
            sums[j].append(transfer.receive_ns * terms.move("in", j, made, readers, crossing))


def _add_spills(
    terms: _Terms, structure: Structure, sums: Sequence[list[Expression]], sending: Sequence[Sequence[Expression]]
) -> list[Expression]:
    """The time of spilling parameters; returns the bytes that each stage spills.

    sending: for each stage what is 1 where a further op sends parameters in any case.

    Which parameters stay follows the order of priority. Where the structure is relaxed, the solver may choose.
    """
    places, model = terms.places, terms.places.model
    spilled: list[Expression] = [0] * places.stages
    everything_stays = sum(kept.size_bytes for kept in structure.kept) <= structure.capacity_bytes
    for j in range(places.stages):
        starts = at_least(model, [*(places.op_inside(i, j) for i in structure.streaming), *sending[j]])
        sums[j].append(structure.spill_start_ns * starts)
        if everything_stays:
            continue
        taken: list[Expression] = []
        for kept in structure.kept:
            inside, stays = places.op_inside(kept.op, j), model.new_bool_var("")
            model.add(stays <= inside)
            model.add(starts >= inside - stays)
            sums[j].append(kept.spill_ns * (inside - stays))
            spilled[j] += kept.size_bytes * (inside - stays)
            if not structure.relaxed:
                # Parameters stay if, and only if, they fit beside those of higher priority that stay.
                free = structure.capacity_bytes - sum(taken)
                model.add(free >= kept.size_bytes).only_enforce_if(stays)
                spills = model.new_bool_var("")
                model.add(spills == inside - stays)
                model.add(free <= kept.size_bytes - 1).only_enforce_if(spills)
            taken.append(kept.size_bytes * stays)
        model.add(sum(taken) <= structure.capacity_bytes)
    return spilled
