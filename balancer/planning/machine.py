"""What this machine has: its CPU as a kind of device, and the devices that are attached to it."""

from __future__ import annotations

import os
import platform
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cost.cpu_hardware import CpuHardware
from balancer.cost.hardware import load_kind
from balancer.errors import HardwareError
from balancer.runtime.devices import usable_cores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.runtime.devices import Device

CPU = "cpu"  # the kind that means this machine's own
_PRESET_OF = {"x86_64": "cpu-x86", "amd64": "cpu-x86"}
# The core's number in /proc/cpuinfo (Arm Ltd., MIDR_EL1). Other 64-bit Arm cores count as the faster of both.
_PRESET_OF_PART = {"0xd03": "cpu-a53", "0xd04": "cpu-a53"}
_ARM = "cpu-a72"


def calibrated_cpu_path() -> Path:
    """Where `balancer calibrate --cpu` keeps this machine's CPU: `balancer` in the user's folder for settings (XDG base
    directories).
    """
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "balancer" / "cpu.json"


def this_cpu() -> CpuHardware:
    """This machine's CPU: as it was calibrated, else the rough preset of its architecture with this machine's cores.

    Raises HardwareError if the calibration cannot be read.
    """
    calibrated = calibrated_cpu_path()
    kind = load_kind(calibrated if calibrated.is_file() else preset_of_this_cpu())
    if not isinstance(kind, CpuHardware):
        raise HardwareError("is not about a CPU", str(calibrated), "calibrate anew with `balancer calibrate --cpu`")
    return kind.changed({"cores": usable_cores()})


def preset_of_this_cpu() -> str:
    """The rough preset for the architecture of this machine."""
    machine = platform.machine().lower()
    return _PRESET_OF.get(machine) or _PRESET_OF_PART.get(_arm_part(Path("/proc/cpuinfo")), _ARM)


def _arm_part(cpuinfo: Path) -> str:
    """The number of the machine's first core, as in "0xd08"; empty where it is not known."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("CPU part")), "")


def attached_counts(listed: Sequence[Device]) -> dict[str, int]:
    """What this machine has, as `-n` takes it: how many of these Edge TPUs can be used, by kind, and how many stages its CPU
    can run beside the host's own work, for which one core is left.

    Raises HardwareError as `this_cpu` does.
    """
    found = Counter(device.kind for device in listed if device.usable)
    running = this_cpu().running
    return {kind: found[kind] for kind in sorted(found)} | {CPU: max(1, (running.cores - 1) // running.threads)}
