"""The verb `size`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from balancer.cli.arguments import MOST_TPUS, add_hardware, print_json, whole_number
from balancer.cli.solver_options import positive
from balancer.errors import InfeasibleError
from balancer.ground.units import NS_PER_MS

if TYPE_CHECKING:
    import argparse


def size_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `size`."""
    parser.add_argument(
        "model", metavar="MODEL",
        help="a full-integer .tflite file; or a plan, whose hardware and corrected costs then count, without the segments "
        "that the compiler refused",
    )  # fmt: skip
    parser.add_argument(
        "--target-fps",
        type=positive,
        metavar="F",
        help="say how many TPUs give F inferences/s; exit code 3 if no number of TPUs does",
    )
    parser.add_argument(
        "--max-latency", type=positive, metavar="MS",
        help="count only plans in which one input alone takes at most MS milliseconds",
    )  # fmt: skip
    parser.add_argument(
        "--max-tpus", type=whole_number(1, MOST_TPUS), default=16, metavar="N", help="try 1 to N TPUs; default 16"
    )
    add_hardware(parser)
    parser.set_defaults(hardware=None)  # of the plan, or pcie


def size(arguments: argparse.Namespace) -> int:
    """Print the rates on 1, 2, 3 ... TPUs. Exit code 3 if no number of TPUs meets the targets."""
    import balancer
    from balancer.cli import drawing, drawing_sizing

    targets = ((arguments.target_fps, "{:g} inferences/s"), (arguments.max_latency, "a latency of {:g} ms"))
    asked = [words.format(value) for value, words in targets if value is not None]
    with drawing.progress("sizing, numbers of TPUs", quiet=arguments.quiet or arguments.json) as advance:
        sizing = balancer.size(
            arguments.model, hardware=arguments.hardware, max_tpus=arguments.max_tpus, target_per_s=arguments.target_fps,
            max_latency_ns=None if arguments.max_latency is None else arguments.max_latency * NS_PER_MS, progress=advance,
        )  # fmt: skip
    if arguments.json:
        print_json(asdict(sizing))
    else:
        drawing_sizing.sizing(sizing, asked)
    return InfeasibleError.exit_code if asked and sizing.target_n is None else 0
