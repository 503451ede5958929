"""Ways to use the same TPUs, all through the same cost model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from balancer.errors import BalancerError, InfeasibleError
from balancer.ground.opsets import interval_set
from balancer.plan import KEPT, ComparisonRow
from balancer.planning.options import Options
from balancer.planning.prediction import DECIMALS
from balancer.planning.reported import reported_problem
from balancer.planning.solving import solve_checked
from balancer.solve import PipelineSpec, Problem, SolverOptions, StageSpec, evaluate, steady_rate
from balancer.solve.baselines import equal_op_counts, parameter_count

if TYPE_CHECKING:
    from collections.abc import Mapping
    from fractions import Fraction

    from balancer.ground.opsets import OpSet
    from balancer.plan import SegmentReport
    from balancer.planning.setting import Setting

Pipelines = Sequence[PipelineSpec]
ONE_TPU, COPIES, DEFAULT, EQUAL = "one TPU", "copies", "compiler default", "equal op counts"
REAL_DEFAULT = "edgetpu_compiler -n"
EXHAUSTIVE = "exhaustive"
BASELINES = {
    "depth balanced": "depth-balanced", "profiling bisection": "profiling-bisection",
    "DFS + interval DP": "dfs-interval-dp",
}  # fmt: skip
MOST_TRIED = 2000  # partitions, roughly: more take too long to be tried by the way
OURS_ONE, OURS = "ours, one pipeline", "ours"
_BY_RULE = {
    "equal-op-counts": EQUAL, "parameter-count": DEFAULT, EXHAUSTIVE: EXHAUSTIVE,
    **{solver: row for row, solver in BASELINES.items()},
}  # fmt: skip
ANYTHING = Options()


@dataclass(frozen=True, slots=True)
class DefaultSplit:
    """What the compiler's own `--num_segments` made of a model: a pipeline of single TPUs with what was reported of its
    segments; without them, note says why.
    """

    pipelines: Pipelines
    reports: Mapping[OpSet, SegmentReport]
    note: str | None


def comparison(
    setting: Setting, n_tpus: int, plan: Pipelines, *, options: Options = ANYTHING, default: DefaultSplit | None = None
) -> tuple[ComparisonRow, ...]:
    """The rows, slow ways first as a rule. The last one is the plan that they are about: `ours`, or the baseline that
    made it.

    options: what the plan was held to; rows that do not keep to it say so.
    default: what the compiler's `--num_segments` really did, where that is known; it stands beside its stand-in, with
    the memory that was reported.
    """
    problem = reported_problem(setting, n_tpus, default.reports if default else {})
    plans: dict[str, Pipelines | None] = {
        ONE_TPU: _copies(problem, 1),
        COPIES: _copies(problem, n_tpus),
        DEFAULT: _cut(problem, default_cuts(setting, n_tpus)),
        **({REAL_DEFAULT: default.pipelines} if default else {}),
        EQUAL: _cut(problem, equal_op_counts(problem.n_ops, min(n_tpus, problem.n_ops))),
        **{row: _baseline(problem, solver) for row, solver in BASELINES.items()},
        **({EXHAUSTIVE: _baseline(problem, EXHAUSTIVE)} if problem.n_ops**n_tpus <= MOST_TRIED else {}),
        OURS_ONE: _one_pipeline(problem, options.seconds),
    }
    own = row_of(options.solver)
    plans.pop(own, None)  # by the same rule
    plans[own] = plan
    rates = {name: steady_rate(problem, plan) if plan else None for name, plan in plans.items()}
    notes = {REAL_DEFAULT: default.note if default else None}
    if setting.state == KEPT:
        notes |= {name: "does not keep state" for name, made in plans.items() if made and not _keeps_order(made)}
    rows = (_row(problem, name, made, rates, notes.get(name)) for name, made in plans.items())
    breaking = {
        name
        for name, made in plans.items()
        if made and rates[name] and name != own and not options.kept_by(setting, n_tpus, made)
    }
    return tuple(replace(row, breaks_limits=row.name in breaking) for row in rows)


def row_of(solver: str) -> str:
    """What the row of a solver's plan is called."""
    return _BY_RULE.get(solver, OURS)


def _keeps_order(pipelines: Pipelines) -> bool:
    return len(pipelines) == 1 and all(stage.replicas == 1 for stage in pipelines[0].stages)


def default_cuts(setting: Setting, segments: int) -> tuple[int, ...]:
    """Where the compiler's `--num_segments` cuts, as far as its rule is known."""
    return parameter_count([op.parameter_bytes for op in setting.graph.ops], min(segments, len(setting.graph.ops)))


def _copies(problem: Problem, count: int) -> Pipelines:
    kind = problem.devices[0][0]
    return [PipelineSpec((StageSpec(interval_set(0, problem.n_ops), kind),))] * count


def _cut(problem: Problem, cuts: Sequence[int]) -> Pipelines:
    kind = problem.devices[0][0]
    stages = (StageSpec(interval_set(a, b), kind) for a, b in pairwise([0, *cuts, problem.n_ops]))
    return [PipelineSpec(tuple(stages))]


def _baseline(problem: Problem, solver: str) -> Pipelines | None:
    try:
        return solve_checked(problem, SolverOptions(solver=solver)).pipelines
    except BalancerError:
        return None


def _one_pipeline(problem: Problem, seconds: float | None) -> Pipelines | None:
    try:
        return solve_checked(problem, SolverOptions(max_pipelines=1, seconds=seconds)).pipelines
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
