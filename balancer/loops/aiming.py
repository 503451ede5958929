"""What tuning goes by: the limits that a plan was held to, and which of two measured plans is better.

What is measured is known to about 1 %: by so much a limit may be missed, and a gain below it is none.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from balancer.errors import ConstraintError
from balancer.planning.remembering import held_to, options_of
from balancer.solve import SolverOptions

if TYPE_CHECKING:
    from balancer.plan import HeldTo, Plan
    from balancer.solve import Value

_LOG = logging.getLogger(__name__)
TOLERANCE = 0.01
_NS_PER_S = 1e9
_ANEW = "solve the model again with it, and tune that plan"


class Measured(NamedTuple):
    """latency_ns: of one input alone, from the times of the stages."""

    per_s: float
    latency_ns: int


@dataclass(frozen=True, slots=True)
class Aim:
    """What every plan of one tuning is held to. overflow: None where nobody said."""

    options: SolverOptions
    overflow: str | None

    @property
    def held_to(self) -> HeldTo:
        """As plans hold it."""
        return held_to(self.options, self.overflow)

    @property
    def least_latency(self) -> bool:
        """Whether it is the latency that counts, at a rate that is to be met."""
        return self.options.constraints.max_objective_ns is not None

    def broken(self, found: Measured) -> str:
        """The limit that a measured plan misses, in words; empty where it misses none."""
        limits = self.options.constraints
        if limits.max_latency_ns is not None and found.latency_ns > limits.max_latency_ns * (1 + TOLERANCE):
            return f"latency {found.latency_ns / 1e6:.3f} ms, {limits.max_latency_ns / 1e6:.3f} allowed"
        if limits.max_objective_ns and found.per_s * (1 + TOLERANCE) < _NS_PER_S / limits.max_objective_ns:
            return f"{found.per_s:.1f}/s, {_NS_PER_S / limits.max_objective_ns:.1f} wanted"
        return ""

    def key(self, found: Measured) -> tuple[bool, float]:
        """The smaller, the better."""
        return bool(self.broken(found)), found.latency_ns if self.least_latency else -found.per_s

    def gain(self, first: Measured, best: Measured) -> float:
        """How many times better the best one is than the first, in what counts."""
        return first.latency_ns / best.latency_ns if self.least_latency else best.per_s / first.per_s

    def promises_more(self, value: Value, best: Measured) -> bool:
        """Whether a plan of this predicted worth is worth measuring after the best measured so far."""
        predicted = Measured(_NS_PER_S / value.objective_ns, value.latency_ns)
        if self.broken(best):
            return not self.broken(predicted)
        return self.gain(best, predicted) >= 1 + TOLERANCE


def aim_of(plan: Plan, asked: SolverOptions | None) -> Aim:
    """What the plan was held to, and what is asked beside it.

    Raises ConstraintError where what is asked would drop a limit of the plan, or where the plan itself does not keep
    to it: then its rate is no measure for that of others.
    """
    if plan.held_to is None:
        _LOG.warning(
            "%s does not say what it was held to: other plans may have any pipelines and replicas", plan.file_name
        )
    held = options_of(plan.held_to, plan.model.ops) if plan.held_to else SolverOptions()
    overflow = plan.held_to.overflow if plan.held_to else None
    return Aim(_narrowed(plan, held, asked) if asked else held, overflow)


def _narrowed(plan: Plan, held: SolverOptions, asked: SolverOptions) -> SolverOptions:
    if asked.stages not in (None, held.stages):
        raise ConstraintError("the plan was not held to it", f"{asked.stages} stages", _ANEW)
    if asked.constraints and asked.constraints != held.constraints:
        raise ConstraintError("the plan was held to others", "constraints", "solve the model again with these")
    replicas = max(stage.replicas for p in plan.pipelines for stage in p.stages)
    return replace(
        asked, stages=held.stages, constraints=held.constraints,
        max_pipelines=_at_most("pipelines", held.max_pipelines, asked.max_pipelines, len(plan.pipelines)),
        max_replicas=_at_most("replicas", held.max_replicas, asked.max_replicas, replicas),
    )  # fmt: skip


def _at_most(what: str, held: int | None, asked: int | None, used: int) -> int | None:
    if asked is None:
        return held
    if held is not None and asked > held:
        raise ConstraintError(f"the plan was held to at most {held}", f"at most {asked} {what}", _ANEW)
    if used > asked:
        raise ConstraintError(f"the plan has {used}", f"at most {asked} {what}", _ANEW)
    return asked
