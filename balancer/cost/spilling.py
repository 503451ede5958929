"""What a segment's activations need of the chip's memories, where narrow memory cannot hold all that is live at an op.

    live at the op               narrow memory of a tile (192 KiB)
    - waits, the largest first   -> wide memory, where parameters leave room; else scratch in the host's memory
    - read or made by the op     -> the op works on it in bands, a few rows at a time

Tensors leave narrow memory in this order until the rest fits. Bands need no other memory. PoseNet at 721x1281 shows this:
its largest op reads and makes 16.6 MB, more than all memory of the chip, its package uses 196,596 bytes of each tile and has
no scratch. What waits cannot be worked on in bands. DeepLab (MobileNet v2, 513 px) has tensors that wait while narrow
memory is full, and no scratch: 5 MiB of its wide memory are free of parameters.

An op with a sequence of states (LSTM) hands them on through the host's memory, one step after the other: the package of a net
with 28 steps of 20 values has 672 bytes of scratch, 28 rows padded to 24.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from balancer.cost.activations import LARGEST_BYTES, Activations, op_mask
from balancer.cost.placing import Span, highest_address
from balancer.ground.opsets import members, op_set
from balancer.ground.units import ceil_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from balancer.graph import Graph, Op
    from balancer.ground.opsets import OpSet

# Decoded, one package: values in a row of scratch are padded to a multiple of 8.
_SCRATCH_ROW_BYTES = 8


class Spilling:
    """What leaves narrow memory in segments of one graph.

    needs_whole: for each op what it needs of a tile in the whole model. No segment with the op needs more there. suspects:
    the ops for which that is more than narrow memory; waiters: those of them where tensors wait.
    """

    def __init__(self, graph: Graph, ancestors: Sequence[OpSet], tile_bytes: int) -> None:
        """ancestors: for each op all ops that it depends on. tile_bytes: narrow memory of one tile."""
        self.graph = graph
        self.tile_bytes = tile_bytes
        self.activations = Activations(graph, ancestors)
        every = np.arange(len(graph.ops))
        live = self.activations.live_at(np.ones(len(graph.ops), bool), every)
        self.needs_whole = self.activations.needs(live, every)
        self.suspects = np.nonzero(self.needs_whole > self.tile_bytes)[0]
        waits = np.count_nonzero(live & ~self.activations.touched, axis=0)
        self.waiters = self.suspects[waits[self.suspects] > 0]

    def evicted(self, held: NDArray[np.bool_]) -> NDArray[np.int64]:
        """For each op bytes of the waiting tensors that leave narrow memory, in a segment that may hold these ops."""
        evicted = np.zeros(len(self.graph.ops), np.int64)
        live = self.activations.live_at(held, self.waiters)
        needs = self.activations.needs(live, self.waiters)
        for k, op in enumerate(self.waiters.tolist()):
            gone = self._leaving(live[:, k] & ~self.activations.touched[:, op], int(needs[k]))
            evicted[op] = sum(self._whole_bytes(t) for t in gone)
        return evicted

    @cached_property
    def sequence_bytes(self) -> NDArray[np.int64]:
        """For each op the bytes that it hands on through the host's memory."""
        return np.array([_sequence_bytes(self.graph, op) for op in self.graph.ops], np.int64)

    @cached_property
    def may_scratch(self) -> OpSet:
        """The ops that may need scratch in the host's memory in some segment."""
        return op_set(self.waiters.tolist()) | op_set(np.nonzero(self.sequence_bytes)[0].tolist())

    def scratch_bytes(self, ops: OpSet, on_tpu: OpSet, room_bytes: int) -> int:
        """Bytes of the host's memory that a segment's activations need.

        on_tpu: its ops on the chip. room_bytes: of wide memory, which parameters leave free.
        """
        chip = list(members(on_tpu & self.may_scratch))
        if not chip:
            return 0
        evicted = self.evicted(op_mask(members(ops), len(self.graph.ops)))[chip].max()
        return int(max(self.sequence_bytes[chip].max(), evicted - room_bytes))

    def narrow_bytes(self, ops: OpSet, on_tpu: OpSet) -> int:
        """Bytes of each tile's narrow memory that a segment uses, at most all of it.

        What leaves narrow memory at one op is not in it at others.
        """
        at = np.array(list(members(on_tpu)), np.intp)
        live = self.activations.live_at(op_mask(members(ops), len(self.graph.ops)), at)
        needs = self.activations.needs(live, at)
        beside = self.activations.beside_bytes[at].copy()
        for k in np.nonzero(needs > self.tile_bytes)[0].tolist():
            here = live[:, k].copy()
            touched = self.activations.touched[:, at[k]]
            # A table that does not fit is not held at one place; how it is moved then is not known.
            beside[k] = 0
            needed = int(self.activations.tile_bytes @ here)
            for part in (here & ~touched, here & touched):
                gone = self._leaving(part, needed)
                needed -= sum(int(self.activations.tile_bytes[t]) for t in gone)
                live[gone] = False
        spans = [Span(int(size), k, k) for k, size in enumerate(beside) if size]
        for t in np.nonzero(live.any(axis=1))[0].tolist():
            when = np.nonzero(live[t])[0]
            spans.append(Span(int(self.activations.tile_bytes[t]), int(when[0]), int(when[-1])))
        return min(self.tile_bytes, highest_address(spans))

    def _leaving(self, among: NDArray[np.bool_], needed_bytes: int) -> list[int]:
        """Which of these tensors leave, the largest first, until what is needed fits narrow memory."""
        gone: list[int] = []
        sizes = self.activations.tile_bytes
        for t in sorted(np.nonzero(among)[0].tolist(), key=lambda t: (-sizes[t], t)):
            if needed_bytes <= self.tile_bytes:
                break
            gone.append(t)
            needed_bytes -= int(sizes[t])
        return gone

    def _whole_bytes(self, row: int) -> int:
        return min(LARGEST_BYTES, self.graph.tensors[self.activations.tensors[row]].bytes)


def _sequence_bytes(graph: Graph, op: Op) -> int:
    shape = graph.tensors[op.outputs[0]].shape if op.type.endswith("SEQUENCE_LSTM") and op.outputs else None
    if shape is None or len(shape) < 2:
        return 0
    return min(LARGEST_BYTES, shape[-2] * ceil_to(shape[-1], _SCRATCH_ROW_BYTES))
