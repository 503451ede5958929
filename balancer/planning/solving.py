"""Solves a costed model within the limits that a caller gives."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.cost.compilable import LEVELS, Compilable
from balancer.errors import InfeasibleError, NotFoundError
from balancer.ground.units import KIB
from balancer.plan import KEPT
from balancer.solve import Deadline, Ended, Problem, Solution, SolverOptions, check, solve

if TYPE_CHECKING:
    from balancer.planning.costed_model import CostedModel
    from balancer.planning.options import Options

_OF_SEGMENTS = {
    Compilable.SURELY: ", of segments that surely compile",
    Compilable.PERHAPS: ", of segments that may compile",
    Compilable.SURELY_NOT: "",
}
_TAKEN = {Compilable.SURELY: "surely compiles", Compilable.PERHAPS: "may compile"}
_IF = {Compilable.SURELY: "if each segment must surely compile", Compilable.PERHAPS: "if none may surely be refused"}
# What allows segments of this level.
_ALLOWING = {Compilable.PERHAPS: "--compilable likely", Compilable.SURELY_NOT: "--compilable any"}


def solve_costed_model(costed: CostedModel, options: Options, overflow: str | None = None) -> Solution:
    """The best solution under the costed model's costs that keeps the options. overflow: replaces the options' own rule.

    Where the options leave open how surely the segments are to compile, the fastest plan is taken only if no plan compiles
    more surely; the solution then says what was passed over. The options' seconds are shared: where plans may differ in how
    surely they compile, half of what is left goes to each search, and all of it to the last.

    Raises InfeasibleError if no plan keeps the options, NotFoundError if none was found before a limit.
    """
    overflow, deadline = overflow or options.overflow_now, Deadline.after(options.seconds)
    best = LEVELS.index(costed.best_judgement.level)
    open_levels = options.compilable is None and best < LEVELS.index(options.worst)
    fastest = _solve_within(costed, _half(options) if open_levels else options, overflow, options.worst)
    if not open_levels or fastest.ended is Ended.INTERRUPTED:
        return fastest
    # What no partition can reach is not searched for.
    levels = LEVELS[best : LEVELS.index(_worst(costed, fastest))]
    for worst in levels:
        left = options.until(deadline)
        try:
            surer = _solve_within(costed, left if worst is levels[-1] else _half(left), overflow, worst)
        except NotFoundError:
            fastest = _cut_short(fastest, Ended.LIMIT_REACHED)
        except InfeasibleError:
            continue
        except KeyboardInterrupt:
            return _cut_short(fastest, Ended.INTERRUPTED)
        else:
            return replace(surer, passed_over_ns=fastest.optimised_ns)
    return fastest


def _half(options: Options) -> Options:
    return options if options.seconds is None else replace(options, seconds=options.seconds / 2)


def _cut_short(fastest: Solution, ended: Ended) -> Solution:
    """The fastest plan where a search for one that compiles more surely ended so. What is claimed of it stays true."""
    return replace(fastest, ended=ended, statistics=fastest.statistics | {ended.value: 1})


def _worst(costed: CostedModel, solution: Solution) -> Compilable:
    """The worst judgement on a segment of the solution."""
    stages = (stage for pipeline in solution.pipelines for stage in pipeline.stages)
    sets = {stage.ops for stage in stages if stage.kind in costed.compiled_kinds}
    return max((costed.level(ops) for ops in sets), key=LEVELS.index, default=LEVELS[0])


def bounded_by(costed: CostedModel, solution: Solution, optimum: Solution, options: Options) -> Solution:
    """The solution with what was proved of an optimum: of the same costed model, with these options.

    Nothing is claimed if the solution is not among the plans that the optimum was proved over.
    """
    least, latency = optimum.bound_ns, optimum.latency_bound_ns
    if is_outside_claim(costed, solution, optimum, options):
        least = latency = None
    return replace(
        solution, over=optimum.over, ended=optimum.ended,
        bound_ns=None if least is None else min(least, solution.value.objective_ns),
        latency_bound_ns=None if latency is None else min(latency, solution.value.latency_ns),
    )  # fmt: skip


def is_outside_claim(costed: CostedModel, solution: Solution, optimum: Solution, options: Options) -> bool:
    """Whether a solution compiles less surely than the plans that the optimum was proved over."""
    scope = options.worst if optimum.passed_over_ns is None else _worst(costed, optimum)
    return LEVELS.index(_worst(costed, solution)) > LEVELS.index(scope)


def _solve_within(costed: CostedModel, options: Options, overflow: str, worst: Compilable) -> Solution:
    """The best solution that keeps the options, of segments judged at worst so. Raises InfeasibleError if there is none."""
    best = costed.best_judgement
    # What no compiled segment can hold may stand on the CPU, where there is one.
    all_compiled = len(costed.compiled_kinds) == len(costed.devices.kinds)
    if all_compiled and LEVELS.index(best.level) > LEVELS.index(worst):
        need, limit = best.tile_bytes / KIB, costed.costs.compile_rule.sure_bytes / KIB
        raise InfeasibleError(
            f"no segment with it {_TAKEN[worst]}: what is live there needs {need:.0f} KiB of each tile, and segments "
            f"surely compile up to {limit:.0f} KiB",
            f"tensor '{best.tensor}'", f"use a smaller input, or {_ALLOWING[best.level]}",
        )  # fmt: skip
    try:
        solution = _solve(costed, costed.problem(overflow=overflow, worst=worst), options)
    except InfeasibleError as error:
        if worst is LEVELS[-1]:
            raise
        what, where, remedy = error.args
        more = _ALLOWING[LEVELS[LEVELS.index(worst) + 1]]
        raise type(error)(f"{what} {_IF[worst]}", where, f"{remedy}, or {more}") from error
    if solution.bound_ns is None:
        return solution
    refused = ", without what was refused" if costed.forbidden else ""
    taken = any(LEVELS.index(costed.costs.judgement(ops).level) > LEVELS.index(worst) for ops in costed.compiled)
    compiled = " or were compiled" if taken else ""
    return replace(solution, over=solution.over + _OF_SEGMENTS[worst] + compiled + refused)


def _solve(costed: CostedModel, problem: Problem, options: Options) -> Solution:
    options = replace(options, solver=solver_of(costed, options))
    if costed.state != KEPT:
        return solve_checked(problem, options.for_solver)
    # A stage that holds state needs all items in their order (see `plan.state`). The whole plan is restricted, although
    # replicas after the last such stage would do no harm: the claim of optimality says so.
    solution = solve_checked(problem, replace(options.for_solver, max_pipelines=1, max_replicas=1))
    claims = solution.bound_ns is not None
    return replace(solution, over=f"{solution.over}, as kept state needs") if claims else solution


def solver_of(costed: CostedModel, options: Options) -> str:
    """The solver for a costed model: that of the options, if it does not take minutes.

    The structure of the cost knows nothing of what is forbidden. So its bounds are far below the best plan, and `auto` lists
    all down-sets that lie between on large graphs, where `downset` samples them.
    """
    may_sample = costed.forbidden and options.solver == "auto" and not options.constraints
    return "downset" if may_sample else options.solver


def solve_checked(problem: Problem, options: SolverOptions) -> Solution:
    """`solve`, with the solution checked by code that shares nothing with the solvers.

    Raises InvalidSolutionError if the check fails, which is a fault of the solver, and what `solve` raises.
    """
    solution = solve(problem, options)
    check(problem, solution, options)
    return solution
