"""The devices that a plan is for: how many there are of each kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.cost.cpu_hardware import CpuHardware
from balancer.errors import HardwareError
from balancer.ground.wording import counted

if TYPE_CHECKING:
    from balancer.cost.hardware import AnyHardware

MOST_DEVICES = 32  # of all kinds together


@dataclass(frozen=True, slots=True)
class Devices:
    """Kinds of devices, in the order in which a user named them, and how many there are of each.

    Raises HardwareError if two kinds have one name, or if a CPU is to run more stages at a time than its cores allow.
    Raises ValueError for a number of devices below 1, for none at all, and for more than 32 of all kinds together.
    """

    kinds: tuple[tuple[AnyHardware, int], ...]

    def __post_init__(self) -> None:
        """Check the counts."""
        names = [kind.name for kind, _ in self.kinds]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise HardwareError("is named twice", f"the kind {twice}", "name each kind once, with all its devices")
        for kind, count in self.kinds:
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"the number of devices {kind.name} must be a whole number from 1, not {count!r}")
            if isinstance(kind, CpuHardware) and count > kind.most_devices:
                cores, threads = kind.running.cores, kind.running.threads
                what = f"{count} stages of {threads} threads each are more than its {cores} cores run at a time"
                raise HardwareError(what, f"{kind.name}={count}", f"give at most {kind.name}={kind.most_devices}")
        if not 1 <= self.total <= MOST_DEVICES:
            raise ValueError(f"there must be 1 to {MOST_DEVICES} devices, not {self.total}")

    @property
    def total(self) -> int:
        """Devices of all kinds together."""
        return sum(count for _, count in self.kinds)

    @property
    def counts(self) -> tuple[tuple[str, int], ...]:
        """The name of each kind, and how many devices there are of it."""
        return tuple((kind.name, count) for kind, count in self.kinds)

    @property
    def text(self) -> str:
        """As on the command line: "pcie=2,usb=1"."""
        return ",".join(f"{name}={count}" for name, count in self.counts)

    @property
    def in_words(self) -> str:
        """For messages: "4 TPUs", or "pcie=2,cpu=1" where they are not all Edge TPUs of one kind."""
        if len(self.kinds) == 1 and not isinstance(self.kinds[0][0], CpuHardware):
            return counted(self.total, "TPU")
        return self.text

    def kind(self, name: str) -> AnyHardware:
        """The kind of that name. Raises KeyError if there is none."""
        return {kind.name: kind for kind, _ in self.kinds}[name]
