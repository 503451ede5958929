"""What measured stages teach the cost model: factors by op type and for what crosses the link, and a rest by op.

Stages are few and ops many, so factors are fitted first that whole types of ops share: those that agree best with all
stages measured so far while they stay near 1 (Gauss-Newton on logarithms, with a prior width for each factor). What then
is left of a stage's difference is put on its own ops, so that measured stages come out as they were measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from balancer.cost.profile import OpCosts, Profile
from balancer.ground.opsets import OpSet, members

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from balancer.ground.arrays import FloatArray
    from balancer.planning.setting import Setting

LABEL = "measured stages"
# How far a factor may be off 1, as a standard deviation of its logarithm: by the errors of docs/fidelity.md, op types
# differ by up to a factor of 2, links by a third. What is measured is known to about 1 %.
_OPS_WIDTH, _LINK_WIDTH, _MEASURED_WIDTH = 0.5, 0.25, 0.01
_LINKS: dict[str, tuple[str, ...]] = {
    "input": ("input_ns_per_mib", "large_input_ns_per_mib"),
    "output": ("output_ns_per_mib", "large_output_ns_per_mib"),
    "stream": ("stream_ns_per_mib", "stream_start_ns"),
}
_ITERATIONS = 12
_STEP = 1e-3
_MOST_REST = 4.0  # a larger factor on single ops says more of the measurement than of them


@dataclass(frozen=True, slots=True)
class Observed:
    """A measured stage: its ops, its busy ns for one input, and the room for parameters that was reported, if it was."""

    ops: OpSet
    stage_ns: int
    room: int | None = None


def fitted(setting: Setting, observed: Sequence[Observed]) -> Setting:
    """The setting with costs under which the observed stages take what was measured. observed: the latest ones last."""
    if not observed:
        return setting
    fit = _Fit(setting, observed)
    return fit.with_rest(fit.solve())


@dataclass(frozen=True)
class _Fit:
    setting: Setting
    observed: Sequence[Observed]

    @cached_property
    def types(self) -> list[str]:
        """Of ops that take time in an observed stage."""
        costs, graph = self.setting.costs, self.setting.graph
        seen = {i for each in self.observed for i in members(each.ops)}
        return sorted({graph.ops[i].type for i in seen if costs.op_terms[i].compute_ns or costs.unmapped >> i & 1})

    @cached_property
    def widths(self) -> FloatArray:
        return np.array([_LINK_WIDTH] * len(_LINKS) + [_OPS_WIDTH] * len(self.types))

    def solve(self) -> FloatArray:
        """The logarithms of the factors: links, then types."""
        target = np.log([each.stage_ns for each in self.observed])
        theta = np.zeros(len(self.widths))
        for _ in range(_ITERATIONS):
            now = self._predicted(theta)
            steps = [theta + _STEP * unit for unit in np.eye(len(theta))]
            slope = np.array([(self._predicted(step) - now) / _STEP for step in steps]).T
            rows = np.vstack([slope / _MEASURED_WIDTH, np.diag(1 / self.widths)])
            right = np.concatenate([(target - now) / _MEASURED_WIDTH, -theta / self.widths])
            change = np.linalg.lstsq(rows, right, rcond=None)[0]
            theta = np.clip(theta + np.clip(change, -0.7, 0.7), -3, 3)
            if np.abs(change).max() < 1e-4:
                break
        return theta

    def _predicted(self, theta: FloatArray) -> FloatArray:
        costs = self._with(theta).costs
        return np.log([max(1, costs.terms(each.ops, each.room).stage_ns) for each in self.observed])

    def _with(self, theta: FloatArray, rest: Mapping[int, float] | None = None) -> Setting:
        """The setting with these factors, and a rest for single ops."""
        factors = np.exp(theta).tolist()
        hardware = self.setting.costs.hardware
        links = {
            name: hardware.constants[name] * factor
            for names, factor in zip(_LINKS.values(), factors, strict=False)
            for name in names
        }
        by_type = dict(zip(self.types, factors[len(_LINKS) :], strict=True))
        old = (self.setting.profile or Profile("", {})).taught_by(LABEL)
        costs = self.setting.costs
        ops = dict(old.ops)
        for op in self.setting.graph.ops:
            i = op.index
            factor = by_type.get(op.type, 1.0) * (rest or {}).get(i, 1.0)
            base = costs.op_terms[i].cpu_ns if costs.unmapped >> i & 1 else costs.op_terms[i].compute_ns
            if factor != 1.0:
                ops[i] = replace(ops.get(i, OpCosts()), ns=round(base * factor))
        constants = hardware.changed(links).constants
        profile = replace(old, ops=ops, constants={**old.constants, **{name: constants[name] for name in links}})
        return replace(self.setting, profile=profile)

    def with_rest(self, theta: FloatArray) -> Setting:
        """With what the factors leave of each stage put on its ops; of two stages with an op, the later one counts."""
        costs = self._with(theta).costs
        rest: dict[int, float] = {}
        for each in self.observed:
            terms = costs.terms(each.ops, each.room)
            own = terms.compute_ns + terms.cpu_ns
            wanted = each.stage_ns - (terms.stage_ns - own)
            if own and wanted > 0:
                factor = min(max(wanted / own, 1 / _MOST_REST), _MOST_REST)
                if not math.isclose(factor, 1.0, abs_tol=1e-4):
                    rest |= dict.fromkeys(members(each.ops), factor)
        return self._with(theta, rest)
