"""The constants of a machine with Edge TPUs, as data: each with its unit in the name, its source and how it is known."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from balancer.documents import Refusal, parse_json, read_json
from balancer.errors import HardwareError

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT, VERSION = "balancer-hardware", 1
# Keeps sums over thousands of ops and tensors of 2 GiB within 64 bits.
_LARGEST = 10**10


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """All constants that the cost of a segment depends on. Their sources stand beside the values in `presets/*.json`.

    The chip. mac_ns_per_gmac: per 10^9 multiply-accumulates as the array rounds them. dense_ns_per_mib: parameters of
    dense ops read on chip. written_ns_per_mib: by ops without multiply-accumulates. op_ns: start of one op. gather_*:
    a wide convolution's input brought together, on pictures of at least gather_least_pixels. narrow_bytes,
    band_bytes, least_bands: when and how big pictures are cut into bands. wide_bytes_per_tile: memory for parameters
    and buffers. dense_tile_bytes: of it for dense ops.

    The link and the host. stream_*: parameters while running, per MiB and once. load_*: at the first inference, per
    MiB and once. invoke_ns: fixed cost of one segment's invocation. input_*, output_*: boundary tensors to and from a
    segment; large_*: more for the part of one tensor above large_tensor_bytes. handover_ns: between stages, in
    latency alone. host_ns_per_stage: host work per inference and stage that no other stage's host work overlaps.
    thread_ns, wake_ns, upstream_permille_*: of the published Python scripts, see `pipeline`. cpu_*: ops that the Edge
    TPU does not take, on one thread.
    """

    name: str
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
    handover_ns: int
    host_ns_per_stage: int
    thread_ns: int
    wake_ns: int
    upstream_permille_2: int
    upstream_permille_3: int
    upstream_permille_4: int
    cpu_ns_per_gmac: int
    cpu_ns_per_mib: int
    cpu_op_ns: int

    def __post_init__(self) -> None:
        """Raises ValueError for a constant that is no whole number from 0 to 10^10."""
        for name, value in self.constants.items():
            if not _is_constant(value):
                raise ValueError(f"{name} must be a whole number from 0 to {_LARGEST}, not {value!r}")

    def changed(self, constants: Mapping[str, float]) -> Hardware:
        """With these constants, rounded, and no larger than one may be."""
        fitting: dict[str, Any] = {name: round(min(value, _LARGEST)) for name, value in constants.items()}
        return replace(self, **fitting)

    @property
    def constants(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}


def preset_names() -> tuple[str, ...]:
    """The names that `load_hardware` knows without a file."""
    folder = resources.files(__package__).joinpath("presets")
    return tuple(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")))


def load_hardware(source: str | Path) -> Hardware:
    """A preset by its name, or a hardware file by its path. Raises HardwareError where it is neither."""
    document, where = _document(str(source))
    name = document.get("name") or Path(where).stem
    if not isinstance(name, str):
        raise HardwareError("its name is no text", where, "correct it in the file")
    return Hardware(name=name, **_values(document, where))


def _document(source: str) -> tuple[dict[str, Any], str]:
    """The file's document with the constants of its base, if it names one, filled in."""
    document, where = _read(source)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise HardwareError(f"not a hardware file (no format '{FORMAT}')", where, "give a hardware file")
    if document.get("version") != VERSION:
        raise HardwareError(f"version {document.get('version')!r} is unknown", where, "update balancer")
    if not isinstance(document.get("constants"), dict):
        raise HardwareError("has no constants", where, "give a hardware file")
    base = document.get("base")
    if base is None:
        return document, where
    if not isinstance(base, str) or base not in preset_names() or base == source:
        raise HardwareError(f"its base {base!r} is no preset", where, f"name one of: {', '.join(preset_names())}")
    inherited = _document(str(base))[0]["constants"]
    return document | {"constants": inherited | document["constants"]}, where


def _read(source: str) -> tuple[Any, str]:
    known = preset_names()
    refusal = Refusal(
        HardwareError, "give a hardware file that balancer wrote", unread="no such preset, nor a readable file",
        unread_remedy=f"use one of: {', '.join(known)}, or a file",
    )  # fmt: skip
    if source not in known:
        return read_json(source, refusal), source
    entry = resources.files(__package__).joinpath("presets", f"{source}.json")
    return parse_json(entry.read_bytes(), f"preset {source}", refusal), f"preset {source}"


def _values(document: dict[str, Any], where: str) -> dict[str, int]:
    values: dict[str, int] = {}
    for field in fields(Hardware):
        if field.name == "name":
            continue
        entry = document["constants"].get(field.name)
        value = entry.get("value") if isinstance(entry, dict) else None
        if not _is_constant(value):
            raise HardwareError(
                f"constant '{field.name}' is not an integer from 0 to {_LARGEST}", where, "correct it in the file"
            )
        values[field.name] = value
    return values


def _is_constant(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST
