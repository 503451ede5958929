"""Corrects predicted costs by the measured times of stages.

There are few measured stages and many ops, so the time of each op cannot be told from the measurements. The correction
has two steps:

1. Shared factors. All ops of one type get the same factor on their time; so do transfers in, transfers out, and
   streaming. The factors minimise, over all stages measured so far, the squared errors of the logarithms of the stage
   times, plus a penalty for each factor that is not 1 (a Gaussian prior on its logarithm). Solved by Gauss-Newton.
2. A remainder for each stage. The difference that the shared factors leave is put on the stage's own ops, as one more
   factor. So measured stages are predicted as they were measured, and the shared factors serve stages never measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from balancer.cost.profile import OpCosts, Profile
from balancer.ground.opsets import OpSet, members
from balancer.runtime.provenance import joined, not_of_devices, parse_provenance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from balancer.ground.arrays import FloatArray
    from balancer.planning.costed_model import CostedModel

LABEL = "measured stages"
# Standard deviations of logarithms. Prior: how far a factor is expected to be from 1. By the errors in docs/fidelity.md,
# op types are off by up to a factor of 2, links by up to a third. Measured: stage times repeat to about 1 %.
_OPS_WIDTH, _LINK_WIDTH, _MEASURED_WIDTH = 0.5, 0.25, 0.01
_LINKS: dict[str, tuple[str, ...]] = {
    "input": ("input_ns_per_mib", "large_input_ns_per_mib"),
    "output": ("output_ns_per_mib", "large_output_ns_per_mib"),
    "stream": ("stream_ns_per_mib", "stream_start_ns"),
}
_ITERATIONS = 12
_STEP = 1e-3  # of a logarithm, for the numerical derivative
_MOST_CHANGE, _MOST_LOG = 0.7, 3.0  # of a logarithm: by one iteration (a factor of 2), and in all (a factor of 20)
_MOST_REST = 4.0  # a larger factor for one stage is a fault of the measurement rather than of the costs


@dataclass(frozen=True, slots=True)
class Observed:
    """A measured stage.

    ops: of its segment. stage_ns: how long it was busy for one input. capacity_bytes: for parameters, as the compiler
    reported it; None if it reported nothing. source: on what it was measured, see `runtime.provenance`.
    """

    ops: OpSet
    stage_ns: int
    capacity_bytes: int | None = None
    source: str = ""


def fitted(costed: CostedModel, observed: Sequence[Observed]) -> CostedModel:
    """The costed model, with costs under which the observed stages take the time that was measured.

    observed: in the order of measurement. Of two stages that share an op, the later one decides the op's remainder.
    """
    if not observed:
        return costed
    fit = _Fit(costed, observed)
    return fit.with_rest(fit.solve())


@dataclass(frozen=True)
class _Fit:
    costed: CostedModel
    observed: Sequence[Observed]

    @property
    def label(self) -> str:
        """What a plan says that its costs were learnt from."""
        origin = not_of_devices(joined(parse_provenance(each.source) for each in self.observed))
        return f"{LABEL} ({origin})" if origin else LABEL

    @cached_property
    def types(self) -> list[str]:
        """The op types that have a factor: those of ops that take time in some observed stage."""
        costs, graph = self.costed.costs, self.costed.graph
        seen = {i for each in self.observed for i in members(each.ops)}
        return sorted({graph.ops[i].type for i in seen if costs.op_terms[i].compute_ns or costs.unmapped >> i & 1})

    @cached_property
    def widths(self) -> FloatArray:
        """The prior's standard deviation of each factor's logarithm: links, then types."""
        return np.array([_LINK_WIDTH] * len(_LINKS) + [_OPS_WIDTH] * len(self.types))

    def solve(self) -> FloatArray:
        """The logarithms of the fitted factors: links, then types."""
        target = np.log([each.stage_ns for each in self.observed])
        theta = np.zeros(len(self.widths))
        for _ in range(_ITERATIONS):
            now = self._predicted(theta)
            steps = [theta + _STEP * unit for unit in np.eye(len(theta))]
            slope = np.array([(self._predicted(step) - now) / _STEP for step in steps]).T
            # Least squares with a row for each stage and one for each factor's prior. The priors also make the system
            # solvable where there are fewer stages than factors.
            rows = np.vstack([slope / _MEASURED_WIDTH, np.diag(1 / self.widths)])
            right = np.concatenate([(target - now) / _MEASURED_WIDTH, -theta / self.widths])
            change = np.linalg.lstsq(rows, right, rcond=None)[0]
            # Times are not smooth in the factors: streaming hides behind computing, or does not. Short steps keep the
            # iteration from jumping over such a kink.
            theta = np.clip(theta + np.clip(change, -_MOST_CHANGE, _MOST_CHANGE), -_MOST_LOG, _MOST_LOG)
            if np.abs(change).max() < 1e-4:
                break
        return theta

    def _predicted(self, theta: FloatArray) -> FloatArray:
        costs = self._with(theta).costs
        return np.log([max(1, costs.terms(each.ops, each.capacity_bytes).stage_ns) for each in self.observed])

    def _with(self, theta: FloatArray, rest: Mapping[int, float] | None = None) -> CostedModel:
        """The costed model with these factors. theta: their logarithms. rest: op -> one more factor."""
        factors = np.exp(theta).tolist()
        hardware = (
            self.costed.costs.hardware
        )  # with the constants that the profile replaces, not the costed model's own
        links = {
            name: hardware.constants[name] * factor
            for names, factor in zip(_LINKS.values(), factors, strict=False)
            for name in names
        }
        by_type = dict(zip(self.types, factors[len(_LINKS) :], strict=True))
        old = (self.costed.profile or Profile("", {})).taught_by(self.label)
        costs = self.costed.costs
        ops = dict(old.ops)
        for op in self.costed.graph.ops:
            i = op.index
            factor = by_type.get(op.type, 1.0) * (rest or {}).get(i, 1.0)
            base = costs.op_terms[i].cpu_ns if costs.unmapped >> i & 1 else costs.op_terms[i].compute_ns
            if factor != 1.0:
                ops[i] = replace(ops.get(i, OpCosts()), ns=round(base * factor))
        constants = hardware.changed(links).constants
        profile = replace(old, ops=ops, constants={**old.constants, **{name: constants[name] for name in links}})
        return replace(self.costed, profile=profile)

    def with_rest(self, theta: FloatArray) -> CostedModel:
        """The costed model with these factors, and with the difference that they leave in each stage put on its ops."""
        costs = self._with(theta).costs
        rest: dict[int, float] = {}
        for each in self.observed:
            terms = costs.terms(each.ops, each.capacity_bytes)
            # Only the time of computing is scaled. Transfers and overhead keep the shared factors: a remainder there
            # would move to other cuts, where other tensors cross.
            own = terms.compute_ns + terms.cpu_ns
            wanted = each.stage_ns - (terms.stage_ns - own)
            if own and wanted > 0:
                factor = min(max(wanted / own, 1 / _MOST_REST), _MOST_REST)
                if not math.isclose(factor, 1.0, abs_tol=1e-4):
                    rest |= dict.fromkeys(members(each.ops), factor)
        return self._with(theta, rest)
