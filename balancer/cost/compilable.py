"""Whether the vendor's compiler takes a segment, judged by the activations that its ops need at once.

The commonest refusal is "Compilation failed due to large activation tensors in model". Published outcomes say where it
comes, but not why: of one network some sizes compile, larger ones fail, and still larger ones compile again.

    surely       at each op on the chip, narrow memory holds all that is live, and 7 % of it are left. No published failure is
                 among these.
    perhaps      at some op it does not, or nearly. Some of these compile, in bands or with tensors in other memories (see
                 `spilling`).
                 Or an op that moves values is too large for the chip and depends on ops on it. The compiler leaves such an op
                 on the CPU at some sizes of a network (YOLOv5s at 320, 384 and 512 px), and fails at others (352, 480).
    surely not   an op moves values within a table that exceeds all memory of the chip. There are no bands for that, since
                 each value may be needed anywhere. No published success is among these.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from balancer.cost.activations import MOVING, moved_bytes, op_mask
from balancer.cost.capacity import TILES
from balancer.ground.opsets import members, op_set

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from balancer.cost.spilling import Spilling
    from balancer.ground.opsets import OpSet


class Compilable(Enum):
    """Whether the compiler takes a segment. The values are the words that plans and tables have."""

    SURELY = "surely"
    PERHAPS = "perhaps"
    SURELY_NOT = "surely not"


# The share of narrow memory that may be needed where a segment surely compiles. Packages that use more than a tenth of it use
# up to 7.3 % more than predicted (DeepLab; YOLOv5n 5.7 %, YOLOv8n 4.0 %, the others 0).
_SURE_PERCENT = 93
# From best to worst. A segment's level is the worst of its ops' levels.
LEVELS = tuple(Compilable)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judgement of one segment.

    tensor: name of the tensor that decides it; None if the segment surely compiles. It is the largest of those that are live
    at the op on the chip which decides, or what an op makes that is too large for the chip. tile_bytes: the most that an op
    on the chip and its live tensors need of each tile, which may be more than a tile has.
    """

    level: Compilable
    tensor: str | None
    tile_bytes: int


def sure_bytes(tile_bytes: int) -> int:
    """What an op and its live tensors may need of each tile's narrow memory in a segment that surely compiles.

    >>> sure_bytes(192 * 1024)
    182845
    """
    return tile_bytes * _SURE_PERCENT // 100


class CompileRule:
    """Judges the segments of a graph. Levels are positions in `LEVELS`.

    sure_bytes: what an op may need of each tile in a segment that surely compiles. suspects: the ops that need more in some
    segment. left_out: ops that move values and that the chip does not take.
    """

    def __init__(self, spilling: Spilling, wide_bytes_per_tile: int, unmapped: OpSet) -> None:
        """unmapped: the ops that the chip does not take."""
        self.spilling = spilling
        self.activations = spilling.activations
        self.sure_bytes = sure_bytes(spilling.tile_bytes)
        self._at = np.nonzero(spilling.needs_whole > self.sure_bytes)[0]
        self.suspects = op_set(self._at.tolist())
        most = TILES * (spilling.tile_bytes + wide_bytes_per_tile)
        ops = spilling.graph.ops
        self.left_out = op_set(i for i in members(unmapped) if ops[i].type in MOVING)
        self._too_large = np.array([moved_bytes(spilling.graph, op) > most for op in ops], bool)

    def judgement(self, ops: OpSet, on_tpu: OpSet, ending: OpSet) -> Judgement:
        """ops: of a segment. on_tpu: those of them that run on the chip. ending: those that end the chip's part."""
        at = np.array(list(members(on_tpu)), np.intp)
        live = self.activations.live_at(op_mask(members(ops), len(self.spilling.graph.ops)), at)
        judged = self._judged(self.activations.needs(live, at), at, live)
        left_out = list(members(ending & self.left_out))
        if judged.level is not Compilable.SURELY or not left_out:
            return judged
        graph = self.spilling.graph
        made = graph.ops[left_out[0]].outputs
        return Judgement(Compilable.PERHAPS, graph.tensors[made[0]].name if made else None, judged.tile_bytes)

    def best(self, on_tpu: OpSet) -> Judgement:
        """The best judgement that the worst segment of a partition can have.

        on_tpu: ops that run on the chip in every segment. What one of them reads and makes is live with it wherever it is.
        """
        at = np.array(list(members(on_tpu)), np.intp)
        return self._judged(self.activations.needs_alone[at], at, self.activations.touched[:, at])

    def levels(self, held: NDArray[np.bool_]) -> NDArray[np.intp]:
        """For each op its level in a segment that may hold these ops. held: for each op."""
        levels = np.zeros(len(held), np.intp)
        at = self._at
        levels[at] = self._levels(self.activations.needs(self.activations.live_at(held, at), at), at)
        return levels

    def _judged(self, needs: NDArray[np.int64], at: NDArray[np.intp], live: NDArray[np.bool_]) -> Judgement:
        """The worst of these ops decides. needs, at, live: one entry or column for each."""
        if not len(at):
            return Judgement(Compilable.SURELY, None, 0)
        levels = self._levels(needs, at)
        worst = int(np.lexsort((needs, levels))[-1])
        level, needed = LEVELS[int(levels[worst])], int(needs[worst])
        if level is Compilable.SURELY:
            return Judgement(level, None, needed)
        return Judgement(level, self._largest(live[:, worst], int(at[worst])), needed)

    def _levels(self, needs: NDArray[np.int64], at: NDArray[np.intp]) -> NDArray[np.intp]:
        return np.where(needs > self.sure_bytes, 1 + self._too_large[at], 0)

    def _largest(self, live: NDArray[np.bool_], op: int) -> str:
        """The name of the tensor that takes most of a tile at the op: its output where it moves values, else a live one."""
        graph, sizes = self.spilling.graph, self.activations.tile_bytes * live
        row = int(sizes.argmax())
        if self.activations.beside_bytes[op] > sizes[row]:
            return graph.tensors[graph.ops[op].outputs[0]].name
        return graph.tensors[self.activations.tensors[row]].name
