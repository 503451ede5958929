"""The arguments that choose a solver and give constraints."""

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
_MOST_OPS = 4096  # of any model; whether this model has such an op is checked when it is read


def add_solver(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the solver and of constraints."""
    parser.add_argument(
        "--solver", choices=SOLVERS, default="auto", metavar="NAME", help=f"one of {', '.join(SOLVERS)}; default auto"
    )
    parser.add_argument(
        "--time-limit",
        type=positive,
        metavar="S",
        help="take the best plan so far after S seconds; all searches of a solve share them, the comparison included; with "
        "--compile each round solves once",
    )
    group = parser.add_argument_group("constraints", "With any of these the plan has one pipeline.")
    group.add_argument(
        "--pin",
        type=_pair,
        action="append",
        metavar="OP:STAGE",
        help="put this op into this stage (stages count from 0)",
    )
    group.add_argument(
        "--keep-from", type=_pair, action="append", metavar="OP:STAGE", help="do not put this op into this stage"
    )
    group.add_argument(
        "--keep-together", action="append", metavar="OPS", help="put these ops into one stage, whichever it is: 3-5,9"
    )
    group.add_argument(
        "--max-boundary-tensors", type=whole_number(0, _MOST), metavar="K", help="at most K tensors cross each cut"
    )
    group.add_argument(
        "--max-boundary-bytes", type=whole_number(0, _MOST), metavar="B",
        help="the tensors that cross a cut have at most B bytes together",
    )  # fmt: skip
    group.add_argument(
        "--max-segment-bytes", type=whole_number(0, _MOST), metavar="B",
        help="the parameters of each segment have at most B bytes",
    )  # fmt: skip
    group.add_argument(
        "--max-latency", type=positive, metavar="MS",
        help="find the highest rate at which one input alone takes at most MS milliseconds",
    )  # fmt: skip
    group.add_argument(
        "--min-fps", type=positive, metavar="F",
        help="find the lowest latency at which the rate is at least F inferences/s; with --max-latency, also within that",
    )  # fmt: skip


def constraints(arguments: argparse.Namespace) -> Constraints:
    """The constraints that the arguments give.

    Raises PlanError if the ops of --keep-together cannot be read, ConstraintError if an op is pinned to two stages.
    """
    from balancer.errors import PlanError
    from balancer.ground.opsets import parse_op_set
    from balancer.solve import Constraints

    try:
        groups = [parse_op_set(text, _MOST_OPS) for text in arguments.keep_together or ()]
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
            what = f"op {op} cannot be in stage {stages[op]} and in stage {stage}"
            raise ConstraintError(what, f"--pin {op}:{stage}", "pin each op to one stage")
    return stages


def _scaled(value: float | None, factor: float) -> Any:
    return None if value is None else int(value * factor)


def positive(text: str) -> float:
    """An argument above 0, within the limits of sensible times and rates."""
    value = float(text)
    if not _LEAST <= value < _MOST:
        raise argparse.ArgumentTypeError(f"must be from {_LEAST} to {_MOST}, not {text}")
    return value


def _pair(text: str) -> tuple[int, int]:
    """An op and a stage, from a text such as 12:0."""
    op, _, stage = text.partition(":")
    try:
        return int(op), int(stage)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be OP:STAGE as in 12:0, not {text}") from None
