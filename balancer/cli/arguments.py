"""What the verbs share: a verb as a value, the arguments that several take, and JSON on stdout."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from balancer.cost.hardware import preset_names

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_TPUS = 32


@dataclass(frozen=True)
class Verb:
    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    description: str = ""


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=True))


def whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"must be from {lowest} to {highest}, not {value}")
        return value

    number.__name__ = "number"
    return number


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a full-integer .tflite file")


def add_hardware(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hardware",
        default="pcie",
        metavar="P",
        help=f"a preset ({', '.join(preset_names())}) or a hardware file; default pcie",
    )


def add_tpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", "--tpus", type=whole_number(1, MOST_TPUS), required=True, metavar="N", help="how many Edge TPUs"
    )


def add_keep_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep-state", action="store_true",
        help="variable tensors go on from input to input, instead of being reset before each: one pipeline, no replicas",
    )  # fmt: skip


def add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace files that are there")


def add_interpreter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interpreter",
        choices=("ai-edge-litert", "tflite-runtime"),
        help="where both are installed; default ai-edge-litert",
    )


def choose_interpreter(arguments: argparse.Namespace) -> None:
    """For this process and those that it starts."""
    if arguments.interpreter:
        os.environ["BALANCER_INTERPRETER"] = arguments.interpreter
