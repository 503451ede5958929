"""What tuning goes by: the limits that a plan is held to, and which of two measured plans is better.

Measured times are known to about 1 %: a limit may be missed by so much, and a gain below it does not count.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from balancer.errors import ConstraintError
from balancer.ground.units import NS_PER_S
from balancer.planning.options import Options, options_of

if TYPE_CHECKING:
    from balancer.plan import Plan
    from balancer.solve import Value

_LOG = logging.getLogger(__name__)
TOLERANCE = 0.01
_ANEW = "solve the model again with it, and tune that plan"


class Achieved(NamedTuple):
    """What a plan was measured to do. latency_ns: of one input alone, from the times of the stages."""

    per_s: float
    latency_ns: int


@dataclass(frozen=True, slots=True)
class Aim:
    """How measured plans are judged. options: what every plan of one tuning is held to."""

    options: Options

    @property
    def lowest_latency(self) -> bool:
        """Whether the latency is what counts, at a rate that must be met."""
        return self.options.constraints.max_objective_ns is not None

    def broken(self, measured: Achieved) -> str:
        """The limit that a measured plan misses, in words; empty where it misses none."""
        limits = self.options.constraints
        if limits.max_latency_ns is not None and measured.latency_ns > limits.max_latency_ns * (1 + TOLERANCE):
            return f"latency {measured.latency_ns / 1e6:.3f} ms, {limits.max_latency_ns / 1e6:.3f} allowed"
        if limits.max_objective_ns and measured.per_s * (1 + TOLERANCE) < NS_PER_S / limits.max_objective_ns:
            return f"{measured.per_s:.1f}/s, {NS_PER_S / limits.max_objective_ns:.1f} wanted"
        return ""

    def key(self, measured: Achieved) -> tuple[bool, float]:
        """What measured plans are ordered by: the smaller, the better."""
        return bool(self.broken(measured)), measured.latency_ns if self.lowest_latency else -measured.per_s

    def gain(self, first: Achieved, best: Achieved) -> float:
        """How many times better the best plan is than the first, in what counts."""
        return first.latency_ns / best.latency_ns if self.lowest_latency else best.per_s / first.per_s

    def promises_more(self, value: Value, best: Achieved) -> bool:
        """Whether a plan of this predicted value is worth measuring after the best measured so far."""
        predicted = Achieved(NS_PER_S / value.objective_ns, value.latency_ns)
        if self.broken(best):
            return not self.broken(predicted)
        return self.gain(best, predicted) >= 1 + TOLERANCE


def narrowed(plan: Plan, asked: Options | None) -> Options:
    """What the plan was held to, and what is asked on top.

    Raises ConstraintError where what is asked would drop a limit of the plan, or where the plan itself does not keep
    to it: then its rate says nothing about that of others.
    """
    if plan.held_to is None:
        _LOG.warning(
            "%s does not say what it was held to: other plans may have any pipelines and replicas", plan.file_name
        )
    held = options_of(plan.held_to) if plan.held_to else Options()
    if asked is None:
        return held
    if asked.stages not in (None, held.stages):
        raise ConstraintError("the plan was not held to it", f"{asked.stages} stages", _ANEW)
    # As plans remember them: a limit that no file holds would limit nothing, either.
    if asked.constraints and options_of(asked.held_to).constraints != held.constraints:
        raise ConstraintError("the plan was held to others", "constraints", "solve the model again with these")
    if asked.overflow not in (None, held.overflow):
        raise ConstraintError("the plan was not held to it", f"overflow '{asked.overflow}'", _ANEW)
    replicas = max(stage.replicas for p in plan.pipelines for stage in p.stages)
    return replace(
        asked, stages=held.stages, constraints=held.constraints, overflow=held.overflow,
        pipelines=_at_most("pipelines", held.pipelines, asked.pipelines, len(plan.pipelines)),
        replicas=_at_most("replicas", held.replicas, asked.replicas, replicas),
    )  # fmt: skip


def _at_most(what: str, held: int | None, asked: int | None, used: int) -> int | None:
    if asked is None:
        return held
    if held is not None and asked > held:
        raise ConstraintError(f"the plan was held to at most {held}", f"at most {asked} {what}", _ANEW)
    if used > asked:
        raise ConstraintError(f"the plan has {used}", f"at most {asked} {what}", _ANEW)
    return asked
