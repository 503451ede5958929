"""What all kinds of devices have in common: a name, constants in groups, the host's work, and power.

A kind stands for devices that cost the same. An Edge TPU's is `hardware.Hardware`, that of the host's CPU
`cpu_hardware.CpuHardware`. A name of a constant says the unit; the file says the source, and how it is known.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, ClassVar, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

# With constants up to this, sums over thousands of ops and tensors of 2 GiB stay within 64 bits.
LARGEST = 10**10


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareKind:
    """A kind of devices: all constants that the costs of its segments depend on, in groups.

    Files hold the constants in one flat object, without the groups: `with_constants` and `constants` convert between both
    forms. DEVICE says in files which kind of device it is. GROUPS: the type of each field that is a group of constants.
    LIMITS: least and largest value of constants that are divided by or multiply sizes; of all others, 0 and `LARGEST`.

    rough: whether the constants are rough guesses that were not fitted to measurements. Outputs say so beside its numbers.
    """

    DEVICE: ClassVar[str]
    GROUPS: ClassVar[Mapping[str, type]]
    LIMITS: ClassVar[Mapping[str, tuple[int, int]]] = {}

    name: str
    rough: bool = False

    @classmethod
    def with_constants(cls, name: str, constants: Mapping[str, int], *, rough: bool = False) -> Self:
        """The kind with these constants. constants: value by name; unknown names are ignored.

        Raises KeyError where a constant without a default is missing.
        """
        known = cls.defaults() | dict(constants)
        groups = {field: group(**{f.name: known[f.name] for f in fields(group)}) for field, group in cls.GROUPS.items()}
        return cls(name=name, rough=rough, **groups)

    def __post_init__(self) -> None:
        """Raises ValueError for a constant that is not a whole number within its limits, mostly from 0 to 10^10."""
        for name, value in self.constants.items():
            if not self.is_constant(value, name):
                least, largest = self.limits(name)
                raise ValueError(f"{name} must be a whole number from {least} to {largest}, not {value!r}")

    def changed(self, constants: Mapping[str, float]) -> Self:
        """The same kind with these constants, each rounded to a whole number and limited to 10^10.

        Raises ValueError for a constant that does not exist.
        """
        unknown = sorted(set(constants) - set(self.constant_names()))
        if unknown:
            raise ValueError(f"there is no constant {unknown[0]!r}")
        fitting = {name: round(min(value, LARGEST)) for name, value in constants.items()}
        return self.with_constants(self.name, self.constants | fitting, rough=self.rough)

    @property
    def constants(self) -> dict[str, int]:
        """All constants by name, group after group."""
        groups = (getattr(self, field) for field in self.GROUPS)
        return {f.name: getattr(group, f.name) for group in groups for f in fields(group)}

    @classmethod
    def constant_names(cls) -> tuple[str, ...]:
        """The names of all constants, group after group."""
        return tuple(f.name for group in cls.GROUPS.values() for f in fields(group))

    @classmethod
    def defaults(cls) -> dict[str, int]:
        """Constants that older files lack, with the values that mean the same."""
        return {f.name: f.default for group in cls.GROUPS.values() for f in fields(group) if f.default is not MISSING}

    @classmethod
    def limits(cls, name: str) -> tuple[int, int]:
        """The least and the largest value of a constant."""
        return cls.LIMITS.get(name, (0, LARGEST))

    @classmethod
    def is_constant(cls, value: object, name: str) -> TypeGuard[int]:
        """Whether a value is one that the constant may have."""
        least, largest = cls.limits(name)
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= largest
