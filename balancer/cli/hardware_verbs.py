"""The verb about hardware: calibrate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cli.arguments import add_force, print_json

if TYPE_CHECKING:
    import argparse


_START = "pcie"


def calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `calibrate`."""
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="measured times: a CSV file as `bench --csv` writes it, or with the columns of the published measurements; "
        "or a plan that `balancer tune` has measured (its directory, or its file)",
    )
    parser.add_argument(
        "--from", dest="start", metavar="PRESET",
        help="the preset or hardware file whose constants the fit starts from; default: the hardware of the measured plans, "
        f"and {_START} for published measurements",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="HARDWARE.json", help="write a hardware file here, for --hardware of other verbs"
    )
    add_force(parser)


def calibrate(arguments: argparse.Namespace) -> int:
    """Fit the constants, print them, and write the hardware file with -o."""
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
