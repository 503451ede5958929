"""Which plan to compile next, as long as each plan so far had a segment that the compiler refused; and what to say at the end.

The fastest plan without the forbidden segments may be only a little smaller than the last one, and be refused again. So
where activations were too large, plans also get smaller from round to round:

    rounds left     the next plan
    3 or more       the fastest with at most half of what can be saved on live activations, in the segment with most of them
    2               the fastest with as few as possible there
    1               the one with the fewest live activations in all segments

If the compiler takes segments by their live activations, as predicted, then it takes one of these plans wherever it takes
any. With constraints, or if nothing is known of the reason, it is the fastest plan in each round.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.errors import CompilerError, InfeasibleError
from balancer.ground.opsets import members, op_ranges
from balancer.planning.least_live import largest_live_bytes, least_live
from balancer.planning.solving import solve_costed_model
from balancer.solve import Ended, Solution, evaluate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.learning.refusals import RefusedSegment
    from balancer.planning.costed_model import CostedModel
    from balancer.planning.options import Options
    from balancer.solve import PipelineSpec


def next_to_compile(costed: CostedModel, n_tpus: int, options: Options, rounds_left: int) -> Solution:
    """The next plan, without the forbidden segments of the costed model. Raises InfeasibleError if there is none.

    rounds_left: how many plans may still be compiled, this one included. If no plan keeps the limit on live activations,
    which is a conclusion from refusals and not what the compiler said, the plan need not keep it.
    """
    forbidden = costed.forbidden
    limit = forbidden.live_bytes
    if options.constraints or not (forbidden.parts or limit is not None):
        return _fastest(costed, n_tpus, options, (limit, None))
    smallest = least_live(replace(costed, forbidden=replace(forbidden, live_bytes=None)), n_tpus, options)
    if rounds_left == 1:
        return _stated(costed, n_tpus, smallest)
    if limit is None:
        return _fastest(costed, n_tpus, options, (None,))
    # The fewest live activations are in a plan that may miss other options, so even this limit can be too low.
    least = largest_live_bytes(costed.costs, smallest)
    limits = [least + 1, None] if rounds_left == 2 else [(least + limit) // 2 + 1, least + 1, None]
    return _fastest(costed, n_tpus, options, limits)


def _fastest(costed: CostedModel, n_tpus: int, options: Options, limits: Iterable[int | None]) -> Solution:
    """The fastest plan under the first of these limits on live bytes that some plan keeps. Raises InfeasibleError."""
    first, *others = dict.fromkeys(limits)
    limited = replace(costed, forbidden=replace(costed.forbidden, live_bytes=first))
    if not others:
        return solve_costed_model(limited, n_tpus, options)
    try:
        return solve_costed_model(limited, n_tpus, options)
    except InfeasibleError:
        return _fastest(costed, n_tpus, options, others)


def _stated(costed: CostedModel, n_tpus: int, pipeline: PipelineSpec) -> Solution:
    """A pipeline as a solution that claims nothing."""
    value = evaluate(costed.without_forbidden.problem(n_tpus), [pipeline])
    assert value is not None  # it was a plan of the same problem, with fewer segments allowed
    return Solution(
        solver="downset", pipelines=(pipeline,), value=value, bound_ns=None, over="plans with few live activations",
        ended=Ended.NOT_SEARCHED,
    )  # fmt: skip


def failure(refused: Sequence[RefusedSegment]) -> CompilerError:
    """The error for a plan that was not compiled, if no other plan helps. refused: its segments."""
    more = f" ({len(refused)} segments fail)" if len(refused) > 1 else ""
    first = refused[0]
    return CompilerError(f"cannot be compiled: {first.reason}{more}", _place(first), first.remedy)


def all_refused(costed: CostedModel, n_tpus: int, rounds: Sequence[Sequence[RefusedSegment]]) -> CompilerError:
    """The error for rounds that all ended in refusals. rounds: the refused segments of each, in order."""
    if len(rounds) == 1:
        return failure(rounds[0])
    last = rounds[-1][0]
    what = (
        f"cannot be compiled in any of the {len(rounds)} ways that were tried; of the last one, "
        f"{_place(last)} is refused: {last.reason}{around(last)}"
    )
    return CompilerError(what, _model(costed, n_tpus), last.remedy)


def no_other_plan(costed: CostedModel, n_tpus: int, refused: Sequence[RefusedSegment]) -> InfeasibleError:
    """The error where each plan has a segment that the compiler refused, or surely would. refused: of the last plan."""
    first = refused[0]
    what = f"cannot be compiled: no plan is without {_place(first)}, or what was refused of it: {first.reason}{around(first)}"
    return InfeasibleError(what, _model(costed, n_tpus), first.remedy)


def around(refused: RefusedSegment) -> str:
    """Where a refused segment has most live activations, in words; empty if that is not judged."""
    return f", around tensor '{refused.tensor}'" if refused.tensor is not None else ""


def _place(refused: RefusedSegment) -> str:
    return f"{refused.name} (ops {op_ranges(members(refused.ops))})"


def _model(costed: CostedModel, n_tpus: int) -> str:
    return f"{costed.graph.name} on {n_tpus} TPU{'s' if n_tpus > 1 else ''}"
