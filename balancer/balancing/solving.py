"""A setting solved as a caller wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.solve import Options, Solution, solve

if TYPE_CHECKING:
    from balancer.balancing.setting import Setting


def solve_setting(setting: Setting, n_tpus: int, options: Options, overflow: str) -> Solution:
    """The best plan under the setting's costs. overflow: of `setting.OVERFLOW`. Raises InfeasibleError."""
    return solve(setting.problem(n_tpus, overflow=overflow), options)
