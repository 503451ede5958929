"""The solver `downset`: the best plan over all down-sets, which is over all orders of execution. Exact for any cost.

Starting from the best plan of the execution order, it looks for pipelines that could make a better one, for each number
of devices: how short a period that takes follows from what all other devices can do at most. What a pipeline can do at
most follows from the cost's structure at first, then from what was found.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

from balancer.ground.downsets import DownSets
from balancer.solve.block_folding import folded
from balancer.solve.blocks import blocks_of
from balancer.solve.budget import Budget, BudgetSpent
from balancer.solve.chain import chain_offers
from balancer.solve.downset_dp import LatticeSolver, Within
from balancer.solve.downset_sampling import sampled_downsets
from balancer.solve.enumeration import all_downsets
from balancer.solve.limits import infeasible, max_pipelines, max_replicas, may_replicate_whole
from balancer.solve.offers import alone_ns, best_plan, good_objective_ns, lattice_offer
from balancer.solve.orders import file_order, prefixes, thinned
from balancer.solve.periods import longest_ns
from balancer.solve.problem import Ended, Solution, evaluate
from balancer.solve.prospects import Prospects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.solve import downset_dp
    from balancer.solve.downset_dp import Goal
    from balancer.solve.offers import BestPlan, Offer
    from balancer.solve.problem import Problem, SolverOptions

OVER = "all down-sets"
MOST_DOWN_SETS = 1 << 19
MOST_PAIRS = 1 << 26
MOST_SAMPLED = 1 << 12  # where there are more than MOST_DOWN_SETS
MOST_STARTING_CUTS = 320  # of the order that a search starts from
_SLACK_TENTHS = (1, 4, 10)


class PlanSearch:
    """What is known of a problem's pipelines, and what to look for next.

    offers: the pipelines known. ended: how the search ended, LIMIT_REACHED before it has run.
    """

    def __init__(self, problem: Problem, options: SolverOptions, offers: Sequence[Offer]) -> None:
        self.problem, self.options = problem, options
        self.counts = tuple(count for _, count in problem.devices)
        self.most_pipelines = max_pipelines(problem, options)
        self.offers = list(offers)
        self._valued = (0, 0)
        self.ended = Ended.LIMIT_REACHED
        self.statistics: dict[str, int] = {}

    @property
    def complete(self) -> bool:
        """Whether no plan can be better than the best of the offers."""
        return self.ended is Ended.COMPLETE

    def note_end(self, ended: Ended) -> None:
        """Take note of how the search ended, and count it among the statistics where it did not run to the end."""
        self.ended = ended
        if ended is not Ended.COMPLETE:
            self.statistics[ended.value] = 1

    @cached_property
    def prospects(self) -> Prospects:
        return Prospects(
            self.problem,
            self.most_pipelines,
            max_replicas(self.options),
            whole_replicas=may_replicate_whole(self.problem, self.options),
        )

    def plan(self) -> BestPlan:
        """The best plan of what is known."""
        return best_plan(self.problem, self.offers, sum(self.counts), self.most_pipelines)

    def objective_ns(self) -> int:
        """What a plan of what is known is worth; a very long time where there is none yet."""
        if not self.offers:
            return longest_ns(max_replicas(self.options))
        if self._valued[0] != len(self.offers):  # it takes long, and offers only come
            worth = good_objective_ns(self.problem, self.offers, sum(self.counts), self.most_pipelines)
            self._valued = len(self.offers), worth
        return self._valued[1]

    def solution(self, solver: str) -> Solution:
        """The best plan, with the best bound. Raises InfeasibleError where nothing is known."""
        if not self.offers:
            raise infeasible(self.problem, self.options)
        plan = self.plan()
        value = evaluate(self.problem, plan.pipelines)
        if value is None:
            raise ValueError("the batch form of the cost allows a segment that `exact` does not")
        bound = value.objective_ns if plan.complete else plan.bound_ns
        if not self.complete:
            bound = min(value.objective_ns, self.prospects.objective_ns())
        return Solution(
            solver=solver,
            pipelines=plan.pipelines,
            value=value,
            bound_ns=bound,
            over=f"{OVER}, {self.options.scope}",
            ended=self.ended if plan.complete or not self.complete else Ended.LIMIT_REACHED,
            statistics=self.statistics,
        )


class DownSetSearch(PlanSearch):
    """Among a family of down-sets."""

    def __init__(
        self, problem: Problem, options: SolverOptions, offers: Sequence[Offer], sets: DownSets, budget: Budget
    ) -> None:
        super().__init__(problem, options, offers)
        self.budget = budget
        self._last: downset_dp.PeriodSearch | None = None
        most = max_replicas(options)
        known = [self._alone_ns(offer) for offer in self.offers] if self.most_pipelines == 1 else []
        self.lattice = LatticeSolver(
            problem,
            sets,
            most_replicas=most,
            whole_replicas=may_replicate_whole(problem, options),
            longest_ns=min(known) * min(most, max(self.counts)) if known else None,
        )

    def run(self) -> None:
        """Look for better pipelines until there can be none, or the budget is spent."""
        try:
            if self.most_pipelines == 1:
                self._one_pipeline()
            else:
                self._several()
            self.note_end(Ended.COMPLETE)
        except BudgetSpent:
            self.note_end(Ended.LIMIT_REACHED)
        except KeyboardInterrupt:
            if not self.offers:
                raise
            self.note_end(Ended.INTERRUPTED)
        self.statistics |= {"down_sets": len(self.lattice.sets), "pairs": self.budget.spent}

    def _one_pipeline(self) -> None:
        """The fastest on the fewest devices, if anything is at least as fast as the best that is known."""
        forced = self.options.stages
        goals = self._fastest()
        if not goals:
            return
        fastest = min(self._alone_ns(goal) for goal in goals)
        most = min(goal.used for goal in goals if self._alone_ns(goal) <= fastest)
        # Plans are compared by whole ns, and the host may be slower than the pipeline: both leave room for slower
        # partitions, which may take fewer devices or stream less.
        search = self._searched(self.counts if len(self.counts) > 1 else (most,), fastest, exact_stages=True)
        ties = [g for g in search.goals if forced in (None, g.stages) and self._alone_ns(g) <= fastest]
        fewest = min(goal.used for goal in ties)
        self.offers = [
            lattice_offer(self.problem, search, replace(goal, period=Fraction(fastest)))
            for goal in ties
            if goal.used == fewest
        ]

    def _fastest(self) -> list[Goal]:
        """Pipelines at least as fast as the best known, the fastest among them, on the fewest devices.

        Where little is to spare there is little to look at: so first just at the bound, on ever more devices, and then
        at periods ever further from it.
        """
        best = min((self._alone_ns(o) for o in self.offers), default=longest_ns(self.lattice.most_replicas))
        if len(self.counts) > 1 or not self.offers:
            return self._goals(self.counts, best)
        bound = min(best, self.prospects.objective_ns())
        for devices in range(1, self.counts[0] + 1):
            if self.prospects.least_ns[:, devices].min() <= bound and (found := self._goals((devices,), bound)):
                return found
        bound = max(bound, best - best // 8)
        slacks = (bound + (best - bound) * tenths // 10 for tenths in _SLACK_TENTHS)
        return next((found for most_ns in slacks if (found := self._goals(self.counts, most_ns))), [])

    def _goals(self, counts: tuple[int, ...], most_ns: int) -> list[Goal]:
        """The pipelines on so many devices, with a period of at most so many ns."""
        forced = self.options.stages
        search = self._searched(counts, most_ns, exact_stages=forced is not None or len(counts) > 1)
        return [goal for goal in search.goals if forced in (None, goal.stages)]

    def _searched(self, counts: tuple[int, ...], most_ns: int, *, exact_stages: bool) -> downset_dp.PeriodSearch:
        """A search, which may be the last one."""
        host = self.problem.host_ns
        stages = self.options.stages or min(sum(counts), most_ns // host if host else sum(counts))
        within = Within(counts, most_ns, stages, exact_stages=exact_stages)
        if self._last is None or self._last.within != within:
            self._last = self.lattice.search(within, self.budget)
        return self._last

    def _alone_ns(self, found: Offer | Goal) -> int:
        return alone_ns(self.problem, found.stages, found.period)

    def _several(self) -> None:
        """For each number of devices the pipelines that could make the best plan known better.

        A plan that is better than the best known has a pipeline with more than an equal share of the rate for each of its
        devices. Such pipelines are fast, so that there is little to look at, and they come first. Where there are none,
        that bounds all plans; else those at least as fast as the best known on so many devices come next, then all that are
        still worth it.
        """
        count = self.counts[0]
        for devices in range(1, count + 1):
            self._improve(devices, Fraction((self.objective_ns() - 1) * count, devices))
        for devices in range(1, count + 1):
            self._improve(devices, min((o.period for o in self.offers if o.devices <= devices), default=None))
        for devices in range(1, count + 1):
            self._improve(devices, None)

    def _improve(self, devices: int, longest: Fraction | None) -> None:
        """Pipelines on just so many devices that could make the best plan better, with at most this period in ns."""
        within = self.prospects.worth_finding(devices, self.objective_ns())
        if within is None:
            return
        if longest is not None:
            within = replace(within, most_ns=min(within.most_ns, math.ceil(longest)))
        search = self.lattice.search(within, self.budget)
        goals = [goal for goal in search.goals if goal.used == devices]
        self.prospects.found(within, goals)
        self.offers += [lattice_offer(self.problem, search, goal) for goal in goals]


def solve_downset(problem: Problem, options: SolverOptions) -> Solution:
    """Optimal over all down-sets, as far as the limits of work and memory go; else the best found, with a bound.

    Several kinds of devices make one pipeline. Raises InfeasibleError where nothing was found.
    """
    problem = folded(problem, options)
    sets = all_downsets(blocks_of(problem.before, problem.together), problem.n_ops, MOST_DOWN_SETS)
    return search_among(problem, options, sets).solution("downset")


def search_among(problem: Problem, options: SolverOptions, sets: DownSets | None) -> PlanSearch:
    """The same, with all down-sets at hand, as a search that has run. None: there are too many, so that those of some
    orders alone are searched, and the statistics say so ("down_sets_left_out").
    """
    budget = Budget(MOST_PAIRS, options.seconds)
    cuts = prefixes(file_order(problem))
    order = DownSets.of(cuts, problem.n_ops)
    if len(problem.devices) == 1:
        offers = chain_offers(problem, options, cuts if sets is None else thinned(problem, cuts, MOST_STARTING_CUTS))
    else:
        options = replace(options, max_pipelines=1)
        chain = DownSetSearch(problem, options, [], order, budget)
        chain.run()
        offers = chain.offers
    if sets is None:
        return _sampled(problem, options, offers, budget)
    search = DownSetSearch(problem, options, offers, sets, budget)
    search.run()
    return search


def _sampled(problem: Problem, options: SolverOptions, offers: Sequence[Offer], budget: Budget) -> PlanSearch:
    """Among the down-sets of several orders. What it did not find says nothing of other down-sets: the bound is that
    of the structure alone.
    """
    search = DownSetSearch(problem, options, offers, sampled_downsets(problem, MOST_SAMPLED), budget)
    search.run()
    found = PlanSearch(problem, options, search.offers)
    if search.ended is Ended.INTERRUPTED:
        found.ended = search.ended
    found.statistics = {**search.statistics, "down_sets_left_out": 1}
    return found
