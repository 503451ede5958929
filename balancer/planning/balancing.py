"""`balance`: the best plan for a model on N TPUs."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.compiler import find_compiler
from balancer.errors import CompilerError
from balancer.loops.default_split import default_split
from balancer.loops.refining import Refinement
from balancer.plan import STATE_WORDS
from balancer.planning.asked import Asked
from balancer.planning.assembling import assemble
from balancer.planning.comparing import OURS, comparison
from balancer.planning.remembering import held_to
from balancer.planning.setting import OVERFLOW, check_constraints, check_count, check_tpus, open_setting, with_profile
from balancer.planning.solving import solve_setting
from balancer.solve import Constraints, SolverOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from balancer.compiler import Compiler
    from balancer.cost.hardware import Hardware
    from balancer.loops.refining import Round
    from balancer.plan import ComparisonRow, Plan
    from balancer.planning.setting import Setting
    from balancer.solve import Solution


_LOG = logging.getLogger(__name__)


def balance(  # noqa: PLR0913 - the public entry: each keyword is one thing that a user decides
    model: str | Path | bytes,
    n_tpus: int,
    *,
    hardware: str | Path | Hardware = "pcie",
    pipelines: int | None = None,
    replicas: int | None = None,
    stages: int | None = None,
    overflow: str | None = None,
    profile: str | Path | None = None,
    solver: str = "auto",
    constraints: Constraints | None = None,
    seconds: float | None = None,
    keep_state: bool = False,
    compile: bool | Compiler = False,
    on_round: Callable[[Round], None] = lambda found: None,
) -> Plan:
    """The plan with the highest predicted rate for a model on n_tpus Edge TPUs.

    model: path or bytes of a full-integer .tflite. hardware: a preset's name, a hardware file, or a record.
    pipelines: at most so many side by side (any number by default). replicas: of a stage, at most so many (any number
    by default). stages: exactly so many segments, in one pipeline. overflow: "stream" takes the highest rate, "error"
    refuses plans in which a segment streams parameters for want of room; None is "stream" until a compiler has
    contradicted the predicted memory, and then takes such plans only where there is no other. profile: a file of
    per-op costs that replace the predicted ones (see `profile_document`). solver: a name of `balancer.solve.SOLVERS`.
    constraints: what else a pipeline must keep to; then there is one pipeline. seconds: of wall time for the solver,
    None for limits that count work alone. keep_state: for a model whose variable tensors go on from input to input;
    then there is one pipeline, without replicas. compile: True, or a compiler (see `balancer.find_compiler`): compile the
    plan, correct the costs by what is reported, and solve again until they agree; on_round is told of each round.

    Nothing is written; see `save`. Raises ModelError, HardwareError or ProfileError where an input cannot be taken,
    ConstraintError where constraints cannot be or contradict each other, InfeasibleError where there is no such plan,
    CompilerError where it cannot be compiled, ValueError for arguments out of range.
    """
    _check(n_tpus, pipelines, replicas, stages)
    _check_words(seconds, overflow)
    setting = _open(model, hardware, profile, keep_state=keep_state)
    held = constraints or Constraints()
    check_constraints(held, len(setting.graph.ops), n_tpus)
    options = SolverOptions(
        max_pipelines=pipelines, max_replicas=replicas, stages=stages, solver=solver, constraints=held, seconds=seconds
    )
    if compile:
        compiler = find_compiler() if compile is True else compile
        return Refinement(setting, n_tpus, options, overflow, compiler, on_round).run()
    solution = solve_setting(setting, n_tpus, options, overflow or "stream")
    rows = _compared(setting, n_tpus, solution, Asked(options, overflow or "stream"))
    return assemble(setting, solution, n_tpus, rows, held_to(options, overflow))


def _compared(setting: Setting, n_tpus: int, solution: Solution, asked: Asked) -> tuple[ComparisonRow, ...]:
    """The plan beside others; none of them after Ctrl-C, which must not cost the plan."""
    try:
        return comparison(setting, n_tpus, solution.pipelines, asked=asked)
    except KeyboardInterrupt:
        _LOG.warning("interrupted: the plan is kept, and stands without a comparison")
        return ()


def _check_words(seconds: float | None, overflow: str | None) -> None:
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds must be above 0, not {seconds!r}")
    if overflow is not None and overflow not in OVERFLOW:
        raise ValueError(f"overflow must be one of {OVERFLOW}, not {overflow!r}")


def _open(
    model: str | Path | bytes, hardware: str | Path | Hardware, profile: str | Path | None, *, keep_state: bool
) -> Setting:
    setting = replace(open_setting(model, hardware), keep_state=keep_state)
    if setting.state is not None:
        _LOG.info("%s: %s", setting.graph.name, STATE_WORDS[setting.state])
    return setting if profile is None else with_profile(setting, profile)


def _check(n_tpus: int, pipelines: int | None, replicas: int | None, stages: int | None) -> None:
    check_tpus(n_tpus)
    for name, number in (("pipelines", pipelines), ("replicas", replicas), ("stages", stages)):
        if number is not None:
            check_count(name, number)
    if stages is not None and stages > n_tpus:
        raise ValueError(f"{stages} stages need as many TPUs, there are {n_tpus}")


def compare(
    model: str | Path | bytes,
    n_tpus: int,
    *,
    hardware: str | Path | Hardware = "pcie",
    compile: bool | Compiler = False,
    on_round: Callable[[Round], None] = lambda found: None,
) -> tuple[ComparisonRow, ...]:
    """The comparison of `balance` with the same arguments. compile: the compiler's `--num_segments` is run as well.

    Raises ModelError, HardwareError, CompilerError, ValueError as `balance` does.
    """
    if not compile:
        return balance(model, n_tpus, hardware=hardware).comparison
    check_tpus(n_tpus)
    compiler = find_compiler() if compile is True else compile
    setting = open_setting(model, hardware)
    default = default_split(setting, n_tpus, compiler)
    try:
        return Refinement(setting, n_tpus, SolverOptions(), None, compiler, on_round, default).run().comparison
    except CompilerError as error:
        ours = solve_setting(setting, n_tpus, SolverOptions(), "stream").pipelines
        rows = comparison(setting, n_tpus, ours, default=default)
        return tuple(replace(row, note=str(error)) if row.name == OURS else row for row in rows)
