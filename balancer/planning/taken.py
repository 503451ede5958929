"""Segments that plans may have although they do not surely compile, because the vendor's compiler has taken them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.planning.forbidding import KnownBetween

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from balancer.cost.segment import SegmentCosts
    from balancer.ground.arrays import IndexArray
    from balancer.ground.downsets import DownSets
    from balancer.ground.opsets import OpSet
    from balancer.solve import Between, Cost, CostColumns, Kind, Problem, Structure


def with_taken(
    problem: Problem, anything: Problem, compiled: Collection[OpSet], costs: Mapping[Kind, SegmentCosts]
) -> Problem:
    """A problem of segments that compile more or less surely, in which compiled ones may stand, too.

    anything: the same problem, whatever compiles. compiled: op sets of the segments that were compiled. costs: of the kinds
    whose segments are compiled, from which both were made.
    """
    taken = {kind: {s for s in compiled if not problem.exact(s, kind) and anything.exact(s, kind)} for kind in costs}
    if not any(taken.values()):
        return problem

    def exact(ops: OpSet, kind: Kind) -> Cost | None:
        return (anything if ops in taken.get(kind, ()) else problem).exact(ops, kind)

    def batch(sets: DownSets, kind: Kind) -> Between:
        judged = problem.batch(sets, kind)
        if not taken.get(kind):
            return judged
        known = KnownBetween(taken[kind], costs[kind].graph, sets)

        def between(inners: IndexArray, outers: IndexArray) -> CostColumns:
            columns = judged(inners, outers)
            return columns._replace(allowed=columns.allowed | known(inners, outers))

        return between

    relaxed = {kind: _relaxed(problem.structures[kind], segments, costs[kind]) for kind, segments in taken.items()}
    return replace(problem, exact=exact, batch=batch, structures={**problem.structures, **relaxed})


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
