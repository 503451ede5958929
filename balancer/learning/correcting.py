"""What compiled segments teach the cost model: ops that stay on the CPU, bytes of parameters, room on the chip.

Corrections are made anew from all that was compiled, in this order, each on top of the ones before:

unmapped    an op that stayed on the CPU, though nothing before it in its segment did, is one that the compiler does
            not take; what depends on it follows from that.
bytes       where a segment's parameters take more or fewer bytes than predicted, all of its ops are scaled.
room        used + remaining is the room that a segment has. Of three rules that have a reason (a share of the predicted
            room, so many bytes less, nowhere more than so many) the one that fits best; a little lower, so that none
            of the segments is promised more than it had.
scratch     a segment that has far less room than that rule gives holds an op that needs more: the one with the largest
            scratch that was not seen in a segment with enough room.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from balancer.compiler.report import rounding_bytes
from balancer.cost.capacity import MILLION, UNBOUNDED
from balancer.cost.profile import OpCosts, Profile
from balancer.cost.segment import SegmentCosts
from balancer.ground.opsets import OpSet, members, op_set

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from balancer.plan import Plan, SegmentReport
    from balancer.planning.setting import Setting

LABEL = "compiler reports"
# What may differ before something is corrected: the printed figures are rounded, the byte rule has an error of 0.2 %.
_TOLERANCE_BYTES = 16 << 10
_TOLERANCE_SHARE = 0.01
_SMALL_BYTES = 32 << 10  # a shortfall that is put down to the rule, and not to an op


@dataclass(frozen=True, slots=True)
class Evidence:
    """A compiled segment: its ops, and what was reported of them."""

    ops: OpSet
    reported: SegmentReport


def evidence_of(plan: Plan) -> dict[OpSet, Evidence]:
    """The compiled segments of a plan, by their ops."""
    return {s.ops: Evidence(s.ops, s.reported) for s in plan.segments if s.reported}


def contradicts(costs: SegmentCosts, found: Evidence) -> bool:
    """Whether the report tells what the costs did not: other bytes streamed, or ops on the CPU."""
    return abs(_unforeseen_bytes(costs, found)) > _TOLERANCE_BYTES or _unforeseen_ops(costs, found) != 0


def overruns(costs: SegmentCosts, found: Evidence) -> bool:
    """Whether the segment streams more than the costs told."""
    return _unforeseen_bytes(costs, found) > _TOLERANCE_BYTES


def _unforeseen_bytes(costs: SegmentCosts, found: Evidence) -> int:
    return found.reported.streamed_bytes - costs.terms(found.ops).streamed_bytes


def _unforeseen_ops(costs: SegmentCosts, found: Evidence) -> OpSet:
    """Ops on the CPU that were expected on the chip."""
    return _on_cpu(found) & ~costs.on_cpu(found.ops)


def _on_cpu(found: Evidence) -> OpSet:
    return op_set(o.op for o in found.reported.not_mapped)


def corrected(setting: Setting, evidence: Iterable[Evidence]) -> Profile:
    """The setting's own profile with all that was learnt. The setting: as it was before anything was compiled."""
    found = list(evidence)
    profile = (setting.profile or Profile("", {})).taught_by(LABEL)
    while untaken := _untaken(_costs(setting, profile), found):
        profile = _with(profile, {op: {"mapped": False} for op in untaken})
    profile = _with(profile, {op: {"parameter_bytes": b} for op, b in _sizes(_costs(setting, profile), found).items()})
    rule = _room_rule(_costs(setting, _with_room(profile, _Rule())), found)
    if rule is not None:
        profile = _with_room(profile, rule)
    for each in sorted(found, key=_room):
        costs = _costs(setting, profile)
        profile = _with(profile, _more_scratch(costs, each, found))
    return profile


def _costs(setting: Setting, profile: Profile) -> SegmentCosts:
    return SegmentCosts(setting.graph, setting.hardware, profile)


def _with(profile: Profile, changes: Mapping[int, Mapping[str, Any]]) -> Profile:
    changed = {op: replace(profile.ops.get(op, OpCosts()), **change) for op, change in changes.items()}
    return replace(profile, ops={**profile.ops, **changed})


def _untaken(costs: SegmentCosts, found: Sequence[Evidence]) -> list[int]:
    """Ops on the CPU, against expectation, that no other such op keeps there."""
    unforeseen = (_unforeseen_ops(costs, each) for each in found)
    return [i for ops in unforeseen for i in members(ops) if not costs.ancestors[i] & ops]


def _sizes(costs: SegmentCosts, found: Sequence[Evidence]) -> dict[int, int]:
    """Parameter bytes of the ops of segments whose sum differs from the predicted one; what was compiled last counts."""
    sizes: dict[int, int] = {}
    for each in found:
        # With the room that was reported: a streamed op takes fewer bytes than a cached one.
        terms, reported = costs.terms(each.ops, each.reported.capacity_bytes), each.reported
        always = terms.streamed_bytes - terms.overflow_bytes
        expected, seen = terms.parameter_bytes - always, reported.cached_bytes + reported.streamed_bytes - always
        if expected and abs(seen - expected) > _TOLERANCE_BYTES + _TOLERANCE_SHARE * expected:
            kept = (i for i in members(each.ops) if costs.layout[i].cached)
            sizes |= {i: max(0, costs.layout[i].cached * seen // expected) for i in kept}
    return sizes


def _room(found: Evidence) -> int:
    """Bytes that the segment has for parameters at least: what is printed is rounded."""
    cached, capacity = found.reported.cached_bytes, found.reported.capacity_bytes
    return max(cached, capacity - rounding_bytes(cached) - rounding_bytes(capacity - cached))


class _Rule(NamedTuple):
    """From predicted to reported room, as in `capacity.Room`."""

    per_million: int = MILLION
    more_bytes: int = 0
    most_bytes: int = UNBOUNDED

    def room(self, predicted: int) -> int:
        return min(self.most_bytes, predicted * self.per_million // MILLION + self.more_bytes)


def _with_room(profile: Profile, rule: _Rule) -> Profile:
    """With this rule in place of its own."""
    return replace(
        profile, room_per_million=rule.per_million, room_more_bytes=rule.more_bytes, room_most_bytes=rule.most_bytes
    )


def _room_rule(costs: SegmentCosts, found: Sequence[Evidence]) -> _Rule | None:
    """None where nothing is told: segments without parameters on the chip tell nothing."""
    pairs = [(p, _room(each)) for each in found if (p := costs.terms(each.ops).capacity_bytes) and _room(each)]
    if not pairs:
        return None
    rules = (
        _Rule(per_million=int(median(seen * MILLION // expected for expected, seen in pairs))),
        _Rule(more_bytes=int(median(seen - expected for expected, seen in pairs))),
        _Rule(most_bytes=int(median(seen for _, seen in pairs))),
    )
    best = min(rules, key=lambda rule: sum(abs(rule.room(expected) - seen) for expected, seen in pairs))
    shortfalls = [best.room(expected) - seen for expected, seen in pairs]
    short = max((s for s in shortfalls if s <= _SMALL_BYTES), default=0)
    if short <= 0:
        return best
    lowered = best.most_bytes - short if best.most_bytes < UNBOUNDED else UNBOUNDED
    return best._replace(more_bytes=best.more_bytes - short, most_bytes=lowered)


def _more_scratch(costs: SegmentCosts, found: Evidence, all_found: Sequence[Evidence]) -> dict[int, dict[str, int]]:
    """A larger scratch for the op that is to blame where a segment has less room than the costs give it."""
    expected, room = costs.terms(found.ops), _room(found)
    if overruns(costs, found):
        room = min(room, expected.cached_bytes - 1)  # whatever it prints: not all of that fitted
    on_tpu = found.ops & costs.mapped & ~costs.on_cpu(found.ops)
    if expected.capacity_bytes <= room or not on_tpu:
        return {}
    innocent = op_set(i for each in all_found if _room(each) > room for i in members(each.ops))
    suspect = max(members(on_tpu & ~innocent or on_tpu), key=lambda i: (costs.scratch[i], -i))
    return {suspect: {"scratch_bytes": costs.room.scratch_for(room)}}
