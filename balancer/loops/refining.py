"""Solve, compile, compare, correct, solve again: a plan that the vendor's compiler agrees with.

Each round compiles the plan that is best under what is known, and corrects the costs where the reports contradict them
(`correcting`). It ends when they agree, when a plan repeats or promises no more than the best so far, or after
`ROUNDS`. Once a segment has streamed more than was predicted, one that streams nothing for want of room is taken before
the fastest (unless the caller asks for the rate alone), as long as that costs neither ops on the CPU nor what was
reached before: plans that stream rest on predicted memory to the last layer, and that has just proved wrong.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from balancer.directory.compiling import Compilation, compile_plan
from balancer.errors import CompilerError, InfeasibleError
from balancer.learning.correcting import contradicts, corrected, evidence_of, overruns
from balancer.planning.asked import Asked
from balancer.planning.assembling import assemble
from balancer.planning.comparing import comparison
from balancer.planning.remembering import held_to
from balancer.planning.reported import reported_problem
from balancer.planning.solving import solve_setting
from balancer.solve import Solution, SolverOptions, Value, evaluate, steady_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.compiler import Compiler, Refused
    from balancer.ground.opsets import OpSet
    from balancer.learning.correcting import Evidence
    from balancer.loops.default_split import DefaultSplit
    from balancer.plan import Plan
    from balancer.planning.setting import Setting
    from balancer.solve import Problem

_LOG = logging.getLogger(__name__)
ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One plan, and what the compiler made of it. streamed: bytes for each inference; per_s: the rate, as predicted
    before, and with the reported memory. contradicted: the segments whose report differs from what was predicted.
    refused: those that were not compiled; then nothing was reported.
    """

    number: int
    segments: int
    predicted_streamed_bytes: int
    reported_streamed_bytes: int
    cpu_ops: int
    predicted_per_s: float
    reported_per_s: float
    contradicted: tuple[str, ...]
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True, slots=True)
class _Tried:
    """A solution that was compiled. plan: with the reports."""

    solution: Solution
    plan: Plan


@dataclass
class Refinement:
    """The rounds for one model on n_tpus TPUs. overflow: "stream", "error", or None for the rule of this module.

    default: what the compiler's own split does, for the comparison.
    """

    setting: Setting
    n_tpus: int
    options: SolverOptions
    overflow: str | None
    compiler: Compiler
    on_round: Callable[[Round], None]
    default: DefaultSplit | None = None
    evidence: dict[OpSet, Evidence] = field(default_factory=dict)
    tried: list[_Tried] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.known = self.setting
        self.overran = False

    def run(self) -> Plan:
        """The best plan that was compiled, predicted with all that was learnt, with its compiled files in `made`.

        Raises CompilerError where a segment cannot be compiled and no earlier plan could be, InfeasibleError where
        the corrected costs leave no plan.
        """
        settled = False
        while not settled and len(self.tried) < ROUNDS:
            solution = self._next()
            if solution is None or any(t.solution.pipelines == solution.pipelines for t in self.tried):
                break
            compilation = compile_plan(assemble(self.known, solution, self.n_tpus, ()), self.compiler)
            for name, doubt in compilation.doubts:
                _LOG.warning("doubt: %s: %s", name, doubt)
            if compilation.refused:
                self._refuse(compilation, solution)
                break
            settled = self._learn(_Tried(solution, compilation.plan))
        return self._best()

    def _next(self) -> Solution | None:
        """The best plan under what is known, if it promises more than the best so far. Raises InfeasibleError."""
        try:
            solution = self._solve()
        except InfeasibleError as error:
            if self.tried and not self.options.constraints:
                return None  # what was learnt leaves no plan; whether a compiled one will do is seen in the end
            if not self.tried:
                raise
            what, where, remedy = error.args
            raise InfeasibleError(f"with the memory that the compiler reported, {what}", where, remedy) from error
        if not self.tried:
            return solution
        best = evaluate(self._with_reports(), min(self.tried, key=self._key).solution.pipelines)
        unsettled = self._keeps_room() and self._overflow_bytes(min(self.tried, key=self._key)) > 0
        return solution if unsettled or best is None or solution.value < best else None

    def _refuse(self, compilation: Compilation, solution: Solution) -> None:
        """Say which segments the compiler refuses. Raises CompilerError where no plan was compiled before."""
        plan = compilation.plan
        self.on_round(
            Round(
                number=len(self.tried) + 1, segments=len(plan.segments), reported_streamed_bytes=0, cpu_ops=0,
                predicted_streamed_bytes=sum(s.predicted.streamed_bytes for s in plan.segments),
                predicted_per_s=plan.predicted.throughput_per_s, reported_per_s=0.0, contradicted=(),
                refused=compilation.refused,
            )
        )  # fmt: skip
        if not self.tried:
            raise _refusal(compilation)

    def _solve(self) -> Solution:
        if self.overflow or not self.overran:
            return solve_setting(self.known, self.n_tpus, self.options, self.overflow or "stream")
        fastest = solve_setting(self.known, self.n_tpus, self.options, "stream")
        try:
            roomy = solve_setting(self.known, self.n_tpus, self.options, "error")
        except InfeasibleError:
            return fastest
        reached = min(evaluate(self._with_reports(), t.solution.pipelines) or t.solution.value for t in self.tried)
        dear = self._ops_on_cpu(roomy) > self._ops_on_cpu(fastest) or roomy.value.objective_ns > reached.objective_ns
        return fastest if dear else roomy

    def _ops_on_cpu(self, solution: Solution) -> int:
        sets = {stage.ops for pipeline in solution.pipelines for stage in pipeline.stages}
        return sum(self.known.costs.on_cpu(ops).bit_count() for ops in sets)

    def _keeps_room(self) -> bool:
        return self.overflow == "error" or (self.overflow is None and self.overran)

    def _learn(self, tried: _Tried) -> bool:
        """Correct the costs by the reports of a plan; whether they agreed with it."""
        found = evidence_of(tried.plan)
        before = self.known.costs
        contradicted = [ops for ops, evidence in found.items() if contradicts(before, evidence)]
        self.evidence |= found
        self.tried.append(tried)
        self.overran |= any(overruns(before, evidence) for evidence in found.values())
        if contradicted:
            self.known = replace(self.setting, profile=corrected(self.setting, self.evidence.values()))
        self.on_round(self._round(tried, found, contradicted))
        return not contradicted

    def _round(self, tried: _Tried, found: dict[OpSet, Evidence], contradicted: Sequence[OpSet]) -> Round:
        plan, problem = tried.plan, self._with_reports()
        rate = steady_rate(problem, tried.solution.pipelines)
        names = {ops: s.name for ops, s in zip(found, plan.segments, strict=True)}
        reports = [s.reported for s in plan.segments if s.reported]
        return Round(
            number=len(self.tried),
            segments=len(plan.segments),
            predicted_streamed_bytes=sum(s.predicted.streamed_bytes for s in plan.segments),
            reported_streamed_bytes=sum(r.streamed_bytes for r in reports),
            cpu_ops=sum(r.cpu_ops for r in reports),
            predicted_per_s=plan.predicted.throughput_per_s,
            reported_per_s=float(rate or 0),
            contradicted=tuple(names[ops] for ops in contradicted),
        )

    def _with_reports(self) -> Problem:
        return reported_problem(self.known, self.n_tpus, {ops: e.reported for ops, e in self.evidence.items()})

    def _overflow_bytes(self, tried: _Tried) -> int:
        """Reported bytes that a plan streams for want of room."""
        costs = self.known.costs
        always = {ops: (t := costs.terms(ops)).streamed_bytes - t.overflow_bytes for ops in evidence_of(tried.plan)}
        return sum(max(0, e.reported.streamed_bytes - always[ops]) for ops, e in evidence_of(tried.plan).items())

    def _key(self, tried: _Tried) -> tuple[bool, Value]:
        """The smaller, the better: what it is worth with the reported memory, after those that fit without more ops on
        the CPU.
        """
        value = evaluate(self._with_reports(), tried.solution.pipelines)
        assert value is not None  # it was a plan under costs that allowed the same segments
        fits = (t for t in self.tried if not self._overflow_bytes(t))
        beaten = self._overflow_bytes(tried) > 0 and any(_cpu_ops(t.plan) <= _cpu_ops(tried.plan) for t in fits)
        return self._keeps_room() and beaten, value

    def _best(self) -> Plan:
        best = min(self.tried, key=self._key)
        if self.overflow == "error" and self._overflow_bytes(best):
            what = f"every plan that was compiled streams for want of room, the best {self._overflow_bytes(best)} bytes"
            raise InfeasibleError(what, f"{self.n_tpus} TPUs", "allow more TPUs, or streaming")
        solution = self._proven(best.solution)
        asked = Asked(self.options, self.overflow or "stream")
        rows = comparison(self.known, self.n_tpus, solution.pipelines, asked=asked, default=self.default)
        plan = assemble(self.known, solution, self.n_tpus, rows, held_to(self.options, self.overflow))
        reports = {s.name: s.reported for s in best.plan.segments}
        segments = tuple(replace(s, reported=reports[s.name]) for s in plan.segments)
        return replace(plan, segments=segments, made=best.plan.made)

    def _proven(self, solution: Solution) -> Solution:
        """The solution under the costs that are known now, with a bound for them."""
        counts = solution.statistics | {"compile_rounds": len(self.tried)}
        if self.known is self.setting:
            return replace(solution, statistics=counts)
        value = evaluate(self.known.problem(self.n_tpus), solution.pipelines)
        assert value is not None
        try:
            bound = solve_setting(self.known, self.n_tpus, self.options, self.overflow or "stream").bound_ns
        except InfeasibleError:
            bound = None  # the costs are darker than what was reported of this plan
        return replace(
            solution, value=value, bound_ns=None if bound is None else min(bound, value.objective_ns), statistics=counts
        )


def _cpu_ops(plan: Plan) -> int:
    return sum(s.reported.cpu_ops for s in plan.segments if s.reported)


def _refusal(compilation: Compilation) -> CompilerError:
    first = compilation.refused[0]
    more = f" ({len(compilation.refused)} segments fail)" if len(compilation.refused) > 1 else ""
    where = f"{first.name} (ops {compilation.plan.segment(first.name).ops})"
    return CompilerError(f"cannot be compiled: {first.reason}{more}", where, first.remedy)
