"""Turns a model on hardware into a solver's problem: numbered ops, and the costs of segments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.cost.batch import SegmentBatch
from balancer.cost.compilable import LEVELS, Compilable
from balancer.cost.cpu_hardware import CpuHardware
from balancer.ground.opsets import members
from balancer.planning.shared_work import SharedWork
from balancer.solve import Between, Cost, CostColumns, Handoff, Kept, Kind, Problem, Structure, Transfer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balancer.cost.segment import SegmentCosts
    from balancer.graph import Graph
    from balancer.ground.arrays import IndexArray
    from balancer.ground.downsets import DownSets
    from balancer.ground.opsets import OpSet


def problem_of(
    costs: Mapping[Kind, SegmentCosts],
    counts: tuple[tuple[Kind, int], ...],
    shared: SharedWork | None = None,
    *,
    may_overflow: bool,
    worst: Compilable = Compilable.SURELY_NOT,
) -> Problem:
    """The problem of splitting the ops of a graph over devices.

    costs: of the graph's segments on each kind of devices. counts: how many devices of each kind. shared: what segments take of
    what the devices share, where that is known already. may_overflow: whether a segment may stream parameters for lack of
    on-chip memory. worst: the worst that a segment may be judged on whether it compiles.
    """
    shared = shared or SharedWork(costs, counts)
    rules = {kind: _Rules(kind, costs[kind], shared, may_overflow=may_overflow, worst=worst) for kind, _ in counts}
    graph, hosts = costs[counts[0][0]].graph, {kind: costs[kind].hardware.host for kind, _ in counts}
    return Problem(
        before=graph.before,
        devices=counts,
        exact=lambda ops, kind: rules[kind].exact(ops),
        lower=lambda ops, kind: costs[kind].lower(ops),
        batch=lambda sets, kind: rules[kind].between(sets),
        together=graph.together + _with_neighbours(graph),
        structures={kind: structure(costs[kind], may_overflow=may_overflow, worst=worst) for kind, _ in counts},
        op_bytes=tuple(op.parameter_bytes for op in graph.ops),
        host_ns={kind: host.host_ns_per_stage for kind, host in hosts.items()},
        handover_ns={kind: host.handover_ns for kind, host in hosts.items()},
        reluctant=frozenset(kind for kind, _ in counts if isinstance(costs[kind].hardware, CpuHardware)),
        shared=shared.resources,
    )


class _Rules:
    """Which segments may stand on one kind of devices, and what they cost there.

    shared: what they take of what the devices share. may_overflow, worst: as in `problem_of`.
    """

    def __init__(
        self, kind: Kind, costs: SegmentCosts, shared: SharedWork, *, may_overflow: bool, worst: Compilable
    ) -> None:
        self.kind, self.costs, self.shared = kind, costs, shared
        self.may_overflow, self.most = may_overflow, LEVELS.index(worst)
        self.judged = worst is not LEVELS[-1]

    def exact(self, ops: OpSet) -> Cost | None:
        if not self.costs.allowed(ops):
            return None
        if self.judged and LEVELS.index(self.costs.judgement(ops).level) > self.most:
            return None
        terms = self.costs.terms(ops)
        if terms.overflow_bytes and not self.may_overflow:
            return None
        return Cost(terms.stage_ns, terms.streamed_bytes, self.shared.exact(ops, self.kind))

    def between(self, sets: DownSets) -> Between:
        segments, taken = SegmentBatch(self.costs, sets), self.shared.batch(sets, self.kind)

        def between(inners: IndexArray, outers: IndexArray) -> CostColumns:
            table = segments(inners, outers)
            allowed = table.allowed if self.may_overflow else table.allowed & (table.overflow_bytes == 0)
            if self.judged:
                allowed = allowed & (segments.levels(inners, outers) <= self.most)
            return CostColumns(table.time_ns, table.streamed_bytes, allowed, taken(inners, outers))

        return between


def _with_neighbours(graph: Graph) -> tuple[OpSet, ...]:
    """For each folded op a set of two ops that must share a segment: itself and the next op that is computed.

    Folded ops cost nothing wherever they are. Without this rule, solvers would try all their places.
    """
    real = [op.index for op in graph.ops if not op.folded]
    return tuple(1 << i | 1 << min((r for r in real if r > i), default=real[-1]) for i in members(graph.folded) if real)


def structure(
    costs: SegmentCosts, *, may_overflow: bool = True, worst: Compilable = Compilable.SURELY_NOT
) -> Structure:
    """The additive part of a segment's cost, for CP-SAT and for lower bounds on whole plans. worst: as in `problem_of`.

    It is a relaxation: never above the exact cost. The capacity for parameters is the largest that any segment has. Only
    parameters of ops that run on the TPU in every segment ask for it.
    """
    hardware, graph, sure = costs.hardware, costs.graph, costs.sure_on_tpu
    caching, host_only = costs.caching, _host_only(costs, worst)
    handed_ns = [costs.op_terms[i].cpu_ns if costs.mapped >> i & 1 else ns for i, ns in enumerate(costs.usual_ns)]
    return Structure(
        stage_ns=costs.invoke_ns,
        op_ns=tuple(handed_ns[i] if i in host_only else ns for i, ns in enumerate(costs.least_ns)),
        transfers=tuple(_transfer(costs, t) for t in sorted(set(graph.producer) | set(graph.readers))),
        kept=tuple(
            Kept(i, caching.size_bytes[i], costs.op_terms[i].stall_ns) for i in caching.priority if sure >> i & 1
        ),
        capacity_bytes=costs.capacity_rule.largest_bytes,
        spill_start_ns=hardware.link.stream_start_ns,
        streaming=tuple(i for i in members(sure) if costs.op_terms[i].layout.always_streamed),
        usually_streaming=tuple(i for i in members(costs.mapped & ~sure) if costs.op_terms[i].layout.always_streamed),
        op_bytes=tuple(caching.size_bytes[i] if sure >> i & 1 else 0 for i in range(len(graph.ops))),
        limit_bytes=None if may_overflow else costs.capacity_rule.largest_bytes,
        handoffs=_handoffs(costs),
        usual_ns=tuple(costs.usual_ns),
        handed_ns=tuple(handed_ns),
        host_only=host_only,
        apart=_apart(costs, worst),
        relaxed=True,
    )


def _handoffs(costs: SegmentCosts) -> tuple[Handoff, ...]:
    """Which ops send others to the CPU, and in which company (`SegmentCosts.on_cpu`)."""
    followers: dict[int, OpSet] = {}
    for i in members(costs.mapped):
        for unmapped in members(costs.ancestors[i] & costs.unmapped):
            followers[unmapped] = followers.get(unmapped, 0) | 1 << i
    reasons = ((op, costs.ancestors[op] & costs.mapped) for op in followers)
    return tuple(Handoff(op, after, followers[op]) for op, after in reasons if after)


def _host_only(costs: SegmentCosts, worst: Compilable) -> tuple[int, ...]:
    """The mapped ops whose own tensors are too large for a segment to be judged so, unless they run on the CPU."""
    rule = costs.compile_rule
    varying = costs.mapped & ~costs.sure_on_tpu & rule.suspects
    return tuple(i for i in members(varying) if LEVELS.index(rule.best(1 << i).level) > LEVELS.index(worst))


def _apart(costs: SegmentCosts, worst: Compilable) -> tuple[tuple[int, OpSet], ...]:
    """The ops that may not end the chip's part in segments that are judged so, each with the ops after which it would."""
    left_out = costs.compile_rule.left_out if worst is Compilable.SURELY else 0
    pairs = ((op, costs.ancestors[op] & costs.mapped) for op in members(left_out))
    return tuple((op, after) for op, after in pairs if after)


def _transfer(costs: SegmentCosts, t: int) -> Transfer:
    """What tensor t costs where it enters a segment and where it leaves one."""
    graph, terms = costs.graph, costs.transfers[t]
    return Transfer(
        producer=graph.producer.get(t),
        readers=graph.readers.get(t, ()),
        leaves=t in graph.outputs,
        receive_ns=terms.input_ns,
        send_ns=terms.output_ns,
        size_bytes=graph.tensors[t].bytes,
    )
