"""The search of the solver `downset` in one family of down-sets, which is a branch-and-bound over numbers of devices.

For each number of devices, bounds say how short the period of a pipeline must be to better the incumbent when all other devices
do their utmost (`plan_bounds`); a dynamic program looks for the pipelines that are that fast (`period_dp`). At first the bounds
follow from the cost's structure alone; each search tightens them.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

from balancer.solve.budget import Budget, BudgetSpent
from balancer.solve.downset_dp import PipelineLimits, cut_lattice
from balancer.solve.label_dp import non_dominated_pipelines, sparing_pipelines
from balancer.solve.limits import max_replicas, may_replicate_whole
from balancer.solve.offers import alone_ns, device_shares, labelled_offer, lattice_offer
from balancer.solve.period_dp import shortest_periods
from balancer.solve.periods import longest_ns
from balancer.solve.plan_bounds import beyond_ns
from balancer.solve.plan_search import PlanSearch
from balancer.solve.problem import Ended, evaluate
from balancer.solve.reaching import CutFinder
from balancer.solve.sizes import stage_classes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balancer.ground.downsets import DownSets
    from balancer.solve.downset_dp import CutLattice
    from balancer.solve.offers import Offer
    from balancer.solve.period_dp import PeriodResult, ShortestPeriod
    from balancer.solve.problem import Problem, SolverOptions, Value
    from balancer.solve.sizes import Counts

_SLACK_TENTHS = (1, 4, 10)
_LABEL_WORK = 1 << 26  # of `label_dp`: some 10 s
_MOST_LABELLED = 1 << 10  # pipelines that are weighed against each other
_AT_ONCE = 1 << 20  # work to find all pipelines as fast as the best known in one search; else they are found by steps
_FEW_AT_ONCE = 1 << 14  # the same for one number of devices of several
_SMALL_SLACK_TENTHS = (1, 2, 3, 4, 5, 6, 8, 10)  # where cuts have to be found, which takes far longer with more slack


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
        self._last_found: tuple[tuple[Counts, int], CutLattice] | None = None
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
            prices=self.priced.prices if self.priced else (),
        )

    def run(self) -> None:
        """Look for better pipelines until there can be none, or the budget is spent; then settle what is left open."""
        with self.keeping_offers():
            self._look()
            self._settle()
        self._count()

    def run_unsettled(self) -> None:
        """The same, without settling: enough for pipelines that another search starts from."""
        with self.keeping_offers():
            self._look()
        self._count()

    def _count(self) -> None:
        if self.sets is not None:
            self.statistics["down_sets"] = len(self.sets)
        self.statistics["pairs"] = self.budget.spent

    def _look(self) -> None:
        try:
            if self.most_pipelines == 1:
                self._one_pipeline()
            else:
                self._several()
            self.note_end(Ended.COMPLETE)
        except BudgetSpent:
            self.note_end(Ended.LIMIT_REACHED)

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
        ties = [p for p in result.front if forced in (None, p.stage_count) and self._alone_ns(p) <= fastest]
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
        return [point for point in result.front if forced in (None, point.stage_count)]

    def _searched(self, counts: tuple[int, ...], most_ns: int, *, exact_stages: bool) -> PeriodResult:
        """The result of a search within these limits. The last one is kept, since ties often ask for it again."""
        host = min(stage_classes(self.problem).host_ns)
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

        By the pigeonhole principle, a better plan has a pipeline that brings more than its devices' share of the incumbent's
        rate, however the shares are set. Such pipelines are fast, so few cuts are open in a search for them: they come first,
        and where there are none, the incumbent is optimal. Next come those at least as fast as the fastest known on as many
        devices; then all that could still improve the plan.
        """
        steps = (10,) if self.lattice else (0, *_SMALL_SLACK_TENTHS)
        for tenths in steps:
            for sizes in self._sizes_at_once():
                self._improve_beyond_share(sizes, tenths)
        for sizes in self._sizes_at_once():
            self._improve(sizes, self._as_known())
        for sizes in self._sizes_at_once():
            self._improve(sizes, None)

    def _improve_beyond_share(self, sizes: list[int], tenths: int) -> None:
        """Look for pipelines on exactly these numbers of devices that bring more than their devices' share of the best rate.

        tenths: of the slack between the bound on their period and the longest such period. 0: all of it, if that is little
        work.
        """
        least, longest = self.bounds.least_ns.min(axis=0).tolist(), self._of_share()
        sizes = [number for number in sizes if least[number] < _or_never(longest[number])]
        if not sizes:
            return
        if tenths:
            for number in sizes:
                whole = longest[number]
                if whole is not None:
                    longest[number] = whole - (whole - math.floor(least[number])) * (10 - tenths) / 10
            self._improve(sizes, longest)
            return
        try:
            with self._at_most(_FEW_AT_ONCE):
                self._improve(sizes, longest)
        except BudgetSpent:
            if not self.budget.left:
                raise

    def _settle(self) -> None:
        """Weigh the pipelines that may belong to a plan as good as the best known against each other: by what they
        take of shared resources, and by all that decides between plans of equal rate.

        Without this, a search is not complete where resources are shared and limit the plan. Elsewhere it is about ties alone,
        and ends within limits of work. With one pipeline, or devices of one kind, ties are settled among the fastest pipelines
        of each size, which is enough for one pipeline.
        """
        several = self.most_pipelines > 1 and len(self.counts) > 1
        if not self.complete or not self.offers or not (self.problem.shared or several):
            return
        self.relaxed_ns, known = self.free_bound_ns(), self.plan_value()
        budget = Budget(_LABEL_WORK, self.budget.seconds_left)
        try:
            if self.most_pipelines == 1:
                known = self._fastest_shared(known, budget)
            self._take_if_better(self._labelled(known, budget), known)
        except BudgetSpent:
            if known.objective_ns > self.relaxed_ns:
                self.note_end(Ended.LIMIT_REACHED)

    def _fastest_shared(self, known: Value, budget: Budget) -> Value:
        """What the fastest single pipeline is worth with all that its devices share; it is taken if it is faster.

        A longer period allows every pipeline that a shorter one does: bisection over whole ns.
        """
        classes, forced = stage_classes(self.problem), self.options.stages
        if self.lattice is None:
            raise BudgetSpent
        period_ns = self.relaxed_ns  # often the first pipeline keeps it
        while self.relaxed_ns < known.objective_ns:
            limits = PipelineLimits(self.counts, period_ns, forced or sum(self.counts), exact_stages=True)
            most_ns = [resource.capacity * period_ns for resource in self.problem.shared]
            found = [
                labelled_offer(p)
                for p in sparing_pipelines(self.lattice, limits, budget, most_ns)
                if forced in (None, sum(p.stages)) and classes.work_ns(p.stages) <= period_ns
            ]
            if found:
                self.offers, known = found, evaluate(self.problem, [found[0].costed.pipeline]) or known
            else:
                self.relaxed_ns = period_ns + 1
            # Nearer to the bound: the longer the period, the more pipelines there are to compare.
            period_ns = self.relaxed_ns + (known.objective_ns - self.relaxed_ns) // 4
        return known

    def _labelled(self, known: Value, budget: Budget) -> list[Offer]:
        """The pipelines that may belong to a plan at least as good as the one known, and that no other beats."""
        if self.lattice is None:
            raise BudgetSpent
        limits, most_ns = self._limits_to_tie(known.objective_ns), list[int]()
        if self.most_pipelines == 1:
            most_ns = [resource.capacity * known.objective_ns for resource in self.problem.shared]
        found = non_dominated_pipelines(self.lattice, limits, budget, most_ns)
        self.statistics["labels"] = len(found)
        if len(found) > _MOST_LABELLED:
            raise BudgetSpent
        return [labelled_offer(p) for p in found if self.options.stages in (None, sum(p.stages))]

    def _take_if_better(self, offers: list[Offer], known: Value) -> None:
        """Take these offers in place of those known, unless limits of work let them make a worse plan."""
        before, self.offers = self.offers, offers
        if not offers or self.plan_value() > known:
            self.offers = before

    def _limits_to_tie(self, best_ns: int) -> PipelineLimits:
        """The pipelines that may belong to a plan with at most this objective."""
        every = list(range(1, len(self.bounds.devices.vectors)))
        limits = None if self.most_pipelines == 1 else self.bounds.limits_to_improve(every, best_ns + 1)
        return limits or PipelineLimits(self.counts, best_ns, self.options.stages or sum(self.counts))

    def _sizes_at_once(self) -> list[list[int]]:
        """Numbers of devices that are searched together: with several kinds all, which share most of the work."""
        every = list(range(1, len(self.bounds.devices.vectors)))
        return [every] if len(self.counts) > 1 else [[number] for number in every]

    def _of_share(self) -> list[Fraction | None]:
        """By the number of the devices, the longest period of a pipeline that brings more than their share of the rate."""
        shares = device_shares(self.offers, self.counts)
        best = self.objective_ns() - 1
        worth = (sum(n * own for n, own in zip(counts, shares, strict=True)) for counts in self.bounds.devices.vectors)
        return [Fraction(best) / own if own else None for own in worth]

    def _as_known(self) -> list[Fraction | None]:
        """By the number of the devices, the shortest period known on them or on fewer."""
        return [
            min(
                (o.period for o in self.offers if all(a <= b for a, b in zip(o.devices, counts, strict=True))),
                default=None,
            )
            for counts in self.bounds.devices.vectors
        ]

    def _improve(self, sizes: list[int], longest: Sequence[Fraction | None] | None) -> None:
        """Look for pipelines on exactly these numbers of devices that could make the best plan better.

        longest: the longest periods of interest, in ns, by the number of the devices; None for any.
        """
        limits = self.bounds.limits_to_improve(sizes, self.objective_ns())
        if limits is None:
            return
        if longest is not None:
            limits = _shortened(limits, sizes, longest)
        result = self._shortest_periods(limits)
        # Where cuts have to be found, one more search for plans that tie would take as long as the proof.
        self.bounds.note_search(result, None if self.lattice else beyond_ns(limits))
        wanted = {self.bounds.devices.vectors[number] for number in sizes}
        self.offers += [lattice_offer(result, point) for point in result.front if point.devices in wanted]


def _or_never(period: Fraction | None) -> float:
    return math.inf if period is None else float(period)


def _shortened(limits: PipelineLimits, sizes: Sequence[int], longest: Sequence[Fraction | None]) -> PipelineLimits:
    """The limits with shorter periods. longest: by the number of the devices; None for any."""
    if not limits.longest_ns:
        period = longest[sizes[0]]
        return limits if period is None else replace(limits, most_ns=min(limits.most_ns, math.ceil(period)))
    shorter = tuple(
        most_ns if period is None else min(most_ns, math.ceil(period))
        for most_ns, period in zip(limits.longest_ns, longest, strict=True)
    )
    return replace(limits, most_ns=max(shorter), longest_ns=shorter)
