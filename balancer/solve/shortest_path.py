"""The solver `shortest-path`: one pipeline of the lowest latency at a rate, or of the highest rate within a latency.

At a rate, it finds the lowest latency at the period of that rate (`latency_dp`); of the pipelines with that latency it
takes the one with the highest rate. Within a latency, it takes the highest rate. Both end with the same question: the
shortest period at which a latency can be kept. A longer period allows every pipeline that a shorter one does, so
bisection over whole ns, by which plans are compared, answers it.
"""

from __future__ import annotations

import heapq
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from balancer.errors import ConstraintError, InfeasibleError, NotFoundError
from balancer.ground.downsets import DownSets
from balancer.ground.opsets import members
from balancer.ground.wording import counted
from balancer.solve.blocks import blocks_of
from balancer.solve.bounds import least_total_ns, pipeline_bound_ns
from balancer.solve.budget import Budget, BudgetSpent
from balancer.solve.downset_dp import PipelineLimits, cut_lattice
from balancer.solve.enumeration import all_downsets
from balancer.solve.latency_dp import lowest_latencies
from balancer.solve.orders import file_order, prefixes
from balancer.solve.periods import MOST_REPLICAS, longest_ns
from balancer.solve.problem import Ended, PipelineSpec, Solution, evaluate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balancer.solve.downset_dp import CutLattice
    from balancer.solve.latency_dp import LatencyResult, LowestLatency
    from balancer.solve.problem import Problem, SolverOptions, Value

OVER = "all down-sets"
_LONGEST_LATENCY_NS = 1 << 52  # sums of floats are exact up to here


@dataclass(frozen=True, slots=True)
class PathWork:
    """How much work a search may do, counted. down_sets: where a graph has more, only those of the execution order are
    searched. pairs: segments costed; extending pipelines by segments counts as well.
    """

    down_sets: int = 1 << 22  # bounds leave few of them, unlike in a search for the shortest period
    pairs: int = 1 << 26


DEFAULT_PATH_WORK = PathWork()


def solve_shortest(problem: Problem, options: SolverOptions) -> Solution:
    """The best pipeline by latency and rate, proven as far as the limits of work and memory go.

    Where there are too many down-sets, those of the execution order alone are searched, and the statistics say so
    ("down_sets_left_out"). Raises InfeasibleError where nothing keeps the constraints, or nothing was found within the
    limits of work; ConstraintError unless a rate, a latency, or both are the only constraints.
    """
    if not options.constraints.only_times:
        raise ConstraintError(
            "takes a rate, a latency, or both, and no other constraint", "solver shortest-path", "use the solver auto"
        )
    return search_shortest(problem, options).solution()


def search_shortest(problem: Problem, options: SolverOptions, work: PathWork = DEFAULT_PATH_WORK) -> LatencyRateSearch:
    """The same, as a search that has run: first among the cuts of the execution order, then among all down-sets."""
    budget = Budget(work.pairs, options.seconds)
    search = LatencyRateSearch(problem, options, budget)
    if search.out_of_reach():
        search.complete = True
        return search
    with search.keeping_best():
        search.run(DownSets.of(prefixes(file_order(problem)), problem.n_ops))
        if search.best is not None and search.most_stages() == 1:
            search.complete = not search.stopped  # one segment of all ops lies between cuts of every order
        if search.stopped or search.complete:
            return search
        sets = all_downsets(blocks_of(problem.before, problem.together), problem.n_ops, work.down_sets)
        if sets is None:
            search.too_many = True
            search.statistics["down_sets_left_out"] = 1
        else:
            search.run(sets)
            search.statistics["down_sets"] = len(sets)
            search.complete = not search.stopped
    search.statistics["pairs"] = budget.spent
    return search


def quickest_in_order(
    problem: Problem, options: SolverOptions, work: PathWork = DEFAULT_PATH_WORK
) -> Iterator[PipelineSpec]:
    """The best pipeline by latency and rate among intervals of the execution order; none where none keeps the
    constraints.

    Raises KeyboardInterrupt on Ctrl-C, after the best so far.
    """
    search = LatencyRateSearch(problem, options, Budget(work.pairs, options.seconds))
    search.run(DownSets.of(prefixes(file_order(problem)), problem.n_ops))
    if search.best:
        yield search.best
    if search.ended is Ended.INTERRUPTED:
        raise KeyboardInterrupt


class LatencyRateSearch:
    """Searches in one family of cuts after the other, each starting from the best pipeline that is known.

    best: that pipeline. complete: whether the last family held all down-sets and was searched to the end. too_many:
    whether there are too many down-sets for that. ended: how the last search ended.
    """

    def __init__(self, problem: Problem, options: SolverOptions, budget: Budget) -> None:
        self.problem, self.options, self.budget = problem, options, budget
        self.most_replicas = min(options.max_replicas or MOST_REPLICAS, MOST_REPLICAS)
        self.counts = tuple(count for _, count in problem.devices)
        held = options.constraints
        self.at_rate = held.max_objective_ns is not None
        longest = longest_ns(self.most_replicas)
        self.most_ns = longest if held.max_objective_ns is None else min(held.max_objective_ns, longest)
        self.most_latency_ns = _LONGEST_LATENCY_NS if held.max_latency_ns is None else held.max_latency_ns
        self.best: PipelineSpec | None = None
        self.complete = self.too_many = False
        self.ended = Ended.COMPLETE
        self.statistics: dict[str, int] = {}

    @property
    def stopped(self) -> bool:
        """Whether a limit of work, the clock or Ctrl-C ended a search."""
        return self.ended is not Ended.COMPLETE

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended a search."""
        return self.ended is Ended.INTERRUPTED

    def run(self, sets: DownSets) -> None:
        """Search among these cuts, to the end if limits allow."""
        if self.out_of_reach():
            return
        with self.keeping_best():
            lattice = cut_lattice(self.problem, sets, most_replicas=self.most_replicas, may_replicate_whole=True)
            try:
                self._search(lattice)
            except BudgetSpent:
                self._note_stop(Ended.LIMIT_REACHED)

    @contextmanager
    def keeping_best(self) -> Iterator[None]:
        """Ctrl-C in here ends the search, and is passed on only where no pipeline is known."""
        try:
            yield
        except KeyboardInterrupt:
            if self.best is None:
                raise
            self._note_stop(Ended.INTERRUPTED)

    def _note_stop(self, ended: Ended) -> None:
        self.ended = ended
        self.statistics[ended.value] = 1

    def consider(self, pipeline: PipelineSpec) -> None:
        """Take a pipeline that keeps the limits if it is better than the best known."""
        if self.best is None or self._rank(pipeline) < self._rank(self.best):
            self.best = pipeline

    def _rank(self, pipeline: PipelineSpec) -> tuple[int, Value]:
        value = self._value(pipeline)
        return value.latency_ns if self.at_rate else 0, value

    def out_of_reach(self) -> bool:
        """Whether bounds alone rule out the rate or the latency asked for."""
        return self._least_ns() > self.most_ns or self.most_stages() == 0

    def most_stages(self) -> int:
        """An upper bound on the stages of a useful pipeline: bounds rule out that more stages keep the latency asked for,
        or that of the best known pipeline where the lowest latency is wanted.
        """
        latency = self.most_latency_ns
        if self.at_rate and self.best is not None:
            latency = self._latency_ns(self.best)
        stages = range(1, min(sum(self.counts), self.problem.n_ops) + 1)
        return max((s for s in stages if self._least_latency_ns(s) <= latency), default=0)

    def _search(self, lattice: CutLattice) -> None:
        """The lowest latency, where a rate is asked for; then the shortest period with that latency; then ties."""
        latency = self.most_latency_ns
        if self.at_rate or self.best is None:
            known = latency if self.best is None else min(latency, self._latency_ns(self.best))
            if not self._improve(lattice, self.most_ns, known):
                return
        if self.at_rate and self.best is not None:
            latency = self._latency_ns(self.best)
        period = self._shortest_ns(lattice, latency)
        self.best = self._settled(lattice, period, latency)

    def _shortest_ns(self, lattice: CutLattice, latency: int) -> int:
        """The shortest period in whole ns at which some pipeline has at most this latency; the best known has one.

        Bisection: nothing below `low` can be kept, and the best known pipeline keeps `high`.
        """
        low, high = self._least_ns(), self._objective_ns()
        # Most often the first pipeline found cannot be bettered: a search just below its period shows that at once.
        period = high - 1
        while low < high:
            if self._improve(lattice, period, latency):
                high = self._objective_ns()
            else:
                low = period + 1
            period = (low + high) // 2
        return high

    def _improve(self, lattice: CutLattice, period: int, latency: int) -> bool:
        """Whether there is a pipeline with at most this period and latency; the best is then the quickest of them."""
        if period <= 0:
            return False
        result = self._searched(lattice, period, latency)
        arrivals = self._arrivals(result)
        if not arrivals:
            return False
        quickest = min(arrivals, key=lambda point: (point.latency_ns, sum(point.devices), point))
        pipeline = result.settle(quickest, quickest.latency_ns)
        self.best = with_spare_devices(self.problem, pipeline, self.most_replicas)
        return True

    def _settled(self, lattice: CutLattice, period: int, latency: int) -> PipelineSpec:
        """Of the pipelines with at most this period and latency, the one that the tie rules name."""
        result = self._searched(lattice, period, latency)
        arrivals = self._arrivals(result)
        fewest = min(sum(point.devices) for point in arrivals)
        pipelines = [result.settle(point, latency) for point in arrivals if sum(point.devices) == fewest]
        return min(pipelines, key=lambda pipeline: (evaluate(self.problem, [pipeline]), _ops_key(pipeline)))

    def _searched(self, lattice: CutLattice, period: int, latency: int) -> LatencyResult:
        host = self.problem.host_ns
        stages = min(
            self.most_stages(), period // host if host else sum(self.counts), self.options.stages or MOST_REPLICAS
        )
        limits = PipelineLimits(self.counts, period, stages, exact_stages=True)
        return lowest_latencies(lattice, limits, latency, self.budget)

    def _arrivals(self, result: LatencyResult) -> list[LowestLatency]:
        """The pipelines found that have as many stages as are asked for."""
        return [point for point in result.front if self.options.stages in (None, point.stages)]

    def _latency_ns(self, pipeline: PipelineSpec) -> int:
        return self._value(pipeline).latency_ns

    def _objective_ns(self) -> int:
        return longest_ns(1) if self.best is None else self._value(self.best).objective_ns

    def _value(self, pipeline: PipelineSpec) -> Value:
        value = evaluate(self.problem, [pipeline])
        if value is None:
            raise ValueError("the batch form of the cost allows a segment that `exact` does not")
        return value

    def _least_ns(self) -> int:
        """ns per inference: a lower bound for all pipelines."""
        devices = sum(self.counts)
        stages = range(1, min(devices, self.problem.n_ops) + 1)
        return min(pipeline_bound_ns(self.problem, s, devices, self.most_replicas) for s in stages)

    def _least_latency_ns(self, stages: int) -> int:
        """ns: a lower bound on the latency of all pipelines with this number of stages; 0 where nothing is known."""
        structure = self.problem.structures.get(self.problem.devices[0][0])
        if structure is None or len(self.counts) > 1:
            return 0
        return least_total_ns(structure, stages) + stages * self.problem.handover_ns

    def solution(self) -> Solution:
        """The best pipeline, with bounds. Raises InfeasibleError where none is known."""
        if self.best is None:
            where = f"{counted(self.problem.n_ops, 'op')} on {counted(sum(self.counts), 'TPU')}"
            remedy = "ask for a lower rate or a higher latency, or allow more TPUs"
            if not self.complete:
                what = "no pipeline was found within the limits with the rate or the latency asked for"
                raise NotFoundError(what, where, f"allow more time, {remedy}")
            raise InfeasibleError("there is no pipeline with the rate or the latency asked for", where, remedy)
        value = self._value(self.best)
        stages = range(1, min(sum(self.counts), self.problem.n_ops) + 1)
        least = value.latency_ns if self.complete else min(value.latency_ns, *map(self._least_latency_ns, stages))
        return Solution(
            solver="shortest-path",
            pipelines=(self.best,),
            value=value,
            bound_ns=value.objective_ns if self.complete else min(value.objective_ns, self._least_ns()),
            latency_bound_ns=least if self.at_rate else None,
            over=f"{OVER}, {replace(self.options, max_pipelines=1).scope}",
            ended=self.ended if self.complete or self.stopped else Ended.LEFT_OUT,
            statistics=self.statistics,
        )


def with_spare_devices(problem: Problem, pipeline: PipelineSpec, most_replicas: int) -> PipelineSpec:
    """The same partition with idle devices given to its slowest stages, one after the other.

    Greedy is optimal here: only the slowest stage limits the rate, and another replica for it is the only help.
    """
    counts = dict(problem.devices)
    for stage in pipeline.stages:
        counts[stage.kind] -= stage.replicas
    costs = [problem.exact(stage.ops, stage.kind) for stage in pipeline.stages]
    replicas = [stage.replicas for stage in pipeline.stages]
    slowest = [
        (-Fraction(cost.time_ns if cost else 0, r), j) for j, (cost, r) in enumerate(zip(costs, replicas, strict=True))
    ]
    heapq.heapify(slowest)
    while True:
        _, j = slowest[0]
        kind, cost = pipeline.stages[j].kind, costs[j]
        if not counts[kind] or replicas[j] >= most_replicas or cost is None:
            break
        counts[kind] -= 1
        replicas[j] += 1
        heapq.heapreplace(slowest, (-Fraction(cost.time_ns, replicas[j]), j))
    return PipelineSpec(tuple(replace(stage, replicas=r) for stage, r in zip(pipeline.stages, replicas, strict=True)))


def _ops_key(pipeline: PipelineSpec) -> list[list[int]]:
    return [list(members(stage.ops)) for stage in pipeline.stages]
