"""What every job here starts from: the model's bytes, its graph, and the costs of its segments on given hardware."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cost.hardware import Hardware, load_hardware
from balancer.cost.intervals import interval_table
from balancer.cost.profile import Profile, load_profile
from balancer.cost.segment import SegmentCosts
from balancer.solve import Cost, Intervals, Kind, Problem
from balancer.tflite.read import read_graph, read_model_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.graph import Graph, OpSet

OVERFLOW = ("stream", "error")
MOST_TPUS = 32


@dataclass(frozen=True)
class Setting:
    """A model on hardware. origin: where its bytes come from. profile: per-op costs that replace the predicted ones."""

    data: bytes
    origin: Path | bytes
    graph: Graph
    hardware: Hardware
    profile: Profile | None = None

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def costs(self) -> SegmentCosts:
        return SegmentCosts(self.graph, self.hardware, self.profile)

    @property
    def costs_label(self) -> str:
        """Where the costs come from, as plans name it."""
        return f"{self.hardware.name} + {self.profile.label}" if self.profile else self.hardware.name

    def problem(self, n_tpus: int, *, overflow: str = "stream") -> Problem:
        """The solver's view. overflow: "error" forbids segments that stream for want of room."""
        may_overflow = overflow == "stream"

        def exact(ops: OpSet, kind: Kind) -> Cost | None:
            if not self.costs.allowed(ops):
                return None
            terms = self.costs.terms(ops)
            return Cost(terms.stage_ns, terms.streamed_bytes) if may_overflow or not terms.overflow_bytes else None

        def intervals(order: Sequence[int], kind: Kind) -> Intervals:
            table = interval_table(self.costs, order)
            allowed = table.allowed if may_overflow else table.allowed & (table.overflow_bytes == 0)
            return Intervals(table.time_ns, table.streamed_bytes, allowed)

        return Problem(
            before=self.graph.before,
            devices=((self.hardware.name, n_tpus),),
            exact=exact,
            lower=lambda ops, kind: self.costs.lower(ops),
            intervals=intervals,
            host_ns=self.hardware.host_ns_per_stage,
            handover_ns=self.hardware.handover_ns,
        )


def open_setting(model: str | Path | bytes, hardware: str | Path | Hardware) -> Setting:
    """Raises ModelError or HardwareError where one of them cannot be read."""
    record = hardware if isinstance(hardware, Hardware) else load_hardware(hardware)
    if isinstance(model, bytes):
        return Setting(model, model, read_graph(model, name="model"), record)
    path = Path(model)
    data = read_model_bytes(path)
    return Setting(data, path, read_graph(data, name=path.stem, where=str(path)), record)


def with_profile(setting: Setting, path: str | Path) -> Setting:
    """The same with the costs of a profile file. Raises ProfileError where it does not fit the model."""
    return replace(setting, profile=load_profile(path, setting.graph, setting.sha256))


def check_tpus(n_tpus: int) -> None:
    """Raises ValueError where it is no number of TPUs."""
    check_count("n_tpus", n_tpus)
    if n_tpus > MOST_TPUS:
        raise ValueError(f"n_tpus must be at most {MOST_TPUS}, not {n_tpus}")


def check_count(name: str, number: int) -> None:
    """Raises ValueError where it is no whole number from 1."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name} must be a whole number from 1, not {number!r}")
