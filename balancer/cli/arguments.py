"""What the verbs share: the record `Verb`, arguments that several verbs take, and JSON on stdout."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from balancer.cost.hardware import preset_names
from balancer.errors import HardwareError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from balancer.cost.devices import Devices

MOST_TPUS = 32
HARDWARE = "pcie"


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    help: its line in `balancer --help`. description: the first paragraph of its own --help. run: returns the exit code.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    description: str = ""


def print_json(document: Any) -> None:
    """Print a document on stdout, in ASCII: any terminal can show it, and any name in a model can be printed."""
    print(json.dumps(document, indent=2, ensure_ascii=True))


def whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from lowest to highest."""

    def number(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"must be from {lowest} to {highest}, not {value}")
        return value

    number.__name__ = "number"  # argparse prints it: "invalid number value"
    return number


def say_unused(arguments: argparse.Namespace, options: Iterable[str], why: str) -> None:
    """Print on stderr which of these options were given although they have no effect. why: such as "without --compile"."""
    for option in options:
        name = option.removeprefix("--").replace("-", "_")
        if getattr(arguments, name, None) != arguments.default_of(name):
            print(f"balancer: {option} has no effect {why}", file=sys.stderr)


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a full-integer .tflite file")


def add_hardware(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hardware",
        default=HARDWARE,
        metavar="P",
        help=f"the hardware to predict for: a preset ({', '.join(preset_names())}) or a hardware file as `balancer "
        "calibrate` writes it; usb is for USB accelerators on a Raspberry Pi 4, usb-desktop on a PC, usb2 on a USB 2 port. "
        "They hold with the runtime's build max; for std, which runs the chip at half the clock, append :std, as in usb:std. "
        "Default pcie",
    )


def add_tpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", "--tpus", type=_devices, required=True, metavar="N",
        help="how many Edge TPUs there are; or which kinds of devices and how many of each, as in pcie=2,usb=1,cpu=1: presets "
        f"({', '.join(preset_names())}), hardware files, and cpu for this machine's CPU; or auto for what this machine has",
    )  # fmt: skip


def _devices(text: str) -> int | str:
    """A type for argparse: a number of TPUs, kinds with their numbers, or auto."""
    if text.lstrip("-").isdecimal():
        return whole_number(1, MOST_TPUS)(text)
    counts = [part.rpartition("=") for part in text.split(",")]
    if text != "auto" and not all(kind.strip() and count.strip().isdecimal() for kind, _, count in counts):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number, nor kinds with numbers as in pcie=2,usb=1, nor auto"
        )
    if any(int(count) < 1 for _, _, count in counts if count.strip().isdecimal()):
        raise argparse.ArgumentTypeError(f"each kind needs at least one device, unlike in {text!r}")
    return text


def devices_of(arguments: argparse.Namespace) -> Devices:
    """The devices that -n and --hardware name. Raises HardwareError as `devices_asked` does, and where both name kinds."""
    from balancer.planning.asked_devices import devices_asked

    if isinstance(arguments.tpus, str) and arguments.hardware != HARDWARE:
        what, remedy = "is named beside the kinds of -n", f"leave it out, or give -n a number of {arguments.hardware}"
        raise HardwareError(what, f"--hardware {arguments.hardware}", remedy)
    try:
        return devices_asked(arguments.tpus, arguments.hardware)
    except ValueError as error:
        raise HardwareError(str(error), f"-n {arguments.tpus}", "name fewer devices") from error


def add_keep_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep-state", action="store_true",
        help="for models with state (LSTM, SVDF): keep the state from input to input instead of resetting it before each; "
        "only with one pipeline and no replicas, as `solve --keep-state` makes them",
    )  # fmt: skip


def add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace existing files")


def add_interpreter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interpreter",
        choices=("ai-edge-litert", "tflite-runtime"),
        help="which TFLite interpreter to use if both are installed; default ai-edge-litert",
    )


def choose_interpreter(arguments: argparse.Namespace) -> None:
    """Set the interpreter for this process and for the processes that it starts: these inherit the environment."""
    if arguments.interpreter:
        os.environ["BALANCER_INTERPRETER"] = arguments.interpreter
