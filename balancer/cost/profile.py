"""Costs of ops that replace the predicted ones. They come from a profile file, or from a compiler's reports and measurements.

`balancer profile MODEL -o FILE` writes the file, and a user may edit it. It lists each op with its parameter bytes on the
chip, its predicted ns and, if known, its measured ns, which takes precedence. Multiply-accumulates are listed, too, but not
read again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balancer.cost.capacity import MILLION, UNBOUNDED
from balancer.documents import Refusal, read_json
from balancer.errors import ProfileError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balancer.cost.hardware import Hardware
    from balancer.graph import Graph

FORMAT, VERSION = "balancer-profile", 1
_REMEDY = "write it anew with `balancer profile`"


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
    the given ones. learnt_from: the further sources that these costs were learnt from.
    """

    label: str
    ops: Mapping[int, OpCosts]
    capacity_scale_per_million: int = MILLION
    capacity_offset_bytes: int = 0
    capacity_max_bytes: int = UNBOUNDED
    constants: Mapping[str, int] = field(default_factory=dict)
    learnt_from: tuple[str, ...] = ()

    def hardware(self, given: Hardware) -> Hardware:
        """The given hardware with the constants of this profile in place of its own."""
        return given.changed(self.constants)

    def taught_by(self, source: str) -> Profile:
        """The same profile, with this source among those that it was learnt from."""
        return self if source in self.learnt_from else replace(self, learnt_from=(*self.learnt_from, source))


def load_profile(path: str | Path, graph: Graph, sha256: str) -> Profile:
    """The profile in a file, for this graph of a model with this hash.

    Raises ProfileError where the file cannot be read, is of another model, or has other ops than it.
    """
    where = str(path)
    document = read_json(path, Refusal(ProfileError, _REMEDY))
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ProfileError(f"not a profile (no format '{FORMAT}')", where, _REMEDY)
    if document.get("version") != VERSION:
        raise ProfileError(f"version {document.get('version')!r} is unknown", where, "update balancer")
    model = document.get("model")
    if not isinstance(model, dict) or model.get("sha256") != sha256:
        raise ProfileError("was written for another model (the hash differs)", where, _REMEDY)
    ops = document.get("ops")
    if not isinstance(ops, list):
        raise ProfileError("has no list of ops", where, _REMEDY)
    found = dict(_entry(entry, graph, where) for entry in ops)
    missing = [op for op in graph.ops if op.index not in found]
    if missing:
        raise ProfileError(f"op {missing[0].index} {missing[0].type} is missing", where, _REMEDY)
    if len(found) < len(ops):
        raise ProfileError("an op is listed twice", where, _REMEDY)
    return Profile(Path(path).name, found)


def _entry(entry: Any, graph: Graph, where: str) -> tuple[int, OpCosts]:
    index = entry.get("index") if isinstance(entry, dict) else None
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(graph.ops):
        raise ProfileError(f"op {index!r} is not in the model", where, _REMEDY)
    if entry.get("type") != graph.ops[index].type:
        raise ProfileError(f"op {index} is {graph.ops[index].type}, not {entry.get('type')}", where, _REMEDY)
    numbers = {key: entry.get(key) for key in ("parameter_bytes", "predicted_ns", "measured_ns")}
    for key, value in numbers.items():
        whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 10**12
        if not whole and not (value is None and key == "measured_ns"):
            raise ProfileError(f"op {index}: {key} is {value!r}, not a whole number", where, "correct it in the file")
    measured = numbers["measured_ns"]
    return index, OpCosts(measured if measured is not None else numbers["predicted_ns"], numbers["parameter_bytes"])
