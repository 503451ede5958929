"""Rates and latencies of pipelines from the times of their stages, for one pipeline and for several that share resources.

Each formula stands here once. Solvers, predictions, measurements and simulated TPUs all call it. Rates are exact
fractions, so that equal plans compare as equal.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from balancer.ground.programs import highest_gain
from balancer.ground.units import MIB, NS_PER_S, ceil_div

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def pipeline_rate(stage_ns: Sequence[int], replicas: Sequence[int]) -> Fraction:
    """Inferences per second of a pipeline in steady state, which is the rate of its slowest stage.

    stage_ns, replicas: of each stage. A time below 1 ns counts as 1 ns.

    >>> pipeline_rate([3_000, 8_000], replicas=[1, 4])
    Fraction(1000000, 3)
    """
    return min(Fraction(NS_PER_S * r, max(t, 1)) for t, r in zip(stage_ns, replicas, strict=True))


def shared_rates(
    rates: Sequence[Fraction], work: Sequence[Sequence[int]], capacities: Sequence[int] = (1,)
) -> list[Fraction]:
    """Inferences per second of each pipeline where several share resources, such that their sum is highest.

    It is the optimum of a linear program: each pipeline has at most its own rate, and each resource does at most
    capacity * 10^9 ns of work in a second. So a faster pipeline never makes a plan slower. With one resource, the pipelines
    that take the least of it are served first, and those that take the most wait.

    rates: of each pipeline alone. work: for each pipeline the ns of work that one inference takes of each resource.
    capacities: ns of work that each resource does in 1 ns: 1 for the host or a bus, the number of cores for cores.

    >>> [int(rate) for rate in shared_rates([Fraction(400), Fraction(300)], [[1_000_000], [4_000_000]])]
    [400, 150]
    >>> [int(rate) for rate in shared_rates([Fraction(400), Fraction(300)], [[1_000_000, 0], [0, 5_000_000]], (1, 1))]
    [400, 200]
    """
    limits = [capacity * NS_PER_S for capacity in capacities]
    over = [k for k in range(len(limits)) if _taken(rates, work, k) > limits[k]]
    if not over:
        return list(rates)
    # Where one resource alone leaves the others enough, the optimum under it is that of the whole program.
    for k in over:
        served = _least_work_first(rates, [takes[k] for takes in work], limits[k])
        if all(_taken(served, work, other) <= limits[other] for other in over):
            return served
    n = len(rates)
    rows = [[Fraction(takes[k]) for takes in work] for k in over]
    rows += [[Fraction(i == j) for j in range(n)] for i in range(n)]
    return highest_gain([Fraction(1)] * n, rows, [*(Fraction(limits[k]) for k in over), *rates]).values


def plan_rate(rates: Sequence[Fraction], work: Sequence[Sequence[int]], capacities: Sequence[int] = (1,)) -> Fraction:
    """Inferences per second of all pipelines together. See `shared_rates`.

    >>> plan_rate([Fraction(400), Fraction(300)], [[1_000_000], [4_000_000]])
    Fraction(550, 1)
    """
    return sum(shared_rates(rates, work, capacities), Fraction(0))


def _taken(rates: Sequence[Fraction], work: Sequence[Sequence[int]], resource: int) -> Fraction:
    """ns of a resource's work in a second."""
    return sum((rate * takes[resource] for rate, takes in zip(rates, work, strict=True)), Fraction(0))


def _least_work_first(rates: Sequence[Fraction], work_ns: Sequence[int], limit: int) -> list[Fraction]:
    """The optimum under one resource. work_ns: of each pipeline for one inference. limit: ns of work in a second."""
    left, served = Fraction(limit), [Fraction(0)] * len(rates)
    for k in sorted(range(len(rates)), key=lambda k: work_ns[k]):
        served[k] = min(rates[k], left / work_ns[k]) if work_ns[k] else rates[k]
        left -= served[k] * work_ns[k]
    return served


def objective_ns(rate: Fraction) -> int:
    """Nanoseconds per inference in steady state, rounded up. Plans are compared by it.

    rate: inferences per second, above 0.

    >>> objective_ns(Fraction(3))
    333333334
    """
    return -(-NS_PER_S * rate.denominator // rate.numerator)


def latency_ns(stage_ns: Iterable[int], handover_ns: int) -> int:
    """ns from one input to its output with nothing else in flight.

    It is the sum of the stages' times, plus handover_ns for each stage.

    >>> latency_ns([3_000, 5_000], handover_ns=250)
    8500
    """
    return sum(ns + handover_ns for ns in stage_ns)


def load_ns(cached_bytes: int, load_ns_per_mib: int, load_start_ns: int) -> int:
    """ns that the first inference of a segment takes longer than the others, because the cached parameters are sent.

    >>> load_ns(1 << 20, load_ns_per_mib=2_800_000, load_start_ns=0)
    2800000
    """
    return ceil_div(cached_bytes * load_ns_per_mib, MIB) + load_start_ns
