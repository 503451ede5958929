"""The constants of a machine with Edge TPUs, as data. A name says the unit; the file says the source, and how it is known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from balancer.cost.constant_groups import FULL_CLOCK_MHZ, Chip, Cpu, Host, Link, Power, Scripts
from balancer.cost.cpu_hardware import CpuHardware
from balancer.cost.hardware_kind import LARGEST, HardwareKind
from balancer.documents import DocumentKind, Refusal, parse_document, read_document
from balancer.errors import HardwareError

if TYPE_CHECKING:
    from balancer.documents import JsonObject

FORMAT, VERSION = "balancer-hardware", 1
# The builds of the vendor's runtime, and the clock at which each runs the chip. `std` halves it, to stay cooler.
CLOCKS_MHZ = {"std": 250, "max": FULL_CLOCK_MHZ}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware(HardwareKind):
    """A kind of Edge TPUs, with the link that they hang on and the host that they are attached to.

    The source of each constant stands beside its value in `presets/*.json`.
    """

    DEVICE: ClassVar = "edgetpu"
    GROUPS: ClassVar = {"chip": Chip, "link": Link, "host": Host, "scripts": Scripts, "cpu": Cpu, "power": Power}
    LIMITS: ClassVar = {"clock_mhz": (100, LARGEST), "written_channels": (1, 64)}

    chip: Chip
    link: Link
    host: Host
    scripts: Scripts
    cpu: Cpu
    power: Power

    def at_clock(self, clock: str) -> Hardware:
        """The same hardware with the runtime's build `std` or `max`, as a name of `CLOCKS_MHZ`. Its name says so."""
        changed = self.changed({"clock_mhz": CLOCKS_MHZ[clock]})
        return Hardware.with_constants(f"{self.name}:{clock}", changed.constants, rough=self.rough)


AnyHardware = Hardware | CpuHardware
CONSTANTS, DEFAULTS = Hardware.constant_names(), Hardware.defaults()


_DEVICES: dict[str, type[Hardware | CpuHardware]] = {kind.DEVICE: kind for kind in (Hardware, CpuHardware)}


@cache
def _preset_names() -> dict[str, str]:
    """Preset -> the device that it is about."""
    folder = resources.files(__package__).joinpath("presets")
    texts = {entry.name.removesuffix(".json"): entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}
    return {name: json.loads(text).get("device", Hardware.DEVICE) for name, text in sorted(texts.items())}


def preset_names(device: str = Hardware.DEVICE) -> tuple[str, ...]:
    """The names that `load_hardware` and `load_kind` know without a file. device: "edgetpu" or "cpu"."""
    return tuple(name for name, about in _preset_names().items() if about == device)


def load_hardware(source: str | Path) -> Hardware:
    """The Edge TPUs of a preset, by its name, or of a hardware file, by its path.

    Behind either, `:std` or `:max` names the build of the vendor's runtime, which sets the chip's clock: `usb:std`. A file
    whose own name ends so is read as it is.

    Raises HardwareError if there is no such preset or file, if there is no such build, if the file is not valid, or if it
    is about a CPU.
    """
    kind = load_kind(source)
    if not isinstance(kind, Hardware):
        raise HardwareError("is a CPU", str(source), f"name Edge TPUs: {', '.join(preset_names())}, or a file")
    return kind


def load_kind(source: str | Path) -> AnyHardware:
    """The kind of devices of a preset or a hardware file: Edge TPUs, as `load_hardware` reads them, or the host's CPU.

    Raises HardwareError as `load_hardware` does.
    """
    name, clock = _named_clock(str(source))
    kind = _load(name)
    if not clock:
        return kind
    if not isinstance(kind, Hardware):
        raise HardwareError("is a CPU, which has no build of the runtime", str(source), f"leave out :{clock}")
    return kind.at_clock(clock)


def _named_clock(source: str) -> tuple[str, str]:
    """The preset or file that a source names, and the build of the runtime, "" if it names none."""
    name, colon, clock = source.rpartition(":")
    if _is_file(source):
        return source, ""
    if colon and clock in CLOCKS_MHZ:
        return name, clock
    if name in preset_names():
        raise HardwareError(f"there is no build '{clock}' of the runtime", f"preset {name}", "name it std or max")
    return source, ""


def _is_file(source: str) -> bool:
    try:
        return Path(source).is_file()
    except OSError:
        return False  # the name is too long for any file


def _load(source: str) -> AnyHardware:
    document, where = _read(source)
    entries, device = _entries(document, source, where), document.get("device", Hardware.DEVICE)
    name, rough = document.get("name") or Path(where).stem, document.get("rough", False)
    if not isinstance(name, str) or not isinstance(rough, bool):
        raise HardwareError("its name is not a text, or `rough` not true or false", where, "correct it in the file")
    if not isinstance(device, str) or device not in _DEVICES:
        raise HardwareError(f"there is no device {device!r}", where, f"name one of: {', '.join(_DEVICES)}")
    kind = _DEVICES[device]
    return kind.with_constants(name, _values(kind, entries, where), rough=rough)


def _read(source: str) -> tuple[JsonObject, str]:
    """The document of a preset or a file, and what messages call it."""
    presets = tuple(_preset_names())
    refusal = Refusal(
        HardwareError, "give a preset, or a hardware file as `balancer calibrate` writes it", "a hardware file",
        unread="no such preset, nor a readable file", unread_remedy=f"use one of: {', '.join(presets)}, or a file",
    )  # fmt: skip
    kind = DocumentKind(FORMAT, (VERSION,), refusal)
    if source not in presets:
        return read_document(source, kind), source
    entry = resources.files(__package__).joinpath("presets", f"{source}.json")
    return parse_document(entry.read_bytes(), f"preset {source}", kind), f"preset {source}"


def _entries(document: JsonObject, source: str, where: str) -> JsonObject:
    """The entries under "constants", by name. Those of the preset that the file names as its "base" fill the gaps."""
    entries = document.get("constants")
    if not isinstance(entries, dict):
        raise HardwareError("has no constants", where, "give a hardware file")
    base = document.get("base")
    if base is None:
        return entries
    presets = preset_names(str(document.get("device", Hardware.DEVICE)))
    # A preset that is its own base would be read without end.
    if not isinstance(base, str) or base not in presets or base == source:
        raise HardwareError(f"its base {base!r} is not a preset", where, f"name one of: {', '.join(presets)}")
    inherited, base_where = _read(base)
    return _entries(inherited, base, base_where) | entries


def _values(kind: type[HardwareKind], entries: JsonObject, where: str) -> dict[str, int]:
    names, defaults = kind.constant_names(), kind.defaults()
    unknown = next((name for name in entries if name not in names), None)
    if unknown is not None:
        near = get_close_matches(unknown, names, 1) or names
        raise HardwareError(f"there is no constant '{unknown}'", where, f"name it {' or '.join(near)}")
    values: dict[str, int] = {}
    for name in names:
        if name in defaults and name not in entries:
            continue
        entry = entries.get(name)
        value = entry.get("value") if isinstance(entry, dict) else None
        if not kind.is_constant(value, name):
            least, largest = kind.limits(name)
            raise HardwareError(
                f"constant '{name}' is not an integer from {least} to {largest}", where, "correct it in the file"
            )
        values[name] = value
    return values
