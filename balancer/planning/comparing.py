"""The comparison: other ways to use the same TPUs, all predicted with the same cost model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from balancer.errors import BalancerError, InfeasibleError, InvalidSolutionError
from balancer.ground.opsets import interval_set
from balancer.plan import KEPT, ComparisonRow
from balancer.planning.options import Options
from balancer.planning.prediction import DECIMALS
from balancer.planning.reported import reported_problem
from balancer.planning.solving import solve_checked, solver_of
from balancer.solve import PipelineSpec, Problem, SolverOptions, StageSpec, evaluate, steady_rate
from balancer.solve.baselines import equal_op_counts, parameter_count

if TYPE_CHECKING:
    from collections.abc import Mapping
    from fractions import Fraction

    from balancer.ground.opsets import OpSet
    from balancer.plan import SegmentReport
    from balancer.planning.costed_model import CostedModel

Pipelines = Sequence[PipelineSpec]
ONE_TPU, COPIES, DEFAULT, EQUAL = "one TPU", "copies", "compiler default", "equal op counts"
REAL_DEFAULT = "edgetpu_compiler -n"
EXHAUSTIVE = "exhaustive"
BASELINES = {
    "depth balanced": "depth-balanced", "profiling bisection": "profiling-bisection",
    "DFS + interval DP": "dfs-interval-dp",
}  # fmt: skip
MOST_TRIED = 2000  # partitions, roughly: exhaustive search of more takes too long for one row of a comparison
OURS_ONE, OURS = "ours, one pipeline", "ours"
_BY_RULE = {
    "equal-op-counts": EQUAL, "parameter-count": DEFAULT, EXHAUSTIVE: EXHAUSTIVE,
    **{solver: row for row, solver in BASELINES.items()},
}  # fmt: skip
ANYTHING = Options()


@dataclass(frozen=True, slots=True)
class DefaultSplit:
    """How the compiler's own `--num_segments` split a model.

    pipelines: one pipeline with one TPU for each stage, or none. reports: what the compiler reported, by the ops of the
    segment. note: why there is no pipeline; None if there is one.
    """

    pipelines: Pipelines
    reports: Mapping[OpSet, SegmentReport]
    note: str | None


def comparison(
    costed: CostedModel,
    plan: Pipelines,
    *,
    options: Options = ANYTHING,
    default: DefaultSplit | None = None,
    unsolved: str | None = None,
) -> tuple[ComparisonRow, ...]:
    """The rows of the comparison. The last row is the plan that is compared.

    plan: its pipelines. options: what the plan was solved with: `solver` names its row ("ours", or the baseline that made
    it); other rows that break its limits are marked. default: how the compiler's own `--num_segments` split the model, if
    that is known; it gets a row with the reported memory, beside the row of its stand-in. unsolved: why
    the best single pipeline is not searched for, in words; its row then has this note and no numbers. None to search.
    """
    # Rows are valued as if every segment could be compiled. Those with a forbidden one are marked below.
    n_tpus = costed.devices.total
    problem = reported_problem(costed.without_forbidden, default.reports if default else {})
    plans: dict[str, Pipelines | None] = {
        ONE_TPU: _copies(problem, 1),
        COPIES: _copies(problem, n_tpus),
        DEFAULT: _cut(problem, default_cuts(costed, n_tpus)),
        **({REAL_DEFAULT: default.pipelines} if default else {}),
        EQUAL: _cut(problem, equal_op_counts(problem.n_ops, min(n_tpus, problem.n_ops))),
        **{row: _baseline(problem, solver) for row, solver in BASELINES.items()},
        **({EXHAUSTIVE: _baseline(problem, EXHAUSTIVE)} if problem.n_ops**n_tpus <= MOST_TRIED else {}),
        OURS_ONE: None if unsolved else _one_pipeline(costed, problem, options),
    }
    own = row_of(options.solver)
    plans.pop(own, None)  # the row of the same baseline, if the plan was made by one
    plans[own] = plan  # the last row
    rates = {name: steady_rate(problem, plan) if plan else None for name, plan in plans.items()}
    notes = {REAL_DEFAULT: default.note if default else None}
    if unsolved:
        notes[OURS_ONE] = f"not solved: {unsolved}"
    if costed.state == KEPT:
        notes |= {name: "does not keep state" for name, made in plans.items() if made and not _keeps_order(made)}
    rows = (_row(problem, name, made, rates, notes.get(name)) for name, made in plans.items())
    breaking = {
        name
        for name, made in plans.items()
        if made and rates[name] and name != own and not options.kept_by(costed, made)
    }
    return tuple(replace(row, breaks_limits=row.name in breaking) for row in rows)


def row_of(solver: str) -> str:
    """The name of the row for a plan by this solver."""
    return _BY_RULE.get(solver, OURS)


def _keeps_order(pipelines: Pipelines) -> bool:
    """Whether all items pass the same devices in order, as kept state needs."""
    return len(pipelines) == 1 and all(stage.replicas == 1 for stage in pipelines[0].stages)


def default_cuts(costed: CostedModel, segments: int) -> tuple[int, ...]:
    """Where the compiler's `--num_segments` cuts, by its rule as far as it is known: the first op of each later segment."""
    return parameter_count([op.parameter_bytes for op in costed.graph.ops], min(segments, len(costed.graph.ops)))


def _copies(problem: Problem, count: int) -> Pipelines:
    """The whole model on each of `count` TPUs."""
    kind = problem.devices[0][0]
    return [PipelineSpec((StageSpec(interval_set(0, problem.n_ops), kind),))] * count


def _cut(problem: Problem, cuts: Sequence[int]) -> Pipelines:
    """One pipeline with one TPU for each stage, cut in the model's order."""
    kind = problem.devices[0][0]
    stages = (StageSpec(interval_set(a, b), kind) for a, b in pairwise([0, *cuts, problem.n_ops]))
    return [PipelineSpec(tuple(stages))]


def _baseline(problem: Problem, solver: str) -> Pipelines | None:
    """What a baseline makes of the problem; None if it cannot: its row then has no numbers."""
    try:
        return solve_checked(problem, SolverOptions(solver=solver)).pipelines
    except InvalidSolutionError:
        raise  # a defect is no reason to leave the row empty
    except BalancerError:
        return None


def _one_pipeline(costed: CostedModel, problem: Problem, options: Options) -> Pipelines | None:
    """The best single pipeline without forbidden segments. problem: as rows are valued, with all segments allowed."""
    limits = SolverOptions(max_pipelines=1, seconds=options.seconds, solver=solver_of(costed, ANYTHING))
    if costed.forbidden:
        problem = costed.problem()
    try:
        return solve_checked(problem, limits).pipelines
    except InfeasibleError:
        return None


def _row(
    problem: Problem, name: str, plan: Pipelines | None, rates: Mapping[str, Fraction | None], note: str | None
) -> ComparisonRow:
    default = rates.get(REAL_DEFAULT) or rates[DEFAULT]
    rate, value = rates[name], evaluate(problem, plan) if plan else None
    return ComparisonRow(
        name=name,
        stand_in=name == DEFAULT,
        throughput_per_s=round(float(rate), DECIMALS) if rate else None,
        latency_ns=value.latency_ns if value else None,
        streamed_bytes=value.streamed_bytes if value else None,
        speedup_over_one_tpu=_speedup(rate, rates[ONE_TPU]),
        speedup_over_default=_speedup(rate, default),
        note=note,
    )


def _speedup(rate: Fraction | None, base: Fraction | None) -> float | None:
    return round(float(rate / base), DECIMALS) if rate and base else None
