"""Segments that plans may have although they do not surely compile, because the vendor's compiler has taken them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.planning.forbidding import KnownBetween

if TYPE_CHECKING:
    from collections.abc import Collection

    from balancer.cost.segment import SegmentCosts
    from balancer.ground.arrays import IndexArray
    from balancer.ground.downsets import DownSets
    from balancer.ground.opsets import OpSet
    from balancer.solve import Between, Cost, CostColumns, Kind, Problem, Structure


def with_taken(problem: Problem, anything: Problem, compiled: Collection[OpSet], costs: SegmentCosts) -> Problem:
    """A problem of segments that compile more or less surely, in which compiled ones may stand, too.

    anything: the same problem, whatever compiles. compiled: op sets of the segments that were compiled. costs: those that
    both were made from.
    """
    kind = problem.devices[0][0]
    taken = {ops for ops in compiled if not problem.exact(ops, kind) and anything.exact(ops, kind)}
    if not taken:
        return problem

    def exact(ops: OpSet, kind: Kind) -> Cost | None:
        return (anything if ops in taken else problem).exact(ops, kind)

    def batch(sets: DownSets, kind: Kind) -> Between:
        judged, known = problem.batch(sets, kind), KnownBetween(taken, costs.graph, sets)

        def between(inners: IndexArray, outers: IndexArray) -> CostColumns:
            columns = judged(inners, outers)
            return columns._replace(allowed=columns.allowed | known(inners, outers))

        return between

    structures = {kind: _relaxed(structure, taken, costs) for kind, structure in problem.structures.items()}
    return replace(problem, exact=exact, batch=batch, structures=structures)


def _relaxed(structure: Structure, taken: Collection[OpSet], costs: SegmentCosts) -> Structure:
    """The structure without the rules on ops that a compiled segment breaks."""
    on_chip = 0
    for ops in taken:
        on_chip |= ops & costs.mapped & ~costs.on_cpu(ops)
    return replace(
        structure,
        host_only=tuple(op for op in structure.host_only if not on_chip >> op & 1),
        apart=tuple((op, after) for op, after in structure.apart if not any(s >> op & 1 and s & after for s in taken)),
    )
