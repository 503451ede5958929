"""`balancer profile`: what each op of a model is predicted to cost, in a file that can be edited and given back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from balancer.cost.profile import FORMAT, VERSION
from balancer.planning.setting import open_setting

if TYPE_CHECKING:
    from pathlib import Path

    from balancer.cost.hardware import Hardware
    from balancer.cost.segment import SegmentCosts


def profile_document(model: str | Path | bytes, *, hardware: str | Path | Hardware = "pcie") -> dict[str, Any]:
    """The profile's document: for each op its parameter bytes on the chip, multiply-accumulates and predicted ns.

    `measured_ns` is null, to be filled in; it then counts before `predicted_ns`. An op that the Edge TPU does not
    take has the ns of the CPU. Raises ModelError or HardwareError as `balance` does.
    """
    setting = open_setting(model, hardware)
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": {"name": setting.graph.name, "sha256": setting.model.sha256},
        "hardware": setting.hardware.name,
        "ops": [_entry(setting.costs, i) for i in range(len(setting.graph.ops))],
    }


def _entry(costs: SegmentCosts, i: int) -> dict[str, Any]:
    op = costs.graph.ops[i]
    return {
        "index": i,
        "type": op.type,
        "parameter_bytes": costs.layout[i].cached,
        "macs": op.macs,
        "predicted_ns": costs.cpu[i] if costs.unmapped >> i & 1 else costs.compute[i],
        "measured_ns": None,
    }
