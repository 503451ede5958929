"""The solver `downset`: the best plan over all down-sets, which is over all orders of execution. Exact for any cost.

The best plan of the execution order is the first incumbent. The search for better ones stands in `downset_search`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.ground.downsets import DownSets
from balancer.solve.block_folding import folded
from balancer.solve.blocks import blocks_of
from balancer.solve.budget import Budget
from balancer.solve.chain import chain_offers
from balancer.solve.downset_sampling import sampled_downsets
from balancer.solve.downset_search import DownSetSearch
from balancer.solve.enumeration import all_downsets
from balancer.solve.orders import file_order, prefixes, thinned
from balancer.solve.plan_search import OVER_SOME, PlanSearch
from balancer.solve.problem import Ended

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.solve.offers import Offer
    from balancer.solve.problem import Problem, Solution, SolverOptions


_LARGE_GAP = 0.01  # between a plan and a bound
_MOST_STARTING_CUTS = 320  # of the order whose best plan is the first incumbent


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


def solve_downset(problem: Problem, options: SolverOptions, work: DownSetWork = DEFAULT_WORK) -> Solution:
    """Optimal over all down-sets, as far as the limits of work and memory go; else the best found, with a bound.

    Raises InfeasibleError where no pipeline was found.
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
        chain = DownSetSearch(problem, options, [], order, budget)
        chain.run_unsettled()
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
        return _with_fitting_claim(sampled)
    return sampling  # interrupted before it had begun


def _with_fitting_claim(sampled: DownSetSearch) -> PlanSearch:
    """What a search among some down-sets found, with a claim about all down-sets or, for several pipelines on several kinds,
    about those searched, where bounds say little about all.
    """
    general = _without_claims(sampled)
    if len(sampled.counts) == 1 or sampled.most_pipelines == 1 or not sampled.complete:
        return general
    if general.bounds.objective_ns() >= sampled.plan_value().objective_ns * (1 - _LARGE_GAP):
        return general
    sampled.over = OVER_SOME
    sampled.statistics[Ended.LEFT_OUT.value] = 1
    return sampled


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
