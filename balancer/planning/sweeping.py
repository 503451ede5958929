"""Which numbers of devices `size` tries: of one kind from some number to another, with given numbers of others beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from balancer.cost.devices import Devices
from balancer.errors import HardwareError
from balancer.ground.wording import counted
from balancer.planning.asked_devices import kind_named

if TYPE_CHECKING:
    from balancer.cost.hardware import AnyHardware

AskedSweep: TypeAlias = "str | Mapping[str, int | range]"
_EXAMPLE = "give one kind a range and all others a number, as in usb=1-8,cpu=1"


@dataclass(frozen=True, slots=True)
class Sweep:
    """Devices of which one kind's number varies.

    kinds: all, in the order in which they were named, each with its number. swept: the position of the kind whose number
    varies. counts: its numbers, ascending.

    Raises what `Devices` raises for numbers that cannot be.
    """

    kinds: tuple[tuple[AnyHardware, int], ...]
    swept: int
    counts: range

    def __post_init__(self) -> None:
        """Check the largest numbers."""
        self.devices(self.counts[-1])

    @property
    def kind(self) -> AnyHardware:
        """The kind whose number varies."""
        return self.kinds[self.swept][0]

    @property
    def others(self) -> str:
        """The other devices as text: "cpu=1"; empty where there are none."""
        return ",".join(f"{kind.name}={count}" for k, (kind, count) in enumerate(self.kinds) if k != self.swept)

    def devices(self, count: int) -> Devices:
        """The devices with so many of the swept kind."""
        return Devices(tuple((kind, count if k == self.swept else n) for k, (kind, n) in enumerate(self.kinds)))


def sweep_asked(asked: AskedSweep) -> Sweep:
    """The sweep that a text or a mapping stands for: "usb=1-8,cpu=1" or {"usb": range(1, 9), "cpu": 1}.

    Raises HardwareError if a kind is not known or is named twice, or if a CPU is asked to run more stages at a time than it has
    cores; ValueError for what names no sweep.
    """
    counts = asked if isinstance(asked, Mapping) else _parsed(asked)
    swept = [k for k, count in enumerate(counts.values()) if isinstance(count, range)]
    if len(swept) != 1:
        raise ValueError(f"{counted(len(swept), 'kind')} with a range: {_EXAMPLE}")
    kinds = tuple((kind_named(name), _first(count)) for name, count in counts.items())
    span = list(counts.values())[swept[0]]
    if not isinstance(span, range) or len(span) == 0 or span.step < 1 or span[0] < 1:
        raise ValueError(f"the range of {kinds[swept[0]][0].name} must ascend from 1 or more: {_EXAMPLE}")
    return Sweep(kinds, swept[0], span)


def _first(count: int | range) -> int:
    return count if isinstance(count, int) else next(iter(count), 0)


def _parsed(text: str) -> dict[str, int | range]:
    counts: dict[str, int | range] = {}
    for part in text.split(","):
        kind, equals, count = (piece.strip() for piece in part.rpartition("="))
        least, dash, most = (piece.strip() for piece in count.partition("-"))
        if not equals or not kind or not least.isdecimal() or (dash and not most.isdecimal()):
            raise ValueError(f"{part.strip() or text!r} names no devices: {_EXAMPLE}")
        if kind in counts:
            raise HardwareError("is named twice", f"the kind {kind}", "name each kind once")
        counts[kind] = range(int(least), int(most) + 1) if dash else int(least)
    return counts
