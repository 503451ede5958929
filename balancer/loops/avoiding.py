"""Which plan to compile next, as long as each plan so far had a segment that the compiler refused; and what to say at the end.

The fastest plan without the forbidden segments may be only a little smaller than the last one, and be refused again. So
where activations were too large, plans also get smaller from round to round:

    rounds left     the next plan is the fastest whose largest segment has
    3 or more       at most half of what can be saved, by each measure of size that other cuts make smaller
    2               the least size, by the first of these measures
    1               the least size, by the last of them

Sizes are predicted for the segment within its model. The compiler sees the segment's file, which is never larger by either
measure, and may be smaller: it does not say what else reads a tensor. So this much holds: if the compiler goes by one of the
measures, and some plan's predicted sizes are below its limit, then it takes one of the plans above, provided that the search
for the least size leaves out no partition. A plan whose sizes are below the limit in its files alone may be missed.

With constraints, or if nothing is known of the reason, the next plan is the fastest in each round. Once a plan was compiled,
the rounds that are left are for faster ones (`halfway`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.cost.activation_sizes import activation_size, least_alone
from balancer.errors import CompilerError, InfeasibleError
from balancer.ground.opsets import members, op_ranges
from balancer.ground.wording import counted
from balancer.planning.least_size import least_size
from balancer.planning.solving import solve_costed_model

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from balancer.cost.activation_sizes import Measure
    from balancer.ground.opsets import OpSet
    from balancer.learning.refusals import RefusedSegment
    from balancer.planning.costed_model import CostedModel
    from balancer.planning.options import Options
    from balancer.solve import Solution


def next_to_compile(costed: CostedModel, options: Options, rounds_left: int) -> Solution:
    """The next plan, without the forbidden segments of the costed model. Raises InfeasibleError if there is none.

    rounds_left: how many plans may still be compiled, this one included. If no plan keeps the limits on sizes, which are
    conclusions from refusals and not what the compiler said, the plan need not keep them.
    """
    limits = costed.forbidden.limits
    if not limits:
        return solve_costed_model(costed, options)
    wanted = [] if options.constraints else _wanted(_savings(costed, options), rounds_left)
    return _fastest(costed, options, [*wanted, limits, {}])


def halfway(costed: CostedModel, compiled: Collection[OpSet]) -> CostedModel:
    """The costed model with limits halfway between the sizes of the largest compiled segment and those that are too large.

    The fastest plan below what was refused may be only a little smaller, and be refused as well.
    """
    taken = {m: max(activation_size(costed.costs, ops, m) for ops in compiled) for m in costed.forbidden.limits}
    limits = costed.forbidden.limits.items()
    return costed.with_limits({measure: (taken[measure] + limit) // 2 + 1 for measure, limit in limits})


def _savings(costed: CostedModel, options: Options) -> dict[Measure, tuple[int, int]]:
    """By each measure with a limit the least size that a plan has, and the limit, if the least is smaller."""
    anything, savings = costed.with_limits({}), {}
    for measure, limit in costed.forbidden.limits.items():
        if least_alone(costed.costs, measure) < limit:
            least = least_size(anything, options, measure)
            if least < limit:
                savings[measure] = (least, limit)
    return savings


def _wanted(savings: dict[Measure, tuple[int, int]], rounds_left: int) -> list[dict[Measure, int]]:
    """Limits to try, the best first. savings: by measure the least size, and a size that is too large."""
    if not savings:
        return []
    if rounds_left > 2:
        half = {measure: (least + too_large) // 2 + 1 for measure, (least, too_large) in savings.items()}
        return [half, *({measure: limit} for measure, limit in half.items())]
    measure = list(savings)[0 if rounds_left == 2 else -1]
    smallest = {measure: savings[measure][0] + 1}
    return [{each: too_large for each, (_, too_large) in savings.items()} | smallest, smallest]


def _fastest(costed: CostedModel, options: Options, limits: Sequence[Mapping[Measure, int]]) -> Solution:
    """The fastest plan under the first of these limits on sizes that some plan keeps. Raises InfeasibleError."""
    first, *others = limits
    if not others:
        return solve_costed_model(costed.with_limits(first), options)
    try:
        return solve_costed_model(costed.with_limits(first), options)
    except InfeasibleError:
        return _fastest(costed, options, others)


def failure(refused: Sequence[RefusedSegment]) -> CompilerError:
    """The error for a plan that was not compiled, if no other plan helps. refused: its segments."""
    more = f" ({counted(len(refused), 'segment')} fail)" if len(refused) > 1 else ""
    first = _telling(refused)
    return CompilerError(f"cannot be compiled: {first.reason}{more}", _place(first), first.remedy)


def all_refused(costed: CostedModel, rounds: Sequence[Sequence[RefusedSegment]]) -> CompilerError:
    """The error for rounds that all ended in refusals. rounds: the refused segments of each, in order."""
    if len(rounds) == 1:
        return failure(rounds[0])
    last = _telling(rounds[-1])
    what = (
        f"cannot be compiled in any of the {len(rounds)} ways that were tried; of the last one, "
        f"{_place(last)} is refused: {last.reason}{_around(last)}"
    )
    return CompilerError(what, _model(costed), last.remedy)


def no_other_plan(costed: CostedModel, refused: Sequence[RefusedSegment]) -> InfeasibleError:
    """The error where each plan has a segment that the compiler refused, or surely would. refused: of the last plan."""
    first = _telling(refused)
    why = f"{first.reason}{_around(first)}"
    what = f"cannot be compiled: each plan has a segment that is refused, such as {_place(first)}: {why}"
    return InfeasibleError(what, _model(costed), first.remedy)


def _telling(refused: Sequence[RefusedSegment]) -> RefusedSegment:
    """The refused segment that tells most: the first one with an op that is too large by itself, if there is one."""
    return next((each for each in refused if each.alone), refused[0])


def _around(refused: RefusedSegment) -> str:
    """Where a refused segment has most live activations, in words; empty if that is not judged or not the reason."""
    if refused.tensor is None:
        return ""
    alone = f", which {refused.alone} needs by itself" if refused.alone else ""
    return f", around tensor '{refused.tensor}'{alone}"


def _place(refused: RefusedSegment) -> str:
    return f"{refused.name} (ops {op_ranges(members(refused.ops))})"


def _model(costed: CostedModel) -> str:
    return f"{costed.graph.name} on {costed.devices.in_words}"
