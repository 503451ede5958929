"""`size`: how many TPUs a model is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.errors import InfeasibleError, PlanError
from balancer.ground.units import NS_PER_S
from balancer.plan import names_plan
from balancer.planning.checks import check_tpus
from balancer.planning.costed_model import costed_model_of, open_costed_model
from balancer.planning.solving import solve_checked
from balancer.solve import Constraints, SolverOptions, evaluate
from balancer.solve.offers import best_plan, pipeline_offer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.cost.hardware import Hardware
    from balancer.opened import OpenedPlan
    from balancer.plan import Plan
    from balancer.planning.costed_model import CostedModel
    from balancer.solve import PipelineSpec, Problem
    from balancer.solve.offers import Offer

KNEE = 0.05  # another TPU that adds less is past the knee
_LONGEST_NS = 1 << 60
_HARDWARE = "pcie"


@dataclass(frozen=True, slots=True)
class SizeRow:
    """The fastest plan on n_tpus TPUs, predicted. All numbers are None if no plan keeps the limit on latency.

    throughput_per_s: inferences per second. latency_ns: of one input alone. overflow_bytes: streamed for lack of on-chip
    memory, over all its segments. tpus_used: at most n_tpus.
    """

    n_tpus: int
    throughput_per_s: float | None
    latency_ns: int | None
    overflow_bytes: int | None
    tpus_used: int | None


@dataclass(frozen=True, slots=True)
class Sizing:
    """The result of `size`. A number is None if no number of TPUs up to the last row will do.

    rows: the fastest plan for 1, 2, 3 ... TPUs. fits_at_n: the fewest TPUs on which some plan has no overflow; the fastest
    plan there may have some. knee_n: the fewest TPUs from which on, up to the last row, each further TPU adds less than
    5 % to the rate. target_n: the fewest TPUs for the rate and the latency asked for.
    """

    rows: tuple[SizeRow, ...]
    fits_at_n: int | None
    knee_n: int | None
    target_n: int | None


def size(  # noqa: PLR0913 - the public entry: each keyword is one thing that a user decides
    model: str | Path | bytes | Plan | OpenedPlan,
    *,
    hardware: str | Path | Hardware | None = None,
    max_tpus: int = 16,
    target_per_s: float | None = None,
    max_latency_ns: float | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Sizing:
    """The rates of the fastest plans on 1 to max_tpus Edge TPUs, and how many TPUs are worth having.

    model, hardware: as for `balance`, by default "pcie". The model may also be a plan, its file or its directory: then its
    hardware and its corrected costs count, and no segment is in a plan that the compiler refused for it. target_per_s: the
    wanted rate in inferences per second. max_latency_ns: the longest latency of one input alone; slower plans do not count.
    progress: called with the numbers of TPUs that are done.

    Raises ModelError, HardwareError or PlanError if a file cannot be used, ValueError for arguments out of range.
    """
    check_tpus(max_tpus)
    for name, value in (("target_per_s", target_per_s), ("max_latency_ns", max_latency_ns)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0, not {value}")
    costed = _costed_model(model, hardware)
    limit_ns = None if max_latency_ns is None else int(min(max_latency_ns, _LONGEST_NS))
    best = _Best(costed, max_tpus, limit_ns)
    rows: list[SizeRow] = []
    for n in range(1, max_tpus + 1):
        rows.append(_no_worse(best.row(n), rows))
        progress(n)
    fits = next((n for n in range(1, max_tpus + 1) if _fits(costed, n)), None)
    return Sizing(tuple(rows), fits, _knee(rows), _target(rows, target_per_s, asked=target_per_s or max_latency_ns))


def _costed_model(model: str | Path | bytes | Plan | OpenedPlan, hardware: str | Path | Hardware | None) -> CostedModel:
    """Of a model on the hardware, or of a plan."""
    if isinstance(model, bytes):
        return open_costed_model(model, hardware or _HARDWARE)
    if isinstance(model, (str, Path)) and not names_plan(Path(model)):
        return open_costed_model(model, hardware or _HARDWARE)
    if hardware is not None:
        raise PlanError("has hardware of its own", "the plan", "leave the hardware out, or give the model")
    return costed_model_of(model)


class _Best:
    """The best plans on 1, 2, 3 ... TPUs. offers: the pipelines found so far that keep the limit on latency."""

    def __init__(self, costed: CostedModel, max_tpus: int, limit_ns: int | None) -> None:
        self.costed, self.max_tpus, self.limit_ns = costed, max_tpus, limit_ns
        self.offers: list[Offer] = []
        self.offered = 0

    def row(self, n: int) -> SizeRow:
        """The row for n TPUs."""
        problem = self.costed.on(n).problem()
        try:
            solution = solve_checked(problem, SolverOptions())
        except InfeasibleError:
            return SizeRow(n, None, None, None, None)
        pipelines: Sequence[PipelineSpec] = solution.pipelines
        if self.limit_ns is not None and solution.value.latency_ns > self.limit_ns:
            pipelines = self._within_limit(problem, n)
        value = evaluate(problem, pipelines) if pipelines else None
        if value is None:
            return SizeRow(n, None, None, None, None)
        sets = {stage.ops for pipeline in pipelines for stage in pipeline.stages}
        overflow = sum(self.costed.costs.terms(ops).overflow_bytes for ops in sets)
        return SizeRow(n, round(NS_PER_S / value.objective_ns, 6), value.latency_ns, overflow, value.devices)

    def _within_limit(self, problem: Problem, n: int) -> Sequence[PipelineSpec]:
        """The best plan whose pipelines all keep the limit on latency.

        The fastest such pipeline is found for each number of devices; the plan is the best combination of them.
        """
        options = SolverOptions(constraints=Constraints(max_latency_ns=self.limit_ns))
        for devices in range(self.offered + 1, n + 1):
            try:
                solution = solve_checked(self.costed.on(devices).problem(), options)
            except InfeasibleError:
                continue
            offer = pipeline_offer(problem, solution.pipelines[0])
            self.offers += [offer] if offer else []
        self.offered = n
        return best_plan(problem, self.offers, (n,), n).pipelines if self.offers else ()


def _no_worse(row: SizeRow, before: Sequence[SizeRow]) -> SizeRow:
    """The row, or the one before if that has a higher rate: a plan for fewer TPUs also runs on more, leaving some idle."""
    if not before or (row.throughput_per_s or 0.0) >= (before[-1].throughput_per_s or 0.0):
        return row
    return replace(before[-1], n_tpus=row.n_tpus)


def _fits(costed: CostedModel, n: int) -> bool:
    """Whether some plan on n TPUs streams nothing for lack of on-chip memory. One pipeline without replicas decides it:
    further copies hold the same segments.
    """
    try:
        solve_checked(costed.on(n).problem(overflow="error"), SolverOptions(max_pipelines=1, max_replicas=1))
    except InfeasibleError:
        return False
    return True


def _knee(rows: list[SizeRow]) -> int | None:
    """The fewest TPUs from which on each further one adds less than KNEE to the rate."""
    rates = [row.throughput_per_s or 0.0 for row in rows]
    gains = [after / before - 1 if before else math.inf for before, after in pairwise(rates)]
    knee = next((k for k in range(len(gains)) if all(gain < KNEE for gain in gains[k:])), None)
    return None if knee is None else rows[knee].n_tpus


def _target(rows: list[SizeRow], target_per_s: float | None, *, asked: float | None) -> int | None:
    if asked is None:
        return None
    enough = (row.n_tpus for row in rows if row.throughput_per_s and row.throughput_per_s >= (target_per_s or 0.0))
    return next(enough, None)
