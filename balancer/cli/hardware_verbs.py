"""The verb about hardware: calibrate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cli.arguments import add_force, add_interpreter, choose_interpreter, print_json

if TYPE_CHECKING:
    import argparse


_START = "pcie"


def calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `calibrate`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--data", metavar="FILE",
        help="measured times: a CSV file as `bench --csv` writes it, or with the columns of the published measurements; "
        "or a plan that `balancer tune` has measured (its directory, or its file)",
    )  # fmt: skip
    what.add_argument(
        "--cpu",
        action="store_true",
        help="time this machine's CPU instead, within two minutes; without -o the result becomes the kind cpu of this machine",
    )
    parser.add_argument(
        "--from", dest="start", metavar="PRESET",
        help="the preset or hardware file whose constants the fit starts from; default: the hardware of the measured plans, "
        f"and {_START} for published measurements",
    )  # fmt: skip
    parser.add_argument(
        "-o",
        "--output",
        metavar="HARDWARE.json",
        help="write a hardware file here, for --hardware and -n of other verbs",
    )
    add_interpreter(parser)
    add_force(parser)


def calibrate(arguments: argparse.Namespace) -> int:
    """Fit the constants, print them, and write the hardware file with -o."""
    return _calibrate_cpu(arguments) if arguments.cpu else _calibrate_to_data(arguments)


def _calibrate_cpu(arguments: argparse.Namespace) -> int:
    """Time this machine's CPU, print its constants, and write them to the user's settings or to -o."""
    from balancer.cli import drawing_hardware
    from balancer.cli.drawing import progress_bar
    from balancer.directory.writing import check_writable, write_file
    from balancer.errors import OutputError
    from balancer.learning.cpu_calibrating import calibrate_cpu, cpu_document
    from balancer.learning.interleaved import TimingLimits
    from balancer.planning.machine import CPU, calibrated_cpu_path

    if arguments.start:
        raise OutputError("starts from nothing: --from is for measured times", "--cpu", "leave out --from")
    choose_interpreter(arguments)
    path = Path(arguments.output) if arguments.output else calibrated_cpu_path()
    if not arguments.output:
        _make_folder(path.parent)
    check_writable(path, force=arguments.force)
    limits = TimingLimits()
    with progress_bar("timing this CPU", limits.rounds, quiet=arguments.quiet or arguments.json) as advance:
        calibration = calibrate_cpu(limits=limits, progress=lambda done, _: advance(done))
    document = cpu_document(calibration, path.stem if arguments.output else CPU)
    write_file(path, (json.dumps(document, indent=2) + "\n").encode(), force=arguments.force)
    if arguments.json:
        print_json(document)
    else:
        drawing_hardware.cpu_calibration(calibration)
        print(f"written to {path}" + ("" if arguments.output else ": `cpu` means this from now on"))
    return 0


def _make_folder(folder: Path) -> None:
    """The folder of the user's settings. Raises OutputError if it cannot be made."""
    from balancer.errors import OutputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be made ({error.strerror})", str(folder), "name a file with -o") from error


def _calibrate_to_data(arguments: argparse.Namespace) -> int:
    """Fit the constants to measured times, print them, and write the hardware file with -o."""
    from balancer.cli import drawing, drawing_runs
    from balancer.cost.hardware import load_hardware
    from balancer.directory.writing import check_writable, write_file
    from balancer.learning import calibrating
    from balancer.learning.measurements import hardware_of, read_measurements

    data = Path(arguments.data)
    if arguments.output:
        check_writable(Path(arguments.output), force=arguments.force)
    given = load_hardware(arguments.start) if arguments.start else None
    rows = read_measurements(data)
    start = given or hardware_of(rows) or load_hardware(_START)
    with drawing.progress("fitting, predictions of all rows", quiet=arguments.quiet or arguments.json) as advance:
        calibration = calibrating.calibrate(rows, start, progress=advance)
    name = Path(arguments.output).stem if arguments.output else f"{start.name}-calibrated"
    document = calibrating.hardware_document(calibration, name, data.absolute().name)
    if arguments.output:
        write_file(Path(arguments.output), (json.dumps(document, indent=2) + "\n").encode(), force=arguments.force)
    for doubt in calibration.doubts:
        print(f"balancer: {doubt}", file=sys.stderr)
    if arguments.json:
        print_json(document)
    else:
        drawing_runs.calibration(calibration)
    return 0
