"""`balance`: the best plan for a model on N TPUs."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.plan import STATE_WORDS
from balancer.planning.assembling import assemble
from balancer.planning.checks import check_constraints, check_tpus
from balancer.planning.comparing import comparison
from balancer.planning.costed_model import open_costed_model, with_profile
from balancer.planning.options import Options
from balancer.planning.solving import solve_costed_model
from balancer.solve import Deadline, Ended

if TYPE_CHECKING:
    from pathlib import Path

    from balancer.cost.hardware import Hardware
    from balancer.plan import ComparisonRow, Plan
    from balancer.planning.costed_model import CostedModel
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

    model: path or contents of a full-integer .tflite file. n_tpus: 1 to 32. options: limits on the plan, and how to search
    for it. hardware: a preset's name, a hardware file, or a record. profile: a file of per-op costs that replace predicted
    ones, as `balancer profile` writes it. keep_state: whether variable tensors keep their values from input to input;
    then the plan has one pipeline without replicas.

    Nothing is written; `save` does that. Raises ModelError, HardwareError or ProfileError if a file cannot be used,
    ConstraintError if the constraints are impossible or contradict each other, InfeasibleError if no plan keeps the
    limits, ValueError for arguments out of range.
    """
    check_tpus(n_tpus)
    options = options or Options()
    if options.stages is not None and options.stages > n_tpus:
        raise ValueError(f"{options.stages} stages need as many TPUs, there are {n_tpus}")
    costed = _open(model, hardware, profile, keep_state=keep_state)
    check_constraints(options.constraints, len(costed.graph.ops), n_tpus)
    deadline = Deadline.after(options.seconds)
    solution = solve_costed_model(costed, n_tpus, options)
    rows = _compared(costed, n_tpus, solution, options, deadline)
    return assemble(costed, solution, n_tpus, rows, options.held_to)


def _compared(
    costed: CostedModel, n_tpus: int, solution: Solution, options: Options, deadline: Deadline
) -> tuple[ComparisonRow, ...]:
    """The rows of the plan's comparison. Empty if Ctrl-C is pressed meanwhile: the plan itself is not lost.

    After Ctrl-C, or where the time is up, nobody is to wait for the one row that takes a search of its own.
    """
    unsolved = "interrupted" if solution.ended is Ended.INTERRUPTED else "out of time" if deadline.is_over else None
    try:
        return comparison(costed, n_tpus, solution.pipelines, options=options.until(deadline), unsolved=unsolved)
    except KeyboardInterrupt:
        _LOG.warning("interrupted: the plan is kept, and stands without a comparison")
        return ()


def _open(
    model: str | Path | bytes, hardware: str | Path | Hardware, profile: str | Path | None, *, keep_state: bool
) -> CostedModel:
    costed = replace(open_costed_model(model, hardware), keep_state=keep_state)
    if costed.state is not None:
        _LOG.info("%s: %s", costed.graph.name, STATE_WORDS[costed.state])
    return costed if profile is None else with_profile(costed, profile)


def compare(
    model: str | Path | bytes, n_tpus: int, *, hardware: str | Path | Hardware = "pcie"
) -> tuple[ComparisonRow, ...]:
    """Other ways to use n_tpus TPUs for a model, and the best plan: the comparison that `balance` makes.

    Arguments and errors are those of `balance`. Returns the rows in the order of the table; the best plan is the last.
    """
    return balance(model, n_tpus, hardware=hardware).comparison
