"""The constants of a machine with Edge TPUs, as data. A name says the unit; the file says the source, and how it is known."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from balancer.documents import DocumentKind, Refusal, parse_document, read_document
from balancer.errors import HardwareError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balancer.documents import JsonObject

FORMAT, VERSION = "balancer-hardware", 1
# With constants up to this, sums over thousands of ops and tensors of 2 GiB stay within 64 bits.
_LARGEST = 10**10
# The builds of the vendor's runtime, and the clock at which each runs the chip. `std` halves it, to stay cooler.
CLOCKS_MHZ = {"std": 250, "max": 500}
FULL_CLOCK_MHZ = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """The Edge TPU itself.

    Computing, see `timing`. Times hold at 500 MHz, the clock of the runtime's `max` build. Constants with a default here were
    added later: files without them mean what they meant.
    clock_mhz             the chip's clock: 500 with the runtime's `max` build, 250 with `std`
    mac_ns_per_gmac       ns for 10^9 multiply-accumulates, counted as the array pads them
    dense_ns_per_mib      ns to pass the cached parameters of dense ops through the array, for each MiB
    written_ns_per_mib    ns of other ops than convolutions and dense ops for each MiB that they write
    moved_permille        thousandths of it that an op takes which reads one activation only (see `elementwise`)
    written_channels      channels of an output are written so many at a time: their number is rounded up to a multiple
    op_ns                 ns to start one op, besides sending its instructions
    gather_ns             ns to collect the input of a convolution that lies spread over the tiles, once for each op
    gather_ns_per_mib     the same, for each MiB of that input
    gather_least_pixels   smaller inputs need no gathering
    narrow_bytes          memory for activations
    band_bytes            activations on which a convolution works at a time where they exceed narrow memory
    least_bands           the number of bands of such a convolution, at least

    Memory, see `capacity` and `caching`:
    wide_bytes_per_tile   of one tile, for parameters and scratch
    dense_tile_bytes      the part of it that dense ops may take
    """

    mac_ns_per_gmac: int
    dense_ns_per_mib: int
    written_ns_per_mib: int
    op_ns: int
    gather_ns: int
    gather_ns_per_mib: int
    gather_least_pixels: int
    narrow_bytes: int
    band_bytes: int
    least_bands: int
    wide_bytes_per_tile: int
    dense_tile_bytes: int
    clock_mhz: int = FULL_CLOCK_MHZ
    written_channels: int = 1
    moved_permille: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The connection between the host and one Edge TPU.

    stream_ns_per_mib         ns to send parameters with each inference, for each MiB
    stream_start_ns           the same, once for each inference of a segment that streams anything
    load_ns_per_mib           ns to send parameters that stay on the chip, at the first inference, for each MiB
    load_ns                   the same, once for each segment
    invoke_ns                 ns to invoke a segment, whatever it holds
    instruction_ns_per_mib    ns to send the instructions of a segment with each inference, for each MiB
    input_ns_per_mib          ns to send a boundary tensor into a segment, for each MiB
    output_ns_per_mib         ns to fetch a boundary tensor out of a segment, for each MiB
    large_tensor_bytes        the bytes of a boundary tensor beyond this size take more time:
    large_input_ns_per_mib    ns on top of input_ns_per_mib, for each MiB beyond
    large_output_ns_per_mib   ns on top of output_ns_per_mib, for each MiB beyond
    """

    stream_ns_per_mib: int
    stream_start_ns: int
    load_ns_per_mib: int
    load_ns: int
    invoke_ns: int
    input_ns_per_mib: int
    output_ns_per_mib: int
    large_tensor_bytes: int
    large_input_ns_per_mib: int
    large_output_ns_per_mib: int
    instruction_ns_per_mib: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The computer that the Edge TPUs are attached to.

    handover_ns         ns to hand a result to the next stage; it adds to the latency and not to the period
    host_ns_per_stage   ns of work for each inference and stage; work for different stages does not overlap
    """

    handover_ns: int
    host_ns_per_stage: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripts:
    """What the Python scripts of the published measurements add (see `feeding`). Zero for other hosts.

    thread_ns             ns of a Python thread and its queue, for each stage
    wake_ns               ns to wake a Python thread that slept through a long call
    upstream_permille_2   thousandths of the time in which a stage sends its output, by which the next stage is delayed:
    upstream_permille_3   in a pipeline of 2 stages, of 3 stages, and of
    upstream_permille_4   4 or more
    """

    thread_ns: int
    wake_ns: int
    upstream_permille_2: int
    upstream_permille_3: int
    upstream_permille_4: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """One thread of the host's CPU, for ops that the Edge TPU does not take.

    cpu_ns_per_gmac   ns for 10^9 multiply-accumulates
    cpu_ns_per_mib    ns to read or write activations, for each MiB
    cpu_op_ns         ns to start one op
    """

    cpu_ns_per_gmac: int
    cpu_ns_per_mib: int
    cpu_op_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """All constants that the costs of segments and pipelines depend on, in groups.

    The source of each value stands beside it in `presets/*.json`. Files hold the constants in one flat object, without the
    groups: `with_constants` and `constants` convert between both forms.
    """

    name: str
    chip: Chip
    link: Link
    host: Host
    scripts: Scripts
    cpu: Cpu

    @classmethod
    def with_constants(cls, name: str, constants: Mapping[str, int]) -> Hardware:
        """The hardware with these constants. constants: value by name; unknown names are ignored.

        Raises KeyError where a constant without a default is missing.
        """
        return cls(
            name=name,
            chip=_group(Chip, constants),
            link=_group(Link, constants),
            host=_group(Host, constants),
            scripts=_group(Scripts, constants),
            cpu=_group(Cpu, constants),
        )

    def __post_init__(self) -> None:
        """Raises ValueError for a constant that is not a whole number within its limits, mostly from 0 to 10^10."""
        for name, value in self.constants.items():
            if not _is_constant(value, name):
                least, largest = _limits(name)
                raise ValueError(f"{name} must be a whole number from {least} to {largest}, not {value!r}")

    def changed(self, constants: Mapping[str, float]) -> Hardware:
        """The same hardware with these constants, each rounded to a whole number and limited to 10^10.

        Raises ValueError for a constant that does not exist.
        """
        unknown = sorted(set(constants) - set(CONSTANTS))
        if unknown:
            raise ValueError(f"there is no constant {unknown[0]!r}")
        fitting = {name: round(min(value, _LARGEST)) for name, value in constants.items()}
        return Hardware.with_constants(self.name, self.constants | fitting)

    def at_clock(self, clock: str) -> Hardware:
        """The same hardware with the runtime's build `std` or `max`, as a name of `CLOCKS_MHZ`. Its name says so."""
        changed = self.changed({"clock_mhz": CLOCKS_MHZ[clock]})
        return Hardware.with_constants(f"{self.name}:{clock}", changed.constants)

    @property
    def constants(self) -> dict[str, int]:
        """All constants by name, group after group."""
        groups = (self.chip, self.link, self.host, self.scripts, self.cpu)
        return {f.name: getattr(group, f.name) for group in groups for f in fields(group)}


_Group = TypeVar("_Group", Chip, Link, Host, Scripts, Cpu)
_FIELDS = tuple(f for kind in (Chip, Link, Host, Scripts, Cpu) for f in fields(kind))
CONSTANTS = tuple(f.name for f in _FIELDS)
# Constants that older files lack, with the values that mean the same.
DEFAULTS: dict[str, int] = {f.name: f.default for f in _FIELDS if f.default is not MISSING}
# Least and largest value of constants that are divided by or multiply sizes; of all others, 0 and `_LARGEST`.
_LIMITS = {"clock_mhz": (100, _LARGEST), "written_channels": (1, 64)}


def _group(kind: type[_Group], constants: Mapping[str, int]) -> _Group:
    known = DEFAULTS | dict(constants)
    return kind(**{f.name: known[f.name] for f in fields(kind)})


def preset_names() -> tuple[str, ...]:
    """The names that `load_hardware` knows without a file."""
    folder = resources.files(__package__).joinpath("presets")
    return tuple(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")))


def load_hardware(source: str | Path) -> Hardware:
    """The hardware of a preset, by its name, or of a hardware file, by its path.

    Behind either, `:std` or `:max` names the build of the vendor's runtime, which sets the chip's clock: `usb:std`. A file
    whose own name ends so is read as it is.

    Raises HardwareError if there is no such preset or file, if there is no such build, or if the file is not valid.
    """
    name, clock = _named_clock(str(source))
    hardware = _load(name)
    return hardware.at_clock(clock) if clock else hardware


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


def _load(source: str) -> Hardware:
    document, where = _read(source)
    entries = _entries(document, source, where)
    name = document.get("name") or Path(where).stem
    if not isinstance(name, str):
        raise HardwareError("its name is not a text", where, "correct it in the file")
    return Hardware.with_constants(name, _values(entries, where))


def _read(source: str) -> tuple[JsonObject, str]:
    """The document of a preset or a file, and what messages call it."""
    presets = preset_names()
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
    # A preset that is its own base would be read without end.
    if not isinstance(base, str) or base not in preset_names() or base == source:
        raise HardwareError(f"its base {base!r} is not a preset", where, f"name one of: {', '.join(preset_names())}")
    inherited, base_where = _read(base)
    return _entries(inherited, base, base_where) | entries


def _values(entries: JsonObject, where: str) -> dict[str, int]:
    unknown = next((name for name in entries if name not in CONSTANTS), None)
    if unknown is not None:
        near = get_close_matches(unknown, CONSTANTS, 1) or CONSTANTS
        raise HardwareError(f"there is no constant '{unknown}'", where, f"name it {' or '.join(near)}")
    values: dict[str, int] = {}
    for name in CONSTANTS:
        if name in DEFAULTS and name not in entries:
            continue
        entry = entries.get(name)
        value = entry.get("value") if isinstance(entry, dict) else None
        if not _is_constant(value, name):
            least, largest = _limits(name)
            raise HardwareError(
                f"constant '{name}' is not an integer from {least} to {largest}", where, "correct it in the file"
            )
        values[name] = value
    return values


def _limits(name: str) -> tuple[int, int]:
    return _LIMITS.get(name, (0, _LARGEST))


def _is_constant(value: Any, name: str) -> TypeGuard[int]:
    least, largest = _limits(name)
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= largest
