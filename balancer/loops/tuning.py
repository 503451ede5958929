"""`tune`: measure a plan's stages, correct the costs so that they agree, solve again.

    plan -> measure each stage -> correct the costs (`learning.correcting`, `learning.fitting`) -> solve -> plan -> ...

It ends when a partition repeats, when the next plan promises less than 1 % more than the best measured so far, after the
allowed number of rounds, when a plan cannot be measured, or with Ctrl-C. The plan with the best measurement is the result.

All plans keep the limits of the first one, so that their rates compare. Measurements are kept by the ops of a segment,
not by its name: another plan gives the same names to other ops.

Google's profiling bisection can be run against the same source of times (`bisected`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from balancer.directory.saving import compiled_files
from balancer.errors import BalancerError, InfeasibleError, PlanError
from balancer.ground.rates import latency_ns, pipeline_rate, plan_rate
from balancer.ground.wording import counted
from balancer.learning.correcting import Evidence, corrected
from balancer.learning.fitting import Observed, fitted
from balancer.loops.aiming import Achieved, Aim, narrowed
from balancer.loops.simulating import perturbed
from balancer.loops.sources import TrueCosts
from balancer.opened import AnyPlan, OpenedPlan, open_plan
from balancer.plan import EDGE_TPU
from balancer.planning.assembling import assemble
from balancer.planning.checks import check_count
from balancer.planning.comparing import comparison, default_cuts
from balancer.planning.costed_model import costed_model_of
from balancer.planning.predicting import partition_plan
from balancer.planning.solved import pipelines_of
from balancer.planning.solving import bounded_by, solve_costed_model
from balancer.runtime.provenance import joined, parse_provenance, provenance_text
from balancer.solve import Ended, PipelineSpec, Solution, evaluate
from balancer.solve.bisection import Bisection, bisect_cuts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.ground.opsets import OpSet
    from balancer.loops.sources import Seen, Source
    from balancer.plan import ComparisonRow, Plan, Segment, SegmentReport
    from balancer.planning.costed_model import CostedModel
    from balancer.planning.options import Options

ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRound:
    """One plan, measured.

    number: from 1. segments: how many the plan has. predicted_per_s, measured_per_s: inferences per second.
    measured_latency_ns: of one input alone: the measured times of its stages and the predicted hand-over between them.
    worst: the largest relative error of a stage, |predicted - measured| / measured. source: what was measured on, such as
    "device" or "simulated". broken: the limit that the measured plan misses, in words; empty if it keeps all.
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
    """The result of `tune`.

    plan: the one with the best measurement. Its segments have their measured times; its predictions come from the
    corrected costs. rounds: in order. ended: why there were no more rounds, in words. best: the round of the plan. gain:
    the improvement over the first plan as a ratio, of rates, or of latencies if these are minimised. unmeasured: the plan
    of the next round where the source could not measure it, which is worth measuring; else None.
    """

    plan: Plan
    rounds: tuple[TuneRound, ...]
    ended: str
    best: TuneRound
    gain: float
    unmeasured: Plan | None = None


def tune(
    plan: AnyPlan | OpenedPlan,
    source: Source,
    *,
    rounds: int = ROUNDS,
    options: Options | None = None,
    on_round: Callable[[TuneRound], None] = lambda finished: None,
) -> Tuned:
    """The plan with the best measurement, for the given plan's model and number of TPUs, within the given plan's limits.

    plan: a plan, its file, or its directory; the first one to be measured. source: measures the segments of a plan:
    `PipelineTimes`, `RecordedTimes` or `TrueCosts`. rounds: how many plans may be measured. options: limits on all plans in
    addition to those of the first one, and how to search for them. on_round: called after each round.

    Nothing is written; `save` does that. Raises PlanError if the plan cannot be opened, or is for others than Edge TPUs of one
    kind, ConstraintError if the options
    would loosen a limit of the plan or the plan itself breaks them, and whatever the source raises in the first round. If
    the source fails in a later round, or Ctrl-C is pressed, the result is the best of the rounds before.
    """
    check_count("rounds", rounds)
    opened = open_plan(plan)
    _check_one_kind(opened.plan)
    aim = Aim(narrowed(opened.plan, options))
    return _Tuning(costed_model_of(opened), source, aim, on_round).run(opened.plan, rounds)


def _check_one_kind(plan: Plan) -> None:
    """Raises PlanError for a plan whose devices are not Edge TPUs of one kind: their costs are what is corrected."""
    if len(plan.devices) > 1 or plan.devices[0].device != EDGE_TPU:
        kinds = ",".join(f"{devices.kind}={devices.count}" for devices in plan.devices)
        what = f"is for {kinds}, and tuning corrects the costs of Edge TPUs of one kind"
        raise PlanError(what, plan.file_name, "tune a plan for one kind; `balancer bench` measures this one")


@dataclass
class _Tuning:
    """The state of one call of `tune`.

    costed: with the first plan's costs, before any correction. evidence, observed: the reports and the measured times of
    all segments so far, by their ops; the latest measurement is last. seen: what was measured, one for each of `rounds`.
    """

    costed: CostedModel
    source: Source
    aim: Aim
    on_round: Callable[[TuneRound], None]
    evidence: dict[OpSet, Evidence] = field(default_factory=dict)
    observed: dict[OpSet, Observed] = field(default_factory=dict)
    rounds: list[TuneRound] = field(default_factory=list)
    seen: list[tuple[tuple[PipelineSpec, ...], Seen]] = field(default_factory=list)
    unmeasured: Plan | None = None

    def run(self, plan: Plan, rounds: int) -> Tuned:
        self._measure(plan, pipelines_of(plan))
        try:
            ended = self._improve(rounds)
            best_plan = self._best(self._proof)
        except KeyboardInterrupt:
            ended = f"interrupted after round {len(self.rounds)}"
            best_plan = self._best(self._no_proof)
        best = self.rounds[self._best_round]
        gain = self.aim.gain(self.rounds[0].achieved, best.achieved)
        return Tuned(best_plan, tuple(self.rounds), ended, best, gain, self.unmeasured)

    def _improve(self, rounds: int) -> str:
        """Solve and measure again. Returns why it ended."""
        while len(self.rounds) < rounds:
            known = self._learnt()
            try:
                solution = self._solve(known)
            except InfeasibleError as error:
                return f"no plan keeps the limits with what was measured: {error}"
            if solution.ended is Ended.INTERRUPTED:
                raise KeyboardInterrupt
            if any(solution.pipelines == old for old, _ in self.seen):
                return "a partition repeats"
            # A gain of less than 1 % is within the accuracy of measuring: not worth compiling and measuring another plan.
            if not self.aim.promises_more(solution.value, self.rounds[self._best_round].achieved):
                return "another one promises less than 1 % more"
            following = assemble(known, solution, (), self.aim.options.held_to)
            try:
                self._measure(following, solution.pipelines)
            except BalancerError as error:
                # The rounds before still count. It may be that nobody has measured this plan yet, that it cannot be compiled
                # here, or that a device is gone.
                self.unmeasured = following
                return f"round {len(self.rounds) + 1} cannot be measured: {error}"
        return f"{counted(rounds, 'round')} allowed"

    def _solve(self, known: CostedModel) -> Solution:
        return solve_costed_model(known, self.aim.options)

    def _measure(self, plan: Plan, pipelines: tuple[PipelineSpec, ...]) -> None:
        seen = self.source(plan)
        worst = 0.0
        for segment in seen.plan.segments:
            ops, measured, reported = segment.ops, segment.measured, segment.reported
            if measured is None:
                continue
            self.observed.pop(ops, None)  # the latest ones last
            capacity = reported.capacity_bytes if reported else None
            self.observed[ops] = Observed(ops, measured.stage_ns, capacity, measured.source)
            if reported:
                self.evidence[ops] = Evidence(ops, reported)
            worst = max(worst, abs(segment.predicted.stage_ns - measured.stage_ns) / max(1, measured.stage_ns))
        hardware = self.costed.hardware
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

    def _learnt(self) -> CostedModel:
        """The costed model with corrected costs. Both corrections start from the first plan's costs, so that they do not pile
        up. Memory comes first: which parameters are streamed decides what the measured times have to explain.
        """
        known = self.costed
        if self.evidence:
            known = replace(known, profile=corrected(known, self.evidence.values()))
        return fitted(known, list(self.observed.values()))

    @property
    def _best_round(self) -> int:
        """Index in `rounds` of the best plan; the earliest of equals."""
        return min(range(len(self.rounds)), key=lambda i: self.aim.key(self.rounds[i].achieved))

    def _best(self, prove: Callable[[CostedModel, Solution], tuple[Solution, Sequence[ComparisonRow]]]) -> Plan:
        """The best plan, predicted with the corrected costs, with its own measurements and reports.

        prove: adds a bound and a comparison to the solution.
        """
        pipelines, seen = self.seen[self._best_round]
        # Moved to the end: where stages share an op, the latest decides its cost, and this plan is to be right.
        for segment in seen.plan.segments:
            self.observed[segment.ops] = self.observed.pop(segment.ops)
        known = self._learnt()
        value = evaluate(known.problem(), pipelines)
        if value is None:  # the corrected costs forbid one of its segments: it stays as it was measured
            return seen.plan
        counts = {"measured_rounds": len(self.rounds)}
        given = Solution(
            solver="tune",
            pipelines=pipelines,
            value=value,
            bound_ns=None,
            over="nothing",
            statistics=counts,
            ended=Ended.NOT_SEARCHED,
        )
        solution, rows = prove(known, given)
        plan = assemble(known, solution, rows, self.aim.options.held_to)
        old = {segment.ops: segment for segment in seen.plan.segments}
        segments = tuple(
            replace(s, measured=old[s.ops].measured, reported=_by_compiler(old[s.ops])) for s in plan.segments
        )
        return replace(plan, segments=segments, made=compiled_files(open_plan(seen.plan)))

    def _proof(self, known: CostedModel, measured: Solution) -> tuple[Solution, Sequence[ComparisonRow]]:
        """The solution with a bound on the optimum under the corrected costs, and the rows of the comparison."""
        rows = comparison(known, measured.pipelines, options=self.aim.options)
        try:
            optimum = self._solve(known)
        except InfeasibleError:
            return measured, rows  # under the corrected costs no plan keeps the limits: there is no optimum to bound
        # It keeps the name of the solver that proved the bound, and what was passed over.
        named = replace(measured, solver=optimum.solver, passed_over_ns=optimum.passed_over_ns)
        return bounded_by(known, named, optimum, self.aim.options), rows

    def _no_proof(self, known: CostedModel, measured: Solution) -> tuple[Solution, Sequence[ComparisonRow]]:
        """The solution without a bound or a comparison: after Ctrl-C the user is not to wait for solvers."""
        return measured, ()


def _latency_ns(seen: Seen, handover_ns: int) -> int:
    """Latency of one input alone in the slowest pipeline. handover_ns: for each hand-over between stages."""
    times = {s.name: (s.measured or s.predicted).stage_ns for s in seen.plan.segments}
    return max(latency_ns((times[s.segment] for s in p.stages), handover_ns) for p in seen.plan.pipelines)


def _source(seen: Seen) -> str:
    """What the plan was measured on, such as "device"; several are joined."""
    segments = seen.plan.segments
    return provenance_text(joined(parse_provenance(s.measured.source) for s in segments if s.measured))


def truth_of(plan: AnyPlan | OpenedPlan, seed: int) -> TrueCosts:
    """A source of times of simulated hardware that differs from the cost model (see `simulating.perturbed`).

    It depends on the seed, the model and the plan's hardware alone, not on corrections of the plan's costs: all plans of
    one tuning are measured on the same hardware. Raises PlanError if the plan cannot be opened.
    """
    return TrueCosts(perturbed(replace(costed_model_of(plan), profile=None), seed))


def _by_compiler(segment: Segment) -> SegmentReport | None:
    """The segment's report, or None if it comes from a simulated compiler, which gives no file and so no hash.

    The file names are dropped: the plan is not saved yet, and its compiled files are in `made`.
    """
    reported = segment.reported
    return replace(reported, file=None, log=None) if reported and not reported.simulated else None


def measured_rate(seen: Seen, host_ns: int) -> float:
    """Inferences per second: the measured rate of the plan, else the rate that its measured stages allow.

    host_ns: the host's work for one stage and one inference.
    """
    if seen.throughput_per_s is not None:
        return seen.throughput_per_s
    plan = seen.plan
    times = {s.name: s.measured.stage_ns for s in plan.segments if s.measured}
    rates = [
        pipeline_rate([times[s.segment] for s in p.stages], [s.replicas for s in p.stages]) for p in plan.pipelines
    ]
    return float(plan_rate(rates, [host_ns * len(p.stages) for p in plan.pipelines]))


def bisected(plan: AnyPlan | OpenedPlan, source: Source, segments: int | None = None) -> Bisection:
    """Google's profiling bisection for the plan's model: one pipeline with one TPU for each stage, cut by measured times.

    plan: a plan, its file, or its directory. source: as for `tune`; it is called for each segment that is tried.
    segments: how many; None for as many as the plan has TPUs. Raises PlanError if the plan cannot be opened, and whatever
    the source raises.
    """
    opened = open_plan(plan)
    costed = costed_model_of(opened)
    n, count = len(costed.graph.ops), segments or opened.plan.n_tpus

    def latency(start: int, end: int) -> int | None:
        """ns of the segment with ops start to end - 1; None if such a segment is not allowed."""
        # A source measures whole plans: the ops before and after become segments, too.
        edges = sorted({0, start, end, n})
        parts = [((1 << b) - 1) & ~((1 << a) - 1) for a, b in pairwise(edges)]
        made = partition_plan(costed, parts)
        if made is None:
            return None
        wanted = (1 << end) - (1 << start)
        measured = source(made).plan
        return next(s.measured.stage_ns for s in measured.segments if s.measured and s.ops == wanted)

    return bisect_cuts(n, count, latency, default_cuts(costed, count))
