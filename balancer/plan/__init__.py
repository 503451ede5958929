"""A plan as data (`records`), and its file (`file`)."""

from balancer.plan.file import check_op_count, file_bytes, load_plan, plan_text
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

__all__ = [
    "BoundaryTensor", "ComparisonRow", "HardwareInfo", "ModelInfo", "OpOnCpu", "Pipeline", "PipelinePrediction",
    "Plan", "PlanPrediction", "Segment", "SegmentInput", "SegmentMeasurement", "SegmentPrediction", "SegmentReport",
    "SolverReport", "Stage", "check_op_count", "file_bytes", "load_plan", "op_ranges", "parse_op_ranges", "plan_text",
    "pycoral_obstacle",
]  # fmt: skip
