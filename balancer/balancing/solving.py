"""A setting solved as a caller wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.errors import InfeasibleError
from balancer.solve import Options, Solution, solve

if TYPE_CHECKING:
    from balancer.balancing.setting import Setting

AVOID = "avoid"  # beside the choices in `setting.OVERFLOW`: stream for want of room only where there is no other plan


def solve_setting(setting: Setting, n_tpus: int, options: Options, overflow: str) -> Solution:
    """The best plan under the setting's costs. overflow: "stream", "error" or AVOID.

    Raises InfeasibleError where there is none.
    """
    if overflow != AVOID:
        return solve(setting.problem(n_tpus, overflow=overflow), options)
    try:
        return solve(setting.problem(n_tpus, overflow="error"), options)
    except InfeasibleError:
        return solve(setting.problem(n_tpus), options)
