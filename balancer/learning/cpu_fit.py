"""Fits the constants of a CPU to times of small models: a linear fit of relative errors, with no constant below 0.

A model's time is the sum of its ops' work, each part times a constant (`cost.cpu_work`), plus what an invocation and its
boundary tensors take. Errors count linearly, not squared, so that single bad times do not pull; models that then lie far off
are left out, and the rest is fitted once more. The number of lanes is the one of a few that fits best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from balancer.cost.cpu_hardware import OpRate
from balancer.cost.cpu_work import joined_to, op_class, work
from balancer.errors import DependencyError
from balancer.ground.units import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from balancer.graph import Graph
    from balancer.ground.arrays import BoolArray, FloatArray

LANES = (1, 4, 8, 16, 32)
_UNITS = OpRate(ns_per_gmac=10**9, ns_per_mib=MIB, row_ps=1000)  # of `Work`, for one of each constant
_PASSES = 30  # of reweighting; it has long settled by then
_SHARP = 0.02  # relative errors below this count as squares
_FAR_OFF = 5.0  # times the typical error
_LEAST_FAR_OFF = 0.2  # a relative error below this is never left out


@dataclass(frozen=True, slots=True)
class TimedModel:
    """A model that was timed. name: what messages call it. ns: of one inference, with copying its inputs and outputs."""

    name: str
    graph: Graph
    ns: int


@dataclass(frozen=True, slots=True)
class CpuFit:
    """The constants that fit best.

    constants: by name, with those that no model depends on left out. errors: one standard deviation of each, as a share of
    its value; infinite for a constant of 0. residuals: of each model, the relative error of its fitted time. left_out: names
    of models that were left out of the fit, as their times agree with no others.
    """

    constants: dict[str, float]
    errors: dict[str, float]
    residuals: tuple[float, ...]
    left_out: tuple[str, ...]

    @property
    def error(self) -> float:
        """The mean of the models' relative errors, without those that were left out."""
        kept = np.sort(np.abs(self.residuals))[: len(self.residuals) - len(self.left_out)]
        return float(kept.mean())


def multipliers(graph: Graph, lanes: int) -> dict[str, float]:
    """How often each constant counts in the time of the whole model."""
    tensors = graph.tensors
    boundary = sum(tensors[t].bytes for t in (*graph.inputs, *graph.outputs))
    made: dict[str, float] = {"invoke_ns": 1.0, "boundary_ns_per_mib": boundary / MIB, "op_ns": 0.0}
    made["parameters_ns_per_mib"] = 0.0
    for op in graph.ops:
        if op.folded or joined_to(graph, op) is not None:
            continue
        made["op_ns"] += 1
        made["parameters_ns_per_mib"] += op.parameter_bytes / MIB
        name = op_class(graph, op)
        for field, amount, unit in zip(OpRate._fields, work(graph, op, lanes), _UNITS, strict=True):
            if amount:
                made[f"{name}_{field}"] = made.get(f"{name}_{field}", 0.0) + amount / unit
    return made


def fit(timed: Sequence[TimedModel], lanes: Sequence[int] = LANES) -> CpuFit:
    """The constants that fit the times best. lanes: the numbers of lanes to choose from.

    Raises DependencyError if scipy is missing, ValueError if there are no times.
    """
    if not timed:
        raise ValueError("there are no times to fit")
    fits = [_fit_with(timed, n) for n in lanes]
    best = min(range(len(fits)), key=lambda k: (_typical(fits[k]), lanes[k]))
    chosen = fits[best]
    return CpuFit(
        {"lanes": lanes[best]} | chosen.constants, {"lanes": 0.0} | chosen.errors, chosen.residuals, chosen.left_out
    )


def _typical(fitted: CpuFit) -> float:
    """The mean relative error in which no model counts for more than it would if it were left out."""
    return float(np.minimum(np.abs(fitted.residuals), _LEAST_FAR_OFF).mean())


def _fit_with(timed: Sequence[TimedModel], lanes: int) -> CpuFit:
    rows = [multipliers(model.graph, lanes) for model in timed]
    names = sorted(set().union(*rows))
    measured = np.array([model.ns for model in timed], float)
    # Each row divided by its time: the fit is then one of relative errors, with 1 as what is to be reached.
    matrix = np.array([[row.get(name, 0.0) for name in names] for row in rows]) / measured[:, None]
    found = _least_absolute(matrix, np.ones(len(timed), bool))
    kept = _kept(matrix, matrix @ found - 1)
    if not kept.all():
        found = _least_absolute(matrix, kept)
    residuals = matrix @ found - 1
    deviations = _deviations(matrix[kept], residuals[kept])
    errors = {n: float(d / x) if x > 0 else float("inf") for n, d, x in zip(names, deviations, found, strict=True)}
    left_out = tuple(model.name for model, keep in zip(timed, kept, strict=True) if not keep)
    constants: Mapping[str, float] = dict(zip(names, map(float, found), strict=True))
    return CpuFit(dict(constants), errors, tuple(map(float, residuals)), left_out)


def _kept(matrix: FloatArray, residuals: FloatArray) -> BoolArray:
    """Which rows are not far off. The last rows that a constant depends on are kept in any case."""
    size = np.abs(residuals)
    limit = max(_LEAST_FAR_OFF, _FAR_OFF * float(np.median(size)))
    kept: BoolArray = size <= limit
    for column in matrix.T:
        if (column > 0).any() and not (kept & (column > 0)).any():
            kept |= column > 0
    return kept


def _least_absolute(matrix: FloatArray, kept: BoolArray) -> FloatArray:
    """The non-negative constants of the least sum of absolute errors, by reweighted least squares."""
    try:
        from scipy.optimize import nnls
    except ImportError as error:
        raise DependencyError("scipy is not installed", "calibrate", "pip install scipy") from error
    rows = matrix[kept]
    scale = np.maximum(rows.max(axis=0), np.finfo(float).tiny)  # constants differ by many orders of magnitude
    weights = np.ones(len(rows))
    for _ in range(_PASSES):
        found, _ = nnls(rows / scale * weights[:, None], weights)
        weights = 1 / np.sqrt(np.maximum(np.abs(rows / scale @ found - 1), _SHARP))
    solution: FloatArray = found / scale
    return solution


def _deviations(matrix: FloatArray, residuals: FloatArray) -> FloatArray:
    """One standard deviation of each constant, from the inverse of the normal equations."""
    variance = float(residuals @ residuals) / max(1, len(residuals) - matrix.shape[1])
    scale = np.maximum(matrix.max(axis=0), np.finfo(float).tiny)
    covariance = np.linalg.pinv((matrix / scale).T @ (matrix / scale)) * variance
    deviations: FloatArray = np.sqrt(np.maximum(0, np.diag(covariance))) / scale
    return deviations
