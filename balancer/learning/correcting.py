"""Corrects predicted costs by what the vendor's compiler reported of segments.

Each call starts again from the uncorrected costs and uses the reports of all segments compiled so far. There are four
corrections. They are made in this order, each under the costs that the ones before have given:

unmapped    The compiler left an op on the CPU that was expected on the TPU. If no such op precedes it in its segment,
            the compiler does not support this op; it is marked as unmapped. From these marks
            the costs work out which later ops stay on the CPU, too.
bytes       The parameters of a segment take more or fewer bytes than predicted. The bytes of all its ops are scaled.
capacity    The compiler prints how much on-chip memory the parameters use and how much remains; the sum is the segment's
            capacity. One rule, the same for all segments, turns predicted into reported capacity: a factor, a
            difference in bytes, or an upper limit. The rule with the smallest total error is taken. It is then lowered
            a little, so that it promises no segment more capacity than was reported.
scratch     A segment has far less capacity than that rule gives. So one of its ops needs more scratch memory than
            predicted. The op with the largest predicted scratch is blamed, unless it also stands in a segment that had
            more capacity.
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
    from balancer.planning.costed_model import CostedModel

LABEL = "compiler reports"
# Smaller differences are not corrected: the compiler rounds what it prints, and predicted bytes are off by 0.2 %.
_TOLERANCE_BYTES = 16 << 10
_TOLERANCE_SHARE = 0.01
_SMALL_BYTES = 32 << 10  # a capacity lower than the rule's by up to this much lowers the rule; by more, an op is blamed


@dataclass(frozen=True, slots=True)
class Evidence:
    """A compiled segment: its ops, and what the compiler reported."""

    ops: OpSet
    reported: SegmentReport


def evidence_of(plan: Plan) -> dict[OpSet, Evidence]:
    """The plan's compiled segments, by their ops. Segments without a report are left out."""
    return {s.ops: Evidence(s.ops, s.reported) for s in plan.segments if s.reported}


def contradicts(costs: SegmentCosts, evidence: Evidence) -> bool:
    """Whether the report differs from the prediction: in the bytes streamed, or in an op unexpectedly on the CPU."""
    return abs(_unforeseen_bytes(costs, evidence)) > _TOLERANCE_BYTES or _unforeseen_ops(costs, evidence) != 0


def overruns(costs: SegmentCosts, evidence: Evidence) -> bool:
    """Whether the segment streams more bytes than predicted."""
    return _unforeseen_bytes(costs, evidence) > _TOLERANCE_BYTES


def overflow_bytes(costs: SegmentCosts, plan: Plan) -> int:
    """Reported bytes that a compiled plan streams for lack of on-chip memory."""
    # The compiler reports one sum. What is streamed by nature (constants of element-wise ops) is predicted, and taken off.
    found = 0
    for ops, evidence in evidence_of(plan).items():
        terms = costs.terms(ops)
        found += max(0, evidence.reported.streamed_bytes - (terms.streamed_bytes - terms.overflow_bytes))
    return found


def cpu_ops(plan: Plan) -> int:
    """How many ops of a compiled plan the compiler left on the CPU."""
    return sum(s.reported.cpu_ops for s in plan.segments if s.reported)


def _unforeseen_bytes(costs: SegmentCosts, evidence: Evidence) -> int:
    return evidence.reported.streamed_bytes - costs.terms(evidence.ops).streamed_bytes


def _unforeseen_ops(costs: SegmentCosts, evidence: Evidence) -> OpSet:
    """Ops that the compiler left on the CPU and that were expected on the TPU."""
    return _on_cpu(evidence) & ~costs.on_cpu(evidence.ops)


def _on_cpu(evidence: Evidence) -> OpSet:
    return op_set(o.op for o in evidence.reported.not_mapped)


def corrected(costed: CostedModel, evidence: Iterable[Evidence]) -> Profile:
    """The costed model's profile with the four corrections made (see the module).

    costed: as it was before anything was compiled. Passing a corrected one would apply corrections twice.
    """
    compiled = list(evidence)
    profile = (costed.profile or Profile("", {})).taught_by(LABEL)
    # Each round marks at least one more op as unmapped, so this ends. It needs rounds: once an op is unmapped, the costs
    # expect its successors on the CPU, and only what is left is still unforeseen.
    while untaken := _untaken(_costs(costed, profile), compiled):
        profile = _with(profile, {op: {"mapped": False} for op in untaken})
    profile = _with(
        profile, {op: {"parameter_bytes": b} for op, b in _sizes(_costs(costed, profile), compiled).items()}
    )
    # The rule replaces that of the costed model's profile, so it is derived from capacities without any rule.
    rule = _capacity_rule(_costs(costed, _with_rule(profile, _Rule())), compiled)
    if rule is not None:
        profile = _with_rule(profile, rule)
    # The smallest capacity first: a scratch that explains it leaves nothing to explain in other segments with that op.
    for each in sorted(compiled, key=_capacity_bytes):
        costs = _costs(costed, profile)
        profile = _with(profile, _more_scratch(costs, each, compiled))
    return profile


def _costs(costed: CostedModel, profile: Profile) -> SegmentCosts:
    first = next(iter(costed.compiled_kinds), costed.hardware.name)
    return SegmentCosts(costed.graph, costed.devices.kind(first), profile)


def _with(profile: Profile, changes: Mapping[int, Mapping[str, Any]]) -> Profile:
    changed = {op: replace(profile.ops.get(op, OpCosts()), **change) for op, change in changes.items()}
    return replace(profile, ops={**profile.ops, **changed})


def _untaken(costs: SegmentCosts, compiled: Sequence[Evidence]) -> list[int]:
    """Ops that the compiler does not support: unforeseen on the CPU, and not because of another such op before them."""
    unforeseen = (_unforeseen_ops(costs, each) for each in compiled)
    return [i for ops in unforeseen for i in members(ops) if not costs.ancestors[i] & ops]


def _sizes(costs: SegmentCosts, compiled: Sequence[Evidence]) -> dict[int, int]:
    """Op -> its parameter bytes, for the ops of segments whose total differs from the predicted one.

    An op that stands in several such segments gets the size from the segment compiled last.
    """
    sizes: dict[int, int] = {}
    for each in compiled:
        # Predicted with the reported capacity: an op takes fewer bytes streamed than cached, so the totals compare only
        # if the same ops are cached.
        terms, reported = costs.terms(each.ops, each.reported.capacity_bytes), each.reported
        always = terms.streamed_bytes - terms.overflow_bytes
        expected, seen = terms.parameter_bytes - always, reported.cached_bytes + reported.streamed_bytes - always
        if expected and abs(seen - expected) > _TOLERANCE_BYTES + _TOLERANCE_SHARE * expected:
            kept = (i for i in members(each.ops) if costs.op_terms[i].layout.cached)
            sizes |= {i: max(0, costs.op_terms[i].layout.cached * seen // expected) for i in kept}
    return sizes


def _capacity_bytes(evidence: Evidence) -> int:
    """A lower bound on the segment's capacity: the compiler rounds what it prints, so the true figures may be lower."""
    cached, capacity = evidence.reported.cached_bytes, evidence.reported.capacity_bytes
    return max(cached, capacity - rounding_bytes(cached) - rounding_bytes(capacity - cached))


class _Rule(NamedTuple):
    """From predicted to reported capacity, as in `capacity.CapacityRule`: a factor in millionths, then bytes added, then
    an upper limit.
    """

    per_million: int = MILLION
    more_bytes: int = 0
    most_bytes: int = UNBOUNDED

    def capacity_bytes(self, predicted: int) -> int:
        return min(self.most_bytes, predicted * self.per_million // MILLION + self.more_bytes)


def _with_rule(profile: Profile, rule: _Rule) -> Profile:
    """The profile with this rule instead of the one that it had."""
    return replace(
        profile,
        capacity_scale_per_million=rule.per_million,
        capacity_offset_bytes=rule.more_bytes,
        capacity_max_bytes=rule.most_bytes,
    )


def _capacity_rule(costs: SegmentCosts, compiled: Sequence[Evidence]) -> _Rule | None:
    """The rule that fits best. None where no segment says anything about capacity: those without parameters do not."""
    pairs = [
        (predicted, _capacity_bytes(each))
        for each in compiled
        if (predicted := costs.terms(each.ops).capacity_bytes) and _capacity_bytes(each)
    ]
    if not pairs:
        return None
    # Medians: a segment in which one op needs much scratch must not move the rule for all.
    rules = (
        _Rule(per_million=int(median(seen * MILLION // expected for expected, seen in pairs))),
        _Rule(more_bytes=int(median(seen - expected for expected, seen in pairs))),
        _Rule(most_bytes=int(median(seen for _, seen in pairs))),
    )
    best = min(rules, key=lambda rule: sum(abs(rule.capacity_bytes(expected) - seen) for expected, seen in pairs))
    shortfalls = [best.capacity_bytes(expected) - seen for expected, seen in pairs]
    short = max((s for s in shortfalls if s <= _SMALL_BYTES), default=0)
    if short <= 0:
        return best
    lowered = best.most_bytes - short if best.most_bytes < UNBOUNDED else UNBOUNDED
    return best._replace(more_bytes=best.more_bytes - short, most_bytes=lowered)


def _more_scratch(costs: SegmentCosts, evidence: Evidence, compiled: Sequence[Evidence]) -> dict[int, dict[str, int]]:
    """A larger scratch for one op of the segment, where the segment has less capacity than predicted; else nothing."""
    expected, capacity_bytes = costs.terms(evidence.ops), _capacity_bytes(evidence)
    if overruns(costs, evidence):
        # It streams more than predicted, so what was to be cached did not all fit, whatever capacity is printed.
        capacity_bytes = min(capacity_bytes, expected.cached_bytes - 1)
    on_tpu = evidence.ops & costs.mapped & ~costs.on_cpu(evidence.ops)
    if expected.capacity_bytes <= capacity_bytes or not on_tpu:
        return {}
    # An op that stands in a segment with more capacity does not need the scratch that is looked for.
    innocent = op_set(i for each in compiled if _capacity_bytes(each) > capacity_bytes for i in members(each.ops))
    suspect = max(members(on_tpu & ~innocent or on_tpu), key=lambda i: (costs.op_terms[i].scratch_bytes, -i))
    return {suspect: {"scratch_bytes": costs.capacity_rule.scratch_for(capacity_bytes)}}
