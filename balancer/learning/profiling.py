"""`balancer profile`: the predicted cost of each op, in a file that a user can edit and give back to `balancer solve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from balancer.cost.profile import FORMAT, VERSION
from balancer.planning.costed_model import open_costed_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from balancer.cost.hardware import AnyHardware
    from balancer.cost.segment import SegmentCosts
    from balancer.planning.costed_model import CostedModel


def profile_document(model: str | Path | bytes, *, hardware: str | Path | AnyHardware = "pcie") -> dict[str, Any]:
    """The JSON document of a profile file: for each op its parameter bytes on the chip, multiply-accumulates, and
    predicted ns.

    `measured_ns` is null; a user may fill it in, and it then counts instead of `predicted_ns`. For an op that the Edge
    TPU does not support, `predicted_ns` is its time on the CPU. `device` says on which devices the times hold.

    model, hardware: as for `balance`. Raises ModelError or HardwareError if one of them cannot be used.
    """
    return document_of(open_costed_model(model, hardware))


def document_of(costed: CostedModel, measured_ns: Sequence[int] | None = None) -> dict[str, Any]:
    """The document for a costed model. measured_ns: of each op on its hardware; None: not measured."""
    times: Sequence[int | None] = measured_ns or [None] * len(costed.graph.ops)
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": {"name": costed.graph.name, "sha256": costed.model.sha256},
        "device": costed.hardware.DEVICE,
        "hardware": costed.hardware.name,
        "ops": [_entry(costed.costs, i, ns) for i, ns in enumerate(times)],
    }


def _entry(costs: SegmentCosts, i: int, measured_ns: int | None) -> dict[str, Any]:
    op = costs.graph.ops[i]
    return {
        "index": i,
        "type": op.type,
        "parameter_bytes": costs.op_terms[i].layout.cached,
        "macs": op.macs,
        "predicted_ns": costs.op_terms[i].cpu_ns if costs.unmapped >> i & 1 else costs.op_terms[i].compute_ns,
        "measured_ns": measured_ns,
    }
