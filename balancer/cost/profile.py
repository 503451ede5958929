"""Costs of ops that replace the predicted ones. They come from a profile file, or from a compiler's reports and measurements.

`balancer profile MODEL -o FILE` writes the file, and a user may edit it. It lists each op with its parameter bytes on the
chip, its predicted ns and, if known, its measured ns, which takes precedence. Multiply-accumulates are listed, too, but not
read again.
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

    from balancer.cost.hardware import AnyHardware
    from balancer.documents import JsonObject, JsonValue
    from balancer.graph import Graph

FORMAT, VERSION = "balancer-profile", 1
EDGE_TPU = "edgetpu"
_DEVICES = (EDGE_TPU, "cpu")
_REMEDY = "write it anew with `balancer profile`"
_LARGEST = 10**12  # ns or bytes: sums over thousands of ops still fit 64 bits
_KIND = DocumentKind(FORMAT, (VERSION,), Refusal(ProfileError, _REMEDY, "a profile"))


@dataclass(frozen=True, slots=True)
class OpCosts:
    """What replaces the predictions for one op. None: the prediction holds.

    ns: to compute on the chip, or on the CPU for an op that is not mapped. parameter_bytes: on the chip, cached or
    streamed. scratch_bytes: of wide memory, in each tile. mapped: whether the Edge TPU takes the op.
    """

    ns: int | None = None
    parameter_bytes: int | None = None
    scratch_bytes: int | None = None
    mapped: bool | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """What replaces predictions for one model.

    label: the name of the file that the costs come from, empty for none. ops: by index. capacity_*: corrections of the
    capacity, see `capacity.CapacityRule`; by default they change nothing. constants: of the hardware, by name; they replace
    the given ones. learnt_from: the further sources that these costs were learnt from. device: of which kinds they replace
    the costs, "edgetpu" or "cpu".
    """

    label: str
    ops: Mapping[int, OpCosts]
    capacity_scale_per_million: int = MILLION
    capacity_offset_bytes: int = 0
    capacity_max_bytes: int = UNBOUNDED
    constants: Mapping[str, int] = field(default_factory=dict)
    learnt_from: tuple[str, ...] = ()
    device: str = EDGE_TPU

    def hardware(self, given: AnyHardware) -> AnyHardware:
        """The given kind with the constants of this profile in place of its own."""
        return given.changed(self.constants)

    def taught_by(self, source: str) -> Profile:
        """The same profile, with this source among those that it was learnt from."""
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
    device = document.get("device", EDGE_TPU)
    if device not in _DEVICES:
        raise ProfileError(f"is for {device!r}, which is no device", where, _REMEDY)
    return Profile(Path(path).name, costs, device=str(device))


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
