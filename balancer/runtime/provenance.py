"""What a measured number is worth: on what it was measured, stage by stage, and what the plan had been costed for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.plan import Plan

DEVICE, SIMULATED, CPU = "device", "simulated", "cpu"
# A simulated TPU that computes its outputs on this CPU takes as long as that, where it takes longer than the TPU.
SIMULATED_LIVE = "simulated, computed live"
NOTHING = "nothing"  # device "none": no work is done
_MIXED = "mixed: "
_BETWEEN = "; "
_BUS = {"pcie": "pci", "pcie-python": "pci", "usb": "usb", "usb-desktop": "usb", "usb2": "usb", "cpu": "cpu"}


def source_of(devices: Iterable[str], *, live: bool = False) -> str:
    """What is measured on these devices. live: simulated TPUs compute their outputs."""
    named = {"sim": SIMULATED_LIVE if live else SIMULATED, "cpu": CPU, "none": NOTHING}
    return mixture(named.get(device, DEVICE) for device in devices)


def mixture(sources: Iterable[str]) -> str:
    """The source of what comes from all of these: their own where they are one, else "mixed: " and each of them."""
    parts = [part for source in sources for part in source.removeprefix(_MIXED).split(_BETWEEN)]
    different = sorted(set(parts))
    return _BETWEEN.join(different) if len(different) < 2 else _MIXED + _BETWEEN.join(different)


def costed_for_others(plan: Plan, devices: Sequence[str]) -> str | None:
    """What is to be said of a plan whose times were predicted for another kind of device than it runs on; None where
    nothing is. devices: by TPU. A name that does not say which bus it is on (`:0`), or hardware of one's own, may be any.
    """
    hardware = plan.hardware.name
    bus = _BUS.get(hardware.split(" + ")[0], "")  # a plan's hardware is named with what its costs have learnt
    used = [devices[t] for p in plan.pipelines for stage in p.stages for t in stage.tpus]
    others = sorted({_kind(device) for device in used if _is_other(_kind(device), bus)})
    if not others:
        return None
    return f"the plan's times are predicted for {hardware}; it runs on {', '.join(others)}, which takes other times"


def _kind(device: str) -> str:
    return device.partition(":")[0]


def _is_other(kind: str, bus: str) -> bool:
    if kind == "cpu":
        return bus != "cpu"
    return kind in ("usb", "pci") and bool(bus) and kind != bus
