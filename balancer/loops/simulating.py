"""Simulated hardware that differs from the cost model, for trying out and testing what learns from measurements.

The planner cannot see the differences; it only sees the times that are measured and the memory that is reported.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from balancer.cost.devices import Devices
from balancer.cost.hardware import Hardware
from balancer.cost.profile import OpCosts, Profile
from balancer.plan import SegmentReport
from balancer.planning.costed_model import CostedModel

if TYPE_CHECKING:
    from balancer.ground.terms import SegmentTerms

_STREAMING = ("stream_ns_per_mib", "stream_start_ns", "instruction_ns_per_mib", "load_ns_per_mib")
_TRANSFERS = (
    "input_ns_per_mib", "output_ns_per_mib", "large_input_ns_per_mib", "large_output_ns_per_mib",
)  # fmt: skip
_CAPACITY_SHARE = 0.85


def perturbed(costed: CostedModel, seed: int) -> CostedModel:
    """The same model on hardware that differs from the costed model's, as a seed decides.

    Each op type takes 0.5 to 2 times as long. On-chip memory for parameters is 15 % smaller. Streaming and transfers each
    take up to 30 % more or less time. The same seed and the same bytes of a model always give the same hardware.
    """
    draw = random.Random(f"{costed.model.sha256} {seed}")
    factors = {kind: 2 ** draw.uniform(-1, 1) for kind in sorted({op.type for op in costed.graph.ops})}
    costs, ns = costed.costs, {}
    for op in costed.graph.ops:
        base = (
            costs.op_terms[op.index].cpu_ns if costs.unmapped >> op.index & 1 else costs.op_terms[op.index].compute_ns
        )
        ns[op.index] = OpCosts(ns=round(base * factors[op.type]))
    stream, transfer = draw.uniform(0.7, 1.3), draw.uniform(0.7, 1.3)
    kinds = [(costed.costs_by_kind[kind.name].hardware, count) for kind, count in costed.devices.kinds]
    changed = [(_changed(kind, stream, transfer) if isinstance(kind, Hardware) else kind, n) for kind, n in kinds]
    return CostedModel(costed.model, Devices(tuple(changed)), Profile(label=f"seed {seed}", ops=ns))


def _changed(hardware: Hardware, stream: float, transfer: float) -> Hardware:
    """The hardware with its rates of streaming and of transfers multiplied by these factors, and less memory."""
    constants = hardware.constants
    changes = {name: constants[name] * stream for name in _STREAMING}
    changes |= {name: constants[name] * transfer for name in _TRANSFERS}
    wide_bytes = hardware.chip.wide_bytes_per_tile * _CAPACITY_SHARE
    dense_bytes = min(wide_bytes, hardware.chip.dense_tile_bytes)  # a dense op must fit into what a tile has
    return hardware.changed(changes | {"wide_bytes_per_tile": wide_bytes, "dense_tile_bytes": dense_bytes})


def report_of(terms: SegmentTerms) -> SegmentReport:
    """What a compiler would report of a segment with these costs."""
    return SegmentReport(
        cached_bytes=terms.cached_bytes, streamed_bytes=terms.streamed_bytes, capacity_bytes=terms.capacity_bytes,
        cpu_ops=0, subgraphs=1, compiler_version="simulated", file=None, sha256="", log=None, simulated=True,
    )  # fmt: skip
