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


def reported_ns(costs: SegmentCosts, ops: OpSet, reported: SegmentReport) -> int:
    """The time of a compiled segment: as predicted, except that the reported bytes are streamed, no more and no fewer."""
    # Streaming that hides behind computing is in the predicted time, so that time is scaled rather than computed anew.
    terms, streamed = costs.terms(ops, reported.capacity_bytes), reported.streamed_bytes
    if not streamed:
        streaming_ns = 0
    elif terms.streamed_bytes:
        streaming_ns = terms.streaming_ns * streamed // terms.streamed_bytes
    else:
        hardware = costs.hardware
        streaming_ns = hardware.link.stream_start_ns + ceil_div(streamed * hardware.link.stream_ns_per_mib, MIB)
    return terms.stage_ns - terms.streaming_ns + streaming_ns


def reported_problem(costed: CostedModel, reports: Mapping[OpSet, SegmentReport]) -> Problem:
    """The costed model's problem, in which segments with a report have the reported memory on Edge TPUs. reports: by the
    segment's ops.

    It is for valuing plans with `evaluate`, not for solving: only `exact` uses the reports; the bounds do not. Segments on
    the CPU are not compiled: a report is not about them.
    """
    problem, compiled = costed.problem(), costed.compiled_costs

    def exact(ops: OpSet, kind: Kind) -> Cost | None:
        predicted, reported = problem.exact(ops, kind), reports.get(ops)
        if predicted is None or reported is None or kind not in compiled:
            return predicted
        shared_ns = costed.shared_work.of(kind, lambda costs: reported_ns(costs, ops, reported))
        return Cost(reported_ns(compiled[kind], ops, reported), reported.streamed_bytes, shared_ns)

    return replace(problem, exact=exact)
