"""The solver `auto`: picks a solver for the problem, and keeps the best so far whatever happens.

A rate or a latency alone goes to `shortest-path`, other constraints go to `cpsat`. Where the graph's down-sets can be
enumerated, `downset` starts from the best plan of the execution order and proves or betters it. Where they are too many
for it, bounds may prove that plan; if not, `cpsat` looks for the pipelines that could better it, one number of devices
after the other. On several kinds of devices the best pipeline of several orders comes first, then CP-SAT.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.solve.block_folding import folded
from balancer.solve.blocks import blocks_of
from balancer.solve.chain import chain_offers
from balancer.solve.constraining import keeps
from balancer.solve.cpsat import OVER, PipelineSearch, cpsat_budget, solve_cpsat
from balancer.solve.downset import DEFAULT_WORK, DownSetWork, PlanSearch, search_among
from balancer.solve.enumeration import all_downsets
from balancer.solve.limits import whole_replicas
from balancer.solve.offers import pipeline_offer
from balancer.solve.orders import file_order, prefixes
from balancer.solve.shortest_path import search_shortest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.solve.budget import Budget
    from balancer.solve.downset_dp import PipelineLimits
    from balancer.solve.offers import Offer
    from balancer.solve.problem import Problem, Solution, SolverOptions


def solve_auto(problem: Problem, options: SolverOptions, work: DownSetWork = DEFAULT_WORK) -> Solution:
    """The best plan; the solution names the solver that had the last word.

    Raises InfeasibleError where there is none, ValueError where constraints meet a cost of no known structure.
    """
    if options.constraints.only_times:
        return _timed(problem, options)
    if options.constraints:
        return _constrained(problem, options)
    problem = folded(problem, options)
    structured = _structured(problem)
    sets = all_downsets(blocks_of(problem.before, problem.together), problem.n_ops, work.down_sets)
    several_kinds, budget = len(problem.devices) > 1, cpsat_budget(options)
    if sets is None and structured and not several_kinds:
        offers = chain_offers(problem, options, prefixes(file_order(problem)))
    else:
        among = search_among(problem, options, sets, work)
        if among.complete or not structured or "interrupted" in among.statistics or budget.seconds_left == 0:
            return among.solution("downset")
        if several_kinds:
            return _on_several_kinds(problem, options, among, budget)
        offers = among.offers
    search = LargeSearch(problem, options, offers, budget)
    search.run()
    return search.solution("cpsat" if search.statistics else "chain")


def _timed(problem: Problem, options: SolverOptions) -> Solution:
    """Where a rate or a latency is all that is asked for: shortest paths, and CP-SAT where there are too many down-sets."""
    search = search_shortest(problem, options)
    if search.too_many and not search.stopped and _structured(problem):
        return solve_cpsat(problem, options)
    return search.solution()


def _constrained(problem: Problem, options: SolverOptions) -> Solution:
    """CP-SAT, with what the rate and the latency alone allow at best as another bound; and that plan, where it keeps all."""
    times = options.constraints.times
    if not times:
        return solve_cpsat(problem, options)
    free = search_shortest(problem, replace(options, constraints=times)).solution()
    scope = replace(options, max_pipelines=1).scope
    if free.status == "optimal" and keeps(problem, free.pipelines[0], options.constraints):
        return replace(free, over=f"{OVER}, {scope}")
    found = solve_cpsat(problem, options)
    bound = min(found.value.objective_ns, max(found.bound_ns, free.bound_ns if free.latency_bound_ns is None else 0))
    if found.latency_bound_ns is None or free.latency_bound_ns is None:
        return replace(found, bound_ns=bound)
    least = min(found.value.latency_ns, max(found.latency_bound_ns, free.latency_bound_ns))
    return replace(found, bound_ns=bound, latency_bound_ns=least)


def _structured(problem: Problem) -> bool:
    return all(kind in problem.structures for kind, _ in problem.devices)


def _on_several_kinds(problem: Problem, options: SolverOptions, among: PlanSearch, budget: Budget) -> Solution:
    """The best pipeline that CP-SAT finds, from the best that is known on; with the better of two bounds."""
    known = [offer.settled.pipeline for offer in among.offers]
    found = solve_cpsat(problem, replace(options, max_pipelines=1), known, budget)
    if not known:
        return found
    bound = min(found.value.objective_ns, max(found.bound_ns, among.solution("downset").bound_ns))
    return replace(found, bound_ns=bound)


class LargeSearch(PlanSearch):
    """Among all down-sets of a graph that has too many: CP-SAT, where bounds leave room."""

    def __init__(self, problem: Problem, options: SolverOptions, offers: Sequence[Offer], budget: Budget) -> None:
        super().__init__(problem, options, offers)
        self.budget = budget

    def run(self) -> None:
        """Look for better pipelines until there can be none, or limits are reached."""
        try:
            fewest = self.counts[0] if self.most_pipelines == 1 else 1
            done = [self._improve(devices) for devices in range(fewest, self.counts[0] + 1)]
            self.complete = all(done)
            if not self.complete:
                self.statistics["limit_reached"] = 1
        except KeyboardInterrupt:
            if not self.offers:
                raise
            self.statistics["interrupted"] = 1

    def _improve(self, devices: int) -> bool:
        """Pipelines on so many devices that could make the best plan better; whether the search was complete."""
        within = self.bounds.limits_to_improve(devices, self.objective_ns())
        if within is None:
            return True
        one = replace(self.options, max_pipelines=1)
        finder = PipelineSearch(
            replace(self.problem, devices=((self.problem.devices[0][0], devices),)), one, self.budget,
            whole_replicas=whole_replicas(self.problem, self.options),
        )  # fmt: skip
        shortest, complete = float(within.most_ns), True
        for stages in self._stages(within):
            finder.waiting = self._stages(within).stop - stages
            bound = finder.run(stages, within.most_ns)
            offers = [pipeline_offer(self.problem, pipeline) for pipeline in finder.take_found()]
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
