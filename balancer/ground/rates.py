"""Rates and latencies of pipelines from the times of their stages, for one pipeline and for several under one host.

Each formula stands here once. Solvers, predictions, measurements and simulated TPUs all call it. Rates are exact
fractions, so that equal plans compare as equal.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

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
    rates: Sequence[Fraction], host_ns: Sequence[int], host_ns_per_s: Fraction = Fraction(NS_PER_S)
) -> list[Fraction]:
    """Inferences per second of each pipeline when several share one host.

    The host serves the pipelines with the least host work per inference first. Where it has more to do than there is
    time, the pipelines with the most work wait. So a faster pipeline never makes a plan slower.

    rates: of each pipeline alone. host_ns: its host work per inference. host_ns_per_s: the host's time in each second.

    >>> [int(rate) for rate in shared_rates([Fraction(400), Fraction(300)], host_ns=[1_000_000, 4_000_000])]
    [400, 150]
    """
    left, shared = host_ns_per_s, [Fraction(0)] * len(rates)
    for k in sorted(range(len(rates)), key=lambda k: host_ns[k]):
        shared[k] = min(rates[k], left / host_ns[k]) if host_ns[k] else rates[k]
        left -= shared[k] * host_ns[k]
    return shared


def plan_rate(
    rates: Sequence[Fraction], host_ns: Sequence[int], host_ns_per_s: Fraction = Fraction(NS_PER_S)
) -> Fraction:
    """Inferences per second of all pipelines together. See `shared_rates`.

    >>> plan_rate([Fraction(400), Fraction(300)], host_ns=[1_000_000, 4_000_000])
    Fraction(550, 1)
    """
    return sum(shared_rates(rates, host_ns, host_ns_per_s), Fraction(0))


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
