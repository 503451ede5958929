"""Edge TPUs: which ones the system has, what keeps one from being opened, and the names by which users choose them. And the
machine's cores.

Names are libedgetpu's (`:0`, `usb:0`, `pci:1`), and `cpu` and `sim`; `usb` or `pci` without a number means as many as are
needed. Numbers follow the order in which the system lists the devices. That order may change when the system restarts;
the path tells the devices apart. Which stage of a plan gets which device is decided in `assigning`.

Sources: libedgetpu `api/driver_factory`, gasket's sysfs files, Coral's udev rules (Apache-2.0).
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from balancer.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Sequence

_USB_IDS = {("1a6e", "089a"): False, ("18d1", "9302"): True}  # whether its firmware is loaded
_USB2_MBIT_PER_S = 480
_DEAD_CELSIUS = {-88, -10}  # the temperature that is read where the link to the chip is down
_NAME = re.compile(r"cpu|sim|usb|pci|(usb|pci|):([0-9]{1,3})")
_REPEATED = ("cpu", "sim", "usb", "pci")
# Kinds of hardware that come with balancer -> the prefix of the devices' names on that bus.
_BUS = {"pcie": "pci", "pcie-python": "pci", **dict.fromkeys(("usb", "usb-desktop", "usb2", "usb-pi5"), "usb")}


class DeviceState(str, Enum):
    """What is known of a device, as far as it was looked at. The values are what `balancer devices --json` prints."""

    READY = "ready"  # nothing is known to keep it from being used
    NEEDS_FIRMWARE = "needs firmware"  # the first program that opens it loads the firmware: it can be used
    MISSING_NODE = "missing node"  # the system lists the device, but has no file in /dev for it
    NO_PERMISSION = "no permission"
    LINK_DOWN = "link down"  # its temperature reads as that of a chip that does not answer
    NO_ANSWER = "no answer"  # opening it took too long
    DRIVER_CRASHED = "driver crashed"  # opening it ended the process
    REFUSED = "refused"  # opening it failed: another program has it, or libedgetpu is missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """An Edge TPU of this machine. name: as `--devices` takes it. type: "usb" or "pci". problem, remedy: the state in
    words and what helps, both None for READY. mbit_per_s: the speed of its USB link, None where it is not known.
    """

    name: str
    type: str
    path: str
    celsius: float | None = None
    problem: str | None = None
    remedy: str | None = None
    state: DeviceState = DeviceState.READY
    mbit_per_s: int | None = None

    @property
    def kind(self) -> str:
        """The kind of hardware that it is costed as: "pcie", "usb", or "usb2" on a USB 2 link."""
        if self.type == "pci":
            return "pcie"
        return "usb2" if self.mbit_per_s is not None and self.mbit_per_s <= _USB2_MBIT_PER_S else "usb"

    @property
    def usable(self) -> bool:
        """Whether opening it may succeed."""
        return self.state in (DeviceState.READY, DeviceState.NEEDS_FIRMWARE)


class _Condition(NamedTuple):
    """What looking at a device's files shows."""

    state: DeviceState = DeviceState.READY
    problem: str | None = None
    remedy: str | None = None


def list_devices(root: str | Path = "/") -> list[Device]:
    """The Edge TPUs that the system lists, PCIe before USB; none of them is opened. root: of the file system.

    Google's pycoral, where it is installed, is asked as well: in a container, sysfs may not show every device.
    """
    root = Path(root)
    devices = [*_pci_devices(root), *_usb_devices(root)]
    known = {d.path for d in devices} | {f"/sys/bus/usb/devices/{Path(d.path).name}" for d in devices}
    counts = {bus: sum(d.type == bus for d in devices) for bus in ("pci", "usb")}
    listed = [entry for entry in _pycoral_devices() if entry["type"] in counts]
    for bus, count in counts.items():
        # Its paths are not always sysfs's, so as many of its unknown devices are passed over as sysfs has shown.
        more = [e for e in listed if e["type"] == bus and e["path"] not in known][count:]
        devices += [Device(name=f"{bus}:{count + k}", type=bus, path=e["path"]) for k, e in enumerate(more)]
    return devices


def _pycoral_devices() -> list[dict[str, str]]:
    """The devices that Google's pycoral lists. PyPI's package of that name is another project, without this module."""
    try:
        if importlib.util.find_spec("pycoral.utils.edgetpu") is None:
            return []
    except ModuleNotFoundError:
        return []
    module = importlib.import_module("pycoral.utils.edgetpu")
    return [{"type": str(e.get("type")), "path": str(e.get("path"))} for e in module.list_edge_tpus()]


def _pci_devices(root: Path) -> list[Device]:
    entries = sorted((root / "sys/class/apex").glob("apex_*"), key=lambda p: _number(p.name))
    return [_pci_device(root, entry, k) for k, entry in enumerate(entries)]


def _number(name: str) -> int:
    """The digits of a name as a number.

    >>> _number("apex_10"), _number("apex")
    (10, 0)
    """
    digits = re.sub(r"\D", "", name)
    return int(digits) if digits else 0


def _pci_device(root: Path, entry: Path, index: int) -> Device:
    node, celsius = root / "dev" / entry.name, _celsius(entry / "temp")
    state, problem, remedy = _pci_condition(node, celsius)
    return Device(
        name=f"pci:{index}", type="pci", path=str(node), celsius=celsius, problem=problem, remedy=remedy, state=state
    )


def _pci_condition(node: Path, celsius: float | None) -> _Condition:
    if not node.exists():
        remedy = "load the driver: sudo modprobe apex; else install gasket-dkms"
        return _Condition(DeviceState.MISSING_NODE, f"{node} is not there", remedy)
    if not os.access(node, os.R_OK | os.W_OK):
        remedy = (
            'sudo usermod -aG apex $USER and log in again (udev rule: SUBSYSTEM=="apex", MODE="0660", GROUP="apex")'
        )
        return _Condition(DeviceState.NO_PERMISSION, f"no permission for {node}", remedy)
    if celsius in _DEAD_CELSIUS:
        remedy = "seat the card anew, switch the machine off and on"
        return _Condition(DeviceState.LINK_DOWN, f"its link is down (it shows {celsius:.0f} C)", remedy)
    return _Condition()


def _celsius(path: Path) -> float | None:
    text = _read(path)
    return int(text) / 1000 if re.fullmatch(r"-?\d{1,7}", text) else None


def _usb_devices(root: Path) -> list[Device]:
    entries = sorted((root / "sys/bus/usb/devices").glob("*"))
    known = [
        (e, loaded)
        for e in entries
        if (loaded := _USB_IDS.get((_read(e / "idVendor"), _read(e / "idProduct")))) is not None
    ]
    return [_usb_device(root, entry, k, loaded=loaded) for k, (entry, loaded) in enumerate(known)]


def _usb_device(root: Path, entry: Path, index: int, *, loaded: bool) -> Device:
    """loaded: whether it has its firmware."""
    bus, number = _number(_read(entry / "busnum")), _number(_read(entry / "devnum"))
    node = root / f"dev/bus/usb/{bus:03}/{number:03}"
    state, problem, remedy = _usb_condition(node, loaded=loaded)
    speed = _read(entry / "speed")
    return Device(
        name=f"usb:{index}", type="usb", path=str(node), problem=problem, remedy=remedy, state=state,
        mbit_per_s=int(speed) if speed.isdigit() else None,
    )  # fmt: skip


def _usb_condition(node: Path, *, loaded: bool) -> _Condition:
    if not node.exists():
        remedy = "in a container, hand in the whole of /dev/bus/usb"
        return _Condition(DeviceState.MISSING_NODE, f"{node} is not there", remedy)
    if not os.access(node, os.R_OK | os.W_OK):
        remedy = "sudo usermod -aG plugdev $USER and log in again; install libedgetpu1-std for its udev rule"
        return _Condition(DeviceState.NO_PERMISSION, f"no permission for {node}", remedy)
    if not loaded:
        remedy = "none needed: the first program that opens it loads its firmware"
        return _Condition(DeviceState.NEEDS_FIRMWARE, "not yet initialised", remedy)
    return _Condition()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def device_names(wanted: str | Sequence[str] | None, count: int, root: str | Path = "/") -> list[str]:
    """The names of `count` devices. wanted: names, or one text with commas; None: the Edge TPUs of this machine.

    `cpu`, `sim`, `usb` or `pci` alone stands for as many as are needed. Raises DeviceError where a name is unknown or
    given twice, or there are fewer than `count`.

    >>> device_names("pci", 2), device_names("usb:1, pci:00", 2), device_names("sim", 2)
    (['pci:0', 'pci:1'], ['usb:1', 'pci:0'], ['sim', 'sim'])
    """
    if wanted is None:
        return own_devices([""] * count, root)
    names = [_plain(part) for part in ([p.strip() for p in wanted.split(",")] if isinstance(wanted, str) else wanted)]
    if len(names) == 1 and names[0] in _REPEATED:
        return [f"{names[0]}:{k}" if names[0] in ("usb", "pci") else names[0] for k in range(count)]
    real = [name for name in names if name not in ("cpu", "sim")]
    if len(set(real)) < len(real):
        raise DeviceError("a device is named twice", ",".join(names), "name each Edge TPU once")
    if len(names) < count:
        what, fewer = f"{count} devices are needed, {len(names)} are named", f", or solve for {len(names)} TPUs"
        raise DeviceError(what, ",".join(names) or "devices", f"name {count}{fewer if names else ''}")
    return names[:count]


def _plain(name: str) -> str:
    """The shortest of the names that a device has: pci:0 for pci:00. Raises DeviceError where it is unknown."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise DeviceError("is not the name of a device", repr(name), "name :0, usb:0, pci:0, usb, pci, cpu or sim")
    return name if match[2] is None else f"{match[1]}:{int(match[2])}"


def own_devices(kinds: Sequence[str], root: str | Path = "/") -> list[str]:
    """The names of Edge TPUs of this machine, one for each kind of `kinds`; "" is any kind. root: of the file system.

    A kind gets devices of its own as far as there are any, then others on its bus, then what is left. Raises DeviceError
    where there are fewer than `kinds`.
    """
    left = [device for device in list_devices(root) if device.usable]
    if len(left) < len(kinds):
        what = f"{len(kinds)} Edge TPUs are needed, {len(left)} can be used"
        remedy = f"see `balancer devices`; solve for {len(left)} TPUs, or try --devices sim"
        raise DeviceError(what, "this machine", remedy if left else "see `balancer devices`, or try --devices sim")
    chosen: dict[int, str] = {}
    for fits in (_of_kind, _on_bus, _any):
        for k in (k for k in range(len(kinds)) if k not in chosen):
            found = next((device for device in left if fits(device, kinds[k])), None)
            if found is not None:
                chosen[k] = found.name
                left.remove(found)
    return [chosen[k] for k in range(len(kinds))]


def usable_cores() -> int:
    """How many cores of this machine's CPU this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bus_of(kind: str) -> str:
    """The prefix of the names of devices of a kind: "pci" or "usb" for the kinds that come with balancer, else "".

    >>> bus_of("pcie"), bus_of("usb2:std"), bus_of("mine")
    ('pci', 'usb', '')
    """
    return _BUS.get(_without_clock(kind), "")


def _without_clock(kind: str) -> str:
    return kind.partition(":")[0]


def _of_kind(device: Device, kind: str) -> bool:
    return device.kind == _without_clock(kind)


def _on_bus(device: Device, kind: str) -> bool:
    return device.type == bus_of(kind)


def _any(device: Device, kind: str) -> bool:
    return True
