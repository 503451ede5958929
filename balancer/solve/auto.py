"""The solver `auto`: picks a solver for the problem, and keeps the best plan so far whatever happens.

- Limits on the rate or the latency alone go to `shortest-path`, other constraints to `cpsat`.
- Where the graph's down-sets can be enumerated, `downset` starts from the best plan of the execution order and proves
  or improves it.
- Where there are too many down-sets, those that fast pipelines can use are found (`reaching`). If these are too many as well,
  `cpsat` looks for pipelines that could improve the best plan known, for one number of devices after the other.
- On several kinds of devices, the best pipeline of several orders comes first, then CP-SAT.
- Where devices share work, the best plan as if they shared none comes first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.errors import NotFoundError
from balancer.solve.block_folding import folded
from balancer.solve.blocks import blocks_of
from balancer.solve.budget import Deadline
from balancer.solve.constraining import keeps
from balancer.solve.cpsat import OVER, PipelineSearch, cpsat_budget, solve_cpsat
from balancer.solve.downset import DEFAULT_WORK, DownSetWork, search_among, search_reached
from balancer.solve.enumeration import all_downsets
from balancer.solve.limits import may_replicate_whole
from balancer.solve.offers import pipeline_offer
from balancer.solve.plan_search import PlanSearch
from balancer.solve.problem import Constraints, Ended, evaluate
from balancer.solve.shortest_path import DEFAULT_PATH_WORK, PathWork, search_shortest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.solve.budget import Budget
    from balancer.solve.downset_dp import PipelineLimits
    from balancer.solve.offers import Offer
    from balancer.solve.plan_bounds import PlanBounds
    from balancer.solve.problem import Problem, Solution, SolverOptions
    from balancer.solve.shortest_path import LatencyRateSearch

_FEW_DOWN_SETS = 1 << 16  # are listed in a fraction of a second


def solve_auto(
    problem: Problem,
    options: SolverOptions,
    work: DownSetWork = DEFAULT_WORK,
    path_work: PathWork = DEFAULT_PATH_WORK,
) -> Solution:
    """The best plan. The solution names the solver that found or proved it. All searches share the options' seconds.

    Raises InfeasibleError where there is none, ValueError where constraints are set and the cost's structure is unknown.
    """
    if options.constraints.only_times:
        return _timed(problem, options, work, path_work)
    if options.constraints:
        return _constrained(problem, options)
    return _sharing(problem, options, work) if problem.shared else _searched(problem, options, work)


def _sharing(problem: Problem, options: SolverOptions, work: DownSetWork) -> Solution:
    """The best plan where devices share work. Few plans have so much of it that it limits them: the best plan as if nothing
    were shared comes first. Where it keeps its rate, it is the answer, since no plan is faster with shared work than without.
    """
    deadline = Deadline.after(options.seconds)
    free = _searched(replace(problem, shared=()), options, work)
    value = evaluate(problem, free.pipelines)
    assert value is not None  # what is shared forbids no segment
    known = replace(free, value=value)
    if value == free.value or free.ended is Ended.INTERRUPTED or deadline.is_over:
        return known
    found = _searched(problem, _before(deadline, options), work)
    best = min(known, found, key=lambda solution: solution.value)
    return _with_bound(best, max(known.bound_ns or 0, found.bound_ns or 0)) if known.over == found.over else best


def _searched(problem: Problem, options: SolverOptions, work: DownSetWork) -> Solution:
    """The best plan without constraints."""
    deadline, budget = Deadline.after(options.seconds), cpsat_budget(options)
    problem = folded(problem, options)
    structured, several_kinds = _structured(problem), len(problem.devices) > 1
    if structured and not several_kinds:
        among = _on_one_kind(problem, options, work)
    else:
        most = min(_FEW_DOWN_SETS, work.down_sets) if several_kinds else work.down_sets
        sets = all_downsets(blocks_of(problem.before, problem.together), problem.n_ops, most)
        among = search_among(problem, options, sets, work)
    stopped = among.ended is Ended.INTERRUPTED or deadline.is_over
    if among.complete or not structured or stopped or problem.shared:
        return among.solution("chain" if among.bounds_sufficed else among.solver)
    if several_kinds:
        return _on_several_kinds(problem, options, among, budget)
    search = LargeSearch(problem, options, among.offers, budget, among.bounds)
    search.run()
    return search.solution("chain" if search.bounds_sufficed and search.complete else search.solver)


def _on_one_kind(problem: Problem, options: SolverOptions, work: DownSetWork) -> PlanSearch:
    """A search over all down-sets, that has run. They are listed where they are few. Else those that fast pipelines can use
    are found; where that is too much work, all are listed as long as it goes.
    """
    blocks, deadline = blocks_of(problem.before, problem.together), Deadline.after(options.seconds)
    sets = all_downsets(blocks, problem.n_ops, min(_FEW_DOWN_SETS, work.down_sets))
    if sets is not None:
        return search_among(problem, options, sets, work)
    reached = search_reached(problem, options, work)
    if reached.ended is not Ended.LIMIT_REACHED or deadline.is_over:
        return reached
    with reached.keeping_offers():
        sets = all_downsets(blocks, problem.n_ops, work.down_sets)
        return reached if sets is None else search_among(problem, _before(deadline, options), sets, work)
    return reached


def _before(deadline: Deadline, options: SolverOptions) -> SolverOptions:
    """The options for a search that is to be over by the deadline."""
    return replace(options, seconds=deadline.seconds_left)


def _timed(problem: Problem, options: SolverOptions, work: DownSetWork, path_work: PathWork) -> Solution:
    """Limits on the rate or the latency alone: shortest paths, and CP-SAT where there are too many down-sets.

    Where shortest paths are cut short, the fastest pipeline is looked for without these limits. Its bound holds for all
    pipelines; where it keeps the limits, it is the answer, or a start.
    """
    deadline = Deadline.after(options.seconds)
    search = search_shortest(problem, options, path_work)
    if search.complete or search.interrupted:
        return search.solution()
    free = _without_times(problem, _before(deadline, options), work, search)
    if search.interrupted:
        return search.solution()
    if free is not None and free.status == "optimal" and search.best == free.pipelines[0] and not search.at_rate:
        return replace(free, over=f"{OVER}, {replace(options, max_pipelines=1).scope}")
    may_go_on = search.too_many and not search.stopped and not deadline.is_over and _structured(problem)
    known = [search.best] if search.best else []
    solution = solve_cpsat(problem, _before(deadline, options), known) if may_go_on else search.solution()
    return solution if free is None or search.at_rate else _with_bound(solution, free.bound_ns)


def _without_times(
    problem: Problem, options: SolverOptions, work: DownSetWork, search: LatencyRateSearch
) -> Solution | None:
    """The fastest single pipeline without limits on the rate or the latency; None where it is not found, or of no use.

    search: takes it if it keeps the limits, and takes note of Ctrl-C, which is passed on only where it knows no pipeline.
    """
    if search.at_rate and search.best is not None:
        return None  # the lowest latency is wanted, of which the fastest pipeline says nothing
    with search.keeping_best():
        try:
            free = solve_auto(problem, replace(options, constraints=Constraints(), max_pipelines=1), work)
        except NotFoundError:
            return None
        if keeps(problem, free.pipelines[0], options.constraints):
            search.consider(free.pipelines[0])
        if free.ended is Ended.INTERRUPTED:
            raise KeyboardInterrupt
        return free
    return None


def _constrained(problem: Problem, options: SolverOptions) -> Solution:
    """CP-SAT under all constraints. The optimum under the rate and the latency alone bounds it.

    Where the plan with that optimum keeps the other constraints too, it is the answer. Raises KeyboardInterrupt where
    Ctrl-C ends the search for that optimum, and the best plan so far does not keep them.
    """
    times = options.constraints.times
    if not times:
        return solve_cpsat(problem, options)
    deadline = Deadline.after(options.seconds)
    try:
        free = search_shortest(problem, replace(options, constraints=times)).solution()
    except NotFoundError:
        return solve_cpsat(problem, _before(deadline, options))
    scope, interrupted = replace(options, max_pipelines=1).scope, free.ended is Ended.INTERRUPTED
    if (interrupted or free.status == "optimal") and keeps(problem, free.pipelines[0], options.constraints):
        return replace(free, over=f"{OVER}, {scope}")
    if interrupted:
        raise KeyboardInterrupt
    solution = solve_cpsat(problem, _before(deadline, options))
    if solution.latency_bound_ns is None or free.latency_bound_ns is None:
        return _with_bound(solution, free.bound_ns)
    # Latency is minimised: here `free.bound_ns` is about the plans with the lowest latency only, so it is of no use.
    least = min(solution.value.latency_ns, max(solution.latency_bound_ns, free.latency_bound_ns))
    return replace(solution, latency_bound_ns=least)


def _with_bound(solution: Solution, bound_ns: int | None) -> Solution:
    """The solution with the better of its own bound and another one for the same plans."""
    best = max(solution.bound_ns or 0, bound_ns or 0)
    return replace(solution, bound_ns=min(solution.value.objective_ns, best))


def _structured(problem: Problem) -> bool:
    return all(kind in problem.structures for kind, _ in problem.devices)


def _on_several_kinds(problem: Problem, options: SolverOptions, among: PlanSearch, budget: Budget) -> Solution:
    """The best pipeline that CP-SAT finds, starting from those that are known; with the better of two bounds.

    Where a plan may have several pipelines, the best one of those that are known.
    """
    if among.most_pipelines > 1:
        return among.solution("downset")
    known = [offer.costed.pipeline for offer in among.offers]
    with among.keeping_offers():
        solution = solve_cpsat(problem, replace(options, max_pipelines=1), known, budget)
        return _with_bound(solution, among.solution("downset").bound_ns) if known else solution
    return among.solution("downset")


class LargeSearch(PlanSearch):
    """A search among all down-sets of a graph that has too many to enumerate. CP-SAT looks where bounds leave slack."""

    solver = "cpsat"

    def __init__(
        self, problem: Problem, options: SolverOptions, offers: Sequence[Offer], budget: Budget,
        bounds: PlanBounds | None = None,
    ) -> None:  # fmt: skip
        super().__init__(problem, options, offers, bounds)
        self.budget = budget
        self.bounds_sufficed = True

    def run(self) -> None:
        """Look for better pipelines until there cannot be any, or a limit is reached."""
        with self.keeping_offers():
            fewest = self.counts[0] if self.most_pipelines == 1 else 1
            done = [self._improve(devices) for devices in range(fewest, self.counts[0] + 1)]
            self.note_end(Ended.COMPLETE if all(done) else Ended.LIMIT_REACHED)

    def _improve(self, devices: int) -> bool:
        """Look for pipelines on so many devices that could improve the best plan; whether the search was complete."""
        within = self.bounds.limits_to_improve([devices], self.objective_ns())
        if within is None:
            return True
        one = replace(self.options, max_pipelines=1)
        finder = PipelineSearch(
            replace(self.problem, devices=((self.problem.devices[0][0], devices),)), one, self.budget,
            may_replicate_whole=may_replicate_whole(self.problem, self.options),
        )  # fmt: skip
        self.bounds_sufficed = False
        shortest, complete = float(within.most_ns), True
        for stages in self._stages(within):
            finder.waiting = self._stages(within).stop - stages
            bound = finder.run(stages, within.most_ns)
            offers = [pipeline_offer(self.problem, pipeline) for pipeline in finder.take_considered()]
            self.offers += [offer for offer in offers if offer]
            shortest = min([shortest, *(float(offer.period) for offer in offers if offer)])
            self.bounds.raise_least(stages, devices, shortest if bound is None else min(shortest, bound))
            complete &= bound is None
        for name, count in finder.statistics.items():
            self.statistics[name] = self.statistics.get(name, 0) + count
        return complete

    def _stages(self, within: PipelineLimits) -> range:
        forced = self.options.stages
        return range(forced, forced + 1) if forced else range(1, within.most_stages + 1)
