"""Costs of segments that were compiled: predicted times, with the memory that the compiler reported."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.ground.units import MIB, ceil_div
from balancer.solve import Cost

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balancer.cost.segment import SegmentCosts
    from balancer.ground.opsets import OpSet
    from balancer.plan import SegmentReport
    from balancer.planning.costed_model import CostedModel
    from balancer.solve import Kind, Problem


def reported_cost(costs: SegmentCosts, ops: OpSet, reported: SegmentReport) -> Cost:
    """The cost of a compiled segment: as predicted, except that the reported bytes are streamed, no more and no fewer."""
    # Streaming that hides behind computing is in the predicted time, so that time is scaled rather than computed anew.
    terms, streamed = costs.terms(ops, reported.capacity_bytes), reported.streamed_bytes
    if not streamed:
        streaming_ns = 0
    elif terms.streamed_bytes:
        streaming_ns = terms.streaming_ns * streamed // terms.streamed_bytes
    else:
        hardware = costs.hardware
        streaming_ns = hardware.link.stream_start_ns + ceil_div(streamed * hardware.link.stream_ns_per_mib, MIB)
    return Cost(terms.stage_ns - terms.streaming_ns + streaming_ns, streamed)


def reported_problem(costed: CostedModel, reports: Mapping[OpSet, SegmentReport]) -> Problem:
    """The costed model's problem, in which segments with a report have the reported memory on Edge TPUs. reports: by the
    segment's ops.

    It is for valuing plans with `evaluate`, not for solving: only `exact` uses the reports; the bounds do not.
    """
    problem = costed.problem()

    def exact(ops: OpSet, kind: Kind) -> Cost | None:
        predicted = problem.exact(ops, kind)
        if predicted is None or ops not in reports or kind not in costed.compiled_kinds:
            return predicted
        return reported_cost(costed.costs_by_kind[kind], ops, reports[ops])

    return replace(problem, exact=exact)
