"""The predicted cost of a segment: what the cost model computes, a plan holds, and measurements are held against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentTerms:
    """Bytes of parameters are as the compiler lays them out on the chip. Times are for one input.

    parameter_bytes = cached_bytes + streamed_bytes. overflow_bytes: those of the streamed bytes that would be cached if
    the capacity sufficed. capacity_bytes: on the chip, for parameters. stage_ns: the sum of the other times, which
    `cost.segment` explains.
    """

    parameter_bytes: int
    cached_bytes: int
    streamed_bytes: int
    overflow_bytes: int
    capacity_bytes: int
    compute_ns: int
    streaming_ns: int
    input_ns: int
    output_ns: int
    overhead_ns: int
    cpu_ns: int
    stage_ns: int
