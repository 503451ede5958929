"""Lower bounds on the time of a pipeline's stages, and of those before and after a cut, however they are cut further.

They need the structure of the cost (see `structure`). All stages before a down-set I together take at least

    the time of I's ops  +  the sending of each tensor that I hands on  +  one start for each stage
    + the cheapest spilling of those parameters of I that exceed the capacity of that many stages.

Likewise for the stages after I. The spilling is a fractional knapsack: whole parameters are relaxed to parts of them,
so that the cheapest bytes spill first. Stages that take t_i on r_i devices have a period of at least sum t_i / sum r_i,
the mediant of their t_i / r_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from balancer.solve.costed_segments import WorkWindow
from balancer.solve.kinds_bound import mixed_bound_ns
from balancer.solve.priced_bounds import KindTerms, priced_cuts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.ground.arrays import BoolArray, IntArray
    from balancer.ground.downsets import DownSets
    from balancer.solve.priced_bounds import PricedCuts, Prices
    from balancer.solve.problem import Kind, Problem
    from balancer.solve.sizes import Counts
    from balancer.solve.structure import Structure, Transfer

# Sums and quotients of a few hundred float64 err by far less: bounds are weakened by this share to stay bounds.
_ROUNDING = 1e-9
_SPILL_ROUNDING = 1e-12  # of one interpolation


@dataclass(frozen=True, slots=True, kw_only=True)
class CutBounds:
    """Lower bounds for one kind of device, with an entry for each down-set; all are int64.

    work_ns: the time of the set's ops alone. inside_ns, outside_ns: the time of the ops in the set, and of all others,
    with the transfers that no further cut can avoid. kept_bytes: parameters in the set that ask for memory on chip.
    streaming: how many ops in the set stream parameters by nature. The last entry is that of all ops.
    """

    structure: Structure
    work_ns: IntArray
    inside_ns: IntArray
    outside_ns: IntArray
    kept_bytes: IntArray
    streaming: IntArray

    def prefix_ns(self, stages: int) -> IntArray:
        """For each down-set, the least ns that its ops take together in this number of stages."""
        return self.inside_ns + self._overhead_ns(self.kept_bytes, self.streaming, stages)

    def suffix_ns(self, stages: int) -> IntArray:
        """For each down-set, the least ns that all ops outside it take together in this number of stages."""
        kept_bytes, streaming = self.kept_bytes[-1] - self.kept_bytes, self.streaming[-1] - self.streaming
        return self.outside_ns + self._overhead_ns(kept_bytes, streaming, stages)

    def _overhead_ns(self, kept_bytes: IntArray, streaming: IntArray, stages: int) -> IntArray:
        return stages * self.structure.stage_ns + spilled_ns(self.structure, kept_bytes, streaming, stages)


def cut_bounds(structure: Structure, sets: DownSets) -> CutBounds:
    """The bounds of all these down-sets, of which the last holds all ops."""
    op_ns = [ns or 0 for ns in structure.op_ns]
    sizes = [0] * len(op_ns)
    for kept in structure.kept:
        sizes[kept.op] = kept.size_bytes
    # An op that cannot run on this kind counts as 0: still a lower bound, and no pipeline has it here.
    work_ns = sets.total(op_ns)
    inside_ns, outside_ns = work_ns.copy(), sum(op_ns) - work_ns
    for transfer in structure.transfers:
        before_ns, after_ns = _transfer_ns(transfer, sets)
        inside_ns += before_ns
        outside_ns += after_ns
    return CutBounds(
        structure=structure,
        work_ns=work_ns,
        inside_ns=inside_ns,
        outside_ns=outside_ns,
        kept_bytes=sets.total(sizes),
        streaming=sets.total([int(i in structure.streaming) for i in range(len(sizes))]),
    )


def _transfer_ns(transfer: Transfer, sets: DownSets) -> tuple[IntArray, IntArray]:
    """For each down-set the ns that a tensor adds to the stages before it and after it, at least.

    A tensor is only certain to cross a boundary where that is the cut itself, or the edge of the whole model: other
    cuts may leave its producer and its readers in one stage.
    """
    readers = sum(1 << r for r in transfer.readers)
    unread = ~sets.holds_all(readers)
    if transfer.producer is None:
        return sets.holds_any(readers) * transfer.receive_ns, unread * transfer.receive_ns
    made = sets.holds_any(1 << transfer.producer)
    crosses = made & unread
    if transfer.leaves:
        return made * transfer.send_ns, crosses * transfer.receive_ns + ~made * transfer.send_ns
    return crosses * transfer.send_ns, crosses * transfer.receive_ns


def spilled_ns(
    structure: Structure, kept_bytes: IntArray, streaming: IntArray | BoolArray, stages: int | IntArray
) -> IntArray:
    """For each entry, a lower bound in ns on what spilling costs.

    kept_bytes: of parameters that share the capacity of the stages. streaming: how many ops stream by nature, or whether any
    does.
    """
    excess = kept_bytes - stages * structure.capacity_bytes
    # The cheapest spills, by bytes: a convex piecewise linear function, which is the fractional knapsack's optimum.
    ns = np.floor(np.interp(excess, *structure.cheapest_spills) * (1 - _SPILL_ROUNDING)).astype(np.int64)
    spilled: IntArray = ns + ((excess > 0) | (streaming > 0)) * structure.spill_start_ns
    return spilled


def pipeline_bound_ns(problem: Problem, stages: int, devices: int, most_replicas: int) -> int:
    """ns per inference: a lower bound for all pipelines with these numbers of stages and devices.

    At best the devices share the work evenly. The op that takes longest alone stands in one stage, which has at most
    most_replicas devices, and leaves one for each other stage. The host works on every stage of every inference.
    """
    if len(problem.devices) > 1:
        host = min(problem.host_ns.get(kind, 0) for kind, _ in problem.devices) * stages
        return max(1, host, mixed_bound_ns(problem, stages, devices, most_replicas))
    return one_kind_bound_ns(problem, problem.devices[0][0], stages, devices, most_replicas)


def one_kind_bound_ns(problem: Problem, kind: Kind, stages: int, devices: int, most_replicas: int) -> int:
    """The same for pipelines on devices of one kind."""
    host = problem.host_ns.get(kind, 0) * stages
    # Every other stage needs a device, so the slowest one has at most this number.
    replicas = min(most_replicas, devices - stages + 1)
    structure = problem.structures.get(kind)
    if structure is None:
        return max(1, host, max(-(-problem.lower(1 << i, kind) // replicas) for i in range(problem.n_ops)))
    largest = max(structure.alone_ns)
    return max(1, host, -(-least_total_ns(structure, stages) // devices), -(-largest // replicas))


def least_total_ns(structure: Structure, stages: int) -> int:
    """ns: a lower bound for the sum of the times of all stages of a pipeline, by their number.

    It counts the ops, the model's inputs and outputs, the start of each stage, and the cheapest spilling.
    """
    kept_bytes = sum(kept.size_bytes for kept in structure.kept)
    outside = sum(t.receive_ns for t in structure.transfers if t.producer is None and t.readers)
    leaving = sum(t.send_ns for t in structure.transfers if t.producer is not None and t.leaves)
    spilled = int(spilled_ns(structure, np.array(kept_bytes), np.array(len(structure.streaming)), stages))
    return stages * structure.stage_ns + sum(ns or 0 for ns in structure.op_ns) + outside + leaving + spilled


@dataclass(frozen=True, slots=True)
class CutReachability:
    """Which cuts a number of devices can get to, and get on from, without a stage that takes longer than a period.

    bounds: for each kind of device; empty where the structure of some kind's cost is not known: nothing is ruled out then.
    priced: where there are several kinds.
    """

    n_cuts: int
    bounds: tuple[CutBounds, ...]
    priced: PricedCuts | None = None

    def window(self, longest_ns: int | None) -> list[WorkWindow] | None:
        """For each kind a window that rules out segments which take longer than longest_ns; None where nothing can."""
        if not self.bounds or longest_ns is None:
            return None
        return [WorkWindow(bounds.work_ns, longest_ns * (1 + _ROUNDING)) for bounds in self.bounds]

    def prefix_fits(self, devices: Counts, period_ns: float, most_stages: int) -> BoolArray:
        """For each cut, whether this number of devices of each kind may be enough for the ops before it."""
        if not self.bounds:
            return np.ones(self.n_cuts, bool)
        own = _only_kind(devices)
        if own is None:
            return self._priced_cuts.before_fits(devices, period_ns)
        return self._fits(self.bounds[own].prefix_ns, devices[own], period_ns, most_stages)

    def suffix_fits(self, devices: Counts, period_ns: float, most_stages: int) -> BoolArray:
        """For each cut, whether this number of devices of each kind may be enough for the ops after it."""
        if not self.bounds:
            return np.ones(self.n_cuts, bool)
        own = _only_kind(devices)
        if own is None:
            return self._priced_cuts.after_fits(devices, period_ns)
        return self._fits(self.bounds[own].suffix_ns, devices[own], period_ns, most_stages)

    @property
    def _priced_cuts(self) -> PricedCuts:
        if self.priced is None:
            raise ValueError("devices of several kinds need bounds at prices")
        return self.priced

    def _fits(self, least_ns: Callable[[int], IntArray], devices: int, period_ns: float, most_stages: int) -> BoolArray:
        """On devices of one kind. least_ns: of the ops in question, by stages."""
        fits = np.zeros(self.n_cuts, bool)
        # Each device works for one period. More stages spill less and start more often: any number of them may fit.
        for stages in range(1, min(devices, most_stages) + 1):
            fits |= least_ns(stages) <= period_ns * devices
        return fits


def _only_kind(devices: Counts) -> int | None:
    """The kind of the devices, where they are all of one."""
    own = [k for k, count in enumerate(devices) if count]
    return own[0] if len(own) == 1 else None


def cut_reachability(
    structures: Sequence[Structure | None], sets: DownSets, prices: Sequence[Prices] = ()
) -> CutReachability:
    """structures: of each kind of device, None where it is not known. prices: for bounds on several kinds together."""
    known = tuple(structure for structure in structures if structure is not None)
    if not known or len(known) < len(structures):
        return CutReachability(len(sets), ())
    priced = priced_cuts(KindTerms(known), prices, sets) if len(known) > 1 else None
    return CutReachability(len(sets), tuple(cut_bounds(structure, sets) for structure in known), priced)
