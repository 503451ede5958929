"""What follows for other segments from those that the vendor's compiler refused.

Each call starts from all segments refused and compiled so far. For one refused segment, by its failure (`AppliesTo`):

the segment     It must not be in another plan.
a part          A larger segment fails as well where the failure is one of size. If the compiler says that activations are too
                large, and the judgement of the segment names an op at which surely too many are live, the part is this op with
                those that make what is live there. Otherwise it is the whole segment.
a limit         If the compiler says that activations are too large: as many live bytes, in any segment, are too many. This
                takes the predicted bytes for the compiler's own measure.

What was compiled contradicts such conclusions. A part that a compiled segment contains is widened to the refused segment,
and then given up; a limit is given up where a compiled segment reaches it. The limit is learnt for the model at hand, and
no file keeps it: it is one-sided, unlike a reported capacity, and a plan that was compiled has no need of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.compiler.failures import AppliesTo
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

    name: in its plan. ops: of the segment. reason, remedy: in one line each. log: what the compiler printed. applies_to: which
    other segments are refused for the same reason. tensor: the one that the judgement names, if it is not sure that the
    segment compiles; else None. live_bytes: predicted; what activations take of each tile at the op that needs most.
    """

    name: str
    ops: OpSet
    reason: str
    remedy: str
    log: str
    applies_to: AppliesTo
    tensor: str | None
    live_bytes: int


def refused_segment(costs: SegmentCosts, ops: OpSet, refused: Refused) -> RefusedSegment:
    """The refused segment with these ops, with what is predicted of its activations."""
    judgement = costs.judgement(ops)
    return RefusedSegment(
        name=refused.name, ops=ops, reason=refused.reason, remedy=refused.remedy, log=refused.output,
        applies_to=refused.applies_to, tensor=judgement.tensor, live_bytes=judgement.tile_bytes,
    )  # fmt: skip


def forbidden_by(costs: SegmentCosts, refused: Collection[RefusedSegment], compiled: Collection[OpSet]) -> Forbidden:
    """The segments that plans must not have after these refusals. compiled: op sets of segments that the compiler took."""
    parts = dict.fromkeys(part for each in refused for part in _part(costs, each, compiled))
    return Forbidden(frozenset(each.ops for each in refused), tuple(parts), _limit(costs, refused, compiled))


def _part(costs: SegmentCosts, refused: RefusedSegment, compiled: Collection[OpSet]) -> Iterator[Part]:
    """The smallest part of a refused segment that explains the refusal and that no compiled segment contains, if any."""
    for part in _parts(costs, refused):
        alone = Forbidden(parts=(part,))
        if not any(alone.forbids(costs, ops) for ops in compiled):
            yield part
            return


def _parts(costs: SegmentCosts, refused: RefusedSegment) -> Iterator[Part]:
    """Parts that explain the refusal, the smallest first."""
    ops = refused.ops
    on_chip = ops & costs.mapped & ~costs.on_cpu(ops)
    if refused.applies_to is AppliesTo.AS_MUCH_LIVE and costs.judgement(ops).level is Compilable.SURELY_NOT:
        yield _around_largest(costs, ops, on_chip)
    if refused.applies_to in (AppliesTo.AS_MUCH_LIVE, AppliesTo.LARGER):
        yield Part(ops, on_chip)


def _around_largest(costs: SegmentCosts, ops: OpSet, on_chip: OpSet) -> Part:
    """The op of a segment at which most bytes are live, with ops of the segment that make or first read what is live there.

    A segment that holds them has at least the same tensors live at the op (see `Activations.live`).
    """
    graph, activations = costs.graph, costs.compile_rule.activations
    held = op_mask(members(ops), len(graph.ops))
    live = activations.live(held)
    chip = list(members(on_chip))
    deciding = chip[int((activations.tile_bytes @ live[:, chip]).argmax())]
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


def _limit(costs: SegmentCosts, refused: Collection[RefusedSegment], compiled: Collection[OpSet]) -> int | None:
    """The least live bytes of a segment that was refused for them; more than those of all compiled segments."""
    taken = max((costs.judgement(ops).tile_bytes for ops in compiled), default=0)
    by_size = (costs.judgement(r.ops).tile_bytes for r in refused if r.applies_to is AppliesTo.AS_MUCH_LIVE)
    return min((live_bytes for live_bytes in by_size if live_bytes > taken), default=None)
