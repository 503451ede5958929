"""What follows from the times of stages: the rate and the latency of pipelines, alone and side by side under one host.

Each formula stands here once; solvers, predictions, measurements and simulated TPUs all call it.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from balancer.ground.units import MIB, NS_PER_S, ceil_div

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def pipeline_rate(stage_ns: Sequence[int], replicas: Sequence[int]) -> Fraction:
    """Inferences per second of a pipeline in steady state: that of its slowest stage. Times are at least 1 ns."""
    return min(Fraction(NS_PER_S * r, max(t, 1)) for t, r in zip(stage_ns, replicas, strict=True))


def shared_rates(
    rates: Sequence[Fraction], host_ns: Sequence[int], host_ns_per_s: Fraction = Fraction(NS_PER_S)
) -> list[Fraction]:
    """Inferences per second of pipelines side by side under one host, which serves those that cost it least first.

    rates: of each pipeline alone. host_ns: its host work per inference. host_ns_per_s: the host's time in each
    second. Where the host has more to do than there is time, the dearest pipelines wait. So a faster pipeline never
    makes a plan slower.
    """
    left, shared = host_ns_per_s, [Fraction(0)] * len(rates)
    for k in sorted(range(len(rates)), key=lambda k: host_ns[k]):
        shared[k] = min(rates[k], left / host_ns[k]) if host_ns[k] else rates[k]
        left -= shared[k] * host_ns[k]
    return shared


def plan_rate(
    rates: Sequence[Fraction], host_ns: Sequence[int], host_ns_per_s: Fraction = Fraction(NS_PER_S)
) -> Fraction:
    """Inferences per second of all pipelines together, see `shared_rates`."""
    return sum(shared_rates(rates, host_ns, host_ns_per_s), Fraction(0))


def objective_ns(rate: Fraction) -> int:
    """Nanoseconds per inference in steady state, rounded up: what plans are compared by."""
    return -(-NS_PER_S * rate.denominator // rate.numerator)


def latency_ns(stage_ns: Iterable[int], handover_ns: int) -> int:
    """ns from one input to its output with nothing else in flight: each stage's time, and handing its result over.

    >>> latency_ns([3_000, 5_000], handover_ns=250)
    8500
    """
    return sum(ns + handover_ns for ns in stage_ns)


def load_ns(cached_bytes: int, load_ns_per_mib: int, load_start_ns: int) -> int:
    """ns that the first inference of a segment takes longer than others: the parameters that stay on the chip are sent.

    >>> load_ns(1 << 20, load_ns_per_mib=2_800_000, load_start_ns=0)
    2800000
    """
    return ceil_div(cached_bytes * load_ns_per_mib, MIB) + load_start_ns
