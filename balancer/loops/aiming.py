"""What the loops aim for: the limits that their plans must keep, and which of two measured plans is better.

Measured times are accurate to about 1 %. So a plan that misses a limit by less than 1 % counts as keeping it, and a gain
of less than 1 % does not count.
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
_ANEW = "solve the model again with this option, and use that plan"


class Achieved(NamedTuple):
    """The measured performance of a plan. per_s: inferences per second. latency_ns: of one input alone."""

    per_s: float
    latency_ns: int


@dataclass(frozen=True, slots=True)
class Aim:
    """How measured plans are judged. options: the limits for every plan of the loop."""

    options: Options

    @property
    def lowest_latency(self) -> bool:
        """Whether the latency is minimised, because a rate is given; otherwise the rate is maximised."""
        return self.options.constraints.max_objective_ns is not None

    def broken(self, measured: Achieved) -> str:
        """The limit that a measured plan misses, in words; empty if it keeps all."""
        limits = self.options.constraints
        if limits.max_latency_ns is not None and measured.latency_ns > limits.max_latency_ns * (1 + TOLERANCE):
            return f"latency {measured.latency_ns / 1e6:.3f} ms, {limits.max_latency_ns / 1e6:.3f} allowed"
        if limits.max_objective_ns and measured.per_s * (1 + TOLERANCE) < NS_PER_S / limits.max_objective_ns:
            return f"{measured.per_s:.1f}/s, {NS_PER_S / limits.max_objective_ns:.1f} wanted"
        return ""

    def key(self, measured: Achieved) -> tuple[bool, float]:
        """A sort key: the best measured plan has the smallest. Plans that miss a limit come last."""
        return bool(self.broken(measured)), measured.latency_ns if self.lowest_latency else -measured.per_s

    def gain(self, first: Achieved, best: Achieved) -> float:
        """The improvement from the first plan to the best, as a ratio: of rates, or of latencies if these count."""
        return first.latency_ns / best.latency_ns if self.lowest_latency else best.per_s / first.per_s

    def promises_more(self, value: Value, best: Achieved) -> bool:
        """Whether a plan with this predicted value is worth measuring.

        best: what the best plan so far was measured to do. If it misses a limit, a plan is worth measuring that is
        predicted to keep all; otherwise one that is predicted to be at least 1 % better.
        """
        predicted = Achieved(NS_PER_S / value.objective_ns, value.latency_ns)
        if self.broken(best):
            return not self.broken(predicted)
        return self.gain(best, predicted) >= 1 + TOLERANCE


def narrowed(plan: Plan, asked: Options | None) -> Options:
    """The options for new plans that are to compare with this one: its own limits, made tighter by `asked`.

    asked: limits to add, or None. What the plan was not held to at all (solver, seconds) is taken from it.

    Raises ConstraintError if `asked` would loosen or replace a limit of the plan, or if the plan itself breaks a limit in
    `asked`. In both cases the plan's rate and those of new plans would not compare.
    """
    if plan.held_to is None:
        _LOG.warning(
            "%s does not say which limits it was solved with: new plans may have any pipelines and replicas",
            plan.file_name,
        )
    held = options_of(plan.held_to) if plan.held_to else Options()
    if asked is None:
        return held
    if asked.stages not in (None, held.stages):
        raise ConstraintError("the plan was not solved with this option", f"{asked.stages} stages", _ANEW)
    # Compared in the form that plan files hold: there, limits too large to matter are all the same number.
    if asked.constraints and options_of(asked.held_to).constraints != held.constraints:
        raise ConstraintError("the plan was solved with others", "constraints", "solve the model again with these")
    if asked.overflow not in (None, held.overflow):
        raise ConstraintError("the plan was not solved with this option", f"overflow '{asked.overflow}'", _ANEW)
    if asked.compilable not in (None, held.compilable):
        raise ConstraintError("the plan was not solved with this option", f"compilable '{asked.compilable}'", _ANEW)
    replicas = max(stage.replicas for p in plan.pipelines for stage in p.stages)
    return replace(
        asked, stages=held.stages, constraints=held.constraints, overflow=held.overflow,
        compilable=held.compilable,
        pipelines=_at_most("pipelines", held.pipelines, asked.pipelines, len(plan.pipelines)),
        replicas=_at_most("replicas", held.replicas, asked.replicas, replicas),
    )  # fmt: skip


def _at_most(what: str, held: int | None, asked: int | None, used: int) -> int | None:
    """The tighter of two limits. held: the plan's. used: how many the plan has. Raises ConstraintError."""
    if asked is None:
        return held
    if held is not None and asked > held:
        raise ConstraintError(f"the plan was solved for at most {held}", f"at most {asked} {what}", _ANEW)
    if used > asked:
        raise ConstraintError(f"the plan has {used}", f"at most {asked} {what}", _ANEW)
    return asked
