"""Lines about energy, and about what the devices of a plan share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.plan import EnergyPrediction, Plan

_ALL = 1 - 1e-6  # shares are rounded in plans


def energy_line(energy: EnergyPrediction | None, without_data: Sequence[str]) -> str:
    """What an inference takes, as an estimate with its range. without_data: the kinds without power data."""
    if energy is None:
        silent = f", no power data of {_listed(without_data)}" if without_data else ""
        return f"energy: no estimate{silent}"
    least, most = millijoules(energy.least_mj), millijoules(energy.most_mj)
    line = f"energy: {millijoules(energy.mj)} mJ for each inference, an estimate ({least} to {most})"
    if energy.without_idle:
        line += f";\n        without what {_listed(energy.without_idle)} draws while it waits: no data"
    return line


def millijoules(mj: float) -> str:
    """Energy with three digits.

    >>> millijoules(847.03), millijoules(18.456), millijoules(0.7149)
    ('847', '18.5', '0.71')
    """
    return f"{mj:.0f}" if mj >= 100 else f"{mj:.1f}" if mj >= 10 else f"{mj:.2f}"


def plan_energy(plan: Plan) -> None:
    """Print what an inference takes. Plans of older versions know nothing of power, and nothing is printed."""
    if any("busy_mw" in devices.constants for devices in plan.devices):
        print(energy_line(plan.predicted.energy, kinds_without_data(plan)))


def kinds_without_data(plan: Plan) -> list[str]:
    """The kinds of a plan of which nobody knows what they draw."""
    return [devices.kind for devices in plan.devices if not devices.constants.get("busy_mw")]


def shared(plan: Plan) -> None:
    """Print how busy what the devices share is."""
    uses = [f"{use.name} {100 * use.share:.0f} % busy" for use in plan.predicted.shared]
    if uses:
        print(f"shared: {', '.join(uses)}")


def limits(plan: Plan) -> list[str]:
    """What sets the rate of a plan besides its stages, in words."""
    return [f"{use.name}, busy all the time" for use in plan.predicted.shared if use.share >= _ALL]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)
