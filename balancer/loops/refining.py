"""`refine`: compile, compare with the prediction, correct the costs, solve again, until the compiler agrees.

    plan -> compile -> reports agree with the costs? -> yes: done
      ^                    | no
      |                    v
    solve again  <-  correct the costs (`learning.correcting`)

It ends when the reports agree, a plan repeats, a new plan promises no more than the best so far, or no round is left.

A segment that the compiler refuses does not end it. Such a segment is forbidden from then on, with others that are surely
refused for the same reason (`learning.refusals`), and the model is solved again (`loops.avoiding`). So each round leaves
fewer plans. What no other cut avoids does end it: a model that the compiler cannot read, a crash, a limit of time.

Overflow needs a rule of its own. A plan that streams some parameters for lack of on-chip memory depends on predicted
capacity to the last layer. Once a segment has streamed more than predicted, that prediction has proved wrong. From then
on a plan without overflow is preferred to a faster one with overflow, unless the caller decided with the option
`overflow`. Such a plan must not leave more ops on the CPU, and it must be at least as fast as the best
plan compiled so far.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from balancer.compiler import find_compiler
from balancer.cost.compilable import Compilable
from balancer.directory.compiling import Compilation, compile_plan
from balancer.errors import InfeasibleError
from balancer.ground.wording import counted
from balancer.learning.correcting import contradicts, corrected, cpu_ops, evidence_of, overflow_bytes, overruns
from balancer.learning.refusals import forbidden_by, refused_segment
from balancer.loops.aiming import narrowed
from balancer.loops.avoiding import all_refused, failure, halfway, next_to_compile, no_other_plan
from balancer.opened import AnyPlan, OpenedPlan, open_plan
from balancer.planning.assembling import assemble
from balancer.planning.checks import check_count
from balancer.planning.comparing import OURS_ONE, comparison
from balancer.planning.costed_model import ERROR, costed_model_of
from balancer.planning.reported import reported_problem
from balancer.planning.solved import solution_of
from balancer.planning.solving import bounded_by, is_outside_claim, solve_costed_model
from balancer.solve import Ended, Solution, Value, evaluate, steady_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.compiler import Compiler
    from balancer.ground.opsets import OpSet
    from balancer.learning.correcting import Evidence
    from balancer.learning.refusals import RefusedSegment
    from balancer.plan import ComparisonRow, Plan
    from balancer.planning.comparing import DefaultSplit
    from balancer.planning.costed_model import CostedModel
    from balancer.planning.options import Options
    from balancer.solve import Problem

_LOG = logging.getLogger(__name__)
ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineRound:
    """One plan, and what the compiler reported of it.

    number: from 1. segments: how many the plan has. predicted_streamed_bytes, reported_streamed_bytes: for one inference,
    over all segments. cpu_ops: how many ops the compiler left on the CPU. predicted_per_s: inferences per second as
    predicted before compiling; reported_per_s: as predicted with the reported memory. contradicted: names of the segments
    whose report differs from the prediction. refused: the segments that the compiler did not compile, and why. If there are
    any, the reported numbers are 0.
    """

    number: int
    segments: int
    predicted_streamed_bytes: int
    reported_streamed_bytes: int
    cpu_ops: int
    predicted_per_s: float
    reported_per_s: float
    contradicted: tuple[str, ...]
    refused: tuple[RefusedSegment, ...] = ()


@dataclass(frozen=True, slots=True)
class _Tried:
    """A solution that was compiled. plan: the same as a plan, with the compiler's reports."""

    solution: Solution
    plan: Plan


@dataclass(frozen=True, slots=True)
class Refined:
    """The result of `refine`.

    plan: the best one that was compiled, predicted with the corrected costs; its compiled files are in `plan.made`.
    rounds: in order. ended: why there were no more rounds, in words.
    """

    plan: Plan
    rounds: tuple[RefineRound, ...]
    ended: str


def refine(  # noqa: PLR0913 - the public entry: each keyword is one thing that a user decides
    plan: AnyPlan | OpenedPlan,
    compiler: Compiler | None = None,
    *,
    rounds: int = ROUNDS,
    options: Options | None = None,
    default: DefaultSplit | None = None,
    on_round: Callable[[RefineRound], None] = lambda finished: None,
) -> Refined:
    """The best plan, for the given plan's model and number of TPUs, whose predictions the vendor's compiler confirms.

    plan: a plan, its file, or its directory; the first one to be compiled. compiler: None for the one that
    `find_compiler` finds. rounds: how many plans may be compiled. options: limits on all new plans in addition to those
    of the first one, and how to search for them. default: the compiler's own split (see `default_split`), shown in the
    comparison. on_round: called after each round.

    Ctrl-C ends it with the best plan that was compiled, if there is one.

    Nothing is written; `save` does that. Raises PlanError if the plan cannot be opened, ConstraintError if the options
    would loosen a limit of the plan, CompilerError if the compiler is missing, or refuses a segment of each plan that was
    tried, InfeasibleError if no plan keeps the limits under the corrected costs, or each has a segment that was refused.
    """
    check_count("rounds", rounds)
    opened = open_plan(plan)
    costed = costed_model_of(opened)
    held = narrowed(opened.plan, options)
    loop = _Refinement(costed, held, compiler or find_compiler(), on_round, default)
    return loop.run(solution_of(opened.plan, costed.without_forbidden.problem()), rounds)


@dataclass
class _Refinement:
    """The state of one call of `refine`.

    costed: with the costs before any correction. known: with the corrections so far, and without what the compiler refuses.
    overran: whether a segment has streamed more than predicted. evidence: the reports of all segments compiled so far.
    refused: all segments refused so far. tried: the plans that were compiled.
    """

    costed: CostedModel
    options: Options
    compiler: Compiler
    on_round: Callable[[RefineRound], None]
    default: DefaultSplit | None
    evidence: dict[OpSet, Evidence] = field(default_factory=dict)
    refused: dict[OpSet, RefusedSegment] = field(default_factory=dict)
    tried: list[_Tried] = field(default_factory=list)
    rounds: list[RefineRound] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.known = self.costed
        self.overran = False

    def run(self, first: Solution, rounds: int) -> Refined:
        try:
            ended = self._improve(first, rounds)
            best = self._best()
        except KeyboardInterrupt:
            if not self.tried:
                raise
            ended = f"interrupted after round {len(self.rounds)}"
            best = self._best_without_proof()
        return Refined(best, tuple(self.rounds), ended)

    def _improve(self, first: Solution, rounds: int) -> str:
        """Compile, correct, solve again. Returns why it ended. Raises CompilerError if all rounds end in refusals."""
        solution: Solution | None = first
        while len(self.rounds) < rounds:
            if solution is None:
                return "no plan promises more"
            if any(t.solution.pipelines == solution.pipelines for t in self.tried):
                return "a plan repeats"
            compilation = compile_plan(assemble(self.known, solution, ()), self.compiler)
            for name, doubt in compilation.doubts:
                _LOG.warning("doubt: %s: %s", name, doubt)
            if compilation.refused:
                faults = self._refuse(compilation)
                if faults and not self.tried:
                    raise failure(faults)
                if faults:
                    return "the compiler fails"
            elif self._learn(_Tried(solution, compilation.plan)) and not self.refused:
                return "the compiler agrees"
            solution = self._next(rounds - len(self.rounds))
        if not self.tried:
            raise all_refused(self.costed, [done.refused for done in self.rounds])
        return f"{counted(rounds, 'round')} allowed"

    def _next(self, rounds_left: int) -> Solution | None:
        """The best solution under the corrected costs; None if no round is left, or if it promises no more than the best
        plan compiled so far.

        Raises InfeasibleError if no plan keeps the constraints, or each has a segment that the compiler refuses.
        """
        if not rounds_left:
            return None
        if not self.tried:
            return self._next_after_refusals(rounds_left)
        try:
            solutions = [self._solve(known) for known in self._ways_to_judge()]
        except InfeasibleError as error:
            if self.refused or not self.options.constraints:
                return None  # what was learnt leaves no plan; `_best` decides whether a compiled one will do
            what, where, remedy = error.args
            raise InfeasibleError(f"with the memory that the compiler reported, {what}", where, remedy) from error
        if any(solution.ended is Ended.INTERRUPTED for solution in solutions):
            raise KeyboardInterrupt
        best_so_far = min(self.tried, key=self._key)
        best = evaluate(self._with_reports(), best_so_far.solution.pipelines)
        # The best so far overflows and must not: then any new plan is worth a round, even a slower one.
        unsettled = self._keeps_within_memory() and overflow_bytes(self.known.costs, best_so_far.plan) > 0
        promising = [s for s in solutions if unsettled or best is None or s.value < best]
        tried = [t.solution.pipelines for t in self.tried]
        return min(promising, key=lambda s: s.pipelines in tried, default=None)

    def _ways_to_judge(self) -> list[CostedModel]:
        """What is known, with compiled segments as surely compiling. Where such plans are only preferred, also as if none were
        compiled: else compiled plans would be preferred to all new ones that only may compile.
        """
        compiled = frozenset(ops for ops in self.evidence if self.known.level(ops) is not Compilable.SURELY)
        if not compiled:
            return [self.known]
        as_judged = [] if self.options.compilable else [self.known]
        return [replace(self.known, compiled=compiled), *as_judged]

    def _next_after_refusals(self, rounds_left: int) -> Solution:
        try:
            solution = next_to_compile(self._ways_to_judge()[0], self.options, rounds_left)
        except InfeasibleError as error:
            raise no_other_plan(self.costed, self.rounds[-1].refused) from error
        if solution.ended is Ended.INTERRUPTED:
            raise KeyboardInterrupt
        return solution

    def _refuse(self, compilation: Compilation) -> tuple[RefusedSegment, ...]:
        """Take note of a round whose plan was not compiled. Returns the failures that are no refusals."""
        plan, costs = compilation.plan, self.known.costs
        refused = tuple(refused_segment(costs, plan.segment(r.name).ops, r) for r in compilation.refused)
        self.refused |= {each.ops: each for each in refused}
        self._correct(evidence_of(plan))
        self._tell(
            RefineRound(
                number=len(self.rounds) + 1, segments=len(plan.segments), reported_streamed_bytes=0, cpu_ops=0,
                predicted_streamed_bytes=sum(s.predicted.streamed_bytes for s in plan.segments),
                predicted_per_s=plan.predicted.throughput_per_s, reported_per_s=0.0, contradicted=(), refused=refused,
            )
        )  # fmt: skip
        return tuple(each for each in refused if not each.is_refusal)

    def _solve(self, known: CostedModel) -> Solution:
        """The best solution under these costs: the fastest, or one without overflow (see the module)."""
        known = halfway(known, self.evidence)
        fastest = solve_costed_model(known, self.options)
        if self.options.overflow or not self.overran:
            return fastest
        try:
            within_memory = solve_costed_model(known, self.options, ERROR)
        except InfeasibleError:
            return fastest
        reached = min(evaluate(self._with_reports(), t.solution.pipelines) or t.solution.value for t in self.tried)
        more_on_cpu = self._ops_on_cpu(within_memory) > self._ops_on_cpu(fastest)
        slower = within_memory.value.objective_ns > reached.objective_ns
        return fastest if more_on_cpu or slower else within_memory

    def _ops_on_cpu(self, solution: Solution) -> int:
        """How many ops of segments on Edge TPUs run on the CPU instead."""
        stages = (stage for pipeline in solution.pipelines for stage in pipeline.stages)
        sets = {stage.ops for stage in stages if stage.kind in self.known.compiled_kinds}
        return sum(self.known.costs.on_cpu(ops).bit_count() for ops in sets)

    def _keeps_within_memory(self) -> bool:
        """Whether a plan without overflow is preferred to a faster one with overflow."""
        return self.options.overflow == ERROR or (self.options.overflow is None and self.overran)

    def _tell(self, finished: RefineRound) -> None:
        self.rounds.append(finished)
        self.on_round(finished)

    def _learn(self, tried: _Tried) -> bool:
        """Correct the costs by the reports of a plan. Returns whether the reports agreed with the costs."""
        compiled = evidence_of(tried.plan)
        self.tried.append(tried)
        contradicted = self._correct(compiled)
        self._tell(self._round(tried, compiled, contradicted))
        return not contradicted

    def _correct(self, compiled: dict[OpSet, Evidence]) -> list[OpSet]:
        """Correct the costs by the reports of segments, and forbid what was refused. Returns the segments with other reports
        than predicted.
        """
        before = self.known.costs
        contradicted = [ops for ops, evidence in compiled.items() if contradicts(before, evidence)]
        self.evidence |= compiled
        self.overran |= any(overruns(before, evidence) for evidence in compiled.values())
        if contradicted:
            # From the uncorrected costed model and all evidence, not from `known`: corrections do not pile up.
            self.known = replace(self.costed, profile=corrected(self.costed, self.evidence.values()))
        if self.refused:
            learnt = forbidden_by(self.known.costs, self.refused.values(), self.evidence)
            self.known = replace(self.known, forbidden=self.costed.forbidden.joined(learnt))
        return contradicted

    def _round(self, tried: _Tried, compiled: dict[OpSet, Evidence], contradicted: Sequence[OpSet]) -> RefineRound:
        plan, problem = tried.plan, self._with_reports()
        rate = steady_rate(problem, tried.solution.pipelines)
        names = {s.ops: s.name for s in plan.segments if s.ops in compiled}
        reports = [s.reported for s in plan.segments if s.reported]
        return RefineRound(
            number=len(self.rounds) + 1, segments=len(plan.segments), cpu_ops=cpu_ops(plan),
            predicted_streamed_bytes=sum(s.predicted.streamed_bytes for s in plan.segments),
            reported_streamed_bytes=sum(r.streamed_bytes for r in reports), reported_per_s=float(rate or 0),
            predicted_per_s=plan.predicted.throughput_per_s, contradicted=tuple(names[ops] for ops in contradicted),
        )  # fmt: skip

    def _with_reports(self) -> Problem:
        """The problem under the corrected costs, in which compiled segments have the memory that was reported."""
        reports = {ops: e.reported for ops, e in self.evidence.items()}
        return reported_problem(self.known.without_forbidden, reports)

    def _key(self, tried: _Tried) -> tuple[bool, Value]:
        """A sort key: the best plan has the smallest.

        Plans compare by their value with the reported memory. If overflow is to be avoided, a plan that overflows comes
        after all plans that do not, provided that one of these leaves no more ops on the CPU.
        """
        value = evaluate(self._with_reports(), tried.solution.pipelines)
        assert value is not None  # it was a plan under costs that allowed the same segments
        costs = self.known.costs
        fits = (t for t in self.tried if not overflow_bytes(costs, t.plan))
        beaten = overflow_bytes(costs, tried.plan) > 0 and any(cpu_ops(t.plan) <= cpu_ops(tried.plan) for t in fits)
        return self._keeps_within_memory() and beaten, value

    def _best(self) -> Plan:
        best = min(self.tried, key=self._key)
        bytes_over = overflow_bytes(self.known.costs, best.plan)
        if self.options.overflow == ERROR and bytes_over:
            what = f"every plan that was compiled streams for lack of on-chip memory, the best one {bytes_over} bytes"
            raise InfeasibleError(what, self.costed.devices.in_words, "allow more TPUs, or streaming")
        solution = self._proven(best.solution)
        known = self.known.with_limits({})
        rows = comparison(known, solution.pipelines, options=self.options, default=self.default)
        if self.refused:
            rows = tuple(replace(row, note="not compiled") if row.name == OURS_ONE else row for row in rows)
        return self._compiled(best, solution, rows)

    def _best_without_proof(self) -> Plan:
        """The best plan compiled so far, with nothing that takes long: without a bound, and without a comparison."""
        best = min(self.tried, key=self._key)
        value = evaluate(self.known.without_forbidden.problem(), best.solution.pipelines)
        assert value is not None
        solution = replace(
            best.solution, value=value, bound_ns=None, latency_bound_ns=None, ended=Ended.INTERRUPTED,
            statistics=best.solution.statistics | {"compile_rounds": len(self.rounds)},
        )  # fmt: skip
        return self._compiled(best, solution, ())

    def _compiled(self, best: _Tried, solution: Solution, rows: Sequence[ComparisonRow]) -> Plan:
        """The plan of a solution, with the reports and the files of the same plan when it was compiled."""
        plan = assemble(self.known, solution, rows, self.options.held_to)
        reports = {s.name: s.reported for s in best.plan.segments}
        segments = tuple(replace(s, reported=reports[s.name]) for s in plan.segments)
        return replace(plan, segments=segments, made=best.plan.made)

    def _proven(self, solution: Solution) -> Solution:
        """The solution valued under the corrected costs, with a bound on the optimum under them."""
        counts = solution.statistics | {"compile_rounds": len(self.rounds)}
        if self.known is self.costed:
            return replace(solution, statistics=counts)
        value = evaluate(self.known.without_forbidden.problem(), solution.pipelines)
        assert value is not None
        try:
            # Limits are guesses, about which nothing is to be claimed.
            known = self._ways_to_judge()[-1].with_limits({})
            optimum = solve_costed_model(known, self.options)
            if is_outside_claim(known, solution, optimum, self.options):
                known = self._ways_to_judge()[0].with_limits({})
                optimum = solve_costed_model(known, self.options)
        except InfeasibleError:
            # The corrected costs forbid even this plan, which its own reports allow. So nothing is known of the optimum.
            return replace(solution, value=value, bound_ns=None, statistics=counts)
        solution = replace(solution, value=value, statistics=counts)
        optimum = replace(optimum, bound_ns=self._largest_bound_ns(optimum))
        return bounded_by(known, solution, optimum, self.options)

    def _largest_bound_ns(self, optimum: Solution) -> int | None:
        """The bound of a solution without forbidden segments, or that of all plans where it is larger."""
        if not self.known.forbidden or optimum.ended is Ended.COMPLETE or optimum.bound_ns is None:
            return optimum.bound_ns
        free = solve_costed_model(self.known.without_forbidden, self.options)
        # If a faster plan was passed over, the bound does not hold for all plans.
        return max(optimum.bound_ns, free.bound_ns or 0) if free.passed_over_ns is None else optimum.bound_ns
