"""The solver `chain`: the best plan whose segments are intervals of one execution order. Exact, and fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.solve.interval_dp import ChainSolver
from balancer.solve.limits import infeasible, most_pipelines, most_replicas, whole_replicas
from balancer.solve.offers import Offer, alone_ns, best_plan, chain_offer
from balancer.solve.orders import file_order, order_table, prefixes
from balancer.solve.problem import Solution, evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.ground.opsets import OpSet
    from balancer.solve.interval_dp import Reached
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
    count = problem.devices[0][1]
    plan = best_plan(problem, offers, count, most_pipelines(problem, options))
    value = evaluate(problem, plan.pipelines)
    if value is None:
        raise ValueError("the batch form of the cost allows a segment that `exact` does not")
    return Solution(
        solver="chain",
        pipelines=plan.pipelines,
        value=value,
        bound_ns=value.objective_ns if plan.bound_ns is None else plan.bound_ns,
        over=f"{OVER}, {options.scope}",
        statistics={"intervals": problem.n_ops * (problem.n_ops + 1) // 2, "pipelines": len(offers)},
    )


def chain_offers(problem: Problem, options: SolverOptions, cuts: Sequence[OpSet]) -> list[Offer]:
    """The pipelines between the cuts of an order that are worth having; none where there are none."""
    kind, count = problem.devices[0]
    solver = ChainSolver(
        order_table(problem, cuts, kind),
        count,
        most_replicas=most_replicas(options),
        whole_replicas=whole_replicas(problem, options),
    )
    reached = solver.reached_with(options.stages) if options.stages else list(solver.reached())
    if reached and most_pipelines(problem, options) == 1:
        reached = _tied(solver, problem, reached, options.stages)
    return [chain_offer(problem, solver, goal, cuts) for goal in reached]


def _tied(solver: ChainSolver, problem: Problem, reached: Sequence[Reached], stages: int | None) -> list[Reached]:
    """What meets the best objective with the fewest devices, where one pipeline is all there is.

    Plans are compared by whole ns, and the host may be slower than the pipeline: both leave room for slower
    partitions, which may stream less.
    """
    best = min(alone_ns(problem, r.stages, r.period) for r in reached)
    meeting = [r for r in solver.meeting(best) if problem.host_ns * r.stages <= best and stages in (None, r.stages)]
    fewest = min(r.devices for r in meeting)
    return [r for r in meeting if r.devices == fewest]
