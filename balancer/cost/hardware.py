"""The constants of a machine with Edge TPUs, as data: each with its unit in the name, its source and how it is known."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from balancer.errors import HardwareError

FORMAT, VERSION = "balancer-hardware", 1
NS_PER_S = 1_000_000_000
_LARGEST = 10**15
# A transfer rate times a second in ns must stay within 64 bits in the interval tables.
_LARGEST_RATE = 9_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """All constants that the cost of a segment depends on. Sources stand beside the values in `presets/*.json`.

    macs_per_s: of the array, counted with its rounding of channels and picture. dense_bytes_per_s: parameters of dense ops
    read on chip. elementwise_bytes_per_s: written by ops without multiply-accumulates. invoke_ns: fixed cost of one
    segment's invocation. op_ns: start of one op.

    stream_bytes_per_s: parameters from the host while running; stream_setup_ns: once where anything streams.
    load_bytes_per_s: parameters from the host at the first inference. input_bytes_per_s, output_bytes_per_s: boundary
    tensors to and from a segment; above large_transfer_bytes per direction, large_ns_per_mib more.

    capacity_bytes: on-chip bytes for parameters where activations are small; scratch_*: what big activations take of it.
    cpu_*: ops that the Edge TPU does not take. host_ns_per_stage: host work per inference and stage that no other stage's
    host work overlaps.
    """

    name: str
    macs_per_s: int
    dense_bytes_per_s: int
    elementwise_bytes_per_s: int
    invoke_ns: int
    op_ns: int
    stream_bytes_per_s: int
    stream_setup_ns: int
    load_bytes_per_s: int
    input_bytes_per_s: int
    output_bytes_per_s: int
    large_transfer_bytes: int
    large_ns_per_mib: int
    capacity_bytes: int
    scratch_free_bytes: int
    scratch_permille: int
    cpu_macs_per_s: int
    cpu_bytes_per_s: int
    cpu_op_ns: int
    host_ns_per_stage: int

    @property
    def constants(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}


def preset_names() -> tuple[str, ...]:
    """The names that `load_hardware` knows without a file."""
    folder = resources.files(__package__).joinpath("presets")
    return tuple(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")))


def load_hardware(source: str | Path) -> Hardware:
    """A preset by its name, or a hardware file by its path. Raises HardwareError where it is neither."""
    if str(source) in preset_names():
        text = resources.files(__package__).joinpath("presets", f"{source}.json").read_text(encoding="utf-8")
        return _parse(text, f"preset {source}")
    path = Path(source)
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(preset_names())
        raise HardwareError(
            "no such preset, nor a readable file", str(source), f"use one of: {known}, or a file"
        ) from error


def _parse(text: str, where: str) -> Hardware:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise HardwareError(f"not JSON ({error})", where, "give a hardware file that balancer wrote") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise HardwareError(f"not a hardware file (no format '{FORMAT}')", where, "give a hardware file")
    if document.get("version") != VERSION:
        raise HardwareError(f"version {document.get('version')!r} is unknown", where, "update balancer")
    given = document.get("constants")
    values: dict[str, Any] = {}
    for field in fields(Hardware):
        if field.name == "name":
            continue
        entry = given.get(field.name) if isinstance(given, dict) else None
        value = entry.get("value") if isinstance(entry, dict) else None
        smallest = 1 if field.name.endswith("_per_s") else 0
        largest = _LARGEST_RATE if field.name in ("input_bytes_per_s", "output_bytes_per_s") else _LARGEST
        if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
            raise HardwareError(
                f"constant '{field.name}' is not an integer from {smallest} to {largest}",
                where,
                "correct it in the file",
            )
        values[field.name] = value
    return Hardware(name=str(document.get("name", "")) or Path(where).stem, **values)
