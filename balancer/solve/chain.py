"""The solver `chain`: the best plan whose segments are intervals of one execution order. Exact, and fast."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.solve.interval_dp import interval_table
from balancer.solve.limits import infeasible, max_pipelines, max_replicas, may_replicate_whole
from balancer.solve.offers import alone_ns, best_plan, interval_offer
from balancer.solve.orders import file_order, order_table, prefixes
from balancer.solve.problem import Ended, Solution, evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.ground.opsets import OpSet
    from balancer.solve.interval_dp import IntervalGoal, IntervalTable
    from balancer.solve.offers import BestPlan, Offer
    from balancer.solve.problem import Problem, SolverOptions

OVER = "intervals of the execution order"


def solve_chain(problem: Problem, options: SolverOptions) -> Solution:
    """Optimal over intervals of the order in which the ops are numbered.

    Raises InfeasibleError where no partition into allowed intervals exists, ValueError for several kinds of devices.
    """
    if len(problem.devices) != 1:
        raise ValueError("the solver 'chain' takes one kind of device")
    offers = chain_offers(problem, options, prefixes(file_order(problem)))
    if not offers:
        raise infeasible(problem, options)
    plan = best_plan(problem, offers, (problem.n_devices,), max_pipelines(problem, options))
    value = evaluate(problem, plan.pipelines)
    if value is None:
        raise ValueError("the batch form of the cost allows a segment that `exact` does not")
    return Solution(
        solver="chain",
        pipelines=plan.pipelines,
        value=value,
        bound_ns=_bound_ns(problem, options, offers, plan),
        over=f"{OVER}, {options.scope}",
        ended=Ended.COMPLETE if plan.complete else Ended.LIMIT_REACHED,
        statistics={"intervals": problem.n_ops * (problem.n_ops + 1) // 2, "pipelines": len(offers)},
    )


def _bound_ns(problem: Problem, options: SolverOptions, offers: Sequence[Offer], plan: BestPlan) -> int:
    """ns per inference: a lower bound for all plans of intervals. The offers are the best as far as nothing but the host is
    shared: without other resources, no plan is better than theirs.
    """
    if problem.shared:
        free = replace(problem, shared=())
        plan = best_plan(free, offers, (problem.n_devices,), max_pipelines(problem, options))
        problem = free
    value = evaluate(problem, plan.pipelines)
    return plan.bound_ns if value is None or not plan.complete else value.objective_ns


def chain_offers(problem: Problem, options: SolverOptions, cuts: Sequence[OpSet]) -> list[Offer]:
    """The non-dominated pipelines between the cuts of an order; an empty list where no partition is allowed."""
    kind, count = problem.devices[0]
    table = interval_table(
        order_table(problem, cuts, kind),
        count,
        most_replicas=max_replicas(options),
        may_replicate_whole=may_replicate_whole(problem, options),
    )
    goals = table.with_stages(options.stages) if options.stages else table.non_dominated()
    if goals and max_pipelines(problem, options) == 1:
        goals = _tied(table, problem, goals, options.stages)
    return [interval_offer(problem, table, goal, cuts) for goal in goals]


def _tied(
    table: IntervalTable, problem: Problem, goals: Sequence[IntervalGoal], stages: int | None
) -> list[IntervalGoal]:
    """The pipelines that have the best objective and the fewest devices, for plans of a single pipeline.

    Plans are compared by whole ns, and the host may be slower than the pipeline. Both leave slack for partitions with a
    longer period, which may stream less.
    """
    best = min(alone_ns(problem, (goal.stages,), goal.period) for goal in goals)
    host_ns = problem.host_ns.get(problem.devices[0][0], 0)
    ties = [g for g in table.within(best) if host_ns * g.stages <= best and stages in (None, g.stages)]
    fewest = min(goal.devices for goal in ties)
    return [goal for goal in ties if goal.devices == fewest]
