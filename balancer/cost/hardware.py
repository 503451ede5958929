"""The constants of a machine with Edge TPUs, as data: each with its unit in the name, its source and how it is known."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from balancer.documents import DocumentKind, Refusal, parse_document, read_document
from balancer.errors import HardwareError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balancer.documents import JsonObject

FORMAT, VERSION = "balancer-hardware", 1
# Keeps sums over thousands of ops and tensors of 2 GiB within 64 bits.
_LARGEST = 10**10


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """The Edge TPU itself.

    mac_ns_per_gmac: ns for 10^9 multiply-accumulates, counted as the array rounds them up. dense_ns_per_mib: ns to read the
    parameters of dense ops, for each MiB on the chip. written_ns_per_mib: ns for each MiB that ops without
    multiply-accumulates write. op_ns: start of one op. gather_ns, gather_ns_per_mib: what a convolution takes longer whose
    input lies spread over the tiles, once and for each MiB of it; only on pictures of gather_least_pixels and more.
    narrow_bytes: memory for activations. band_bytes, least_bands: a picture that does not fit it is worked on in bands of
    at most so many bytes, and in at least so many. wide_bytes_per_tile: memory of one tile for parameters and buffers;
    dense_tile_bytes: what dense ops may take of it.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Between the host and one Edge TPU.

    stream_ns_per_mib, stream_start_ns: parameters that are sent with every inference, for each MiB and once.
    load_ns_per_mib, load_ns: parameters that are sent at the first inference alone, likewise. invoke_ns: fixed cost of
    invoking one segment. input_ns_per_mib, output_ns_per_mib: boundary tensors to and from a segment;
    large_input_ns_per_mib, large_output_ns_per_mib: what the part of a tensor above large_tensor_bytes takes on top.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The computer that the Edge TPUs are in.

    handover_ns: from one stage to the next; counts in latency alone. host_ns_per_stage: work for each inference and stage
    that cannot overlap with the work for other stages.
    """

    handover_ns: int
    host_ns_per_stage: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripts:
    """What the Python scripts of the published measurements add, see `feeding`; zero on any other host.

    thread_ns: a queue and a thread, for each stage. wake_ns: to wake a thread that slept through a long call.
    upstream_permille_2, _3, _4: how much of what one stage sends delays the next one in a pipeline of 2, 3, or 4 and more
    stages, in thousandths.
    """

    thread_ns: int
    wake_ns: int
    upstream_permille_2: int
    upstream_permille_3: int
    upstream_permille_4: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """One thread of the host's CPU, for ops that the Edge TPU does not take.

    cpu_ns_per_gmac: for 10^9 multiply-accumulates. cpu_ns_per_mib: for each MiB that an op reads or writes. cpu_op_ns: to
    start an op.
    """

    cpu_ns_per_gmac: int
    cpu_ns_per_mib: int
    cpu_op_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """All constants that the cost of a segment depends on. Their sources stand beside the values in `presets/*.json`.

    In files the constants stand side by side, whatever their group: `constants` and `with_constants` go from one form to
    the other.
    """

    name: str
    chip: Chip
    link: Link
    host: Host
    scripts: Scripts
    cpu: Cpu

    @classmethod
    def with_constants(cls, name: str, constants: Mapping[str, int]) -> Hardware:
        """Raises KeyError where a constant is missing; other names are ignored."""
        groups = {group: kind(**{f.name: constants[f.name] for f in fields(kind)}) for group, kind in _GROUPS.items()}
        return cls(name=name, **groups)

    def __post_init__(self) -> None:
        """Raises ValueError for a constant that is no whole number from 0 to 10^10."""
        for name, value in self.constants.items():
            if not _is_constant(value):
                raise ValueError(f"{name} must be a whole number from 0 to {_LARGEST}, not {value!r}")

    def changed(self, constants: Mapping[str, float]) -> Hardware:
        """With these constants, rounded, and no larger than one may be."""
        fitting = {name: round(min(value, _LARGEST)) for name, value in constants.items()}
        return Hardware.with_constants(self.name, self.constants | fitting)

    @property
    def constants(self) -> dict[str, int]:
        """All of them by name, group after group."""
        return {f.name: getattr(getattr(self, group), f.name) for group, kind in _GROUPS.items() for f in fields(kind)}


_GROUPS: dict[str, Any] = {"chip": Chip, "link": Link, "host": Host, "scripts": Scripts, "cpu": Cpu}
CONSTANTS = tuple(f.name for kind in _GROUPS.values() for f in fields(kind))


def preset_names() -> tuple[str, ...]:
    """The names that `load_hardware` knows without a file."""
    folder = resources.files(__package__).joinpath("presets")
    return tuple(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")))


def load_hardware(source: str | Path) -> Hardware:
    """The hardware of a preset, by its name, or of a hardware file, by its path.

    Raises HardwareError if there is no such preset or file, or if the file is not valid.
    """
    document, where = _read(str(source))
    entries = _entries(document, str(source), where)
    name = document.get("name") or Path(where).stem
    if not isinstance(name, str):
        raise HardwareError("its name is not a text", where, "correct it in the file")
    return Hardware.with_constants(name, _values(entries, where))


def _read(source: str) -> tuple[JsonObject, str]:
    """The document of a preset or a file, and what messages call it."""
    presets = preset_names()
    refusal = Refusal(
        HardwareError, "give a hardware file that balancer wrote", unread="no such preset, nor a readable file",
        unread_remedy=f"use one of: {', '.join(presets)}, or a file",
    )  # fmt: skip
    kind = DocumentKind(FORMAT, (VERSION,), "hardware file", refusal, format_remedy="give a hardware file")
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
    values: dict[str, int] = {}
    for name in CONSTANTS:
        entry = entries.get(name)
        value = entry.get("value") if isinstance(entry, dict) else None
        if not _is_constant(value):
            raise HardwareError(
                f"constant '{name}' is not an integer from 0 to {_LARGEST}", where, "correct it in the file"
            )
        values[name] = value
    return values


def _is_constant(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST
