"""Tables of calibrations of this machine's CPU."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from balancer.cli.drawing import Listing

if TYPE_CHECKING:
    from balancer.learning.cpu_calibrating import CalibratedConstant, CpuCalibration

_NOISY = 1.5  # times its best, beyond which the reference says that the machine was busy


def cpu_calibration(result: CpuCalibration) -> None:
    """Print the constants with their errors, what was left out of the fit, and how calm the machine was."""
    table = Listing("this machine's CPU, measured", ("constant", "value", "error", "known"))
    for constant in result.constants:
        table.row(constant.name, str(constant.value), _error(constant), constant.known)
    table.print()
    print(f"measured with {result.interpreter}")
    count, mean = len(result.residuals), 100 * result.error
    print(f"{count} small models in {result.rounds} rounds; mean error of the fit {mean:.1f} %")
    if result.left_out:
        print("left out of the fit, as they agree with no others (fitted against measured):")
        for name in result.left_out:
            print(f"  {name}: {100 * result.residuals[name]:+.0f} %")
    else:
        print("nothing was left out of the fit")
    if result.slowest > _NOISY:
        print(
            f"the machine was busy: its slowest round took {result.slowest:.1f} times the best; slow rounds do not count"
        )


def _error(constant: CalibratedConstant) -> str:
    """One standard deviation. A constant of 0 has no effect that was seen."""
    if constant.error is None:
        return "-"
    return f"{100 * constant.error:.0f} %" if math.isfinite(constant.error) else "no effect"
