"""The predicted cost of a segment: what the cost model computes, a plan holds, and measurements are held against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentTerms:
    """The predicted cost of one segment. Bytes are as the compiler lays parameters out on the chip; times are for one
    inference.

    parameter_bytes: all parameters. cached_bytes: of these, what stays on the chip. streamed_bytes: what is sent with each
    inference. overflow_bytes: of the streamed bytes, what is streamed for lack of on-chip memory. capacity_bytes: on-chip
    memory that the segment has for parameters. instruction_bytes: sent with each inference. scratch_bytes: of the host's
    memory, for activations that no memory on the chip holds. compute_ns: of its ops on the TPU. streaming_ns: what streaming
    adds to computing. input_ns, output_ns: transfers. scratch_ns: sending activations to the host and back. overhead_ns:
    starting the inference and the ops, and sending instructions. cpu_ns: of its ops on the CPU. stage_ns: the sum of these
    times. `cost.segment` tells how each is found.

    activation_bytes: what its activations take of the narrow memory of each tile; None where it was not asked for. Plans of
    older versions have neither this nor scratch nor instructions.
    """

    parameter_bytes: int
    cached_bytes: int
    streamed_bytes: int
    overflow_bytes: int
    capacity_bytes: int
    instruction_bytes: int = 0
    compute_ns: int
    streaming_ns: int
    input_ns: int
    output_ns: int
    overhead_ns: int
    cpu_ns: int
    stage_ns: int
    scratch_bytes: int = 0
    scratch_ns: int = 0
    activation_bytes: int | None = None
