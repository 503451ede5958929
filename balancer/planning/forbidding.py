"""Segments that plans must not have, because the vendor's compiler refuses them.

What the compiler refuses of one segment says something about others. A `Part` is a reason that other segments can contain:

    the compiler refused   a, b, c, d    with a part of b, c
    then it refuses        b, c    and    a, b, c    and    b, c, d, e    as well, but not    a, b    nor    c, d

The part may be the whole segment, or the ops that keep the tensor live which was too large. The tensors that are live at
an op follow from those ops of the segment on which it depends (see `cost.activations`), and grow with them. So a segment
that holds the part has at least the same tensors live, as long as the op still runs on the chip. It may not: an op
that the chip does not take, and that only the larger segment holds, can keep all that follows it on the CPU. Hence the
second set of a part. A limit on size forbids segments that need not contain anything of those that were refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from balancer.cost.activation_sizes import ActivationSizes, Measure, activation_size
from balancer.plan import KnownRefusals, RefusedPart

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from balancer.cost.segment import SegmentCosts
    from balancer.graph import Graph
    from balancer.ground.arrays import BoolArray, IndexArray
    from balancer.ground.downsets import DownSets
    from balancer.ground.opsets import OpSet
    from balancer.solve import Between, Cost, CostColumns, Kind, Problem


@dataclass(frozen=True, slots=True)
class Part:
    """Ops that no segment may contain together. on_chip: those of them that must run on the chip for it to count."""

    ops: OpSet
    on_chip: OpSet


@dataclass(frozen=True, slots=True)
class Forbidden:
    """The segments that plans must not have.

    segments: op sets; each is forbidden by itself. parts: forbidden within any segment. limits: forbidden are segments whose
    activations have this size or more. Folded ops make no difference to a segment's file, so they count in none of the sets.
    """

    segments: frozenset[OpSet] = frozenset()
    parts: tuple[Part, ...] = ()
    limits: Mapping[Measure, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.segments or self.parts or self.limits)

    def forbids(self, costs: SegmentCosts, ops: OpSet) -> bool:
        """Whether plans must not have the segment with these ops."""
        computed = ops & ~costs.graph.folded
        if any(computed == segment & ~costs.graph.folded for segment in self.segments):
            return True
        held = [part for part in self.parts if not part.ops & ~costs.graph.folded & ~computed]
        if held and any(not part.on_chip & costs.on_cpu(ops) for part in held):
            return True
        return any(activation_size(costs, ops, measure) >= limit for measure, limit in self.limits.items())

    def joined(self, other: Forbidden) -> Forbidden:
        """What is forbidden by either, with the limits of the other."""
        parts = tuple(dict.fromkeys((*self.parts, *other.parts)))
        return Forbidden(self.segments | other.segments, parts, other.limits)


ANYTHING_ALLOWED = Forbidden()


def known_refusals(forbidden: Forbidden) -> KnownRefusals | None:
    """What is forbidden in the form in which plans hold it: without limits."""
    if not (forbidden.segments or forbidden.parts):
        return None
    parts = tuple(RefusedPart(ops=part.ops, on_chip=part.on_chip) for part in forbidden.parts)
    return KnownRefusals(segments=tuple(sorted(forbidden.segments)), parts=parts)


def forbidden_of(refusals: KnownRefusals | None) -> Forbidden:
    """The inverse of `known_refusals`."""
    if refusals is None:
        return ANYTHING_ALLOWED
    return Forbidden(frozenset(refusals.segments), tuple(Part(part.ops, part.on_chip) for part in refusals.parts))


class KnownBetween:
    """Whether the segments between pairs of down-sets are among known ones.

    segments: op sets. graph: their model's; folded ops make no difference.
    """

    def __init__(self, segments: Collection[OpSet], graph: Graph, sets: DownSets) -> None:
        self.sets = sets
        self._computed = [ops & ~graph.folded for ops in segments]
        self._sizes = sets.total([int(not op.folded) for op in graph.ops])

    def __call__(self, inners: IndexArray, outers: IndexArray) -> BoolArray:
        """For each pair of rows. inners, outers: as `solve.Between` takes them."""
        return by_inner(self.row, inners, outers)

    def row(self, row: int, outers: IndexArray) -> BoolArray:
        """The same for the segments that start at one inner set."""
        inner = self.sets.set_of(row)
        known: BoolArray = np.zeros(len(outers), bool)
        for computed in self._computed:
            if not computed & inner:
                alike = self._sizes[outers] - self._sizes[row] == computed.bit_count()
                known |= alike & self.sets.holds_all(computed, outers)
        return known


def by_inner(of_row: Callable[[int, IndexArray], BoolArray], inners: IndexArray, outers: IndexArray) -> BoolArray:
    """What `of_row` says of the segments between pairs of rows. It takes one inner row, and outer rows."""
    inner_rows, outer_rows = (np.ravel(rows) for rows in np.broadcast_arrays(inners, outers))
    said = np.zeros(len(outer_rows), bool)
    starts = np.nonzero(np.diff(inner_rows, prepend=-1))[0].tolist()
    for start, end in pairwise([*starts, len(inner_rows)]):
        said[start:end] = of_row(int(inner_rows[start]), outer_rows[start:end])
    return said


class ForbiddenBetween:
    """`Forbidden.forbids` for the segments between pairs of down-sets."""

    def __init__(self, forbidden: Forbidden, costs: SegmentCosts, sets: DownSets) -> None:
        self.forbidden, self.costs, self.sets = forbidden, costs, sets
        self._folded = costs.graph.folded
        self._refused = KnownBetween(forbidden.segments, costs.graph, sets)
        self._activations = ActivationSizes(costs, sets)

    def __call__(self, inners: IndexArray, outers: IndexArray) -> BoolArray:
        """For each pair of rows whether the segment is forbidden. inners, outers: as `solve.Between` takes them."""
        return by_inner(self._row, inners, outers)

    def _row(self, row: int, outers: IndexArray) -> BoolArray:
        """The same for the segments that start at one inner set."""
        inner, forbidden = self.sets.set_of(row), self._refused.row(row, outers)
        for ops in self._parts(inner):
            forbidden |= self.sets.holds_all(ops, outers)
        for measure, limit in self.forbidden.limits.items():
            forbidden |= self._activations.of_row(measure, row, outers) >= limit
        return forbidden

    def _parts(self, inner: OpSet) -> Iterator[OpSet]:
        """The parts that segments starting at an inner set must not contain."""
        parts = [part for part in self.forbidden.parts if not part.ops & ~self._folded & inner]
        # Whether an op runs on the CPU depends on the ops that precede it in its segment, and so on the inner set alone.
        on_cpu = self.costs.on_cpu(self.costs.graph.all_ops & ~inner) if parts else 0
        return (part.ops & ~self._folded for part in parts if not part.on_chip & on_cpu)


def without(problem: Problem, forbidden: Forbidden, costs: Mapping[Kind, SegmentCosts]) -> Problem:
    """The problem, in which forbidden segments may not stand. costs: of the kinds whose segments are compiled."""
    if not forbidden:
        return problem

    def exact(ops: OpSet, kind: Kind) -> Cost | None:
        if kind in costs and forbidden.forbids(costs[kind], ops):
            return None
        return problem.exact(ops, kind)

    def batch(sets: DownSets, kind: Kind) -> Between:
        any_between = problem.batch(sets, kind)
        if kind not in costs:
            return any_between
        refused = ForbiddenBetween(forbidden, costs[kind], sets)

        def between(inners: IndexArray, outers: IndexArray) -> CostColumns:
            columns = any_between(inners, outers)
            return columns._replace(allowed=columns.allowed & ~refused(inners, outers))

        return between

    return replace(problem, exact=exact, batch=batch)
