"""What segments take of the resources that devices share besides the host's own work: buses, and the host's cores.

bus      All devices of a kind with a `bus_ns_per_mib` hang on one bus. Each byte that crosses it keeps it busy.
cores    Stages on the CPU compute with their threads, ops that an Edge TPU does not take with one, and each stage has host
         work. All of them run on the cores of one machine.

A resource that cannot limit any plan on the devices is left out: a bus with one device whose own link is no faster, and more
cores than all devices can keep busy at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from balancer.cost.batch import SegmentBatch
from balancer.cost.counted import bus_costs, core_costs
from balancer.cost.cpu_hardware import CpuHardware
from balancer.solve import SharedResource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from balancer.cost.constant_groups import Link
    from balancer.cost.hardware import AnyHardware
    from balancer.cost.segment import SegmentCosts
    from balancer.ground.arrays import IndexArray, IntArray
    from balancer.ground.downsets import DownSets
    from balancer.ground.opsets import OpSet
    from balancer.solve import Kind

CORES = "the host's cores"
# For pairs of down-sets ns that a segment takes of each resource, one row each; None where nothing is shared.
TakenBetween: TypeAlias = "Callable[[IndexArray, IndexArray], IntArray | None]"


def bus_name(kind: Kind) -> str:
    """The name of the bus that all devices of a kind share."""
    return f"the bus of {kind}"


class _Share(NamedTuple):
    """What a segment on one kind takes of one resource: start_ns, and `times` its stage time under some costs."""

    costs: SegmentCosts | None = None
    times: int = 1
    start_ns: int = 0

    def of(self, time_of: Callable[[SegmentCosts], int]) -> int:
        return self.start_ns + (self.times * time_of(self.costs) if self.costs else 0)


class SharedWork:
    """What segments on the devices take of what these share. resources: in the order in which all methods give them."""

    def __init__(self, costs: Mapping[Kind, SegmentCosts], counts: tuple[tuple[Kind, int], ...]) -> None:
        """costs: of the graph's segments on each kind of devices. counts: how many devices of each kind."""
        kinds = {kind: (costs[kind], count) for kind, count in counts}
        shares: dict[SharedResource, dict[Kind, _Share]] = {
            SharedResource(bus_name(kind), 1): {kind: _Share(bus_costs(own))}
            for kind, (own, count) in kinds.items()
            if own.hardware.link.bus_ns_per_mib and (count > 1 or _outruns_bus(own.hardware.link))
        }
        cores = _least_cores([own.hardware for own, _ in kinds.values()])
        if cores is not None and sum(_most_busy_cores(own, count) for own, count in kinds.values()) >= cores:
            shares[SharedResource(CORES, cores)] = {kind: _on_cores(own) for kind, (own, _) in kinds.items()}
        self.resources = tuple(shares)
        self._shares = {kind: [own.get(kind, _Share(None)) for own in shares.values()] for kind in kinds}

    def of(self, kind: Kind, time_of: Callable[[SegmentCosts], int]) -> tuple[int, ...]:
        """ns that one input takes of each resource in one segment on a kind; empty where nothing is shared.

        time_of: the segment's stage time under given costs.
        """
        return tuple(share.of(time_of) for share in self._shares[kind])

    def exact(self, ops: OpSet, kind: Kind) -> tuple[int, ...]:
        """`of` the segment that holds these ops."""
        return self.of(kind, lambda costs: costs.terms(ops).stage_ns)

    def batch(self, sets: DownSets, kind: Kind) -> TakenBetween:
        """`exact` for the segments between pairs of down-sets."""
        shares = [(share, SegmentBatch(share.costs, sets) if share.costs else None) for share in self._shares[kind]]

        def between(inners: IndexArray, outers: IndexArray) -> IntArray | None:
            length = np.broadcast(inners, outers).size
            taken = np.zeros((len(shares), length), np.int64)
            for k, (share, segments) in enumerate(shares):
                taken[k] = share.start_ns
                if segments:
                    taken[k] += share.times * segments(inners, outers).time_ns
            return taken if shares else None

        return between


def _outruns_bus(link: Link) -> bool:
    """Whether one device alone sends or fetches anything faster than the bus carries it."""
    rates = (link.stream_ns_per_mib, link.instruction_ns_per_mib, link.input_ns_per_mib, link.output_ns_per_mib)
    return min(rates) < link.bus_ns_per_mib


def _least_cores(kinds: list[AnyHardware]) -> int | None:
    """The cores of the machine; None where no stage stands on its CPU."""
    return min((kind.running.cores for kind in kinds if isinstance(kind, CpuHardware)), default=None)


def _most_busy_cores(costs: SegmentCosts, count: int) -> int:
    """How many cores devices of a kind can keep busy at a time, besides the host work, which is never done on two."""
    hardware = costs.hardware
    if isinstance(hardware, CpuHardware):
        return count * hardware.running.threads
    return count if costs.unmapped else 0


def _on_cores(costs: SegmentCosts) -> _Share:
    hardware = costs.hardware
    start_ns = hardware.host.host_ns_per_stage
    if isinstance(hardware, CpuHardware):
        return _Share(costs, hardware.running.threads, start_ns)
    return _Share(core_costs(costs) if costs.unmapped else None, 1, start_ns)
