"""A truth that differs from the cost model, systematically and where the planner cannot see it: for trying and testing
what learns from measurements.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from balancer.cost.profile import OpCosts, Profile
from balancer.plan import SegmentReport
from balancer.planning.setting import Setting

if TYPE_CHECKING:
    from balancer.ground.terms import SegmentTerms

_STREAMING = ("stream_ns_per_mib", "stream_start_ns", "load_ns_per_mib")
_TRANSFERS = (
    "input_ns_per_mib", "output_ns_per_mib", "large_input_ns_per_mib", "large_output_ns_per_mib",
)  # fmt: skip
_LESS_ROOM = 0.85


def perturbed(setting: Setting, seed: int) -> Setting:
    """The same model on hardware with factors of 0.5 to 2 by op type, 15 % less room for parameters, and 30 % more or
    less for streaming and for transfers. The same seed gives the same hardware to the same bytes of a model, whatever its
    file is called.
    """
    draw = random.Random(f"{setting.model.sha256} {seed}")
    factors = {kind: 2 ** draw.uniform(-1, 1) for kind in sorted({op.type for op in setting.graph.ops})}
    costs, ns = setting.costs, {}
    for op in setting.graph.ops:
        base = (
            costs.op_terms[op.index].cpu_ns if costs.unmapped >> op.index & 1 else costs.op_terms[op.index].compute_ns
        )
        ns[op.index] = OpCosts(ns=round(base * factors[op.type]))
    stream, transfer = draw.uniform(0.7, 1.3), draw.uniform(0.7, 1.3)
    hardware = costs.hardware
    constants = hardware.constants
    changes = {name: constants[name] * stream for name in _STREAMING}
    changes |= {name: constants[name] * transfer for name in _TRANSFERS}
    room = hardware.chip.wide_bytes_per_tile * _LESS_ROOM
    changed = hardware.changed(
        changes | {"wide_bytes_per_tile": room, "dense_tile_bytes": min(room, hardware.chip.dense_tile_bytes)}
    )
    return Setting(setting.model, changed, Profile(label=f"seed {seed}", ops=ns))


def report_of(terms: SegmentTerms) -> SegmentReport:
    """What a compiler would report of a segment under these costs."""
    return SegmentReport(
        cached_bytes=terms.cached_bytes, streamed_bytes=terms.streamed_bytes, capacity_bytes=terms.capacity_bytes,
        cpu_ops=0, subgraphs=1, compiler_version="simulated", file=None, sha256="", log=None,
    )  # fmt: skip
