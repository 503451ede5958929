"""`size`: how many TPUs, or devices of another kind, a model is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cost.devices import Devices
from balancer.errors import InfeasibleError, PlanError
from balancer.ground.units import NS_PER_S
from balancer.plan import names_plan
from balancer.planning.checks import check_tpus
from balancer.planning.costed_model import costed_model_of, open_costed_model
from balancer.planning.estimating import energy_of, loads_of, without_power_data
from balancer.planning.solving import solve_checked
from balancer.planning.sweeping import Sweep, sweep_asked
from balancer.solve import Constraints, SolverOptions, evaluate
from balancer.solve.offers import best_plan, pipeline_offer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.cost.hardware import Hardware
    from balancer.opened import OpenedPlan
    from balancer.plan import EnergyPrediction, Plan
    from balancer.planning.costed_model import CostedModel
    from balancer.planning.sweeping import AskedSweep
    from balancer.solve import PipelineSpec, Problem
    from balancer.solve.offers import Offer

KNEE = 0.05  # another TPU that adds less is past the knee
_LONGEST_NS = 1 << 60
_HARDWARE, _MOST = "pcie", 16


@dataclass(frozen=True, slots=True)
class SizeRow:
    """The fastest plan on n_tpus devices of the swept kind, predicted. All numbers are None if no plan keeps the limit on
    latency.

    throughput_per_s: inferences per second. latency_ns: of one input alone. overflow_bytes: streamed for lack of on-chip
    memory, over all its segments. tpus_used: of all kinds together. energy: of one inference at the wanted rate, or as fast as
    the plan goes; None where a kind has no power data.
    """

    n_tpus: int
    throughput_per_s: float | None
    latency_ns: int | None
    overflow_bytes: int | None
    tpus_used: int | None
    energy: EnergyPrediction | None = None


@dataclass(frozen=True, slots=True)
class Sizing:
    """The result of `size`. A number is None if no number of devices up to the last row will do.

    rows: the fastest plan for each number of devices of one kind, ascending. fits_at_n: the fewest on which some plan has no
    overflow; the fastest plan there may have some. knee_n: the fewest from which on, up to the last row, each further one adds
    less than 5 % to the rate. target_n: the fewest for the rate and the latency asked for. by_energy: the numbers that meet
    what was asked for, the least energy first; of equal energy the fewest devices. kind: the name of the kind, others: the
    devices beside it as text; both empty where only the number of TPUs was asked about. without_power_data: kinds for lack of
    whose data there are no estimates of energy. rough: kinds whose costs are rough guesses.
    """

    rows: tuple[SizeRow, ...]
    fits_at_n: int | None
    knee_n: int | None
    target_n: int | None
    by_energy: tuple[int, ...] = ()
    kind: str = ""
    others: str = ""
    without_power_data: tuple[str, ...] = ()
    rough: tuple[str, ...] = ()


def size(  # noqa: PLR0913 - the public entry: each keyword is one thing that a user decides
    model: str | Path | bytes | Plan | OpenedPlan,
    *,
    hardware: str | Path | Hardware | None = None,
    max_tpus: int | None = None,
    n_tpus: AskedSweep | None = None,
    target_per_s: float | None = None,
    max_latency_ns: float | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Sizing:
    """The rates of the fastest plans on 1, 2, 3 ... devices of one kind, and how many of them are worth having.

    model, hardware: as for `balance`, by default "pcie". The model may also be a plan, its file or its directory: then its
    hardware and its corrected costs count, no segment is in a plan that the compiler refused for it, and where it has several
    kinds the number of the first one varies. max_tpus: the largest number, by default 16. n_tpus: in place of both, kinds of
    devices with their numbers, of which one is a range: "usb=1-8,cpu=1" or {"usb": range(1, 9), "cpu": 1}. target_per_s: the
    wanted rate in inferences per second; energy is estimated at it. max_latency_ns: the longest latency of one input alone;
    slower plans do not count. progress: called with the numbers that are done.

    Raises ModelError, HardwareError or PlanError if a file cannot be used, ValueError for arguments out of range.
    """
    for name, value in (("target_per_s", target_per_s), ("max_latency_ns", max_latency_ns)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0, not {value}")
    if n_tpus is not None and (hardware is not None or max_tpus is not None):
        raise ValueError("n_tpus names the devices: leave out hardware and max_tpus")
    check_tpus(max_tpus or _MOST)
    sweep = None if n_tpus is None else sweep_asked(n_tpus)
    costed = _costed_model(model, hardware if sweep is None else sweep.devices(sweep.counts[0]))
    sweep = sweep or Sweep(costed.devices.kinds, 0, range(1, (max_tpus or _MOST) + 1))
    limit_ns = None if max_latency_ns is None else int(min(max_latency_ns, _LONGEST_NS))
    best = _Best(costed, sweep, limit_ns, target_per_s)
    rows: list[SizeRow] = []
    for n in sweep.counts:
        rows.append(best.row(n))
        progress(n)
    fits = next((n for n in sweep.counts if _fits(costed.on(sweep.devices(n)))), None)
    asked = target_per_s or max_latency_ns
    named = n_tpus is not None or len(sweep.kinds) > 1
    return Sizing(
        tuple(rows), fits, _knee(rows), _target(rows, target_per_s, asked=asked), _by_energy(rows, target_per_s),
        sweep.kind.name if named else "", sweep.others, without_power_data(costed.devices),
        tuple(kind.name for kind, _ in sweep.kinds if kind.rough),
    )  # fmt: skip


def _costed_model(
    model: str | Path | bytes | Plan | OpenedPlan, hardware: str | Path | Hardware | Devices | None
) -> CostedModel:
    """Of a model on the hardware, or of a plan."""
    if isinstance(model, bytes):
        return open_costed_model(model, hardware or _HARDWARE)
    if isinstance(model, (str, Path)) and not names_plan(Path(model)):
        return open_costed_model(model, hardware or _HARDWARE)
    if hardware is not None:
        raise PlanError("has hardware of its own", "the plan", "leave the hardware out, or give the model")
    return costed_model_of(model)


class _Best:
    """The best plans on ascending numbers of devices.

    offers: the pipelines found so far that keep the limit on latency; offered: the numbers of devices of each kind on which
    they were looked for. last: the plan of the number before, and its objective.
    """

    def __init__(self, costed: CostedModel, sweep: Sweep, limit_ns: int | None, target_per_s: float | None) -> None:
        self.costed, self.sweep, self.limit_ns, self.target_per_s = costed, sweep, limit_ns, target_per_s
        self.offers: list[Offer] = []
        self.offered: set[tuple[int, ...]] = set()
        self.last: Sequence[PipelineSpec] = ()

    def row(self, n: int) -> SizeRow:
        """The row for n devices of the swept kind. Called with ascending n."""
        costed = self.costed.on(self.sweep.devices(n))
        problem = costed.problem()
        # A plan for fewer devices also runs on more, leaving some idle.
        found = [(evaluate(problem, plan), plan) for plan in (self._fastest(costed, problem), self.last) if plan]
        values = [(value, plan) for value, plan in found if value is not None]
        if not values:
            return SizeRow(n, None, None, None, None)
        value, self.last = min(values, key=lambda pair: pair[0].objective_ns)
        stages = {(stage.ops, stage.kind) for pipeline in self.last for stage in pipeline.stages}
        overflow = sum(costed.costs_by_kind[kind].terms(ops).overflow_bytes for ops, kind in stages)
        energy = energy_of(costed.devices, loads_of(problem, self.last), self.target_per_s)
        rate = round(NS_PER_S / value.objective_ns, 6)
        return SizeRow(n, rate, value.latency_ns, overflow, value.devices, energy)

    def _fastest(self, costed: CostedModel, problem: Problem) -> Sequence[PipelineSpec]:
        """The fastest plan that keeps the limit on latency; none where none was found."""
        try:
            solution = solve_checked(problem, SolverOptions())
        except InfeasibleError:
            return ()
        if self.limit_ns is None or solution.value.latency_ns <= self.limit_ns:
            return solution.pipelines
        return self._within_limit(costed, problem)

    def _within_limit(self, costed: CostedModel, problem: Problem) -> Sequence[PipelineSpec]:
        """The best plan whose pipelines all keep the limit on latency.

        The fastest such pipeline is found for each number of devices of each kind; the plan is the best combination of them.
        """
        options = SolverOptions(constraints=Constraints(max_latency_ns=self.limit_ns))
        counts = tuple(count for _, count in costed.devices.kinds)
        for fewer in product(*(range(count + 1) for count in counts)):
            if not any(fewer) or fewer in self.offered:
                continue
            self.offered.add(fewer)
            kinds = tuple((kind, n) for (kind, _), n in zip(costed.devices.kinds, fewer, strict=True) if n)
            try:
                solution = solve_checked(costed.on(Devices(kinds)).problem(), options)
            except InfeasibleError:
                continue
            offer = pipeline_offer(problem, solution.pipelines[0])
            self.offers += [offer] if offer else []
        return best_plan(problem, self.offers, counts, sum(counts)).pipelines if self.offers else ()


def _fits(costed: CostedModel) -> bool:
    """Whether some plan on the devices streams nothing for lack of on-chip memory. One pipeline without replicas decides it:
    further copies hold the same segments.
    """
    try:
        solve_checked(costed.problem(overflow="error"), SolverOptions(max_pipelines=1, max_replicas=1))
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


def _by_energy(rows: list[SizeRow], target_per_s: float | None) -> tuple[int, ...]:
    """The numbers of devices whose plans reach the rate, the least energy first."""
    fast = ((row, row.throughput_per_s) for row in rows if row.throughput_per_s)
    ranked = [(row.energy.mj, row.n_tpus) for row, rate in fast if row.energy and rate >= (target_per_s or 0.0)]
    return tuple(n for _, n in sorted(ranked))
