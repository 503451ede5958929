"""The terms that make up a segment's cost, for solvers that need more than its sum: CP-SAT, and lower bounds.

    time of a segment = stage_ns
                      + op_ns of each of its ops
                      + receive_ns of each tensor that is made elsewhere and read inside
                      + send_ns of each tensor made inside that leaves, or is read outside
                      + with_ns or without_ns of each of its ops that is in `varying`
                      + spill_ns of each of its ops whose parameters spill
                      + spill_start_ns if any op spills, or any sends parameters in any case

Which parameters stay on the device is decided in the order of `kept`: the parameters of an op stay if they fit beside
those that stay already; else they spill, and later ops may take the remaining capacity. A segment whose `op_bytes` sum
to more than limit_bytes may not stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate


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
class Varying:
    """An op whose time depends on whether any of some ops, on which it depends, stand in the same segment.

    with_ns: what it takes longer than its `op_ns` where one of `others` does; without_ns: where none does. streaming: whether
    it sends parameters where none does, as those ops do everywhere that are in `Structure.streaming`.
    """

    op: int
    others: tuple[int, ...]
    with_ns: int
    without_ns: int
    streaming: bool


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The terms of the formula above, for one kind of device.

    op_ns: for each op; None where the kind cannot run it.
    varying: ops whose time depends on what else is in the segment. Only with `relaxed`.
    kept: in order of priority.
    capacity_bytes: for kept parameters.
    streaming: ops that always send parameters. Their op_ns includes the time of that.
    op_bytes, limit_bytes: memory that each op takes, and that a segment may take; None for no limit.
    relaxed: False where `exact` is the formula, and no op outside `kept` and `streaming` adds streamed bytes (see
    `block_folding`). True where the formula is only a lower bound: `exact` is never below its time for the cheapest
    choice of parameters that fit capacity_bytes, in any order.
    """

    stage_ns: int
    op_ns: tuple[int | None, ...]
    transfers: tuple[Transfer, ...] = ()
    varying: tuple[Varying, ...] = ()
    kept: tuple[Kept, ...] = ()
    capacity_bytes: int = 0
    spill_start_ns: int = 0
    streaming: tuple[int, ...] = ()
    op_bytes: tuple[int, ...] = ()
    limit_bytes: int | None = None
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
