"""What a segment's cost is made of, for solvers that need to look inside: CP-SAT, and lower bounds on whole plans.

    time of a segment = stage_ns + the sum of its ops' op_ns
                      + receive_ns of each tensor that comes from outside and is read inside
                      + send_ns of each tensor made inside that leaves, or is read outside
                      + spill_ns of each of its ops whose parameters do not stay, once each
                      + spill_start_ns where there is any such op, or one of `streaming`

Parameters stay in the order of `kept`: an op's stay if they still find room beside those before it in the order; else
they spill, and later ones get the room. A segment whose `op_bytes` sum to more than limit_bytes may not stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Transfer:
    """A tensor. producer: the op that makes it, None where it comes from outside. readers: ops, ascending.

    leaves: whether it is also an output of the whole, so that it is sent wherever it is made. size_bytes: as it
    crosses a boundary.
    """

    producer: int | None
    readers: tuple[int, ...]
    leaves: bool
    receive_ns: int
    send_ns: int
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """Parameters of one op that may stay on the device: the room they take, and what it costs when they do not."""

    op: int
    size_bytes: int
    spill_ns: int


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The terms of the formula above, for one kind of device.

    op_ns: for each op, None where the kind cannot run it. kept: in order of priority. capacity_bytes: the room for
    kept parameters. streaming: ops that send parameters every time by nature, which is in their op_ns. op_bytes,
    limit_bytes: memory that a segment may not exceed; None for no limit. relaxed: without it, `exact` is the formula, and
    ops neither kept nor streaming add no streamed bytes (see `folding`). With it, `exact` follows the formula in part
    alone, but is never below its time for the cheapest choice of parameters that fit capacity_bytes, in any order:
    that is a bound and no more.
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
    relaxed: bool = False

    @cached_property
    def alone_ns(self) -> tuple[int, ...]:
        """For each op ns of any segment that holds it: what it takes, what only it reads from outside, what leaves."""
        streaming = set(self.streaming)
        found = [self.stage_ns + (ns or 0) + self.spill_start_ns * (i in streaming) for i, ns in enumerate(self.op_ns)]
        for t in self.transfers:
            if t.producer is None:
                for reader in t.readers:
                    found[reader] += t.receive_ns
            elif t.leaves:
                found[t.producer] += t.send_ns
        return tuple(found)

    @cached_property
    def cheapest_spills(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Bytes that are spilled, and ns that this costs, after none, one, two ... of `kept`, the cheapest first."""
        cheapest = sorted((k for k in self.kept if k.size_bytes), key=lambda k: k.spill_ns / k.size_bytes)
        sizes = accumulate((k.size_bytes for k in cheapest), initial=0)
        return tuple(sizes), tuple(accumulate((k.spill_ns for k in cheapest), initial=0))
