"""The arguments that choose the devices that a plan runs on, and how simulated TPUs behave."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cli.arguments import say_unused, whole_number
from balancer.cli.solver_options import positive
from balancer.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.inputs import Item
    from balancer.loops.sources import Source
    from balancer.opened import OpenedPlan
    from balancer.plan import Plan
    from balancer.runtime.assigning import Assigned
    from balancer.runtime.options import OnError, RunOptions
    from balancer.runtime.recipes import Simulation

_MOST_SECONDS = 1_000_000  # the limit of `RunOptions`
NONE_FIRST, LIVE_FIRST = ("none", "live", "recorded"), ("live", "recorded")
_OUTPUTS = {
    "none": "none: they give no outputs, or recorded ones where other stages need them",
    "live": "live: computed on the CPU during the run, which is slower than a TPU",
    "recorded": "recorded: computed on the CPU before the run and replayed",
}  # fmt: skip


RUN_OPTIONS = (
    "--devices", "--exact", "--processes", "--item-timeout", "--sim-outputs", "--sim-errors", "--sim-times", "--sim-jitter"
)  # fmt: skip


def _share(text: str) -> float:
    """An argument from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text}")
    return value


def _seconds(text: str) -> float:
    """A time limit in seconds."""
    value = positive(text)
    if value > _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"must be at most {_MOST_SECONDS}, not {text}")
    return value


def add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN", help="a plan's directory, or the plan file in it")


def add_devices(parser: argparse.ArgumentParser, outputs: Sequence[str]) -> None:
    """Add --devices and the arguments that belong to it. outputs: what simulated TPUs may give, the default first."""
    parser.add_argument(
        "--devices", metavar="D,D", help="a device for each TPU of the plan, as in usb:0,usb:1; or one word for all: usb, "
        "pci or sim (simulated TPUs); default: the Edge TPUs of this machine. Stages that the plan puts on the CPU need no "
        "name. cpu runs all stages on this CPU",
    )  # fmt: skip
    parser.add_argument(
        "--processes", action="store_true",
        help="run each device in a separate process; Edge TPUs always have one, cpu and sim run in threads otherwise",
    )  # fmt: skip
    parser.add_argument(
        "--item-timeout", type=_seconds, default=60.0, metavar="S",
        help="seconds that one inference may take in a device's process; default 60",
    )  # fmt: skip
    parser.add_argument(
        "--exact", action="store_true",
        help="compute the plan's stages on the CPU with the kernels on which `verify` proves bit-exactness; they are slower "
        "than the interpreter's default ones, whose values may differ by a step",
    )  # fmt: skip
    group = parser.add_argument_group("simulated TPUs (--devices sim)")
    group.add_argument(
        "--sim-outputs", choices=outputs, default=outputs[0],
        help=f"where their outputs come from. {'; '.join(_OUTPUTS[o] for o in outputs)}. Default {outputs[0]}",
    )  # fmt: skip
    truth = group.add_mutually_exclusive_group()
    truth.add_argument(
        "--sim-errors", type=whole_number(0, 1 << 31), metavar="SEED",
        help="give them times that differ from the predicted ones: factors by op type, less memory, slower or faster links, "
        "drawn with this seed; default: the predicted times",
    )  # fmt: skip
    truth.add_argument(
        "--sim-times",
        metavar="FILE.csv",
        help="give them the times in this file, with the columns plan,stage,measured_ms",
    )
    group.add_argument(
        "--sim-jitter", type=_share, default=0.0, metavar="SHARE",
        help="vary each time at random; its standard deviation as a share, 0.02 for 2 %%; default 0",
    )  # fmt: skip


def chosen_devices(arguments: argparse.Namespace, plan: Plan) -> Assigned:
    """The device of each stage of the plan, from --devices. Raises DeviceError if they are unknown, too few, or missing."""
    from balancer.runtime.assigning import assigned_devices, edge_tpus

    say_unused_devices(arguments, edge_tpus(plan))
    if "sim" not in (arguments.devices or ""):
        say_unused(arguments, ["--sim-outputs"], "without simulated TPUs (--devices sim)")
    return assigned_devices(plan, arguments.devices)


def say_unused_devices(arguments: argparse.Namespace, count: int) -> None:
    """Print on stderr which of --devices are not used. count: how many Edge TPUs the plan takes."""
    names = [name.strip() for name in (arguments.devices or "").split(",")]
    if len(names) > max(1, count):
        print(f"balancer: --devices: the plan takes {count}; not used: {', '.join(names[count:])}", file=sys.stderr)


def run_options(
    arguments: argparse.Namespace,
    opened: OpenedPlan,
    devices: Assigned,
    inputs: Sequence[Item],
    *,
    on_error: OnError = "stop",
) -> RunOptions:
    """The options for running the plan on these devices. inputs: the inputs of the run, for recorded outputs."""
    keep_state = getattr(arguments, "keep_state", False)  # `tune` has no such argument
    from balancer.runtime.options import RunOptions

    return RunOptions(
        on_error=on_error, keep_state=keep_state, processes=arguments.processes, seconds=arguments.item_timeout,
        exact=arguments.exact, simulation=_simulation(arguments, opened, devices, inputs, keep_state=keep_state),
    )  # fmt: skip


def _simulation(
    arguments: argparse.Namespace, opened: OpenedPlan, devices: Assigned, inputs: Sequence[Item], *, keep_state: bool
) -> Simulation:
    """How simulated TPUs behave in this run; the default if there are none."""
    from balancer.runtime.recipes import NONE, RECORDED, Simulation, promised
    from balancer.runtime.recording import recorded_outputs

    plan, truth = opened.plan, simulated_truth(arguments, opened)
    if "sim" not in devices.names:
        return Simulation()
    if truth is None:
        known = {s.name: replace(promised(plan, s), jitter=arguments.sim_jitter) for s in plan.segments}
    else:
        from balancer.loops.sources import behaviours

        known = behaviours(plan, truth, arguments.sim_jitter)
    outputs = arguments.sim_outputs
    if outputs == NONE and set(devices.names) != {"sim"}:
        outputs = RECORDED  # other stages need true inputs, and computing them live would slow the simulated TPUs down
    recordings = recorded_outputs(opened, inputs, keep_state=keep_state) if outputs == RECORDED else None
    return Simulation(behaviours=known, outputs=outputs, recordings=recordings)


def simulated_truth(arguments: argparse.Namespace, opened: OpenedPlan) -> Source | None:
    """A source of the times that simulated TPUs take; None for the times that each plan predicts.

    Raises DeviceError if the arguments give times to simulated TPUs and no device is simulated.
    """
    if not arguments.devices or "sim" not in arguments.devices:
        if arguments.sim_errors is not None or arguments.sim_times or arguments.sim_jitter:
            options = "--sim-errors, --sim-times, --sim-jitter"
            raise DeviceError("no device is simulated", options, "use --devices sim, or leave them out")
        return None
    if arguments.sim_times:
        from balancer.loops.sources import RecordedTimes

        return RecordedTimes(Path(arguments.sim_times))
    if arguments.sim_errors is not None:
        from balancer.loops.tuning import truth_of

        return truth_of(opened, arguments.sim_errors)
    return None
