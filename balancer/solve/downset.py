"""The solver `downset`: the best plan over all down-sets, which is over all orders of execution. Exact for any cost.

A branch-and-bound over numbers of devices. The best plan of the execution order is the first incumbent. For each number
of devices, bounds say how short the period of a pipeline must be to better the incumbent when all other devices do
their utmost (`plan_bounds`); a dynamic program looks for the pipelines that are that fast (`period_dp`). At first the
bounds follow from the cost's structure alone; each search tightens them.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

from balancer.ground.downsets import DownSets
from balancer.solve.block_folding import folded
from balancer.solve.blocks import blocks_of
from balancer.solve.budget import Budget, BudgetSpent
from balancer.solve.chain import chain_offers
from balancer.solve.downset_dp import PipelineLimits, cut_lattice
from balancer.solve.downset_sampling import sampled_downsets
from balancer.solve.enumeration import all_downsets
from balancer.solve.limits import max_replicas, may_replicate_whole
from balancer.solve.offers import alone_ns, lattice_offer
from balancer.solve.orders import file_order, prefixes, thinned
from balancer.solve.period_dp import shortest_periods
from balancer.solve.periods import longest_ns
from balancer.solve.plan_bounds import beyond_ns
from balancer.solve.plan_search import PlanSearch
from balancer.solve.problem import Ended
from balancer.solve.reaching import CutFinder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balancer.solve.downset_dp import CutLattice, Devices
    from balancer.solve.offers import Offer
    from balancer.solve.period_dp import PeriodResult, ShortestPeriod
    from balancer.solve.problem import Problem, Solution, SolverOptions

_MOST_STARTING_CUTS = 320  # of the order whose best plan is the first incumbent
_SLACK_TENTHS = (1, 4, 10)
_AT_ONCE = 1 << 20  # work to find all pipelines as fast as the best known in one search; else they are found by steps
_FEW_AT_ONCE = 1 << 14  # the same for one number of devices of several
_SMALL_SLACK_TENTHS = (1, 2, 3, 4, 5, 6, 8, 10)  # where cuts have to be found, which takes far longer with more slack


@dataclass(frozen=True, slots=True)
class DownSetWork:
    """How much work a search may do. It is counted, not timed, so that every run gives the same answer.

    down_sets: where a graph has more, only sampled ones are searched. sampled_down_sets: at most so many of these.
    reached: where it has more, branches looked at to find those that are of use.
    pairs: segments costed; extending pipelines by segments counts as well, in the same unit of time.
    """

    down_sets: int = 1 << 19
    reached: int = 1 << 24
    sampled_down_sets: int = 1 << 12
    pairs: int = 1 << 26


DEFAULT_WORK = DownSetWork()


class DownSetSearch(PlanSearch):
    """A search for the best plan whose cuts are among a family of down-sets.

    sets: the family; None for all down-sets, of which each search then finds those that it can use (`reaching`).
    """

    def __init__(
        self, problem: Problem, options: SolverOptions, offers: Sequence[Offer], sets: DownSets | None, budget: Budget
    ) -> None:
        super().__init__(problem, options, offers)
        self.sets, self.budget = sets, budget
        self._last: PeriodResult | None = None
        self._last_found: tuple[tuple[Devices, int], CutLattice] | None = None
        self.bounds_sufficed = sets is None

    @cached_property
    def lattice(self) -> CutLattice | None:
        """The cuts, None for all down-sets. Built by the search: it takes long, and Ctrl-C meanwhile is to keep the
        pipelines known.
        """
        return None if self.sets is None else self._lattice_of(self.sets)

    def _lattice_of(self, sets: DownSets) -> CutLattice:
        most = max_replicas(self.options)
        # A plan of one pipeline must be at least as fast as the best known, which limits the time of each stage.
        known = [self._alone_ns(offer) for offer in self.offers] if self.most_pipelines == 1 else []
        return cut_lattice(
            self.problem,
            sets,
            most_replicas=most,
            may_replicate_whole=may_replicate_whole(self.problem, self.options),
            longest_ns=min(known) * min(most, max(self.counts)) if known else None,
        )

    def run(self) -> None:
        """Look for better pipelines until there can be none, or the budget is spent."""
        with self.keeping_offers():
            try:
                if self.most_pipelines == 1:
                    self._one_pipeline()
                else:
                    self._several()
                self.note_end(Ended.COMPLETE)
            except BudgetSpent:
                self.note_end(Ended.LIMIT_REACHED)
        if self.sets is not None:
            self.statistics["down_sets"] = len(self.sets)
        self.statistics["pairs"] = self.budget.spent

    def _one_pipeline(self) -> None:
        """The fastest pipeline on the fewest devices, if any is at least as fast as the best that is known."""
        forced = self.options.stages
        fast = self._fastest()
        if not fast:
            return
        fastest = min(self._alone_ns(point) for point in fast)
        enough = min(point.device_count for point in fast if self._alone_ns(point) <= fastest)
        # Plans tie where they round to the same whole ns, or where the host is the bottleneck. So slower pipelines may
        # tie, which may take fewer devices or stream less. A second search finds all that are fast enough.
        result = self._searched(self.counts if len(self.counts) > 1 else (enough,), fastest, exact_stages=True)
        ties = [p for p in result.front if forced in (None, p.stages) and self._alone_ns(p) <= fastest]
        fewest = min(point.device_count for point in ties)
        self.offers = [
            lattice_offer(result, replace(point, period=Fraction(fastest)))
            for point in ties
            if point.device_count == fewest
        ]

    def _fastest(self) -> list[ShortestPeriod]:
        """Pipelines at least as fast as the best known, the fastest among them, on the fewest devices.

        The shorter the period searched for, the fewer cuts are open. So the first searches are exactly at the lower
        bound, with one more device each time; later ones allow ever longer periods, up to that of the incumbent.
        """
        best = min((self._alone_ns(o) for o in self.offers), default=longest_ns(max_replicas(self.options)))
        if len(self.counts) > 1 or not self.offers:
            return self._pipelines(self.counts, best)
        at_once = self._at_once(best) if self.lattice is None else None
        if at_once is not None:
            return at_once
        bound = min(best, self.bounds.objective_ns())
        for devices in range(1, self.counts[0] + 1):
            if self.bounds.least_ns[:, devices].min() <= bound:
                pipelines = self._pipelines((devices,), bound)
                if pipelines:
                    return pipelines
        bound = max(bound, best - best // 8)
        for tenths in _SMALL_SLACK_TENTHS if self.lattice is None else _SLACK_TENTHS:
            pipelines = self._pipelines(self.counts, bound + (best - bound) * tenths // 10)
            if pipelines:
                return pipelines
        return []

    def _at_once(self, most_ns: int) -> list[ShortestPeriod] | None:
        """The non-dominated pipelines with a period of at most most_ns; None where finding them takes much work."""
        try:
            with self._at_most(_AT_ONCE):
                return self._pipelines(self.counts, most_ns)
        except BudgetSpent:
            return None

    @contextmanager
    def _at_most(self, work: int) -> Iterator[None]:
        """So much of the budget may be spent in here. Raises BudgetSpent."""
        whole, self.budget = self.budget, Budget(min(work, self.budget.left), self.budget.seconds_left)
        try:
            yield
        finally:
            part, self.budget = self.budget, whole
            whole.spend(part.spent)

    def _pipelines(self, counts: tuple[int, ...], most_ns: int) -> list[ShortestPeriod]:
        """The non-dominated pipelines on at most these devices, with a period of at most most_ns."""
        forced = self.options.stages
        result = self._searched(counts, most_ns, exact_stages=forced is not None or len(counts) > 1)
        if not result.front and len(counts) == 1:
            self.bounds.raise_all(result.limits)
        return [point for point in result.front if forced in (None, point.stages)]

    def _searched(self, counts: tuple[int, ...], most_ns: int, *, exact_stages: bool) -> PeriodResult:
        """The result of a search within these limits. The last one is kept, since ties often ask for it again."""
        host = self.problem.host_ns
        stages = self.options.stages or min(sum(counts), most_ns // host if host else sum(counts))
        limits = PipelineLimits(counts, most_ns, stages, exact_stages=exact_stages)
        if self._last is None or self._last.limits != limits:
            self._last = self._shortest_periods(limits)
        return self._last

    def _shortest_periods(self, limits: PipelineLimits) -> PeriodResult:
        """All non-dominated pipelines within the limits. Raises BudgetSpent."""
        return shortest_periods(self.lattice or self._found(limits), limits, self.budget)

    def _found(self, limits: PipelineLimits) -> CutLattice:
        """The cuts within these limits. The last ones are kept, since ties often ask for them again."""
        key = limits.devices, limits.most_ns
        if self._last_found is None or self._last_found[0] != key:
            self._last_found = key, self._finder.lattice(limits, self.budget)
            self.bounds_sufficed = False
        lattice = self._last_found[1]
        self.statistics["cuts"] = max(len(lattice.sets), self.statistics.get("cuts", 0))
        return lattice

    @cached_property
    def _finder(self) -> CutFinder:
        whole = may_replicate_whole(self.problem, self.options)
        return CutFinder(self.problem, most_replicas=max_replicas(self.options), may_replicate_whole=whole)

    def _alone_ns(self, pipeline: Offer | ShortestPeriod) -> int:
        return alone_ns(self.problem, pipeline.stages, pipeline.period)

    def _several(self) -> None:
        """For each number of devices, the pipelines that could make the incumbent plan better.

        By the pigeonhole principle, a better plan has a pipeline whose rate per device is above the incumbent's. Such
        pipelines are fast, so few cuts are open in a search for them: they come first, and where there are none, the
        incumbent is optimal. Next come those at least as fast as the fastest known on as many devices; then all that
        could still improve the plan.
        """
        count = self.counts[0]
        steps = (10,) if self.lattice else (0, *_SMALL_SLACK_TENTHS)
        for tenths in steps:
            for devices in range(1, count + 1):
                self._improve_per_device(devices, tenths)
        for devices in range(1, count + 1):
            self._improve(devices, min((o.period for o in self.offers if o.devices <= devices), default=None))
        for devices in range(1, count + 1):
            self._improve(devices, None)

    def _improve_per_device(self, devices: int, tenths: int) -> None:
        """Look for pipelines on exactly this number of devices whose rate per device is above that of the best plan.

        tenths: of the slack between the bound on their period and the longest such period. 0: all of it, if that is little
        work.
        """
        longest = Fraction((self.objective_ns() - 1) * self.counts[0], devices)
        least = self.bounds.least_ns[:, devices].min()
        if least >= longest:
            return
        if tenths:
            self._improve(devices, longest - (longest - math.floor(least)) * (10 - tenths) / 10)
            return
        try:
            with self._at_most(_FEW_AT_ONCE):
                self._improve(devices, longest)
        except BudgetSpent:
            if not self.budget.left:
                raise

    def _improve(self, devices: int, longest: Fraction | None) -> None:
        """Look for pipelines on exactly this number of devices that could make the best plan better.

        longest: the longest period of interest, in ns; None for any.
        """
        limits = self.bounds.limits_to_improve(devices, self.objective_ns())
        if limits is None:
            return
        if longest is not None:
            limits = replace(limits, most_ns=min(limits.most_ns, math.ceil(longest)))
        result = self._shortest_periods(limits)
        # Where cuts have to be found, one more search for plans that tie would take as long as the proof.
        self.bounds.note_search(result, None if self.lattice else beyond_ns(limits))
        self.offers += [lattice_offer(result, point) for point in result.front if point.device_count == devices]


def solve_downset(problem: Problem, options: SolverOptions, work: DownSetWork = DEFAULT_WORK) -> Solution:
    """Optimal over all down-sets, as far as the limits of work and memory go; else the best found, with a bound.

    Devices of several kinds make one pipeline. Raises InfeasibleError where no pipeline was found.
    """
    problem = folded(problem, options)
    sets = all_downsets(blocks_of(problem.before, problem.together), problem.n_ops, work.down_sets)
    return search_among(problem, options, sets, work).solution("downset")


def search_among(
    problem: Problem, options: SolverOptions, sets: DownSets | None, work: DownSetWork = DEFAULT_WORK
) -> PlanSearch:
    """The same, as a search that has run.

    sets: all down-sets, None where there are too many. Then the down-sets of some orders alone are searched, and the
    statistics say so ("down_sets_left_out").
    """
    budget = Budget(work.pairs, options.seconds)
    cuts = prefixes(file_order(problem))
    order = DownSets.of(cuts, problem.n_ops)
    if len(problem.devices) == 1:
        offers = chain_offers(problem, options, cuts if sets is None else thinned(problem, cuts, _MOST_STARTING_CUTS))
    else:
        options = replace(options, max_pipelines=1)
        chain = DownSetSearch(problem, options, [], order, budget)
        chain.run()
        if chain.ended is Ended.INTERRUPTED:
            return _without_claims(chain)
        offers = chain.offers
    if sets is None:
        return _search_sampled(problem, options, offers, work, budget)
    search = DownSetSearch(problem, options, offers, sets, budget)
    search.run()
    return search


def _search_sampled(
    problem: Problem, options: SolverOptions, offers: Sequence[Offer], work: DownSetWork, budget: Budget
) -> PlanSearch:
    """A search among the down-sets of some orders, that has run. offers: what is known before."""
    sampling = PlanSearch(problem, options, offers)
    with sampling.keeping_offers():
        sampled = DownSetSearch(problem, options, offers, sampled_downsets(problem, work.sampled_down_sets), budget)
        sampled.run()
        return _without_claims(sampled)
    return sampling  # interrupted before it had begun


def search_reached(problem: Problem, options: SolverOptions, work: DownSetWork = DEFAULT_WORK) -> PlanSearch:
    """The same among all down-sets of a graph that has too many to enumerate: each search finds those that it can use.

    For devices of one kind, whose structure is known.
    """
    offers = chain_offers(problem, options, prefixes(file_order(problem)))
    search = DownSetSearch(problem, options, offers, None, Budget(work.reached, options.seconds))
    search.run()
    return search


def _without_claims(sampled: DownSetSearch) -> PlanSearch:
    """What a search among some down-sets found, with the bounds of the cost's structure: the search has shown nothing about
    other down-sets.
    """
    search = PlanSearch(sampled.problem, sampled.options, sampled.offers)
    search.statistics = dict(sampled.statistics)
    search.note_end(Ended.LEFT_OUT)
    if not sampled.complete:
        search.note_end(sampled.ended)
    return search
