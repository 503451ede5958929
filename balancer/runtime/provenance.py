"""On what a number was measured, stage by stage, and which kind of device the plan's times were predicted for.

In memory a provenance is a set of sources (`Provenance`). Files and output hold its text (`provenance_text`), which
`parse_provenance` reads again:

    {CPU}             "cpu"
    {CPU, SIMULATED}  "mixed: cpu; simulated"
    {}                ""
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from balancer.interpreter import PROVEN
from balancer.plan import CPU, EDGE_TPU
from balancer.runtime.devices import bus_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.interpreter import Kernels
    from balancer.plan import Plan


class MeasuredOn(str, Enum):
    """On what one stage was measured."""

    DEVICE = "device"
    SIMULATED = "simulated"
    # It computes its outputs on this CPU, and takes as long as that where it takes longer than the TPU would.
    SIMULATED_LIVE = "simulated, computed live"
    CPU = "cpu"
    NOTHING = "nothing"  # device "none": no work is done
    RECORDED = "recorded"  # times that were read from a file


Provenance = frozenset[str]  # values of MeasuredOn, and names that only another version, or a user's own program, knows
_MIXED = "mixed: "
_BETWEEN = "; "
_OF_DEVICE = {"cpu": MeasuredOn.CPU, "none": MeasuredOn.NOTHING}


def provenance_of(devices: Iterable[str], *, live: bool = False) -> Provenance:
    """What is measured on these devices. live: simulated TPUs compute their outputs.

    >>> provenance_text(provenance_of(["usb:0", "pci:1"])), provenance_text(provenance_of(["cpu", "sim"]))
    ('device', 'mixed: cpu; simulated')
    """
    simulated = MeasuredOn.SIMULATED_LIVE if live else MeasuredOn.SIMULATED
    return frozenset(simulated if device == "sim" else _OF_DEVICE.get(device, MeasuredOn.DEVICE) for device in devices)


def provenance_text(sources: Provenance) -> str:
    """As files and output hold it; empty for no source.

    >>> provenance_text(frozenset({"simulated", "cpu"}))
    'mixed: cpu; simulated'
    """
    text = _BETWEEN.join(sorted(sources))
    return text if len(sources) < 2 else _MIXED + text


def parse_provenance(text: str) -> Provenance:
    """The sources that a text of `provenance_text` names.

    >>> sorted(parse_provenance("mixed: cpu; device"))
    ['cpu', 'device']
    """
    return frozenset(text.removeprefix(_MIXED).split(_BETWEEN)) if text else frozenset()


def not_of_devices(sources: Provenance) -> str:
    """The text of sources where one of them is known to be no Edge TPU, else empty: what is learnt from such measurements
    is not true of Edge TPUs. `recorded` alone says nothing of where times come from.

    >>> not_of_devices(frozenset({"simulated", "recorded"})), not_of_devices(frozenset({"device"}))
    ('mixed: recorded; simulated', '')
    """
    return "" if sources <= {MeasuredOn.DEVICE, MeasuredOn.RECORDED} else provenance_text(sources)


def joined(provenances: Iterable[Provenance]) -> Provenance:
    """Every source that one of these names.

    >>> provenance_text(joined([parse_provenance("cpu"), parse_provenance("mixed: cpu; device")]))
    'mixed: cpu; device'
    """
    return frozenset[str]().union(*provenances)


def costed_for_others(plan: Plan, devices: Sequence[str]) -> str | None:
    """A sentence about a plan that runs on other kinds of devices than its times were predicted for; else None.

    devices: by position. Nothing is said of a name that leaves the bus open (`:0`), or of a user's own hardware, except on a
    CPU.
    """
    stages = [stage for pipeline in plan.pipelines for stage in pipeline.stages]
    pairs = [(plan.devices_of(stage.kind), _type(devices[t])) for stage in stages for t in plan.positions(stage)]
    wrong = [(kind.kind, other) for kind, other in pairs if kind.device == EDGE_TPU and _is_other(other, kind.kind)]
    if not wrong:
        return None
    kinds, others = (", ".join(sorted(set(names))) for names in zip(*wrong, strict=True))
    return f"the plan's times are predicted for {kinds}; it runs on {others}, which takes other times"


def kernels_note(kernels: Iterable[Kernels]) -> str | None:
    """A sentence about values that may differ from those that `verify` compares; None where they are computed alike.

    kernels: that compute the stages on the CPU.
    """
    others = sorted({k.label for k in kernels if k != PROVEN})
    if not others:
        return None
    return f"stages on the CPU use {', '.join(others)}: values may differ by a step; --exact avoids it"


def _type(device: str) -> str:
    """The device's name without its number.

    >>> _type("usb:0"), _type(":0"), _type("cpu")
    ('usb', '', 'cpu')
    """
    return device.partition(":")[0]


def _is_other(device_type: str, kind: str) -> bool:
    bus = bus_of(kind)
    return device_type == CPU or (device_type in ("usb", "pci") and bool(bus) and device_type != bus)
