"""What follows for other segments from those that the vendor's compiler refused.

Each call starts from all segments refused and compiled so far. For one refused segment, by what its failure is about:

the segment     It must not be in another plan, whatever the reason.
a part          If the compiler says that activations are too large, then a segment that contains this one fails as well. If an
                op of the segment surely does not compile (`SegmentCosts.judgement`), the part is this op if it is enough by
                itself, or the op with those that make what is live there. Otherwise it is the whole segment.
limits          If the compiler says that activations are too large: activations of that size are too large in any segment.
                Each measure of size has its own limit (`cost.activation_sizes`), as if the compiler went by it.

What was compiled contradicts such conclusions. A part that a compiled segment contains is widened to the refused segment,
and then given up; a limit is given up where a compiled segment reaches it. Plans remember segments and parts. They do not
remember the limits: these are guesses that the next report may refute, and serve to choose what to compile next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.compiler.failures import NO_CUT_HELPS, About
from balancer.cost.activation_sizes import Measure, activation_size
from balancer.cost.activations import op_mask
from balancer.cost.compilable import Compilable
from balancer.ground.opsets import members, op_set
from balancer.planning.forbidding import Forbidden, Part

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from balancer.compiler import Refused
    from balancer.cost.segment import SegmentCosts
    from balancer.ground.opsets import OpSet


@dataclass(frozen=True, slots=True)
class RefusedSegment:
    """A segment that the compiler refused.

    name: in its plan. ops: of the segment. reason, remedy: in one line each. log: what the compiler printed. about: what the
    failure tells about. live_bytes: predicted; what activations take of each tile at the op that needs most. tensor: the
    largest that is live there, if the segment was refused for its activations and more is live than surely compiles; else
    None. alone: the op that needs as much by itself, so that no cut makes it less; None if there is none, or no tensor.
    """

    name: str
    ops: OpSet
    reason: str
    remedy: str
    log: str
    about: About
    live_bytes: int
    tensor: str | None
    alone: str | None

    @property
    def is_refusal(self) -> bool:
        """Whether the compiler may take another cut of the model. A crash, a limit of time or a full disk is no refusal, and a
        model that the compiler cannot read is refused however it is cut.
        """
        return self.about in (About.ACTIVATIONS, About.SEGMENT)


def refused_segment(costs: SegmentCosts, ops: OpSet, refused: Refused) -> RefusedSegment:
    """The refused segment with these ops, with what is predicted of its activations."""
    judgement = costs.judgement(ops)
    is_too_much = refused.about is About.ACTIVATIONS and judgement.tile_bytes > costs.compile_rule.sure_bytes
    alone = _alone(costs, ops, judgement.tile_bytes) if is_too_much else None
    return RefusedSegment(
        name=refused.name, ops=ops, reason=refused.reason, remedy=refused.remedy if alone is None else NO_CUT_HELPS,
        log=refused.output, about=refused.about, live_bytes=judgement.tile_bytes,
        tensor=judgement.tensor if is_too_much else None, alone=alone,
    )  # fmt: skip


def _alone(costs: SegmentCosts, ops: OpSet, tile_bytes: int) -> str | None:
    """The first op on the chip that needs this much of each tile in any segment, in words; None if there is none."""
    needs = costs.compile_rule.activations.needs_alone
    enough = (i for i in members(ops & costs.mapped & ~costs.on_cpu(ops)) if needs[i] >= tile_bytes)
    op = next(enough, None)
    return None if op is None else f"op {op} {costs.graph.ops[op].type}"


def forbidden_by(costs: SegmentCosts, refused: Collection[RefusedSegment], compiled: Collection[OpSet]) -> Forbidden:
    """The segments that plans must not have after these refusals. compiled: op sets of segments that the compiler took."""
    parts = dict.fromkeys(part for each in refused for part in _part(costs, each, compiled))
    return Forbidden(frozenset(each.ops for each in refused), tuple(parts), _limits(costs, refused, compiled))


def _part(costs: SegmentCosts, refused: RefusedSegment, compiled: Collection[OpSet]) -> Iterator[Part]:
    """The smallest part of a refused segment that explains the refusal and that no compiled segment contains, if any."""
    for part in _parts(costs, refused):
        alone = Forbidden(parts=(part,))
        if not any(alone.forbids(costs, ops) for ops in compiled):
            yield part
            return


def _parts(costs: SegmentCosts, refused: RefusedSegment) -> Iterator[Part]:
    """Parts that explain the refusal, the smallest first."""
    if refused.about is not About.ACTIVATIONS:
        return
    ops = refused.ops
    on_chip = ops & costs.mapped & ~costs.on_cpu(ops)
    if costs.judgement(ops).level is Compilable.SURELY_NOT:
        held = op_mask(members(ops), len(costs.graph.ops))
        needs, levels = costs.compile_rule.activations.profile(held), costs.compile_rule.levels(held)
        deciding = max(members(on_chip), key=lambda op: (levels[op], needs[op]))
        if costs.judgement(1 << deciding).level is Compilable.SURELY_NOT:
            yield Part(1 << deciding, 1 << deciding)
        yield _around(costs, ops, deciding)
    if on_chip:
        yield Part(ops, on_chip)


def _around(costs: SegmentCosts, ops: OpSet, deciding: int) -> Part:
    """An op of a segment, with ops of the segment that make or first read what is live there.

    A segment that holds them has at least the same tensors live at the op (see `Activations.live`).
    """
    graph, activations = costs.graph, costs.compile_rule.activations
    live = activations.live(op_mask(members(ops), len(graph.ops)))
    before = costs.ancestors[deciding] | 1 << deciding
    around = {deciding}
    for k, t in enumerate(activations.tensors):
        if live[k, deciding]:
            made = graph.producer.get(t)
            if made is not None and ops >> made & 1:
                around.add(made)
            else:
                around.add(next(r for r in graph.readers[t] if ops & before & 1 << r))
    return Part(op_set(around), 1 << deciding)


def _limits(
    costs: SegmentCosts, refused: Collection[RefusedSegment], compiled: Collection[OpSet]
) -> dict[Measure, int]:
    """The least size of a segment that was refused for it and is larger than all compiled segments, by each measure."""
    by_size = [each.ops for each in refused if each.about is About.ACTIVATIONS]
    limits = {}
    for measure in Measure:
        taken = max((activation_size(costs, ops, measure) for ops in compiled), default=0)
        too_large = (activation_size(costs, ops, measure) for ops in by_size)
        limits[measure] = min((size for size in too_large if size > taken), default=None)
    return {measure: limit for measure, limit in limits.items() if limit is not None}
