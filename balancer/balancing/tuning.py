"""`tune`: run, measure each stage, correct the costs so that they agree, solve again.

Rounds end when a partition repeats, when a round gains less than 1 %, or after so many. The best plan as measured is
kept. Google's profiling bisection can be run against the same source.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from balancer.balancing.assembling import assemble
from balancer.balancing.comparing import comparison, default_cuts
from balancer.balancing.correcting import Evidence, corrected
from balancer.balancing.fitting import Observed, fitted
from balancer.balancing.predicting import partition_plan
from balancer.balancing.saving import model_bytes
from balancer.balancing.setting import Setting
from balancer.balancing.simulating import perturbed
from balancer.balancing.solving import solve_setting
from balancer.balancing.sources import TrueCosts, segment_sets
from balancer.cost.hardware import Hardware, load_hardware, preset_names
from balancer.errors import BalancerError, PlanError
from balancer.plan import check_op_count
from balancer.solve import Options, Pipeline, Solution, Stage, evaluate, pipeline_rate, plan_rate
from balancer.solve.bisection import Bisection, bisect_cuts
from balancer.tflite.read import read_graph

if TYPE_CHECKING:
    from collections.abc import Callable

    from balancer.balancing.sources import Seen, Source
    from balancer.graph import OpSet
    from balancer.plan import Plan, Segment, SegmentReport

_LOG = logging.getLogger(__name__)
ROUNDS = 5
_LEAST_GAIN = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRound:
    """One plan, measured. worst: the largest |predicted - measured| / measured of its stages."""

    number: int
    segments: int
    predicted_per_s: float
    measured_per_s: float
    worst: float
    source: str


@dataclass(frozen=True, slots=True)
class Tuned:
    """plan: the best as measured, with its measured columns, predicted by the costs that agree with them. ended: why
    there were no more rounds.
    """

    plan: Plan
    rounds: tuple[TuneRound, ...]
    ended: str

    @property
    def gain(self) -> float:
        """Best measured rate over that of the first plan."""
        return max(r.measured_per_s for r in self.rounds) / self.rounds[0].measured_per_s


def tune(
    plan: Plan,
    source: Source,
    *,
    rounds: int = ROUNDS,
    options: Options | None = None,
    on_round: Callable[[TuneRound], None] = lambda found: None,
) -> Tuned:
    """The best plan for the plan's model and number of TPUs as this source measures it.

    options: what other plans may be like (pipelines, replicas). Raises PlanError where the plan's model is gone, and
    what the source raises at the first round; where it fails later, the rounds before count.
    """
    loop = _Tuning(setting_of(plan), plan.n_tpus, source, options or Options(), on_round)
    return loop.run(plan, rounds)


def setting_of(plan: Plan) -> Setting:
    """The plan's model on the plan's hardware."""
    data = model_bytes(plan)
    names = {f.name for f in dataclasses.fields(Hardware)} - {"name"}
    if not names <= set(plan.hardware.constants):
        missing = sorted(names - set(plan.hardware.constants))[0]
        raise PlanError(f"its hardware has no constant '{missing}'", plan.file_name, "solve again")
    name = plan.hardware.name.split(" + ")[0]
    hardware = Hardware(name=name, **{k: v for k, v in plan.hardware.constants.items() if k in names})
    graph = read_graph(data, name=plan.stem)
    check_op_count(plan, len(graph.ops))
    return Setting(data, plan.origin if plan.origin is not None else data, graph, hardware)


@dataclass
class _Tuning:
    setting: Setting
    n_tpus: int
    source: Source
    options: Options
    on_round: Callable[[TuneRound], None]
    evidence: dict[OpSet, Evidence] = field(default_factory=dict)
    observed: dict[OpSet, Observed] = field(default_factory=dict)
    rounds: list[TuneRound] = field(default_factory=list)
    seen: list[tuple[tuple[Pipeline, ...], Seen]] = field(default_factory=list)

    def run(self, plan: Plan, rounds: int) -> Tuned:
        pipelines = plan_pipelines(plan, self.setting.hardware.name)
        self._measure(plan, pipelines)
        known, ended = self._learnt(), f"{rounds} rounds were allowed"
        while len(self.rounds) < rounds:
            solution = solve_setting(known, self.n_tpus, self.options, "stream")
            if any(solution.pipelines == old for old, _ in self.seen):
                ended = "a partition repeats"
                break
            best = max(r.measured_per_s for r in self.rounds)
            # A plan that promises less than 1 % is not worth a round of compiling and measuring.
            if 1e9 / solution.value.objective_ns < best * (1 + _LEAST_GAIN):
                ended = "another one promises less than 1 % more"
                break
            try:
                self._measure(assemble(known, solution, self.n_tpus, ()), solution.pipelines)
            except BalancerError as error:
                # What was measured before still counts: a plan that no compiler here can compile, a device that is gone.
                ended = f"round {len(self.rounds) + 1} cannot be measured: {error}"
                _LOG.warning("%s", ended)
                break
            known = self._learnt()
        return Tuned(self._best(), tuple(self.rounds), ended)

    def _measure(self, plan: Plan, pipelines: tuple[Pipeline, ...]) -> None:
        seen = self.source(plan)
        self.seen.append((pipelines, seen))
        sets = segment_sets(plan)
        worst = 0.0
        for segment in seen.plan.segments:
            ops, measured, reported = sets[segment.name], segment.measured, segment.reported
            if measured is None:
                continue
            self.observed.pop(ops, None)  # the latest ones last
            self.observed[ops] = Observed(ops, measured.stage_ns, reported.capacity_bytes if reported else None)
            if reported:
                self.evidence[ops] = Evidence(ops, reported)
            worst = max(worst, abs(segment.predicted.stage_ns - measured.stage_ns) / max(1, measured.stage_ns))
        self.rounds.append(
            TuneRound(
                number=len(self.rounds) + 1, segments=len(plan.segments), predicted_per_s=plan.predicted.throughput_per_s,
                measured_per_s=measured_rate(seen, self.setting.hardware.host_ns_per_stage), worst=worst, source=_source(seen),
            )
        )  # fmt: skip
        self.on_round(self.rounds[-1])

    def _learnt(self) -> Setting:
        known = self.setting
        if self.evidence:
            known = replace(known, profile=corrected(known, self.evidence.values()))
        return fitted(known, list(self.observed.values()))

    def _best(self) -> Plan:
        """Predicted by all that was learnt, its own stages last; measured, and reported, as it was."""
        k = max(range(len(self.rounds)), key=lambda i: self.rounds[i].measured_per_s)
        pipelines, seen = self.seen[k]
        for ops in segment_sets(seen.plan).values():
            self.observed[ops] = self.observed.pop(ops)
        known = self._learnt()
        problem = known.problem(self.n_tpus)
        value = evaluate(problem, pipelines)
        if value is None:
            return seen.plan
        bound = solve_setting(known, self.n_tpus, self.options, "stream")
        solution = Solution(
            solver=bound.solver, pipelines=pipelines, value=value, bound_ns=min(bound.bound_ns, value.objective_ns),
            over=bound.over, statistics={"measured_rounds": len(self.rounds)},
        )  # fmt: skip
        plan = assemble(known, solution, self.n_tpus, comparison(known, self.n_tpus, pipelines))
        old = segment_sets(seen.plan)
        by_ops = {old[s.name]: s for s in seen.plan.segments}
        sets = segment_sets(plan)
        segments = tuple(
            replace(s, measured=by_ops[sets[s.name]].measured, reported=_by_compiler(by_ops[sets[s.name]]))
            for s in plan.segments
        )
        return replace(plan, segments=segments, made=seen.plan.made)


def _source(seen: Seen) -> str:
    return next((s.measured.source for s in seen.plan.segments if s.measured), "")


def truth_of(plan: Plan, seed: int) -> TrueCosts:
    """Hardware that differs from the cost model as `perturbed` says: the same for the same model and seed, whatever the
    plan's own costs have learnt.
    """
    setting = setting_of(plan)
    name = setting.hardware.name
    base = load_hardware(name) if name in preset_names() else setting.hardware
    return TrueCosts(perturbed(replace(setting, hardware=base), seed))


def _by_compiler(segment: Segment) -> SegmentReport | None:
    """Its report, unless a simulated compiler gave it."""
    return segment.reported if segment.reported and segment.reported.sha256 else None


def plan_pipelines(plan: Plan, kind: str) -> tuple[Pipeline, ...]:
    """A plan's pipelines as a solver has them."""
    sets = segment_sets(plan)
    return tuple(Pipeline(tuple(Stage(sets[s.segment], kind, s.replicas) for s in p.stages)) for p in plan.pipelines)


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


def bisected(plan: Plan, source: Source, segments: int | None = None) -> Bisection:
    """Google's profiling bisection for the plan's model, one pipeline of so many single TPUs, against this source."""
    setting = setting_of(plan)
    n, count = len(setting.graph.ops), segments or plan.n_tpus

    def latency(start: int, end: int) -> int | None:
        edges = sorted({0, start, end, n})
        parts = [((1 << b) - 1) & ~((1 << a) - 1) for a, b in pairwise(edges)]
        made = partition_plan(setting, parts)
        if made is None:
            return None
        wanted = (1 << end) - (1 << start)
        found = source(made).plan
        sets = segment_sets(found)
        return next(s.measured.stage_ns for s in found.segments if s.measured and sets[s.name] == wanted)

    return bisect_cuts(n, count, latency, default_cuts(setting, count))
