"""`balance`: the best plan for a model on N TPUs."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.plan import STATE_WORDS
from balancer.planning.assembling import assemble
from balancer.planning.checks import check_constraints, check_tpus
from balancer.planning.comparing import comparison
from balancer.planning.options import Options
from balancer.planning.setting import open_setting, with_profile
from balancer.planning.solving import solve_setting

if TYPE_CHECKING:
    from pathlib import Path

    from balancer.cost.hardware import Hardware
    from balancer.plan import ComparisonRow, Plan
    from balancer.planning.setting import Setting
    from balancer.solve import Solution


_LOG = logging.getLogger(__name__)


def balance(  # noqa: PLR0913 - the public entry: each keyword is one thing that a user decides
    model: str | Path | bytes,
    n_tpus: int,
    *,
    options: Options | None = None,
    hardware: str | Path | Hardware = "pcie",
    profile: str | Path | None = None,
    keep_state: bool = False,
) -> Plan:
    """The plan with the highest predicted rate for a model on n_tpus Edge TPUs.

    model: path or bytes of a full-integer .tflite. options: what the plan is held to, and how it is searched for.
    hardware: a preset's name, a hardware file, or a record. profile: a file of per-op costs that replace the predicted
    ones, as `balancer profile` writes it. keep_state: for a model whose variable tensors go on from input to input; then
    there is one pipeline, without replicas.

    Nothing is written; see `save`. Raises ModelError, HardwareError or ProfileError where an input cannot be taken,
    ConstraintError where constraints are impossible or contradict each other, InfeasibleError where there is no such
    plan, ValueError for arguments out of range.
    """
    check_tpus(n_tpus)
    options = options or Options()
    setting = _open(model, hardware, profile, keep_state=keep_state)
    check_constraints(options.constraints, len(setting.graph.ops), n_tpus)
    solution = solve_setting(setting, n_tpus, options)
    rows = _compared(setting, n_tpus, solution, options)
    return assemble(setting, solution, n_tpus, rows, options.held_to)


def _compared(setting: Setting, n_tpus: int, solution: Solution, options: Options) -> tuple[ComparisonRow, ...]:
    """The plan beside others; none of them after Ctrl-C, which must not cost the plan."""
    try:
        return comparison(setting, n_tpus, solution.pipelines, options=options)
    except KeyboardInterrupt:
        _LOG.warning("interrupted: the plan is kept, and stands without a comparison")
        return ()


def _open(
    model: str | Path | bytes, hardware: str | Path | Hardware, profile: str | Path | None, *, keep_state: bool
) -> Setting:
    setting = replace(open_setting(model, hardware), keep_state=keep_state)
    if setting.state is not None:
        _LOG.info("%s: %s", setting.graph.name, STATE_WORDS[setting.state])
    return setting if profile is None else with_profile(setting, profile)


def compare(
    model: str | Path | bytes, n_tpus: int, *, hardware: str | Path | Hardware = "pcie"
) -> tuple[ComparisonRow, ...]:
    """Ways to use n_tpus TPUs for a model, in the order of the table: the comparison of `balance` with these arguments.

    Raises ModelError, HardwareError, ValueError as `balance` does.
    """
    return balance(model, n_tpus, hardware=hardware).comparison
