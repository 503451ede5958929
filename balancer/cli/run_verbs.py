"""The verbs about devices: devices, run, bench."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cli.arguments import (
    add_force,
    add_interpreter,
    add_keep_state,
    choose_interpreter,
    print_json,
    say_unused,
)  # fmt: skip
from balancer.cli.run_options import (
    LIVE_FIRST,
    NONE_FIRST,
    RUN_OPTIONS,
    add_devices,
    add_plan,
    chosen_devices,
    run_options,
)
from balancer.cli.solver_options import positive
from balancer.errors import OutputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from balancer.opened import OpenedPlan
    from balancer.plan import Plan, SegmentMeasurement
    from balancer.runtime.assigning import Assigned
    from balancer.runtime.options import RunOptions
    from balancer.runtime.pipeline import Pipeline
    from balancer.runtime.pycoral_runner import PycoralRunner

_BENCH_INPUTS = 4  # different random inputs, used in turn


def devices_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-open", action="store_true", help="list the TPUs without opening them")


def devices(arguments: argparse.Namespace) -> int:
    """List the Edge TPUs of this machine, each with its problem if it has one, its CPU, and how to plan for all of it."""
    from balancer.cli import drawing_runs
    from balancer.planning.machine import attached_counts, this_cpu
    from balancer.runtime.devices import list_devices
    from balancer.runtime.probe import probed

    listed = list_devices()
    if not arguments.no_open:
        listed = [probed(device) if device.usable else device for device in listed]
    cpu, counts = this_cpu(), attached_counts(listed)
    if arguments.json:
        described = [asdict(d) | {"kind": d.kind} for d in listed]
        print_json({"devices": described, "cores": cpu.running.cores, "cpu": cpu.name, "kinds": counts})
    else:
        drawing_runs.devices(listed, "seen, not opened" if arguments.no_open else "works")
        drawing_runs.this_machine(cpu, counts)
    return 0


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `run`."""
    add_plan(parser)
    parser.add_argument(
        "--inputs",
        required=True,
        metavar="FILE|DIR",
        help="a .npy file for a model with one input, a .npz file "
        "with an array for each input tensor (the first axis counts the inputs), or a folder of pictures",
    )
    parser.add_argument(
        "-o",
        "--outputs",
        required=True,
        metavar="DIR",
        help="write a .npz file for each input here, with an array for each output tensor",
    )
    parser.add_argument(
        "--on-error", choices=("stop", "continue"), default="stop",
        help="what to do when an input fails: stop, or continue with the next one; default stop",
    )  # fmt: skip
    parser.add_argument(
        "--runner", choices=("balancer", "pycoral"), default="balancer",
        help="what runs the pipeline: balancer, or Google's pycoral where it is installed; default balancer",
    )  # fmt: skip
    add_keep_state(parser)
    add_devices(parser, LIVE_FIRST)
    add_interpreter(parser)
    add_force(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run a plan on inputs. Exit code 1 if one of them failed."""
    from balancer.cli import drawing
    from balancer.cli.run_inputs import Reading, given_inputs, outcomes
    from balancer.directory.writing import check_writable, put_file, result_folder
    from balancer.inputs import model_interface, npz_bytes
    from balancer.opened import open_plan

    choose_interpreter(arguments)
    opened = open_plan(arguments.plan)
    devices = chosen_devices(arguments, opened.plan)
    given = given_inputs(Path(arguments.inputs), model_interface(opened.graph).inputs)
    folder, total = Path(arguments.outputs), len(given)
    _make_folder(folder)
    for one in given:
        check_writable(folder / f"{one.name}.npz", force=arguments.force)
    reading = Reading(given, going_on=arguments.on_error == "continue")
    recorded = reading.at_once() if arguments.sim_outputs == "recorded" else []
    options = run_options(arguments, opened, devices, recorded, on_error=arguments.on_error)
    failures: list[str] = []
    with (
        result_folder(folder),
        _runner(arguments, opened, devices, options) as runner,
        drawing.progress_bar("running", total, quiet=arguments.quiet or arguments.json) as advance,
    ):
        for k, outcome in enumerate(outcomes(reading, runner.map)):
            if outcome.result is None:
                failures.append(outcome.failure)
            else:
                path = folder / f"{outcome.given.name}.npz"
                put_file(path, npz_bytes(outcome.result), force=arguments.force)
            advance(k + 1)
    document = {
        "outputs": str(folder), "items": total, "failures": failures, "state": runner.state, "notes": runner.notes,
    }  # fmt: skip
    if arguments.json:
        print_json(document)
    else:
        drawing.state(runner.state)
        print(*(f"note: {note}\n" for note in runner.notes), sep="", end="")
        print(*(f"failed: {line}" for line in failures), sep="\n", end="\n" if failures else "")
        print(f"{total - len(failures)} of {total} results in {folder}")
    return 1 if failures else 0


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be created ({error.strerror})", str(folder), "choose another folder") from error


def _runner(
    arguments: argparse.Namespace, plan: OpenedPlan, devices: Assigned, options: RunOptions
) -> Pipeline | PycoralRunner:
    from balancer.runtime.pipeline import Pipeline
    from balancer.runtime.pycoral_runner import PycoralRunner

    if arguments.runner == "pycoral":
        say_unused(arguments, ["--on-error", *RUN_OPTIONS[1:]], "with --runner pycoral")
        return PycoralRunner(plan, devices, keep_state=arguments.keep_state)
    return Pipeline(plan, devices, options)


def bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `bench`."""
    add_plan(parser)
    parser.add_argument(
        "--seconds", type=positive, default=5.0, metavar="S", help="measure for about S seconds in all; default 5"
    )
    parser.add_argument(
        "--csv", metavar="FILE.csv",
        help="also write the time of each segment to this file, for `tune --recorded` and `calibrate --data`; rows of other "
        "plans in it stay, those of this plan are replaced",
    )  # fmt: skip
    add_keep_state(parser)
    add_devices(parser, NONE_FIRST)
    add_interpreter(parser)


def bench(arguments: argparse.Namespace) -> int:
    """Measure a plan's rate, latency and stages, and print them beside the predicted numbers."""
    from balancer.cli import drawing, drawing_runs
    from balancer.inputs import model_interface, random_items
    from balancer.opened import open_plan
    from balancer.runtime.measuring import measure, segment_measurements
    from balancer.runtime.pipeline import Pipeline

    choose_interpreter(arguments)
    opened = open_plan(arguments.plan)
    devices = chosen_devices(arguments, opened.plan)
    if arguments.csv:
        _add_times(arguments, opened.plan, {})  # so that a file that cannot be written is told before measuring
    inputs = random_items(model_interface(opened.graph).inputs, _BENCH_INPUTS)
    with (
        Pipeline(opened, devices, run_options(arguments, opened, devices, inputs)) as pipeline,
        drawing.progress("measuring", quiet=arguments.quiet or arguments.json) as advance,
    ):
        measurement = measure(pipeline, inputs, seconds=arguments.seconds, progress=advance)
    if arguments.csv:
        _add_times(arguments, opened.plan, segment_measurements(measurement))
    if arguments.json:
        print_json({"format": "balancer-benchmark", "version": 1, **measurement.to_json(), "state": pipeline.state})
    else:
        drawing.state(pipeline.state)
        drawing_runs.measurement(measurement)
        if arguments.csv:
            print(f"times of the segments: {arguments.csv}")
    return 0


def _add_times(arguments: argparse.Namespace, plan: Plan, measured: Mapping[str, SegmentMeasurement]) -> None:
    """Write the times of segments to the file that --csv names; without any, only see whether that can be done."""
    from balancer.directory.writing import check_writable, write_file
    from balancer.learning.recorded import file_with_times

    path = Path(arguments.csv)
    check_writable(path, force=True)
    contents = file_with_times(path, plan, measured)
    if measured:
        write_file(path, contents, force=True)
