"""The verb `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cli.arguments import HARDWARE, add_hardware, add_model, print_json
from balancer.errors import HardwareError, PlanError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from balancer.cost.hardware import AnyHardware
    from balancer.plan import Plan


def predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `predict`."""
    add_model(parser)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--cuts", metavar="I,J", help="the first op of each segment but the first: 12,57 gives three")
    how.add_argument("--segments", metavar="OPS", help='the ops of each segment: "0-11,14;12,13,15-60"')
    how.add_argument(
        "--plan", metavar="PLAN",
        help="take the segments of this plan, and the kinds of devices that they stand on: its directory, or its file",
    )  # fmt: skip
    parser.add_argument(
        "--on", metavar="KINDS",
        help="the kind of device of each segment, in their order, where they stand on several kinds: pcie,pcie,cpu; instead of "
        "--hardware",
    )  # fmt: skip
    add_hardware(parser)
    parser.set_defaults(hardware=None)  # of the plan, or pcie


def predict(arguments: argparse.Namespace) -> int:
    """Print the predicted cost of the given segments."""
    import balancer
    from balancer.cli import drawing
    from balancer.cli.drawing_compiling import compiling
    from balancer.cli.drawing_models import cpu_parts

    if arguments.on is not None and arguments.hardware is not None:
        raise HardwareError("is named beside --on", f"--hardware {arguments.hardware}", "leave one of them out")
    segments, kinds = _segments(arguments)
    if arguments.on is not None:
        kinds = [kind.strip() for kind in arguments.on.split(",")]
    elif arguments.hardware is not None:
        kinds = None
    plan = balancer.predict(arguments.model, segments, hardware=arguments.hardware or HARDWARE, on=kinds)
    if arguments.json:
        document = plan.to_json()
        print_json({"segments": document["segments"], "pipelines": document["pipelines"]})
    else:
        drawing.stages(plan)
        cpu_parts(plan)
        compiling(plan)
    return 0


def _whole_numbers(text: str) -> list[int]:
    """The numbers in a text such as "12,57". Raises ValueError, which names the part that is not a whole number."""
    numbers = text.split(",")
    wrong = next((number for number in numbers if not number.strip().isdecimal()), None)
    if wrong is not None:
        raise ValueError(f"'{wrong}' is not a whole number")
    return [int(number) for number in numbers]


def _segments(arguments: argparse.Namespace) -> tuple[list[list[int]], Sequence[str | AnyHardware] | None]:
    """The op indices of each segment, from --cuts, --segments or --plan, and the kinds that the plan's stand on.

    Raises PlanError.
    """
    from balancer.ground.opsets import members, parse_op_ranges
    from balancer.opened import devices_of_plan
    from balancer.plan import load_plan
    from balancer.planning.predicting import cut_segments
    from balancer.tflite.read import load_graph

    n_ops = len(load_graph(arguments.model).ops)
    try:
        if arguments.cuts is not None:
            return [list(s) for s in cut_segments(_whole_numbers(arguments.cuts), n_ops)], None
        if arguments.segments is not None:
            return [parse_op_ranges(part, n_ops) for part in arguments.segments.split(";")], None
    except ValueError as error:
        raise PlanError(
            str(error), "segments", "give op indices as in --cuts 12,57 or --segments '0-11;12-60'"
        ) from error
    plan = load_plan(arguments.plan)
    _same_model(plan, arguments)
    if len(plan.partitions()) > 1:
        what = "has pipelines that are cut differently"
        raise PlanError(what, arguments.plan, "choose one of them, and give its segments with --segments")
    devices, stages = devices_of_plan(plan), plan.pipelines[0].stages
    segments = [list(members(plan.segment(stage.segment).ops)) for stage in stages]
    return segments, [devices.kind(stage.kind) for stage in stages]


def _same_model(plan: Plan, arguments: argparse.Namespace) -> None:
    """Raise PlanError if the plan was made for another model."""
    import hashlib

    from balancer.tflite.read import read_model_bytes

    if hashlib.sha256(read_model_bytes(Path(arguments.model))).hexdigest() != plan.model.sha256:
        raise PlanError("was made for another model (the hash differs)", arguments.plan, "solve this model")
