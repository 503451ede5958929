"""One pipeline of just so many stages as a CP-SAT model of the cost's structure.

x[b, j] says that block b stands in stage j or an earlier one: monotone in j, and along the graph. A stage's time on each
kind of device is then linear in these and in one literal for each tensor that it sends or receives, and for each
parameter that spills. With several kinds a literal says on which one a stage stands, and only that kind's time counts.
Times are whole ns.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from balancer.ground.opsets import members
from balancer.solve.blocks import blocks_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.ground.opsets import OpSet
    from balancer.solve.problem import Constraints, PipelineSpec, Problem, Value
    from balancer.solve.structure import Structure, Transfer


LONGEST_NS = 1 << 42  # of a stage: over an hour


class Measure(Enum):
    """What a pipeline is to have little of; the values are the fields of a plan's worth."""

    RATE = "objective_ns"
    DEVICES = "devices"
    STREAMED = "streamed_bytes"
    LATENCY = "latency_ns"

    def of(self, value: Value) -> int:
        return int(getattr(value, self.value))


class StageModel:
    """period, latency: variables, in ns. choices: for each stage a literal for each kind and number of replicas.

    structures, devices: of each kind of the problem's, in their order.
    """

    def __init__(  # noqa: PLR0913 - one model's data
        self,
        problem: Problem,
        structures: Sequence[Structure],
        constraints: Constraints,
        *,
        stages: int,
        devices: Sequence[int],
        most_replicas: int,
        most_ns: int,
    ) -> None:
        from ortools.sat.python import cp_model

        self.model = cp_model.CpModel()
        self.problem, self.structures, self.stages = problem, structures, stages
        self.blocks = blocks_of(problem.before, [*problem.together, *constraints.together])
        self.block_of = {i: b for b, block in enumerate(self.blocks) for i in members(block.ops)}
        self.x = [[self.model.new_bool_var(f"x{b}_{j}") for j in range(stages - 1)] for b in range(len(self.blocks))]
        self._order()
        self._devices(devices, most_replicas)
        self._moves: dict[tuple[Any, ...], Any] = {}
        # What `exact` adds to the structure, where it is known.
        self.surplus = [self.model.new_int_var(0, LONGEST_NS, f"surplus{j}") for j in range(stages)]
        # Bytes that spill where a stage stands on a kind.
        self.spilled_on: list[list[Any]] = [[0] * stages for _ in structures]
        self.times_on = [self._times(k, structure) for k, structure in enumerate(structures)]
        self.times = self.times_on[0] if len(structures) == 1 else self._times_anywhere()
        self._rate(devices, most_ns)
        self.latency = sum(self.times) + problem.handover_ns * stages
        self._constrain(constraints)

    def by(self, block: int, stage: int) -> Any:
        """Whether the block stands in this stage or an earlier one."""
        return 0 if stage < 0 else 1 if stage >= self.stages - 1 else self.x[block][stage]

    def within(self, op: int, stage: int) -> Any:
        """1 where the op stands in the stage, else 0."""
        block = self.block_of[op]
        return self.by(block, stage) - self.by(block, stage - 1)

    def _order(self) -> None:
        for b, block in enumerate(self.blocks):
            for j in range(self.stages - 2):
                self.model.add_implication(self.x[b][j], self.x[b][j + 1])
            for earlier in {self.block_of[i] for op in members(block.ops) for i in members(self.problem.before[op])} - {
                b
            }:
                for j in range(self.stages - 1):
                    self.model.add_implication(self.x[b][j], self.x[earlier][j])
        for j in range(self.stages):
            self.model.add(sum(self.by(b, j) - self.by(b, j - 1) for b in range(len(self.blocks))) >= 1)

    def _devices(self, devices: Sequence[int], most_replicas: int) -> None:
        """Each stage on devices of one kind, no more in all than there are. on: for each stage and kind a literal."""
        free = sum(devices) - self.stages + 1
        self.choices: list[list[tuple[int, int, Any]]] = []
        self.on: list[list[Any]] = []
        for j in range(self.stages):
            found = [
                (k, r, self.model.new_bool_var(f"on{j}_{k}_{r}"))
                for k, count in enumerate(devices)
                for r in range(1, min(count, free, most_replicas) + 1)
            ]
            self.model.add_exactly_one(literal for _, _, literal in found)
            self.choices.append(found)
            self.on.append([self._literal_of([x for kind, _, x in found if kind == k]) for k in range(len(devices))])
        for k, count in enumerate(devices):
            self.model.add(sum(r * x for found in self.choices for kind, r, x in found if kind == k) <= count)
        # Kinds that differ in nothing come in their order. Where the structure is not all of the cost, they may differ.
        for k in range(1, len(devices)):
            alike = self.structures[k] == self.structures[k - 1] and devices[k] == devices[k - 1]
            if alike and not self.structures[k].relaxed:
                for j in range(self.stages):
                    earlier = [self.on[i][k - 1] for i in range(j)]
                    self.model.add_bool_or([self.on[j][k].negated(), *earlier])

    def _literal_of(self, literals: Sequence[Any]) -> Any:
        """1 where one of these is, of which one at most is."""
        if len(literals) == 1:
            return literals[0]
        found = self.model.new_bool_var("")
        self.model.add(sum(literals) == found)
        return found

    def _where(self, constraint: Any, j: int, k: int) -> None:
        """Hold to a constraint only if the stage is on that kind."""
        if len(self.structures) > 1:
            constraint.only_enforce_if(self.on[j][k])

    def _times(self, k: int, structure: Structure) -> list[Any]:
        """What each stage takes if it stands on one kind; and what may not stand there."""
        terms: list[list[Any]] = [[structure.stage_ns, self.surplus[j]] for j in range(self.stages)]
        for b, block in enumerate(self.blocks):
            work = sum(structure.op_ns[i] or 0 for i in members(block.ops))
            barred = any(structure.op_ns[i] is None for i in members(block.ops))
            for j in range(self.stages):
                inside = self.by(b, j) - self.by(b, j - 1)
                if work:
                    terms[j].append(work * inside)
                if barred:
                    self._where(self.model.add(inside == 0), j, k)
        if structure.limit_bytes is not None:
            for j in range(self.stages):
                self._where(self._limit(structure.op_bytes, structure.limit_bytes, j), j, k)
        for transfer in structure.transfers:
            self._transfer(transfer, terms)
        self._spills(k, structure, terms)
        return [sum(found) for found in terms]

    def _times_anywhere(self) -> list[Any]:
        """What each stage takes on the kind that it stands on."""
        times = [self.model.new_int_var(0, LONGEST_NS, f"time{j}") for j in range(self.stages)]
        for k, on_kind in enumerate(self.times_on):
            for j, time in enumerate(on_kind):
                self._where(self.model.add(times[j] == time), j, k)
        return times

    def _limit(self, op_bytes: Sequence[int], most: int, j: int) -> Any:
        """The stage holds no more."""
        return self.model.add(sum(size * self.within(i, j) for i, size in enumerate(op_bytes) if size) <= most)

    def _literal(self, *at_least: Any) -> Any:
        """1 where one of these expressions is."""
        found = self.model.new_bool_var("")
        for expression in at_least:
            self.model.add(found >= expression)
        return found

    def _transfer(self, transfer: Transfer, terms: Sequence[list[Any]]) -> None:
        """Sent by the stage that makes it, received by each later one that reads it; across each cut between, once."""
        readers = sorted({self.block_of[r] for r in transfer.readers})
        made = None if transfer.producer is None else self.block_of[transfer.producer]
        for j in range(self.stages):
            here = [self.by(r, j) - self.by(r, j - 1) for r in readers]
            if made is None:
                if transfer.receive_ns and readers:
                    terms[j].append(transfer.receive_ns * self._move("in", j, made, readers, here))
                continue
            makes = self.by(made, j) - self.by(made, j - 1)
            if transfer.leaves and transfer.send_ns:
                terms[j].append(transfer.send_ns * makes)
            elif readers and j < self.stages - 1 and transfer.send_ns:
                unread = [makes - self.by(r, j) for r in readers]
                terms[j].append(transfer.send_ns * self._move("out", j, made, readers, unread))
            if readers and j and transfer.receive_ns:
                earlier = self.by(made, j - 1)
                crossing = [reads + earlier - 1 for reads in here]
                terms[j].append(transfer.receive_ns * self._move("in", j, made, readers, crossing))

    def _move(self, way: str, j: int, made: int | None, readers: Sequence[int], at_least: Sequence[Any]) -> Any:
        """A literal for a tensor that stage j sends or receives, the same for all kinds of devices."""
        key = (way, j, made, *readers)
        if key not in self._moves:
            self._moves[key] = self._literal(*at_least)
        return self._moves[key]

    def _spills(self, k: int, structure: Structure, terms: Sequence[list[Any]]) -> None:
        """Parameters that do not stay: in the order of priority, or by the solver's choice where the order is no rule."""
        everything_stays = sum(kept.size_bytes for kept in structure.kept) <= structure.capacity_bytes
        for j in range(self.stages):
            starts = self._literal(*(self.within(i, j) for i in structure.streaming))
            terms[j].append(structure.spill_start_ns * starts)
            if everything_stays:
                continue
            taken: list[Any] = []
            for kept in structure.kept:
                inside, stays = self.within(kept.op, j), self.model.new_bool_var("")
                self.model.add(stays <= inside)
                self.model.add(starts >= inside - stays)
                terms[j].append(kept.spill_ns * (inside - stays))
                self.spilled_on[k][j] += kept.size_bytes * (inside - stays)
                if not structure.relaxed:
                    room = structure.capacity_bytes - sum(taken)
                    self.model.add(room >= kept.size_bytes).only_enforce_if(stays)
                    spills = self.model.new_bool_var("")
                    self.model.add(spills == inside - stays)
                    self.model.add(room <= kept.size_bytes - 1).only_enforce_if(spills)
                taken.append(kept.size_bytes * stays)
            self.model.add(sum(taken) <= structure.capacity_bytes)

    def _rate(self, devices: Sequence[int], most_ns: int) -> None:
        """A stage with r replicas takes at most r periods."""
        self.period = self.model.new_int_var(self.problem.host_ns * self.stages, most_ns, "period")
        for j, found in enumerate(self.choices):
            for k, r, literal in found:
                bound = self.model.add(self.times_on[k][j] <= r * self.period)
                if len(found) > 1:
                    bound.only_enforce_if(literal)
        # Implied, and what gives the linear relaxation its strength.
        self.model.add(sum(self.times) <= sum(devices) * self.period)

    def _constrain(self, constraints: Constraints) -> None:
        for op, stage in constraints.pinned.items():
            self._place(op, stage, inside=True)
        for op, stage in sorted(constraints.kept_from):
            self._place(op, stage, inside=False)
        if constraints.max_segment_bytes is not None:
            for j in range(self.stages):
                self._limit(self.problem.op_bytes, constraints.max_segment_bytes, j)
        tensors, size = constraints.max_boundary_tensors, constraints.max_boundary_bytes
        if tensors is not None or size is not None:
            for j in range(self.stages - 1):
                crossing = self._crossing(j)
                if tensors is not None:
                    self.model.add(sum(literal for literal, _ in crossing) <= tensors)
                if size is not None:
                    self.model.add(sum(literal * of for literal, of in crossing) <= size)
        if constraints.max_latency_ns is not None:
            self.model.add(self.latency <= constraints.max_latency_ns)
        if constraints.max_objective_ns is not None:
            self.model.add(self.period <= constraints.max_objective_ns)

    def measure(self, aim: Measure) -> Any:
        """What there is to be little of, as an expression. Streamed bytes are those of all replicas."""
        if aim is Measure.RATE:
            return self.period
        if aim is Measure.LATENCY:
            return self.latency
        if aim is Measure.DEVICES:
            return sum(r * literal for found in self.choices for _, r, literal in found)
        most = sum(kept.size_bytes for structure in self.structures for kept in structure.kept)
        streamed = [self.model.new_int_var(0, most * len(self.choices[j]), f"streamed{j}") for j in range(self.stages)]
        for j, found in enumerate(self.choices):
            for k, r, literal in found:
                self.model.add(streamed[j] >= r * self.spilled_on[k][j]).only_enforce_if(literal)
        return sum(streamed)

    def _place(self, op: int, stage: int, *, inside: bool) -> None:
        if stage < self.stages:
            self.model.add(self.within(op, stage) == int(inside))
        elif inside:
            self.model.add_bool_or([])  # there is no such stage

    def _crossing(self, j: int) -> list[tuple[Any, int]]:
        """For each tensor a literal that is 1 where it crosses the cut after stage j, and its bytes."""
        found = []
        for transfer in self.structures[0].transfers:
            if transfer.producer is not None and transfer.readers:
                made = self.by(self.block_of[transfer.producer], j)
                after = [made - self.by(self.block_of[r], j) for r in transfer.readers]
                found.append((self._literal(*after), transfer.size_bytes))
        return found

    def exclude(self, ops: OpSet, before: OpSet, kind: int, least_ns: int | None) -> None:
        """A stage of just these ops after just those before takes at least so many ns on a kind, or may not be (None)."""
        for j in range(self.stages):
            literals = [*self._is_prefix(before, j - 1), *self._is_prefix(before | ops, j)]
            if any(literal is False for literal in literals):
                continue
            wanted = [literal for literal in literals if literal is not True]
            if len(self.structures) > 1:
                wanted.append(self.on[j][kind])
            if least_ns is None:
                self.model.add_bool_or([literal.negated() for literal in wanted])
            else:
                self.model.add(self.times[j] >= least_ns).only_enforce_if(wanted)

    def _is_prefix(self, ops: OpSet, j: int) -> Iterable[Any]:
        """Literals that are all true where the stages up to j hold just these ops."""
        for b, block in enumerate(self.blocks):
            inside = bool(block.ops & ops)
            value = self.by(b, j)
            if isinstance(value, int):
                yield bool(value) == inside
            else:
                yield value if inside else value.negated()

    def hint(self, pipeline: PipelineSpec) -> None:
        """Start from this pipeline, of as many stages."""
        done: OpSet = 0
        kinds = [kind for kind, _ in self.problem.devices]
        for j, stage in enumerate(pipeline.stages):
            done |= stage.ops
            if j < self.stages - 1:
                for b, block in enumerate(self.blocks):
                    self.model.add_hint(self.x[b][j], int(bool(block.ops & done)))
            if len(kinds) > 1:
                for k, r, literal in self.choices[j]:
                    self.model.add_hint(literal, int((kinds[k], r) == (stage.kind, stage.replicas)))

    def partition(self, solver: Any) -> list[tuple[OpSet, int, int]]:
        """What a solved model says: the ops of each stage, its kind and its replicas."""
        found, done = [], 0
        for j in range(self.stages):
            prefix = sum(block.ops for b, block in enumerate(self.blocks) if solver.value(self.by(b, j)))
            kind, replicas = next((k, r) for k, r, literal in self.choices[j] if solver.boolean_value(literal))
            found.append((prefix & ~done, kind, replicas))
            done = prefix
        return found
