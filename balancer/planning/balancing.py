"""`balance`: the best plan for a model on N TPUs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.cost.devices import Devices
from balancer.plan import STATE_WORDS
from balancer.planning.asked_devices import devices_asked
from balancer.planning.assembling import assemble
from balancer.planning.checks import check_constraints, check_tpus
from balancer.planning.comparing import comparison
from balancer.planning.costed_model import open_costed_model, with_profile
from balancer.planning.options import Options
from balancer.planning.solving import solve_costed_model
from balancer.solve import Deadline, Ended

if TYPE_CHECKING:
    from pathlib import Path

    from balancer.cost.hardware import AnyHardware
    from balancer.plan import ComparisonRow, Plan
    from balancer.planning.asked_devices import AskedDevices
    from balancer.planning.costed_model import CostedModel
    from balancer.solve import Solution


_LOG = logging.getLogger(__name__)


def balance(  # noqa: PLR0913 - the public entry: each keyword is one thing that a user decides
    model: str | Path | bytes,
    n_tpus: AskedDevices,
    *,
    options: Options | None = None,
    hardware: str | Path | AnyHardware = "pcie",
    profile: str | Path | None = None,
    keep_state: bool = False,
) -> Plan:
    """The plan with the highest predicted rate for a model on these devices.

    model: path or contents of a full-integer .tflite file. n_tpus: the number of Edge TPUs, 1 to 32; or kinds of devices
    with their numbers, {"pcie": 2, "cpu": 1}, also as a text, "pcie=2,cpu=1"; or "auto" for what this machine has. options:
    limits on the plan, and how to search for it. hardware: the kind where n_tpus is a number: a preset's name, a hardware
    file, or a record. profile: a file of per-op costs that replace predicted ones, as `balancer profile` writes it.
    keep_state: whether variable tensors keep their values from input to input; then the plan has one pipeline without
    replicas.

    Nothing is written; `save` does that. Raises ModelError, HardwareError or ProfileError if a file cannot be used,
    ConstraintError if the constraints are impossible or contradict each other, InfeasibleError if no plan keeps the
    limits, ValueError for arguments out of range.
    """
    if not isinstance(n_tpus, (str, Mapping, Devices)):
        check_tpus(n_tpus)
    devices, options = devices_asked(n_tpus, hardware), options or Options()
    if options.stages is not None and options.stages > devices.total:
        raise ValueError(f"{options.stages} stages need as many TPUs, there are {devices.total}")
    costed = _open(model, devices, profile, keep_state=keep_state)
    check_constraints(options.constraints, len(costed.graph.ops), devices.total)
    deadline = Deadline.after(options.seconds)
    solution = solve_costed_model(costed, options)
    rows = _compared(costed, solution, options, deadline)
    return assemble(costed, solution, rows, options.held_to)


def _compared(
    costed: CostedModel, solution: Solution, options: Options, deadline: Deadline
) -> tuple[ComparisonRow, ...]:
    """The rows of the plan's comparison. Empty if Ctrl-C is pressed meanwhile: the plan itself is not lost.

    After Ctrl-C, or where the time is up, nobody is to wait for the one row that takes a search of its own.
    """
    unsolved = "interrupted" if solution.ended is Ended.INTERRUPTED else "out of time" if deadline.is_over else None
    try:
        return comparison(costed, solution.pipelines, options=options.until(deadline), unsolved=unsolved)
    except KeyboardInterrupt:
        _LOG.warning("interrupted: the plan is kept, and stands without a comparison")
        return ()


def _open(model: str | Path | bytes, devices: Devices, profile: str | Path | None, *, keep_state: bool) -> CostedModel:
    costed = replace(open_costed_model(model, devices), keep_state=keep_state)
    if costed.state is not None:
        _LOG.info("%s: %s", costed.graph.name, STATE_WORDS[costed.state])
    return costed if profile is None else with_profile(costed, profile)


def compare(
    model: str | Path | bytes, n_tpus: AskedDevices, *, hardware: str | Path | AnyHardware = "pcie"
) -> tuple[ComparisonRow, ...]:
    """Other ways to use the devices for a model, and the best plan: the comparison that `balance` makes.

    Arguments and errors are those of `balance`. Returns the rows in the order of the table; the best plan is the last.
    """
    return balance(model, n_tpus, hardware=hardware).comparison
