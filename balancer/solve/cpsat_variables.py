"""The variables of the CP-SAT model: in which stage each block stands, and on which devices each stage.

`cpsat_model` gives the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from balancer.ground.opsets import members
from balancer.solve.blocks import blocks_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ortools.sat.python.cp_model import CpModel, IntVar, LinearExpr

    from balancer.ground.opsets import OpSet
    from balancer.solve.blocks import Block
    from balancer.solve.problem import Problem
    from balancer.solve.structure import Structure

    Expression: TypeAlias = LinearExpr | int


@dataclass(frozen=True)
class BlockPlaces:
    """Where blocks stand. x[b][j]: 1 where block b stands in stage j or an earlier one, for all stages but the last.

    block_of: for each op the number of its block.
    """

    model: CpModel
    blocks: list[Block]
    block_of: dict[int, int]
    stages: int
    x: list[list[IntVar]]

    def by(self, block: int, stage: int) -> IntVar | int:
        """x[block, stage] for every stage: constants before the first stage and from the last one on."""
        return 0 if stage < 0 else 1 if stage >= self.stages - 1 else self.x[block][stage]

    def inside(self, block: int, stage: int) -> Expression:
        """1 where the block stands in the stage, else 0."""
        return self.by(block, stage) - self.by(block, stage - 1)

    def op_inside(self, op: int, stage: int) -> Expression:
        """1 where the op stands in the stage, else 0."""
        return self.inside(self.block_of[op], stage)


def block_places(model: CpModel, problem: Problem, together: Sequence[OpSet], stages: int) -> BlockPlaces:
    """Add the variables x and what holds for every partition. together: further sets of ops that share a stage."""
    blocks = blocks_of(problem.before, [*problem.together, *together])
    block_of = {i: b for b, block in enumerate(blocks) for i in members(block.ops)}
    x = [[model.new_bool_var(f"x{b}_{j}") for j in range(stages - 1)] for b in range(len(blocks))]
    for b, block in enumerate(blocks):
        for j in range(stages - 2):
            model.add_implication(x[b][j], x[b][j + 1])
        for earlier in {block_of[i] for op in members(block.ops) for i in members(problem.before[op])} - {b}:
            for j in range(stages - 1):
                model.add_implication(x[b][j], x[earlier][j])
    places = BlockPlaces(model, blocks, block_of, stages, x)
    for j in range(stages):
        model.add(sum(places.inside(b, j) for b in range(len(blocks))) >= 1)
    return places


@dataclass(frozen=True)
class DeviceChoices:
    """On what each stage stands.

    options: for each stage a literal for each (kind, replicas). on: for each stage a literal for each kind.
    """

    options: list[list[tuple[int, int, IntVar]]]
    on: list[list[IntVar]]


def device_choices(
    places: BlockPlaces, problem: Problem, structures: Sequence[Structure], devices: Sequence[int], most_replicas: int
) -> DeviceChoices:
    """Add the choice of devices. structures, devices: of each kind."""
    model, stages = places.model, places.stages
    free = sum(devices) - stages + 1  # each other stage needs a device
    options, on = [], []
    for j in range(stages):
        here = [
            (k, r, model.new_bool_var(f"on{j}_{k}_{r}"))
            for k, count in enumerate(devices)
            for r in range(1, min(count, free, most_replicas) + 1)
        ]
        model.add_exactly_one(literal for _, _, literal in here)
        options.append(here)
        on.append([_either(model, [x for kind, _, x in here if kind == k]) for k in range(len(devices))])
    for k, count in enumerate(devices):
        model.add(sum(r * x for here in options for kind, r, x in here if kind == k) <= count)
    # Symmetry: of kinds that differ in nothing, the first is used first. Kinds whose structure is not all of the cost may
    # differ in the rest.
    for k in range(1, len(devices)):
        alike = structures[k] == structures[k - 1] and _beyond_costs(problem, k) == _beyond_costs(problem, k - 1)
        if alike and not structures[k].relaxed:
            for j in range(stages):
                earlier = [on[i][k - 1] for i in range(j)]
                model.add_bool_or([on[j][k].negated(), *earlier])
    return DeviceChoices(options, on)


def _beyond_costs(problem: Problem, kind: int) -> tuple[int, int, int, bool]:
    """What else tells a kind from another: its number of devices, host work, hand-overs, and whether it is reluctant."""
    name, count = problem.devices[kind]
    return count, problem.host_ns.get(name, 0), problem.handover_ns.get(name, 0), name in problem.reluctant


def _either(model: CpModel, literals: Sequence[IntVar]) -> IntVar:
    """A literal that is 1 where one of these is. At most one of them is."""
    if len(literals) == 1:
        return literals[0]
    either = model.new_bool_var("")
    model.add(sum(literals) == either)
    return either


def at_least(model: CpModel, expressions: Sequence[Expression]) -> IntVar:
    """A literal that must be 1 where one of these expressions is. Minimising drives it to 0 elsewhere."""
    literal = model.new_bool_var("")
    for expression in expressions:
        model.add(literal >= expression)
    return literal
