"""What every search for the best plan over all down-sets keeps: the pipelines that it knows, and bounds on the others."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from balancer.solve.limits import infeasible, max_pipelines, max_replicas, may_replicate_whole, not_found
from balancer.solve.offers import best_plan, good_objective_ns
from balancer.solve.periods import longest_ns
from balancer.solve.plan_bounds import plan_bounds
from balancer.solve.problem import Ended, Solution, evaluate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balancer.solve.offers import BestPlan, Offer
    from balancer.solve.plan_bounds import PlanBounds
    from balancer.solve.problem import Problem, SolverOptions

OVER = "all down-sets"


class PlanSearch:
    """The pipelines known of a problem, and bounds on all others: where searches keep what they find.

    offers: the pipelines known. ended: how the search ended, LIMIT_REACHED before it has run. bounds_sufficed: whether the
    offers that it began with were proven without a look at any down-set. solver: the name of what searches.
    """

    solver = "downset"

    def __init__(
        self, problem: Problem, options: SolverOptions, offers: Sequence[Offer], bounds: PlanBounds | None = None
    ) -> None:
        """bounds: what earlier searches have shown."""
        self.problem, self.options, self._bounds = problem, options, bounds
        self.counts = tuple(count for _, count in problem.devices)
        self.most_pipelines = max_pipelines(problem, options)
        self.offers = list(offers)
        self._valued = (0, 0)  # how many offers there were when they were valued last, and the objective then
        self.ended, self.bounds_sufficed = Ended.LIMIT_REACHED, False
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

    @contextmanager
    def keeping_offers(self) -> Iterator[None]:
        """Ctrl-C in here ends the search, and is passed on only where no pipeline is known."""
        try:
            yield
        except KeyboardInterrupt:
            if not self.offers:
                raise
            self.note_end(Ended.INTERRUPTED)

    @cached_property
    def bounds(self) -> PlanBounds:
        """Bounds on the pipelines that are not known yet."""
        replicas, whole = max_replicas(self.options), may_replicate_whole(self.problem, self.options)
        return self._bounds or plan_bounds(self.problem, self.most_pipelines, replicas, may_replicate_whole=whole)

    def plan(self) -> BestPlan:
        """The best plan of the pipelines known."""
        return best_plan(self.problem, self.offers, sum(self.counts), self.most_pipelines)

    def objective_ns(self) -> int:
        """ns per inference of a good plan of the pipelines known; a very long time where none are known."""
        if not self.offers:
            return longest_ns(max_replicas(self.options))
        if self._valued[0] != len(self.offers):  # valuing takes long, and offers are only ever added
            value_ns = good_objective_ns(self.problem, self.offers, sum(self.counts), self.most_pipelines)
            self._valued = len(self.offers), value_ns
        return self._valued[1]

    def solution(self, solver: str) -> Solution:
        """The best plan, with the best bound. solver: its name in the solution.

        Raises InfeasibleError where there is no pipeline, NotFoundError where none is known.
        """
        if not self.offers:
            raise (infeasible if self.complete else not_found)(self.problem, self.options)
        plan = self.plan()
        value = evaluate(self.problem, plan.pipelines)
        if value is None:
            raise ValueError("the batch form of the cost allows a segment that `exact` does not")
        bound = value.objective_ns if plan.complete else plan.bound_ns
        if not self.complete:
            bound = min(value.objective_ns, self.bounds.objective_ns())
        return Solution(
            solver=solver,
            pipelines=plan.pipelines,
            value=value,
            bound_ns=bound,
            over=f"{OVER}, {self.options.scope}",
            ended=self.ended if plan.complete or not self.complete else Ended.LIMIT_REACHED,
            statistics=self.statistics,
        )
