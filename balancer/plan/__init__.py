"""A plan as data (`records`), and its file (`file`)."""

from balancer.plan.file import check_op_count, file_bytes, load_plan, names_plan, plan_text
from balancer.plan.pycoral import pycoral_obstacle
from balancer.plan.ranges import op_ranges, parse_op_ranges
from balancer.plan.records import (
    BoundaryTensor,
    ComparisonRow,
    HardwareInfo,
    ModelInfo,
    OpOnCpu,
    Pipeline,
    PipelinePrediction,
    Plan,
    PlanPrediction,
    Segment,
    SegmentInput,
    SegmentMeasurement,
    SegmentPrediction,
    SegmentReport,
    SolverReport,
    Stage,
)
from balancer.plan.remembered import HeldTo, KnownCosts, KnownOp, Limits, OpAtStage
from balancer.plan.state import KEPT, RESET, STATE_WORDS, segments_with_state, state_of

__all__ = [
    "KEPT", "RESET", "STATE_WORDS", "BoundaryTensor", "ComparisonRow", "HardwareInfo", "HeldTo", "KnownCosts", "KnownOp",
    "Limits", "ModelInfo", "OpAtStage", "OpOnCpu", "Pipeline", "PipelinePrediction", "Plan", "PlanPrediction", "Segment",
    "SegmentInput", "SegmentMeasurement", "SegmentPrediction", "SegmentReport", "SolverReport", "Stage", "check_op_count",
    "file_bytes", "load_plan", "names_plan", "op_ranges", "parse_op_ranges", "plan_text", "pycoral_obstacle",
    "segments_with_state", "state_of",
]  # fmt: skip
