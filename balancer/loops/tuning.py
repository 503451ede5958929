"""`tune`: run, measure each stage, correct the costs so that they agree, solve again.

Rounds end when a partition repeats, when another plan promises less than 1 % more, after so many, or with Ctrl-C. The
best plan as measured is kept. All plans keep to what the first one was held to, so that their rates compare; what was
measured is known by the ops of a segment, since other plans give the same names to other ops. Google's profiling
bisection can be run against the same source.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from balancer.directory.saving import compiled_files
from balancer.errors import BalancerError, InfeasibleError
from balancer.ground.rates import latency_ns, pipeline_rate, plan_rate
from balancer.learning.correcting import Evidence, corrected
from balancer.learning.fitting import Observed, fitted
from balancer.loops.aiming import Achieved, Aim, narrowed
from balancer.loops.simulating import perturbed
from balancer.loops.sources import TrueCosts
from balancer.opened import AnyPlan, OpenedPlan, open_plan
from balancer.planning.assembling import assemble
from balancer.planning.comparing import comparison, default_cuts
from balancer.planning.predicting import partition_plan
from balancer.planning.setting import setting_of
from balancer.planning.solved import pipelines_of
from balancer.planning.solving import solve_setting
from balancer.runtime.provenance import mixture
from balancer.solve import PipelineSpec, Solution, evaluate
from balancer.solve.bisection import Bisection, bisect_cuts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.ground.opsets import OpSet
    from balancer.loops.sources import Seen, Source
    from balancer.plan import ComparisonRow, Plan, Segment, SegmentReport
    from balancer.planning.options import Options
    from balancer.planning.setting import Setting

_LOG = logging.getLogger(__name__)
ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRound:
    """One plan, measured. worst: the largest |predicted - measured| / measured of its stages. measured_latency_ns: the
    sum of its stages' times, handed over. broken: the limit that it misses as measured, empty for none.
    """

    number: int
    segments: int
    predicted_per_s: float
    measured_per_s: float
    measured_latency_ns: int
    worst: float
    source: str
    broken: str = ""

    @property
    def achieved(self) -> Achieved:
        return Achieved(self.measured_per_s, self.measured_latency_ns)


@dataclass(frozen=True, slots=True)
class Tuned:
    """plan: the best as measured, with its measured columns, predicted by the costs that agree with them. ended: why
    there were no more rounds. best: the plan's round. gain: how many times better it is than the first one, in rate or,
    where that is what counts, in latency.
    """

    plan: Plan
    rounds: tuple[TuneRound, ...]
    ended: str
    best: TuneRound
    gain: float


def tune(
    plan: AnyPlan | OpenedPlan,
    source: Source,
    *,
    rounds: int = ROUNDS,
    options: Options | None = None,
    on_round: Callable[[TuneRound], None] = lambda found: None,
) -> Tuned:
    """The best plan for the plan's model and number of TPUs as this source measures it, within what the plan was held to.

    plan: a plan, its file, or its directory. source: measures a plan's segments, see `sources`. rounds: at most so many.
    options: what all plans are held to beside what the first one was, and how they are searched for. on_round: told of each
    round.

    Raises PlanError where the plan's model is gone, ConstraintError where the options would drop a limit of the plan or the
    plan does not keep to them, and what the source raises at the first round. Where the source fails later, or Ctrl-C
    comes, the rounds before count.
    """
    opened = open_plan(plan)
    aim = Aim(narrowed(opened.plan, options))
    return _Tuning(setting_of(opened), opened.plan.n_tpus, source, aim, on_round).run(opened.plan, rounds)


@dataclass
class _Tuning:
    setting: Setting
    n_tpus: int
    source: Source
    aim: Aim
    on_round: Callable[[TuneRound], None]
    evidence: dict[OpSet, Evidence] = field(default_factory=dict)
    observed: dict[OpSet, Observed] = field(default_factory=dict)
    rounds: list[TuneRound] = field(default_factory=list)
    seen: list[tuple[tuple[PipelineSpec, ...], Seen]] = field(default_factory=list)

    def run(self, plan: Plan, rounds: int) -> Tuned:
        self._measure(plan, pipelines_of(plan))
        try:
            ended = self._improve(rounds)
            found = self._best(self._proof)
        except KeyboardInterrupt:
            ended = f"interrupted after round {len(self.rounds)}"
            found = self._best(self._no_proof)
        best = self.rounds[self._best_round]
        return Tuned(found, tuple(self.rounds), ended, best, self.aim.gain(self.rounds[0].achieved, best.achieved))

    def _improve(self, rounds: int) -> str:
        """Solve and measure again; why it ended."""
        while len(self.rounds) < rounds:
            known = self._learnt()
            try:
                solution = self._solve(known)
            except InfeasibleError as error:
                return f"no plan keeps the limits with what was measured: {error}"
            if "interrupted" in solution.statistics:
                raise KeyboardInterrupt
            if any(solution.pipelines == old for old, _ in self.seen):
                return "a partition repeats"
            # A plan that promises less than 1 % is not worth a round of compiling and measuring.
            if not self.aim.promises_more(solution.value, self.rounds[self._best_round].achieved):
                return "another one promises less than 1 % more"
            try:
                self._measure(assemble(known, solution, self.n_tpus, (), self.aim.options.held_to), solution.pipelines)
            except BalancerError as error:
                # What was measured before still counts: a plan that no compiler here can compile, a device that is gone.
                ended = f"round {len(self.rounds) + 1} cannot be measured: {error}"
                _LOG.warning("%s", ended)
                return ended
        return f"{rounds} rounds were allowed"

    def _solve(self, known: Setting) -> Solution:
        return solve_setting(known, self.n_tpus, self.aim.options)

    def _measure(self, plan: Plan, pipelines: tuple[PipelineSpec, ...]) -> None:
        seen = self.source(plan)
        worst = 0.0
        for segment in seen.plan.segments:
            ops, measured, reported = segment.ops, segment.measured, segment.reported
            if measured is None:
                continue
            self.observed.pop(ops, None)  # the latest ones last
            self.observed[ops] = Observed(ops, measured.stage_ns, reported.capacity_bytes if reported else None)
            if reported:
                self.evidence[ops] = Evidence(ops, reported)
            worst = max(worst, abs(segment.predicted.stage_ns - measured.stage_ns) / max(1, measured.stage_ns))
        hardware = self.setting.hardware
        achieved = Achieved(
            measured_rate(seen, hardware.host.host_ns_per_stage), _latency_ns(seen, hardware.host.handover_ns)
        )
        self.seen.append((pipelines, seen))
        self.rounds.append(
            TuneRound(
                number=len(self.rounds) + 1, segments=len(plan.segments), predicted_per_s=plan.predicted.throughput_per_s,
                measured_per_s=achieved.per_s, measured_latency_ns=achieved.latency_ns, worst=worst, source=_source(seen),
                broken=self.aim.broken(achieved),
            )
        )  # fmt: skip
        self.on_round(self.rounds[-1])

    def _learnt(self) -> Setting:
        known = self.setting
        if self.evidence:
            known = replace(known, profile=corrected(known, self.evidence.values()))
        return fitted(known, list(self.observed.values()))

    @property
    def _best_round(self) -> int:
        """Its place in `rounds`."""
        return min(range(len(self.rounds)), key=lambda i: self.aim.key(self.rounds[i].achieved))

    def _best(self, prove: Callable[[Setting, Solution], tuple[Solution, Sequence[ComparisonRow]]]) -> Plan:
        """Predicted by all that was learnt, its own stages last; measured, and reported, as it was."""
        pipelines, seen = self.seen[self._best_round]
        for segment in seen.plan.segments:
            self.observed[segment.ops] = self.observed.pop(segment.ops)
        known = self._learnt()
        value = evaluate(known.problem(self.n_tpus), pipelines)
        if value is None:
            return seen.plan
        counts = {"measured_rounds": len(self.rounds)}
        given = Solution(solver="tune", pipelines=pipelines, value=value, bound_ns=0, over="nothing", statistics=counts)
        solution, rows = prove(known, given)
        plan = assemble(known, solution, self.n_tpus, rows, self.aim.options.held_to)
        old = {segment.ops: segment for segment in seen.plan.segments}
        segments = tuple(
            replace(s, measured=old[s.ops].measured, reported=_by_compiler(old[s.ops])) for s in plan.segments
        )
        return replace(plan, segments=segments, made=compiled_files(open_plan(seen.plan)))

    def _proof(self, known: Setting, found: Solution) -> tuple[Solution, Sequence[ComparisonRow]]:
        """The solution with what is known of the optimum, and other ways beside it."""
        rows = comparison(known, self.n_tpus, found.pipelines, options=self.aim.options)
        try:
            bound = self._solve(known)
        except InfeasibleError:
            return found, rows  # the limits forbid what was measured, too
        least, latency = min(bound.bound_ns, found.value.objective_ns), bound.latency_bound_ns
        proven = replace(
            bound, pipelines=found.pipelines, value=found.value, bound_ns=least, statistics=found.statistics,
            latency_bound_ns=None if latency is None else min(latency, found.value.latency_ns),
        )  # fmt: skip
        return proven, rows

    def _no_proof(self, known: Setting, found: Solution) -> tuple[Solution, Sequence[ComparisonRow]]:
        """At once: nobody waits after Ctrl-C."""
        return found, ()


def _latency_ns(seen: Seen, handover_ns: int) -> int:
    """Of one input alone, through the slowest of the pipelines."""
    times = {s.name: (s.measured or s.predicted).stage_ns for s in seen.plan.segments}
    return max(latency_ns((times[s.segment] for s in p.stages), handover_ns) for p in seen.plan.pipelines)


def _source(seen: Seen) -> str:
    return mixture(s.measured.source for s in seen.plan.segments if s.measured)


def truth_of(plan: AnyPlan | OpenedPlan, seed: int) -> TrueCosts:
    """Hardware that differs from the cost model as `perturbed` says: the same for the same model and seed, whatever the
    plan's own costs have learnt.
    """
    return TrueCosts(perturbed(replace(setting_of(plan), profile=None), seed))


def _by_compiler(segment: Segment) -> SegmentReport | None:
    """Its report, unless a simulated compiler gave it; its files are in `made` until the plan is saved."""
    reported = segment.reported
    return replace(reported, file=None, log=None) if reported and reported.sha256 else None


def measured_rate(seen: Seen, host_ns: int) -> float:
    """Inferences per second: as measured, else that of the measured stages."""
    if seen.throughput_per_s is not None:
        return seen.throughput_per_s
    plan = seen.plan
    times = {s.name: s.measured.stage_ns for s in plan.segments if s.measured}
    rates = [
        pipeline_rate([times[s.segment] for s in p.stages], [s.replicas for s in p.stages]) for p in plan.pipelines
    ]
    return float(plan_rate(rates, [host_ns * len(p.stages) for p in plan.pipelines]))


def bisected(plan: AnyPlan | OpenedPlan, source: Source, segments: int | None = None) -> Bisection:
    """Google's profiling bisection for the plan's model, one pipeline of so many single TPUs, against this source."""
    opened = open_plan(plan)
    setting = setting_of(opened)
    n, count = len(setting.graph.ops), segments or opened.plan.n_tpus

    def latency(start: int, end: int) -> int | None:
        edges = sorted({0, start, end, n})
        parts = [((1 << b) - 1) & ~((1 << a) - 1) for a, b in pairwise(edges)]
        made = partition_plan(setting, parts)
        if made is None:
            return None
        wanted = (1 << end) - (1 << start)
        measured = source(made).plan
        return next(s.measured.stage_ns for s in measured.segments if s.measured and s.ops == wanted)

    return bisect_cuts(n, count, latency, default_cuts(setting, count))
