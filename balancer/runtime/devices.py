"""Edge TPUs: which are there, what keeps one from being opened, and the names by which users choose them.

Names are those of libedgetpu (`:0`, `usb:0`, `pci:1`; without a number as many as are needed), `cpu` and `sim`. Indices
follow the order in which the system lists the devices, which may change when it starts anew: the path says which is
which. Sources: libedgetpu `api/driver_factory`, gasket's sysfs files, Coral's udev rules (Apache-2.0).
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Sequence

_USB_IDS = {("1a6e", "089a"): False, ("18d1", "9302"): True}  # whether its firmware is loaded
_DEAD_CELSIUS = {-88, -10}  # what a chip shows whose link is down
_NAME = re.compile(r"cpu|sim|usb|pci|(usb|pci|):([0-9]{1,3})")
_REPEATED = ("cpu", "sim", "usb", "pci")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """An Edge TPU of this machine. name: as `--devices` takes it. type: "usb" or "pci". problem: what keeps it from
    being used, None where nothing is known to; remedy: what helps.
    """

    name: str
    type: str
    path: str
    celsius: float | None = None
    problem: str | None = None
    remedy: str | None = None


def list_devices(root: str | Path = "/") -> list[Device]:
    """The Edge TPUs that the system knows, PCIe before USB, none of them opened. root: of the file system.

    Google's pycoral, where it is installed, is asked as well: it knows what sysfs may hide in a container.
    """
    root = Path(root)
    found = [*_pci_devices(root), *_usb_devices(root)]
    known = {d.path for d in found} | {f"/sys/bus/usb/devices/{Path(d.path).name}" for d in found}
    counts = {kind: sum(d.type == kind for d in found) for kind in ("pci", "usb")}
    said = [entry for entry in _pycoral_devices() if entry["type"] in counts]
    for kind in counts:
        more = [e for e in said if e["type"] == kind and e["path"] not in known][counts[kind] :]
        found += [Device(name=f"{kind}:{counts[kind] + k}", type=kind, path=e["path"]) for k, e in enumerate(more)]
    return found


def _pycoral_devices() -> list[dict[str, str]]:
    """What Google's pycoral lists. PyPI's package of that name is another project, without this module."""
    try:
        if importlib.util.find_spec("pycoral.utils.edgetpu") is None:
            return []
    except ModuleNotFoundError:
        return []
    module = importlib.import_module("pycoral.utils.edgetpu")
    return [{"type": str(e.get("type")), "path": str(e.get("path"))} for e in module.list_edge_tpus()]


def _pci_devices(root: Path) -> list[Device]:
    found = sorted((root / "sys/class/apex").glob("apex_*"), key=lambda p: _number(p.name))
    return [_pci_device(root, entry, k) for k, entry in enumerate(found)]


def _number(name: str) -> int:
    digits = re.sub(r"\D", "", name)
    return int(digits) if digits else 0


def _pci_device(root: Path, entry: Path, index: int) -> Device:
    node = root / "dev" / entry.name
    celsius = _celsius(entry / "temp")
    problem, remedy = None, None
    if not node.exists():
        problem, remedy = f"{node} is not there", "load the driver: sudo modprobe apex; else install gasket-dkms"
    elif not os.access(node, os.R_OK | os.W_OK):
        problem = f"no permission for {node}"
        remedy = (
            'sudo usermod -aG apex $USER and log in again (udev rule: SUBSYSTEM=="apex", MODE="0660", GROUP="apex")'
        )
    elif celsius in _DEAD_CELSIUS:
        problem, remedy = (
            f"its link is down (it shows {celsius:.0f} C)",
            "seat the card anew, switch the machine off and on",
        )
    return Device(name=f"pci:{index}", type="pci", path=str(node), celsius=celsius, problem=problem, remedy=remedy)


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
    bus, number = _number(_read(entry / "busnum")), _number(_read(entry / "devnum"))
    node = root / f"dev/bus/usb/{bus:03}/{number:03}"
    problem, remedy = None, None
    if not node.exists():
        problem, remedy = f"{node} is not there", "in a container, hand in the whole of /dev/bus/usb"
    elif not os.access(node, os.R_OK | os.W_OK):
        problem = f"no permission for {node}"
        remedy = "sudo usermod -aG plugdev $USER and log in again; install libedgetpu1-std for its udev rule"
    elif not loaded:
        problem, remedy = "not yet initialised", "none needed: the first program that opens it loads its firmware"
    return Device(name=f"usb:{index}", type="usb", path=str(node), problem=problem, remedy=remedy)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def device_names(wanted: str | Sequence[str] | None, count: int, root: str | Path = "/") -> list[str]:
    """A device for each of so many TPUs. wanted: names, or one text with commas; None: the Edge TPUs that are there.

    `cpu`, `sim`, `usb` or `pci` alone stand for as many as are needed. Raises DeviceError where a name is none, occurs
    twice, or there are too few.
    """
    if wanted is None:
        return _there(count, root)
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
    """The one name of a device that can be written in several ways: pci:0 for pci:00. Raises DeviceError."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise DeviceError("is no device", repr(name), "name :0, usb:0, pci:0, usb, pci, cpu or sim")
    return name if found[2] is None else f"{found[1]}:{int(found[2])}"


def _there(count: int, root: str | Path) -> list[str]:
    usable = [d for d in list_devices(root) if d.problem is None or "initialised" in d.problem]
    if len(usable) < count:
        what = f"{count} Edge TPUs are needed, {len(usable)} can be used"
        remedy = f"see `balancer devices`; solve for {len(usable)} TPUs, or try --devices sim"
        raise DeviceError(what, "this machine", remedy if usable else "see `balancer devices`, or try --devices sim")
    return [d.name for d in usable[:count]]
