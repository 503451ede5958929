"""The verb `size`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from balancer.cli.arguments import MOST_TPUS, add_hardware, print_json, whole_number
from balancer.cli.solver_options import positive
from balancer.errors import HardwareError, InfeasibleError
from balancer.ground.units import NS_PER_MS

if TYPE_CHECKING:
    import argparse

    from balancer.planning.sizing import Sizing


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
        "--by", choices=("number", "energy"), default="number",
        help="the order of the rows. energy: those that meet the targets, the least energy for one inference first; where "
        "--target-fps is given, with inputs that come at that rate. Default: number",
    )  # fmt: skip
    parser.add_argument(
        "-n", "--tpus", metavar="KINDS",
        help="kinds of devices with their numbers, of which one is a range, as in usb=1-8,cpu=1; in place of --max-tpus and "
        "--hardware",
    )  # fmt: skip
    parser.add_argument("--max-tpus", type=whole_number(1, MOST_TPUS), metavar="N", help="try 1 to N TPUs; default 16")
    add_hardware(parser)
    parser.set_defaults(hardware=None)  # of the plan, or pcie


def size(arguments: argparse.Namespace) -> int:
    """Print the rates on 1, 2, 3 ... devices. Exit code 3 if no number of them meets the targets."""
    from balancer.cli import drawing_sizing

    targets = ((arguments.target_fps, "{:g} inferences/s"), (arguments.max_latency, "a latency of {:g} ms"))
    asked = [words.format(value) for value, words in targets if value is not None]
    by_energy = arguments.by == "energy"
    sizing = _sized(arguments)
    if by_energy and sizing.without_power_data:
        silent = " and ".join(sizing.without_power_data)
        raise HardwareError(
            "has no data of its power to rank by", f"kind {silent}",
            "enter a meter's readings as busy_mw and idle_mw in a hardware file",
        )  # fmt: skip
    if arguments.json:
        print_json(asdict(sizing))
    else:
        drawing_sizing.sizing(sizing, asked, by_energy=by_energy)
    return InfeasibleError.exit_code if asked and sizing.target_n is None else 0


def _sized(arguments: argparse.Namespace) -> Sizing:
    import balancer
    from balancer.cli import drawing

    other = next((f"--{name.replace('_', '-')}" for name in ("max_tpus", "hardware") if getattr(arguments, name)), None)
    if arguments.tpus is not None and other is not None:
        raise HardwareError("is named beside -n", other, "leave one of them out")
    latency_ns = None if arguments.max_latency is None else arguments.max_latency * NS_PER_MS
    with drawing.progress("sizing, numbers of devices", quiet=arguments.quiet or arguments.json) as advance:
        try:
            return balancer.size(
                arguments.model, hardware=arguments.hardware, max_tpus=arguments.max_tpus, n_tpus=arguments.tpus,
                target_per_s=arguments.target_fps, max_latency_ns=latency_ns, progress=advance,
            )  # fmt: skip
        except ValueError as error:
            if arguments.tpus is None:
                raise
            raise HardwareError(str(error), f"-n {arguments.tpus}", "name 1 to 32 devices in all") from error
