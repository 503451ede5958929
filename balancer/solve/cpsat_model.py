"""One pipeline of just so many stages as a CP-SAT model of the cost's structure.

x[b, j] says that block b stands in stage j or an earlier one: monotone in j, and along the graph. A stage's time is
then linear in these and in one literal for each tensor that it sends or receives, and for each parameter that spills.
Times are whole ns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from balancer.solve.downsets import bits, blocks_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.solve.downsets import OpSet
    from balancer.solve.problem import Constraints, Pipeline, Problem
    from balancer.solve.structure import Structure, Transfer


LONGEST_NS = 1 << 42  # of a stage: over an hour


class StageModel:
    """period, latency: variables, in ns. replicas: for each stage a literal for each number of replicas."""

    def __init__(  # noqa: PLR0913 - one model's data
        self,
        problem: Problem,
        structure: Structure,
        constraints: Constraints,
        *,
        stages: int,
        devices: int,
        most_replicas: int,
        most_ns: int,
    ) -> None:
        from ortools.sat.python import cp_model

        self.model = cp_model.CpModel()
        self.problem, self.structure, self.stages = problem, structure, stages
        self.blocks = blocks_of(problem.before, [*problem.together, *constraints.together])
        self.block_of = {i: b for b, block in enumerate(self.blocks) for i in bits(block.ops)}
        self.x = [[self.model.new_bool_var(f"x{b}_{j}") for j in range(stages - 1)] for b in range(len(self.blocks))]
        self._order()
        self.terms: list[list[Any]] = [[structure.stage_ns] for _ in range(stages)]
        self._work()
        self.crossing: list[list[tuple[Any, int]]] = [[] for _ in range(stages - 1)]
        for transfer in structure.transfers:
            self._transfer(transfer)
        self._spills()
        # What `exact` adds to the structure, where it is known.
        self.surplus = [self.model.new_int_var(0, LONGEST_NS, f"surplus{j}") for j in range(stages)]
        self.times = [sum(terms) + surplus for terms, surplus in zip(self.terms, self.surplus, strict=True)]
        self._rate(devices, most_replicas, most_ns)
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
            for earlier in {self.block_of[i] for op in bits(block.ops) for i in bits(self.problem.before[op])} - {b}:
                for j in range(self.stages - 1):
                    self.model.add_implication(self.x[b][j], self.x[earlier][j])
        for j in range(self.stages):
            self.model.add(sum(self.by(b, j) - self.by(b, j - 1) for b in range(len(self.blocks))) >= 1)

    def _work(self) -> None:
        """Ops in their stages, and what memory they take there."""
        structure = self.structure
        if None in structure.op_ns:
            self.model.add_bool_or([])  # an op that no device can run
        for b, block in enumerate(self.blocks):
            work = sum(structure.op_ns[i] or 0 for i in bits(block.ops))
            for j in range(self.stages):
                if work:
                    self.terms[j].append(work * (self.by(b, j) - self.by(b, j - 1)))
        if structure.limit_bytes is not None:
            self._limit(structure.op_bytes, structure.limit_bytes)

    def _limit(self, op_bytes: Sequence[int], most: int) -> None:
        """No stage holds more."""
        for j in range(self.stages):
            self.model.add(sum(size * self.within(i, j) for i, size in enumerate(op_bytes) if size) <= most)

    def _literal(self, *at_least: Any) -> Any:
        """1 where one of these expressions is."""
        found = self.model.new_bool_var("")
        for expression in at_least:
            self.model.add(found >= expression)
        return found

    def _transfer(self, transfer: Transfer) -> None:
        """Sent by the stage that makes it, received by each later one that reads it; across each cut between, once."""
        readers = sorted({self.block_of[r] for r in transfer.readers})
        made = None if transfer.producer is None else self.block_of[transfer.producer]
        for j in range(self.stages):
            here = [self.by(r, j) - self.by(r, j - 1) for r in readers]
            if made is None:
                if transfer.receive_ns and readers:
                    self.terms[j].append(transfer.receive_ns * self._literal(*here))
                continue
            if transfer.leaves and transfer.send_ns:
                self.terms[j].append(transfer.send_ns * (self.by(made, j) - self.by(made, j - 1)))
            elif readers and j < self.stages - 1 and transfer.send_ns:
                makes = self.by(made, j) - self.by(made, j - 1)
                self.terms[j].append(transfer.send_ns * self._literal(*(makes - self.by(r, j) for r in readers)))
            if readers and j and transfer.receive_ns:
                earlier = self.by(made, j - 1)
                self.terms[j].append(transfer.receive_ns * self._literal(*(reads + earlier - 1 for reads in here)))

    def _spills(self) -> None:
        """Parameters that do not stay: in the order of priority, or by the solver's choice where the order is no rule."""
        structure = self.structure
        everything_stays = sum(kept.size_bytes for kept in structure.kept) <= structure.capacity_bytes
        for j in range(self.stages):
            starts = self._literal(*(self.within(i, j) for i in structure.streaming))
            self.terms[j].append(structure.spill_start_ns * starts)
            if everything_stays:
                continue
            taken: list[Any] = []
            for kept in structure.kept:
                inside, stays = self.within(kept.op, j), self.model.new_bool_var("")
                self.model.add(stays <= inside)
                self.model.add(starts >= inside - stays)
                self.terms[j].append(kept.spill_ns * (inside - stays))
                if not structure.relaxed:
                    room = structure.capacity_bytes - sum(taken)
                    self.model.add(room >= kept.size_bytes).only_enforce_if(stays)
                    spills = self.model.new_bool_var("")
                    self.model.add(spills == inside - stays)
                    self.model.add(room <= kept.size_bytes - 1).only_enforce_if(spills)
                taken.append(kept.size_bytes * stays)
            self.model.add(sum(taken) <= structure.capacity_bytes)

    def _rate(self, devices: int, most_replicas: int, most_ns: int) -> None:
        """A stage with r replicas takes at most r periods."""
        self.period = self.model.new_int_var(self.problem.host_ns * self.stages, most_ns, "period")
        most = min(most_replicas, devices - self.stages + 1)
        self.replicas = [[self.model.new_bool_var(f"r{j}_{r}") for r in range(1, most + 1)] for j in range(self.stages)]
        for j, literals in enumerate(self.replicas):
            self.model.add_exactly_one(literals)
            for r, literal in enumerate(literals, 1):
                bound = self.model.add(self.times[j] <= r * self.period)
                if most > 1:
                    bound.only_enforce_if(literal)
        self.used = sum(r * literal for literals in self.replicas for r, literal in enumerate(literals, 1))
        self.model.add(self.used <= devices)
        # Implied, and what gives the linear relaxation its strength.
        self.model.add(sum(self.times) <= devices * self.period)

    def _constrain(self, constraints: Constraints) -> None:
        for op, stage in constraints.pinned.items():
            self._place(op, stage, inside=True)
        for op, stage in sorted(constraints.kept_from):
            self._place(op, stage, inside=False)
        if constraints.max_segment_bytes is not None:
            self._limit(self.problem.op_bytes, constraints.max_segment_bytes)
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
            self.model.minimize(self.latency)
        else:
            self.model.minimize(self.period)

    def _place(self, op: int, stage: int, *, inside: bool) -> None:
        if stage < self.stages:
            self.model.add(self.within(op, stage) == int(inside))
        elif inside:
            self.model.add_bool_or([])  # there is no such stage

    def _crossing(self, j: int) -> list[tuple[Any, int]]:
        """For each tensor a literal that is 1 where it crosses the cut after stage j, and its bytes."""
        found = []
        for transfer in self.structure.transfers:
            if transfer.producer is not None and transfer.readers:
                made = self.by(self.block_of[transfer.producer], j)
                after = [made - self.by(self.block_of[r], j) for r in transfer.readers]
                found.append((self._literal(*after), transfer.size_bytes))
        return found

    def exclude(self, ops: OpSet, before: OpSet, least_ns: int | None) -> None:
        """A stage of just these ops after just those before takes at least so many ns, or may not be (None)."""
        for j in range(self.stages):
            literals = [*self._is_prefix(before, j - 1), *self._is_prefix(before | ops, j)]
            if any(literal is False for literal in literals):
                continue
            wanted = [literal for literal in literals if literal is not True]
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

    def hint(self, pipeline: Pipeline) -> None:
        """Start from this pipeline, of as many stages."""
        done: OpSet = 0
        for j, stage in enumerate(pipeline.stages):
            done |= stage.ops
            if j < self.stages - 1:
                for b, block in enumerate(self.blocks):
                    self.model.add_hint(self.x[b][j], int(bool(block.ops & done)))

    def partition(self, solver: Any) -> tuple[list[OpSet], list[int]]:
        """What a solved model says: the ops of each stage, and its replicas."""
        sets, done = [], 0
        for j in range(self.stages):
            prefix = sum(block.ops for b, block in enumerate(self.blocks) if solver.value(self.by(b, j)))
            sets.append(prefix & ~done)
            done = prefix
        replicas = [
            next(r for r, literal in enumerate(literals, 1) if solver.boolean_value(literal))
            for literals in self.replicas
        ]
        return sets, replicas
