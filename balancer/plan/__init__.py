"""A plan as data (`records`), and reading and writing its file (`file`)."""

from balancer.plan.file import check_op_count, file_bytes, load_plan, names_plan, plan_text
from balancer.plan.pycoral import pycoral_obstacle
from balancer.plan.records import (
    BoundaryTensor,
    ComparisonRow,
    CompileJudgement,
    HardwareInfo,
    ModelInfo,
    OpOnCpu,
    PipelinePrediction,
    Plan,
    PlanPipeline,
    PlanPrediction,
    PlanStage,
    Segment,
    SegmentInput,
    SegmentMeasurement,
    SegmentReport,
    SolverReport,
)
from balancer.plan.remembered import HeldTo, KnownCosts, KnownOp, Limits, OpAtStage
from balancer.plan.state import KEPT, RESET, STATE_WORDS, segments_with_state, state_of

__all__ = [
    "KEPT",
    "RESET",
    "STATE_WORDS",
    "BoundaryTensor",
    "ComparisonRow",
    "CompileJudgement",
    "HardwareInfo",
    "HeldTo",
    "KnownCosts",
    "KnownOp",
    "Limits",
    "ModelInfo",
    "OpAtStage",
    "OpOnCpu",
    "PipelinePrediction",
    "Plan",
    "PlanPipeline",
    "PlanPrediction",
    "PlanStage",
    "Segment",
    "SegmentInput",
    "SegmentMeasurement",
    "SegmentReport",
    "SolverReport",
    "check_op_count",
    "file_bytes",
    "load_plan",
    "names_plan",
    "plan_text",
    "pycoral_obstacle",
    "segments_with_state",
    "state_of",
]  # fmt: skip
