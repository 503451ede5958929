"""The terms that make up a segment's cost, for solvers that need more than its sum: CP-SAT, and lower bounds.

    time of a segment = stage_ns
                      + op_ns of each of its ops
                      + receive_ns of each tensor that is made elsewhere and read inside
                      + send_ns of each tensor made inside that leaves, or is read outside
                      + spill_ns of each of its ops whose parameters spill
                      + spill_start_ns if any op spills, or any is in `streaming`

Which parameters stay on the device is decided in the order of `kept`: the parameters of an op stay if they fit beside
those that stay already; else they spill, and later ops may take the remaining capacity. A segment whose `op_bytes` sum
to more than limit_bytes may not stand.

Ops that the device cannot run hand what follows them to the host (`Handoff`). Then usual_ns and handed_ns say what an op
takes in either case, and op_ns is the smaller of the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balancer.ground.opsets import OpSet


@dataclass(frozen=True, slots=True)
class Transfer:
    """A tensor that costs time where it crosses a boundary.

    producer: the op that makes it; None where it is an input of the whole. readers: ops, ascending. leaves: whether it
    is also an output of the whole; then it is sent wherever it is made. receive_ns, send_ns: once for each stage that
    does it. size_bytes: as it crosses a boundary.
    """

    producer: int | None
    readers: tuple[int, ...]
    leaves: bool
    receive_ns: int
    send_ns: int
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """Parameters of one op that may stay on the device.

    size_bytes: of capacity that they take. spill_ns: per inference, where they do not stay.
    """

    op: int
    size_bytes: int
    spill_ns: int


@dataclass(frozen=True, slots=True)
class Handoff:
    """An op that hands what follows it to the host: in a segment that holds it and any op of `after`, all its followers in
    that segment run there. after: some of its ancestors. followers: some of its descendants.
    """

    op: int
    after: OpSet
    followers: OpSet


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The terms of the formula above, for one kind of device.

    op_ns: for each op; None where the kind cannot run it.
    kept: in order of priority.
    capacity_bytes: for kept parameters.
    streaming: ops that always send parameters. Their op_ns includes the time of that.
    op_bytes, limit_bytes: memory that each op takes, and that a segment may take; None for no limit.
    handoffs: the ops that hand others to the host. usual_ns, handed_ns: for each op, where it is not handed over and where
    it is; all three are empty where no op is. usually_streaming: ops that always send parameters where they are not handed
    over. host_only: ops that may only stand where they are handed over; their op_ns is their handed_ns.
    apart: pairs of an op and some of its ancestors that may not share a segment with it.
    relaxed: False where `exact` is the formula, and no op outside `kept` and `streaming` adds streamed bytes (see
    `block_folding`). True where the formula is only a lower bound: `exact` is never below its time for the cheapest
    choice of parameters that fit capacity_bytes, in any order.
    """

    stage_ns: int
    op_ns: tuple[int | None, ...]
    transfers: tuple[Transfer, ...] = ()
    kept: tuple[Kept, ...] = ()
    capacity_bytes: int = 0
    spill_start_ns: int = 0
    streaming: tuple[int, ...] = ()
    op_bytes: tuple[int, ...] = ()
    limit_bytes: int | None = None
    handoffs: tuple[Handoff, ...] = ()
    usual_ns: tuple[int, ...] = ()
    handed_ns: tuple[int, ...] = ()
    usually_streaming: tuple[int, ...] = ()
    host_only: tuple[int, ...] = ()
    apart: tuple[tuple[int, OpSet], ...] = ()
    relaxed: bool = False

    @cached_property
    def alone_ns(self) -> tuple[int, ...]:
        """For each op a lower bound, in ns, on every segment that holds it.

        It counts the op itself, inputs of the whole that it reads, and outputs of the whole that it makes.
        """
        streaming = set(self.streaming)
        least = [self.stage_ns + (ns or 0) + self.spill_start_ns * (i in streaming) for i, ns in enumerate(self.op_ns)]
        for t in self.transfers:
            if t.producer is None:
                for reader in t.readers:
                    least[reader] += t.receive_ns
            elif t.leaves:
                least[t.producer] += t.send_ns
        return tuple(least)

    @cached_property
    def cheapest_spills(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The cheapest way to spill, as two running sums: bytes spilled, and ns that this costs.

        Entry k is after the first k of `kept` in ascending order of ns per byte. Between entries the relaxation that
        spills parts of parameters is linear (the greedy solution of a fractional knapsack).
        """
        cheapest = sorted((k for k in self.kept if k.size_bytes), key=lambda k: k.spill_ns / k.size_bytes)
        sizes = accumulate((k.size_bytes for k in cheapest), initial=0)
        return tuple(sizes), tuple(accumulate((k.spill_ns for k in cheapest), initial=0))
