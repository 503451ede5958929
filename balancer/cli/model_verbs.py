"""The verbs about models: inspect, synth, profile."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cli.arguments import (
    HARDWARE,
    add_force,
    add_hardware,
    add_interpreter,
    add_model,
    choose_interpreter,
    print_json,
    say_unused,
    whole_number,
)
from balancer.cli.plan_verbs import draw_plan
from balancer.errors import HardwareError, ModelError, OutputError
from balancer.ground.wording import counted

if TYPE_CHECKING:
    import argparse

    from balancer.learning.op_timing import OpTimes
    from balancer.planning.costed_model import CostedModel

CPU = "cpu"  # this machine's, as a kind


def inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="FILE|DIR",
        help="a model (.tflite); a compiled model (*_edgetpu.tflite); a plan's directory or file; a log of the compiler "
        "(.log)",
    )


def inspect(arguments: argparse.Namespace) -> int:
    """Print a model op by op, a plan, what a compiled file holds, or what a log of the compiler reports."""
    from balancer.cli import drawing, drawing_models
    from balancer.plan import names_plan
    from balancer.tflite.package import is_compiled, read_package
    from balancer.tflite.read import read_graph, read_model_bytes

    path = Path(arguments.model)
    if names_plan(path):
        return _inspect_plan(path, as_json=arguments.json)
    data = read_model_bytes(path)
    if path.suffix == ".log":
        return _inspect_log(data, str(path), as_json=arguments.json)
    if is_compiled(data, str(path)):
        package = read_package(data, name=path.stem, where=str(path))
        print_json(asdict(package)) if arguments.json else drawing.package(package)
        return 0
    graph = read_graph(data, name=path.stem, where=str(path))
    print_json(drawing_models.graph_document(graph)) if arguments.json else drawing_models.graph(graph)
    return 0


def _inspect_plan(path: Path, *, as_json: bool) -> int:
    from balancer.plan import load_plan

    plan = load_plan(path)
    print_json(plan.to_json()) if as_json else draw_plan(plan)
    return 0


def _inspect_log(data: bytes, path: str, *, as_json: bool) -> int:
    from balancer.cli import drawing
    from balancer.compiler.report import parse_report

    report = parse_report(data.decode("utf-8", "replace"))
    if not (report.version or report.models or report.failures):
        raise ModelError("holds no report of the compiler", path, "give a file with the output of edgetpu_compiler")
    print_json(asdict(report)) if as_json else drawing.report(report)
    return 0


def synth_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `synth`."""
    parser.add_argument("family", choices=("fc", "conv"), help="fc: dense layers; conv: 3x3 convolutions")
    parser.add_argument(
        "--width",
        type=whole_number(1, 65_536),
        required=True,
        metavar="W",
        help="fc: neurons of each layer; conv: filters of each layer",
    )
    parser.add_argument(
        "--layers",
        type=whole_number(1, 1000),
        default=5,
        metavar="L",
        help="how many dense or convolution layers; default 5",
    )
    parser.add_argument(
        "--inputs", type=whole_number(1, 65_536), default=64, metavar="I", help="fc: length of the input; default 64"
    )
    parser.add_argument(
        "--size",
        type=whole_number(1, 4096),
        default=64,
        metavar="S",
        help="conv: height and width of the input; default 64",
    )
    parser.add_argument(
        "--channels", type=whole_number(1, 4096), default=3, metavar="C", help="conv: channels of the input; default 3"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write the model here; default synth_<family>_<width>.tflite"
    )
    add_force(parser)


def synth(arguments: argparse.Namespace) -> int:
    """Write a synthetic model."""
    from balancer.directory.writing import write_file
    from balancer.tflite.synth import conv, fc

    of_family = {"fc": ("--inputs",), "conv": ("--size", "--channels")}
    others = [option for family, options in of_family.items() if family != arguments.family for option in options]
    say_unused(arguments, others, f"for {arguments.family}")
    try:
        if arguments.family == "fc":
            data = fc(arguments.width, layers=arguments.layers, inputs=arguments.inputs)
        else:
            data = conv(arguments.width, layers=arguments.layers, size=arguments.size, channels=arguments.channels)
    except ValueError as error:
        raise OutputError(str(error), "synth", "choose other sizes") from error
    path = Path(arguments.output or f"synth_{arguments.family}_{arguments.width}.tflite")
    write_file(path, data, force=arguments.force)
    if arguments.json:
        print_json({"file": str(path), "bytes": len(data)})
    else:
        print(f"{path}: {counted(len(data), 'byte')}")
    return 0


def profile_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_hardware(parser)
    parser.add_argument(
        "--measure", action="store_true",
        help="time each op on this machine's CPU, within two minutes for most models; the profile then holds for the CPU, and "
        "--hardware for a CPU",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FILE", help="write the profile here; default <model>_profile.json")
    add_interpreter(parser)
    add_force(parser)


def profile(arguments: argparse.Namespace) -> int:
    """Write the profile of a model."""
    from balancer.directory.writing import check_writable, write_file
    from balancer.learning.profiling import document_of
    from balancer.planning.costed_model import open_costed_model

    hardware = CPU if arguments.measure and arguments.hardware == HARDWARE else arguments.hardware
    costed = open_costed_model(arguments.model, hardware)
    path = Path(arguments.output or f"{costed.graph.name}_profile.json")
    check_writable(path, force=arguments.force)  # before minutes are spent
    times = _op_times(costed, arguments) if arguments.measure else None
    document = document_of(costed, times.ns if times else None)
    write_file(path, (json.dumps(document, indent=1) + "\n").encode(), force=arguments.force)
    if arguments.json:
        print_json({"file": str(path), "ops": len(document["ops"])})
    elif times:
        print(f"{path}: {len(document['ops'])} ops, measured on this CPU; give it to `balancer solve --profile`")
        print(
            f"the whole model takes {times.whole_ns / 1e6:.2f} ms; its ops one by one were scaled by {times.factor:.2f}"
        )
    else:
        print(
            f"{path}: {counted(len(document['ops']), 'op')}; fill in measured_ns and give it to `balancer solve --profile`"
        )
    return 0


def _op_times(costed: CostedModel, arguments: argparse.Namespace) -> OpTimes:
    """The ops' times on this machine. Raises HardwareError if the hardware is no CPU."""
    from balancer.cli.drawing import progress_bar
    from balancer.cost.cpu_hardware import CpuHardware
    from balancer.learning.op_timing import LIMITS, time_ops

    cpu = costed.hardware
    if not isinstance(cpu, CpuHardware):
        raise HardwareError("cannot be measured here op by op", cpu.name, "name a CPU, or leave out --hardware")
    choose_interpreter(arguments)
    with progress_bar("timing ops", LIMITS.rounds, quiet=arguments.quiet or arguments.json) as advance:
        return time_ops(costed.model, cpu, progress=advance)
