"""`balancer calibrate`: fits the hardware's constants to measured times.

Each constant is fitted as a factor on its value in a preset, on a logarithmic scale, by robust least squares of the
relative errors of all rows. Constants that no row's prediction depends on keep their values. A weak penalty keeps each
factor near 1 (a factor of 3 costs as much as one row that is 10 % off). Without it, constants that the rows can hardly
tell apart would take arbitrary values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.cost.hardware import FORMAT, VERSION
from balancer.errors import DependencyError, MeasurementError
from balancer.runtime.provenance import joined, not_of_devices, parse_provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.cost.hardware import Hardware
    from balancer.ground.arrays import FloatArray
    from balancer.learning.measurements import MeasuredTime
    from balancer.runtime.provenance import Provenance

FREE = (
    "mac_ns_per_gmac", "dense_ns_per_mib", "written_ns_per_mib", "op_ns", "gather_ns", "gather_ns_per_mib",
    "stream_ns_per_mib", "instruction_ns_per_mib", "stream_start_ns", "load_ns_per_mib", "load_ns", "invoke_ns",
    "input_ns_per_mib", "output_ns_per_mib", "large_input_ns_per_mib", "large_output_ns_per_mib", "handover_ns",
    "host_ns_per_stage", "thread_ns", "wake_ns", "upstream_permille_2", "upstream_permille_3", "upstream_permille_4",
    "cpu_ns_per_gmac", "cpu_ns_per_mib", "cpu_op_ns",
)  # fmt: skip
_STEP = (
    0.02  # relative change of a constant for the numerical derivative: its effect must exceed the rounding to whole ns
)
_LEAST_EFFECT = 1e-6  # relative change of a prediction that counts as depending on the constant
_ROBUST_AT = 0.05  # relative errors beyond this count linearly, not squared: outliers do not decide the fit
_PULL = 0.1 / math.log(3)


@dataclass(frozen=True, slots=True)
class Constant:
    """A fitted constant. before: its value in the preset.

    error: one standard deviation of the fit, as a share of the value. It is small also where the weak penalty alone, and
    hardly a row, holds the constant; the constant has then not moved.
    """

    name: str
    before: int
    value: int
    error: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """The result of a calibration.

    hardware: with the fitted constants. constants: those that were fitted. rows: how many measured times were used.
    error_before, error_after: mean absolute relative error of the predictions with the preset, and with the fit.
    sources: on what the rows were measured.
    """

    hardware: Hardware
    constants: tuple[Constant, ...]
    rows: int
    error_before: float
    error_after: float
    sources: Provenance

    @property
    def doubts(self) -> list[str]:
        """What makes the constants unfit for predicting Edge TPUs, in words."""
        origin, count = not_of_devices(self.sources), len(self.constants)
        doubts = list[str]()
        if origin:
            doubts.append(f"the times were not measured on Edge TPUs ({origin}), and the constants are not theirs")
        if self.rows < count:
            doubts.append(
                f"fewer rows ({self.rows}) than constants ({count}): most stay near where they were; add rows"
            )
        return doubts


def calibrate(
    rows: Sequence[MeasuredTime], start: Hardware, *, progress: Callable[[int], None] = lambda done: None
) -> Calibration:
    """Fit the constants of `start` to measured times.

    rows: at least one. start: the hardware whose constants the fit starts from. progress: called with the number of
    times that all rows have been predicted.

    Raises MeasurementError if there are no rows or no constant matters to them, DependencyError if scipy is missing.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise DependencyError("scipy is not installed", "calibrate", "pip install scipy") from error
    if not rows:
        raise MeasurementError("no row can be predicted", "calibrate", "give rows with a known split and use = 1")
    measured = np.array([row.measured_ns for row in rows])
    free = _free(rows, start)
    if not free:
        raise MeasurementError("no constant matters to these rows", "calibrate", "give other measurements")
    made = 0

    def errors(logs: FloatArray) -> FloatArray:
        nonlocal made
        made += 1
        progress(made)
        relative: FloatArray = _predict(rows, _scaled(start, free, logs)) / measured - 1
        return relative

    def residuals(point: FloatArray) -> FloatArray:
        return np.concatenate([errors(point - 1), _PULL * (point - 1)])

    # `point` is 1 + the logarithms: scipy's derivative steps are relative to the point, and would be 0 at 0.
    zero = np.zeros(len(free))
    fit = least_squares(residuals, zero + 1, loss="soft_l1", f_scale=_ROBUST_AT, diff_step=_STEP, max_nfev=30)
    after = fit.x - 1
    deviations = _deviations(fit.jac, fit.fun, len(rows))
    hardware = _scaled(start, free, after)
    constants = tuple(
        Constant(name, start.constants[name], hardware.constants[name], float(deviation))
        for name, deviation in zip(free, deviations, strict=True)
    )
    return Calibration(
        hardware=hardware, constants=constants, rows=len(rows), error_before=float(np.abs(errors(zero)).mean()),
        error_after=float(np.abs(errors(after)).mean()), sources=joined(parse_provenance(row.source) for row in rows),
    )  # fmt: skip


def hardware_document(calibration: Calibration, name: str, source: str) -> dict[str, Any]:
    """The JSON document of a hardware file with the fitted constants.

    name: of the new hardware. Where the times come from anything but Edge TPUs, that is added to the name, which all
    predictions with this hardware show. source: a few words on what the constants were fitted to, written beside each of
    them.
    """
    origin = not_of_devices(calibration.sources)
    if origin:
        name, source = f"{name}, fitted to {origin} times", f"{source} ({origin})"
    fitted = {c.name: c for c in calibration.constants}
    constants: dict[str, Any] = {}
    for key, value in calibration.hardware.constants.items():
        constants[key] = {"value": value, "known": "kept", "source": calibration.hardware.name}
        if key in fitted:
            error = f"{100 * fitted[key].error:.1f} % of one standard deviation"
            constants[key] = {
                "value": value,
                "known": "fitted",
                "source": f"{calibration.rows} rows of {source}, {error}",
            }
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "description": "; ".join((f"fitted to {source}", *calibration.doubts)),
        "constants": constants,
    }


def _predict(rows: Sequence[MeasuredTime], hardware: Hardware) -> FloatArray:
    return np.array([row.predicted_ns(hardware) for row in rows])


def _scaled(start: Hardware, names: Sequence[str], logs: Sequence[float] | FloatArray) -> Hardware:
    limited = np.clip(logs, -5, 5)
    return start.changed({name: start.constants[name] * math.exp(x) for name, x in zip(names, limited, strict=True)})


def _free(rows: Sequence[MeasuredTime], start: Hardware) -> list[str]:
    """Names of the constants that at least one row's prediction depends on."""
    base = _predict(rows, start)
    free = []
    for name in FREE:
        if start.constants[name]:
            moved = _predict(rows, _scaled(start, [name], [_STEP]))
            if np.abs(moved / base - 1).max() > _LEAST_EFFECT:
                free.append(name)
    return free


def _deviations(jacobian: FloatArray, residuals: FloatArray, rows: int) -> FloatArray:
    """Standard deviations of the fitted logarithms, from the inverse of the Gauss-Newton Hessian."""
    variance = float(residuals @ residuals) / max(1, rows)
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * variance
    return np.sqrt(np.maximum(0, np.diag(covariance)))
