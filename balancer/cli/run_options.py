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
    from balancer.loops.sources import Source
    from balancer.opened import OpenedPlan
    from balancer.plan import Plan
    from balancer.runtime.options import RunOptions
    from balancer.runtime.recipes import Simulation

_MOST_SECONDS = 1_000_000  # as `RunOptions` has it
NONE_FIRST, LIVE_FIRST = ("none", "live", "recorded"), ("live", "recorded")
_OUTPUTS = {
    "none": "none: no outputs",
    "live": "live: computed on the CPU, which bounds all times",
    "recorded": "recorded: computed before, replayed",
}  # fmt: skip


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
    parser.add_argument("plan", metavar="PLAN", help="a plan's directory, or the plan file in it")


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
        help=f"{', '.join(_OUTPUTS[o] for o in outputs)}; default {outputs[0]}",
    )  # fmt: skip
    truth = group.add_mutually_exclusive_group()
    truth.add_argument(
        "--sim-errors", type=whole_number(0, 1 << 31), metavar="SEED",
        help="TPUs that differ from the cost model: factors by op type, less room, other links; default: as predicted",
    )  # fmt: skip
    truth.add_argument("--sim-times", metavar="FILE.csv", help="TPUs that take recorded times: plan,stage,measured_ms")
    group.add_argument("--sim-jitter", type=_share, default=0.0, metavar="SHARE", help="of each latency, 0.02 say")


def chosen_devices(arguments: argparse.Namespace, plan: Plan) -> list[str]:
    """A device for each TPU of the plan. Raises DeviceError where they are none; `none` is for the pipeline's own
    benchmark, and computes nothing.
    """
    from balancer.runtime.devices import device_names

    count = 1 + max(t for p in plan.pipelines for stage in p.stages for t in stage.tpus)
    return device_names(arguments.devices, count)


def run_options(
    arguments: argparse.Namespace, opened: OpenedPlan, inputs: Sequence[Item], *, on_error: str = "stop"
) -> RunOptions:
    """inputs: those that recorded outputs are of."""
    keep_state = getattr(arguments, "keep_state", False)  # `tune` measures times alone
    from balancer.runtime.options import RunOptions

    return RunOptions(
        on_error=on_error, keep_state=keep_state, processes=arguments.processes, seconds=arguments.item_timeout,
        simulation=_simulation(arguments, opened, inputs, keep_state=keep_state),
    )  # fmt: skip


def _simulation(
    arguments: argparse.Namespace, opened: OpenedPlan, inputs: Sequence[Item], *, keep_state: bool
) -> Simulation:
    from balancer.runtime.recipes import Simulation, promised
    from balancer.runtime.recording import recorded_outputs

    plan, truth = opened.plan, simulated_truth(arguments, opened)
    if not arguments.devices or "sim" not in arguments.devices:
        return Simulation()
    if truth is None:
        known = {s.name: replace(promised(plan, s), jitter=arguments.sim_jitter) for s in plan.segments}
    else:
        from balancer.loops.sources import behaviours

        known = behaviours(plan, truth, arguments.sim_jitter)
    recordings = (
        recorded_outputs(opened, inputs, keep_state=keep_state) if arguments.sim_outputs == "recorded" else None
    )
    return Simulation(behaviours=known, outputs=arguments.sim_outputs, recordings=recordings)


def simulated_truth(arguments: argparse.Namespace, opened: OpenedPlan) -> Source | None:
    """What segments of the plan's model take on simulated TPUs, as the arguments say; None: what plans predict.

    Raises DeviceError where none is simulated.
    """
    if not arguments.devices or "sim" not in arguments.devices:
        if arguments.sim_errors is not None or arguments.sim_times or arguments.sim_jitter:
            raise DeviceError("none is simulated", "--sim-errors, --sim-times, --sim-jitter", "use --devices sim")
        return None
    if arguments.sim_times:
        from balancer.loops.sources import RecordedTimes

        return RecordedTimes(Path(arguments.sim_times))
    if arguments.sim_errors is not None:
        from balancer.loops.tuning import truth_of

        return truth_of(opened, arguments.sim_errors)
    return None
