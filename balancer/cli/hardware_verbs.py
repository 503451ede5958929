"""The verbs about hardware: calibrate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cli.arguments import add_force, print_json

if TYPE_CHECKING:
    import argparse


def calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `calibrate`."""
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="CSV with columns plan,stage,measured_ms or those of the published measurements, or a measured plan: its "
        "directory, or its file",
    )
    parser.add_argument("--from", dest="start", default="pcie", metavar="PRESET", help="where to start; default pcie")
    parser.add_argument("-o", "--output", metavar="HARDWARE.json", help="write the hardware file that --hardware takes")
    add_force(parser)


def calibrate(arguments: argparse.Namespace) -> int:
    """Fit, print, and write the hardware file with -o."""
    from balancer.cli import drawing
    from balancer.cost.hardware import load_hardware
    from balancer.directory.writing import check_writable, write_file
    from balancer.learning import calibrating
    from balancer.learning.measurements import read_measurements

    data = Path(arguments.data)
    if arguments.output:
        check_writable(Path(arguments.output), force=arguments.force)
    rows, start = read_measurements(data), load_hardware(arguments.start)
    with drawing.progress("fitting, predictions of all rows", quiet=arguments.quiet or arguments.json) as advance:
        found = calibrating.calibrate(rows, start, progress=advance)
    name = Path(arguments.output).stem if arguments.output else f"{start.name}-calibrated"
    document = calibrating.hardware_document(found, name, data.absolute().name)
    if arguments.output:
        write_file(Path(arguments.output), (json.dumps(document, indent=2) + "\n").encode(), force=arguments.force)
    if arguments.json:
        print_json(document)
    else:
        drawing.calibration(found)
    return 0
