"""Costs of segments in which only some constants count: what a segment takes of a link that several devices share, or of the
host's cores.

The formulas are those of the cost of a segment, exact and for many segments at once. Constants that do not count are 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.cost.segment import SegmentCosts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balancer.cost.profile import OpCosts, Profile

_CROSSING = (
    "stream_ns_per_mib", "instruction_ns_per_mib", "input_ns_per_mib", "output_ns_per_mib",
)  # fmt: skip
_ON_CPU = ("cpu_ns_per_gmac", "cpu_ns_per_mib", "cpu_op_ns")


def bus_costs(costs: SegmentCosts) -> SegmentCosts:
    """Costs whose stage time is how long a segment keeps the bus busy that all devices of its kind share.

    All bytes that cross the link for one inference take `bus_ns_per_mib`: streamed parameters, instructions, boundary tensors
    both ways, scratch both ways.
    """
    rate = costs.hardware.link.bus_ns_per_mib
    profile = costs.profile and _with_ops(costs.profile, {i: _untimed(c) for i, c in costs.profile.ops.items()})
    return _counting(costs, dict.fromkeys(_CROSSING, rate), profile)


def core_costs(costs: SegmentCosts) -> SegmentCosts:
    """Costs whose stage time is how long ops of a segment on an Edge TPU compute on a core of the host, because the chip does
    not take them.
    """
    known = costs.profile.ops if costs.profile else {}
    ops = {i: _untimed(c) if costs.mapped >> i & 1 else c for i, c in known.items()}
    constants = costs.hardware.constants
    return _counting(
        costs, {name: constants[name] for name in _ON_CPU}, costs.profile and _with_ops(costs.profile, ops)
    )


def _counting(costs: SegmentCosts, counted: Mapping[str, int], profile: Profile | None) -> SegmentCosts:
    """The costs with these times, and none else. A constant whose name has the unit ns is a time."""
    times = {name: 0 for name in costs.hardware.constants if "ns" in name.split("_")}
    return SegmentCosts(costs.graph, costs.hardware.changed(times | dict(counted)), profile)


def _with_ops(profile: Profile, ops: Mapping[int, OpCosts]) -> Profile:
    """The profile with these costs of ops, and without constants: the hardware has them already."""
    return replace(profile, ops=ops, constants={})


def _untimed(known: OpCosts) -> OpCosts:
    return replace(known, ns=None)
