"""The comparison: other ways to use the same devices, all predicted with the same cost model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from balancer.cost.cpu_hardware import CpuHardware
from balancer.cost.hardware import Hardware
from balancer.errors import BalancerError, InfeasibleError, InvalidSolutionError
from balancer.ground.opsets import interval_set
from balancer.plan import KEPT, ComparisonRow
from balancer.planning.estimating import energy_of, loads_of
from balancer.planning.options import Options
from balancer.planning.prediction import DECIMALS
from balancer.planning.reported import reported_problem
from balancer.planning.solving import solve_checked, solver_of
from balancer.planning.ways import DEFAULT, all_of, cut_on, default_cuts, one_of, ways_on_kinds
from balancer.solve import PipelineSpec, Problem, SolverOptions, StageSpec, evaluate, steady_rate
from balancer.solve.baselines import equal_op_counts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balancer.cost.devices import Devices
    from balancer.ground.opsets import OpSet
    from balancer.plan import SegmentReport
    from balancer.planning.costed_model import CostedModel

Pipelines = Sequence[PipelineSpec]
ONE_TPU, COPIES, EQUAL = "one TPU", "copies", "equal op counts"
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
    problem = reported_problem(costed.without_forbidden, default.reports if default else {})
    if len(costed.devices.kinds) > 1:
        plans = ways_on_kinds(costed, problem, options) | ({REAL_DEFAULT: default.pipelines} if default else {})
    else:
        plans = _ways_on_one_kind(costed, problem, options, default, unsolved)
    ones = [one_of(kind, count) for kind, count in costed.devices.kinds] if ONE_TPU not in plans else [ONE_TPU]
    own = row_of(options.solver)
    plans.pop(own, None)  # the row of the same baseline, if the plan was made by one
    plans[own] = plan  # the last row
    rates = {name: steady_rate(problem, plan) if plan else None for name, plan in plans.items()}
    bases = _Bases(max(ones, key=lambda name: rates[name] or 0), REAL_DEFAULT if rates.get(REAL_DEFAULT) else DEFAULT)
    notes = {REAL_DEFAULT: default.note if default else None}
    if unsolved:
        notes[OURS_ONE] = f"not solved: {unsolved}"
    if len(ones) > 1:
        notes |= _notes_on_kinds(costed.devices, plans, rates, bases, own)
    if costed.state == KEPT:
        notes |= {name: "does not keep state" for name, made in plans.items() if made and not _keeps_order(made)}
    rows = (_row(costed, problem, name, made, rates, bases, notes.get(name)) for name, made in plans.items())
    breaking = {
        name
        for name, made in plans.items()
        if made and rates[name] and name != own and not options.kept_by(costed, made)
    }
    return tuple(replace(row, breaks_limits=row.name in breaking) for row in rows)


class _Bases(NamedTuple):
    """The names of the rows from which speed-ups count: of the best single device, and of the compiler's split."""

    one: str
    default: str


def _ways_on_one_kind(
    costed: CostedModel, problem: Problem, options: Options, default: DefaultSplit | None, unsolved: str | None
) -> dict[str, Pipelines | None]:
    """Other ways to use devices of one kind, by name, in the order of the table. None for a way that is not possible."""
    (hardware, n_tpus), n_ops = costed.devices.kinds[0], problem.n_ops
    kind, one = hardware.name, ONE_TPU if isinstance(hardware, Hardware) else one_of(hardware, n_tpus)
    whole = PipelineSpec((StageSpec(interval_set(0, n_ops), kind),))
    return {
        one: [whole],
        COPIES: [whole] * n_tpus,
        DEFAULT: cut_on(kind, default_cuts(costed, n_tpus), n_ops),
        **({REAL_DEFAULT: default.pipelines} if default else {}),
        EQUAL: cut_on(kind, equal_op_counts(n_ops, min(n_tpus, n_ops)), n_ops),
        **{row: _baseline(problem, solver) for row, solver in BASELINES.items()},
        **({EXHAUSTIVE: _baseline(problem, EXHAUSTIVE)} if n_ops**n_tpus <= MOST_TRIED else {}),
        OURS_ONE: None if unsolved else _one_pipeline(costed, problem, options),
    }


def _notes_on_kinds(
    devices: Devices,
    plans: Mapping[str, Pipelines | None],
    rates: Mapping[str, Fraction | None],
    bases: _Bases,
    own: str,
) -> dict[str, str]:
    """What is to be said of rows where there are several kinds."""
    default, notes = plans[bases.default], {bases.one: "the fastest single device, from which `x one` counts"}
    if default:
        notes[bases.default] = f"on {default[0].stages[0].kind} alone"
    remark = _cpu_remark(devices, rates, rates[own])
    return notes | ({own: remark} if remark else {})


def _cpu_remark(devices: Devices, rates: Mapping[str, Fraction | None], best: Fraction | None) -> str | None:
    """Where the CPU alone is faster than Edge TPUs of any kind alone, a line that says so. best: the rate of the plan."""
    alone = {kind: max(rates[way(kind, n)] or Fraction(0) for way in (one_of, all_of)) for kind, n in devices.kinds}
    on_cpu = max((rate for kind, rate in alone.items() if isinstance(kind, CpuHardware)), default=Fraction(0))
    on_tpus = max((rate for kind, rate in alone.items() if isinstance(kind, Hardware)), default=Fraction(0))
    if best is None or on_cpu <= on_tpus:
        return None
    if on_cpu >= best:
        return "nothing is faster than the CPU alone"
    return f"{float(best / on_cpu):.2f} times the CPU alone, which is faster than the Edge TPUs alone"


def row_of(solver: str) -> str:
    """The name of the row for a plan by this solver."""
    return _BY_RULE.get(solver, OURS)


def _keeps_order(pipelines: Pipelines) -> bool:
    """Whether all items pass the same devices in order, as kept state needs."""
    return len(pipelines) == 1 and all(stage.replicas == 1 for stage in pipelines[0].stages)


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


def _row(  # noqa: PLR0913 - all that a row is made from
    costed: CostedModel,
    problem: Problem,
    name: str,
    plan: Pipelines | None,
    rates: Mapping[str, Fraction | None],
    bases: _Bases,
    note: str | None,
) -> ComparisonRow:
    rate, value = rates[name], evaluate(problem, plan) if plan else None
    return ComparisonRow(
        name=name,
        stand_in=name == DEFAULT,
        throughput_per_s=round(float(rate), DECIMALS) if rate else None,
        latency_ns=value.latency_ns if value else None,
        streamed_bytes=value.streamed_bytes if value else None,
        speedup_over_one_tpu=_speedup(rate, rates[bases.one]),
        speedup_over_default=_speedup(rate, rates[bases.default]),
        note=note,
        energy=energy_of(costed.devices, loads_of(problem, plan or ())),
    )


def _speedup(rate: Fraction | None, base: Fraction | None) -> float | None:
    return round(float(rate / base), DECIMALS) if rate and base else None
