"""The arguments that say on what a plan runs, and what is true of simulated TPUs."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cli.arguments import whole_number
from balancer.cli.solver_options import positive
from balancer.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.inputs import Item
    from balancer.plan import Plan
    from balancer.runtime.options import RunOptions
    from balancer.runtime.recipes import Simulation

_MOST_SECONDS = 1_000_000  # as `RunOptions` has it
NONE_FIRST, LIVE_FIRST = ("none", "live", "recorded"), ("live", "recorded")


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text}")
    return value


def _seconds(text: str) -> float:
    value = positive(text)
    if value > _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"must be at most {_MOST_SECONDS}, not {text}")
    return value


def add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN.json", help="a plan file in its directory")


def add_devices(parser: argparse.ArgumentParser, outputs: Sequence[str]) -> None:
    """--devices and what belongs to it. outputs: what simulated TPUs may give, the default first."""
    parser.add_argument(
        "--devices", metavar="D,D", help="a device for each TPU: usb:0,pci:1; or usb, pci, cpu or sim for all; default: "
        "the Edge TPUs of this machine",
    )  # fmt: skip
    parser.add_argument(
        "--processes", action="store_true", help="every device in a process of its own, as Edge TPUs are"
    )
    parser.add_argument(
        "--item-timeout", type=_seconds, default=60.0, metavar="S", help="for one inference on a TPU; default 60"
    )
    group = parser.add_argument_group("simulated TPUs (--devices sim)")
    group.add_argument(
        "--sim-outputs", choices=outputs, default=outputs[0],
        help=f"none, computed live on the CPU, or computed before and replayed; default {outputs[0]}",
    )  # fmt: skip
    truth = group.add_mutually_exclusive_group()
    truth.add_argument(
        "--sim-errors", type=whole_number(0, 1 << 31), metavar="SEED",
        help="TPUs that differ from the cost model: factors by op type, less room, other links; default: as predicted",
    )  # fmt: skip
    truth.add_argument("--sim-times", metavar="FILE.csv", help="TPUs that take recorded times: plan,stage,measured_ms")
    group.add_argument("--sim-jitter", type=_share, default=0.0, metavar="SHARE", help="of each latency, 0.02 say")


def run_options(
    arguments: argparse.Namespace, plan: Plan, inputs: Sequence[Item], *, on_error: str = "stop"
) -> RunOptions:
    """inputs: those that recorded outputs are of."""
    from balancer.runtime.options import RunOptions

    return RunOptions(
        on_error=on_error, processes=arguments.processes, seconds=arguments.item_timeout,
        simulation=_simulation(arguments, plan, inputs),
    )  # fmt: skip


def _simulation(arguments: argparse.Namespace, plan: Plan, inputs: Sequence[Item]) -> Simulation:
    from balancer.runtime.recipes import Simulation, promised
    from balancer.runtime.recording import recorded_outputs

    if not arguments.devices or "sim" not in arguments.devices:
        if arguments.sim_errors is not None or arguments.sim_times or arguments.sim_jitter:
            raise DeviceError("none is simulated", "--sim-errors, --sim-times, --sim-jitter", "use --devices sim")
        return Simulation()
    behaviours = {s.name: promised(plan, s) for s in plan.segments}
    if arguments.sim_times:
        from balancer.balancing.sources import RecordedTimes

        seen = RecordedTimes(Path(arguments.sim_times))(plan).plan.segments
        behaviours = {s.name: replace(behaviours[s.name], stage_ns=s.measured.stage_ns) for s in seen if s.measured}
    elif arguments.sim_errors is not None:
        from balancer.balancing.tuning import truth_of

        behaviours = truth_of(plan, arguments.sim_errors).behaviours(plan)
    jitter = {name: replace(b, jitter=arguments.sim_jitter) for name, b in behaviours.items()}
    recordings = recorded_outputs(plan, inputs) if arguments.sim_outputs == "recorded" else None
    return Simulation(behaviours=jitter, outputs=arguments.sim_outputs, recordings=recordings)
