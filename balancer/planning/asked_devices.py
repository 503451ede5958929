"""The devices that a caller asks for, as `Devices`: a number, a text such as "pcie=2,usb=1", a mapping, or "auto"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from balancer.cost.cpu_hardware import CpuHardware
from balancer.cost.devices import Devices
from balancer.cost.hardware import AnyHardware, Hardware, load_kind
from balancer.errors import DeviceError, HardwareError
from balancer.planning.machine import CPU, attached_counts, this_cpu
from balancer.runtime.devices import list_devices

if TYPE_CHECKING:
    from pathlib import Path

AskedDevices: TypeAlias = "int | str | Mapping[str, int] | Devices"
AUTO = "auto"
_EXAMPLE = "give a number, as in 4, or kinds with numbers, as in pcie=2,usb=1,cpu=1"


def devices_asked(asked: AskedDevices, default: str | Path | AnyHardware = "pcie") -> Devices:
    """The devices that `asked` stands for.

    asked: a number of devices of the default kind; kinds with their numbers, as a mapping or as a text ("pcie=2,usb=1"); or
    "auto" for what this machine has. A kind is a preset's name, a hardware file, or `cpu` for this machine's CPU.

    Raises HardwareError if a kind is not known or is named twice, or if a CPU is asked to run more stages at a time than it
    has cores; DeviceError if "auto" finds no Edge TPU; ValueError for numbers out of range, and for a text that names none.
    """
    if isinstance(asked, Devices):
        return asked
    if isinstance(asked, str):
        asked = _parsed(asked.strip())
    if isinstance(asked, str):
        asked = _attached()
    if isinstance(asked, Mapping):
        if not asked:
            raise ValueError(f"no devices are named: {_EXAMPLE}")
        return Devices(tuple((kind_named(name), count) for name, count in asked.items()))
    return Devices(((default if isinstance(default, (Hardware, CpuHardware)) else kind_named(default), asked),))


def kind_named(source: str | Path) -> AnyHardware:
    """The kind of a preset or a hardware file; `cpu` is this machine's CPU. Raises HardwareError as `load_kind` does."""
    return this_cpu() if str(source) == CPU else load_kind(source)


def _attached() -> dict[str, int]:
    """What this machine has, by kind. Raises DeviceError if there is no Edge TPU."""
    counts = attached_counts(list_devices())
    if set(counts) == {CPU}:
        what, remedy = "there is no Edge TPU that can be used", "run `balancer devices`, or name devices"
        raise DeviceError(what, "this machine", remedy)
    return counts


def _parsed(text: str) -> int | str | dict[str, int]:
    """A number, "auto", or the number of each kind."""
    if text == AUTO:
        return AUTO
    if text.isdecimal():
        return int(text)
    counts: dict[str, int] = {}
    for part in text.split(","):
        kind, equals, count = (piece.strip() for piece in part.rpartition("="))
        if not equals or not kind or not count.isdecimal():
            raise ValueError(f"{part.strip() or text!r} names no devices: {_EXAMPLE}")
        if kind in counts:
            raise HardwareError("is named twice", f"the kind {kind}", "name each kind once, with all its devices")
        counts[kind] = int(count)
    return counts
