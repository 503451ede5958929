"""The arguments that choose a solver and what it must keep to."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from balancer.cli.arguments import whole_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.solve import Constraints

SOLVERS = (
    "auto", "chain", "downset", "cpsat", "shortest-path", "equal-op-counts", "parameter-count", "depth-balanced",
    "profiling-bisection", "dfs-interval-dp", "exhaustive",
)  # fmt: skip
_MOST = 1 << 40
_LEAST = 1e-9
_MOST_OPS = 4096  # of any model; that of this one is checked when it is read


def add_solver(parser: argparse.ArgumentParser) -> None:
    """Arguments of the solver and of constraints."""
    parser.add_argument("--solver", choices=SOLVERS, default="auto", metavar="NAME", help=", ".join(SOLVERS))
    parser.add_argument(
        "--time-limit", type=positive, metavar="S", help="seconds of solving; then the best so far is taken"
    )
    group = parser.add_argument_group("constraints on one pipeline")
    group.add_argument(
        "--pin", type=_pair, action="append", metavar="OP:STAGE", help="an op stands in this stage (from 0)"
    )
    group.add_argument(
        "--keep-from", type=_pair, action="append", metavar="OP:STAGE", help="an op does not stand there"
    )
    group.add_argument("--keep-together", action="append", metavar="OPS", help="ops that share a stage: 3-5,9")
    group.add_argument("--max-boundary-tensors", type=whole_number(0, _MOST), metavar="K", help="that cross a cut")
    group.add_argument("--max-boundary-bytes", type=whole_number(0, _MOST), metavar="B", help="that cross a cut")
    group.add_argument(
        "--max-segment-bytes", type=whole_number(0, _MOST), metavar="B", help="of parameters in a segment"
    )
    group.add_argument("--max-latency", type=positive, metavar="MS", help="of one input alone; the rate is what counts")
    group.add_argument("--min-fps", type=positive, metavar="F", help="inferences/s; the latency is what counts")


def constraints(arguments: argparse.Namespace) -> Constraints:
    """The constraints that the arguments ask for. Raises PlanError where ops cannot be read, ConstraintError where an op
    is pinned to two stages.
    """
    from balancer.errors import PlanError
    from balancer.ground.opsets import parse_op_ranges
    from balancer.solve import Constraints

    try:
        groups = [sum(1 << i for i in parse_op_ranges(text, _MOST_OPS)) for text in arguments.keep_together or ()]
    except ValueError as error:
        raise PlanError(str(error), "--keep-together", "give op indices as in 3-5,9") from error
    return Constraints(
        pinned=_pinned(arguments.pin or ()),
        kept_from=frozenset(arguments.keep_from or ()),
        together=tuple(groups),
        max_boundary_tensors=arguments.max_boundary_tensors,
        max_boundary_bytes=arguments.max_boundary_bytes,
        max_segment_bytes=arguments.max_segment_bytes,
        max_latency_ns=_scaled(arguments.max_latency, 1e6),
        max_objective_ns=None if arguments.min_fps is None else int(1e9 / arguments.min_fps),
    )


def _pinned(pins: Sequence[tuple[int, int]]) -> dict[int, int]:
    from balancer.errors import ConstraintError

    stages: dict[int, int] = {}
    for op, stage in pins:
        if stages.setdefault(op, stage) != stage:
            what = f"op {op} cannot stand in stage {stages[op]} and in stage {stage}"
            raise ConstraintError(what, f"--pin {op}:{stage}", "pin each op to one stage")
    return stages


def _scaled(value: float | None, factor: float) -> Any:
    return None if value is None else int(value * factor)


def positive(text: str) -> float:
    """An argument above 0, of a size that times and rates can have."""
    value = float(text)
    if not _LEAST <= value < _MOST:
        raise argparse.ArgumentTypeError(f"must be from {_LEAST} to {_MOST}, not {text}")
    return value


def _pair(text: str) -> tuple[int, int]:
    op, _, stage = text.partition(":")
    try:
        return int(op), int(stage)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be OP:STAGE as in 12:0, not {text}") from None
