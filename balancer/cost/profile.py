"""Per-op costs that replace the predicted ones: from a profile file that a user edited, or from what was seen of a
compiler or a device.

The file (`balancer profile MODEL -o FILE`) lists each op with its parameter bytes on the chip, multiply-accumulates
(for the reader alone), predicted and measured ns. A measured value counts before a predicted one; both may be edited.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cost.capacity import MILLION, UNBOUNDED
from balancer.documents import DocumentKind, Refusal, read_document
from balancer.errors import ProfileError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balancer.cost.hardware import Hardware
    from balancer.documents import JsonObject, JsonValue
    from balancer.graph import Graph

FORMAT, VERSION = "balancer-profile", 1
_REMEDY = "write it anew with `balancer profile`"
_LARGEST = 10**12  # ns or bytes: sums over thousands of ops still fit 64 bits
_KIND = DocumentKind(FORMAT, (VERSION,), "profile", Refusal(ProfileError, _REMEDY), format_remedy=_REMEDY)


@dataclass(frozen=True, slots=True)
class OpCosts:
    """What is known better of one op. None: as predicted.

    ns: on the chip, or on the CPU where it stays there. parameter_bytes: on the chip. scratch_bytes: that it needs
    beside parameters, of each tile. mapped: whether the compiler takes it.
    """

    ns: int | None = None
    parameter_bytes: int | None = None
    scratch_bytes: int | None = None
    mapped: bool | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """ops: by index. label: the file that the costs come from, empty for none. room_*: see `capacity.Room`. constants:
    of the hardware, by name, those that were found to be others. learnt_from: what else has taught them.
    """

    label: str
    ops: Mapping[int, OpCosts]
    room_per_million: int = MILLION
    room_more_bytes: int = 0
    room_most_bytes: int = UNBOUNDED
    constants: Mapping[str, int] = field(default_factory=dict)
    learnt_from: tuple[str, ...] = ()

    def hardware(self, given: Hardware) -> Hardware:
        """The hardware with the constants that were found to be others."""
        return given.changed(self.constants)

    def taught_by(self, source: str) -> Profile:
        """The same, that says that it has learnt from this source, too."""
        return self if source in self.learnt_from else replace(self, learnt_from=(*self.learnt_from, source))


def load_profile(path: str | Path, graph: Graph, sha256: str) -> Profile:
    """The profile in a file, for this graph of the model with this hash.

    Raises ProfileError if the file cannot be read, was written for another model, or lists other ops than the graph.
    """
    where = str(path)
    document = read_document(path, _KIND)
    model = document.get("model")
    if not isinstance(model, dict) or model.get("sha256") != sha256:
        raise ProfileError("was written for another model (the hash differs)", where, _REMEDY)
    entries = document.get("ops")
    if not isinstance(entries, list):
        raise ProfileError("has no list of ops", where, _REMEDY)
    costs = dict(_entry(entry, graph, where) for entry in entries)
    missing = [op for op in graph.ops if op.index not in costs]
    if missing:
        raise ProfileError(f"op {missing[0].index} {missing[0].type} is missing", where, _REMEDY)
    if len(costs) < len(entries):
        raise ProfileError("an op is listed twice", where, _REMEDY)
    return Profile(Path(path).name, costs)


def _entry(entry: JsonValue, graph: Graph, where: str) -> tuple[int, OpCosts]:
    """Index and costs of one op. A measured time replaces the predicted one."""
    fields = entry if isinstance(entry, dict) else {}
    index = fields.get("index")
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(graph.ops):
        raise ProfileError(f"op {index!r} is not in the model", where, _REMEDY)
    if fields.get("type") != graph.ops[index].type:
        raise ProfileError(f"op {index} is {graph.ops[index].type}, not {fields.get('type')}", where, _REMEDY)
    parameter_bytes, predicted_ns = (_number(fields, key, where) for key in ("parameter_bytes", "predicted_ns"))
    measured_ns = None if fields.get("measured_ns") is None else _number(fields, "measured_ns", where)
    return index, OpCosts(predicted_ns if measured_ns is None else measured_ns, parameter_bytes)


def _number(fields: JsonObject, key: str, where: str) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
        what = f"op {fields['index']}: {key} is {value!r}, not a whole number"
        raise ProfileError(what, where, "correct it in the file")
    return value
