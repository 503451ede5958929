"""Whether the vendor's compiler takes a segment, judged by the activations that are live on the chip at once.

The commonest refusal is "Compilation failed due to large activation tensors in model".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from balancer.cost.activations import NARROW_BYTES, Activations, op_mask
from balancer.ground.opsets import members, op_set

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from balancer.graph import Graph
    from balancer.ground.opsets import OpSet


class Compilable(Enum):
    """Whether the compiler takes a segment. The values are the words that plans and tables have."""

    SURELY = "surely"
    PERHAPS = "perhaps"
    SURELY_NOT = "surely not"


# From best to worst. A segment's level is the worst of its ops' levels.
LEVELS = tuple(Compilable)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judgement of one segment.

    tensor: name of the tensor that decides it, the largest of those that are live at the op which needs most; None if the
    segment surely compiles. tile_bytes: what the live tensors of that op take of each tile's narrow memory. ops: those
    around the tensor, as a set: a segment that holds them all has the same tensor live at the same op.
    """

    level: Compilable
    tensor: str | None
    tile_bytes: int


class CompileRule:
    """Judges the segments of a graph. levels of ops: positions in `LEVELS`."""

    def __init__(self, graph: Graph, ancestors: Sequence[OpSet]) -> None:
        self.graph = graph
        self.activations = Activations(graph, ancestors)
        # No op has more live tensors in a segment than in the whole model: see `Activations`.
        self.whole = self.activations.profile(np.ones(len(graph.ops), bool))
        self.suspects = op_set(np.nonzero(self._levels(self.whole))[0].tolist())

    def judgement(self, ops: OpSet, on_tpu: OpSet) -> Judgement:
        """ops: of a segment. on_tpu: those of them that run on the chip."""
        chip = list(members(on_tpu))
        if not chip:
            return Judgement(Compilable.SURELY, None, 0)
        live = self.activations.live(op_mask(members(ops), len(self.graph.ops)))[:, chip]
        taken = self.activations.tile_bytes @ live
        worst = int(taken.argmax())
        level = LEVELS[int(self._levels(taken)[worst])]
        if level is Compilable.SURELY:
            return Judgement(level, None, int(taken[worst]))
        largest = int((self.activations.tile_bytes * live[:, worst]).argmax())
        tensor = self.graph.tensors[self.activations.tensors[largest]]
        return Judgement(level, tensor.name, int(taken[worst]))

    def levels(self, held: NDArray[np.bool_]) -> NDArray[np.intp]:
        """For each op the level of its live tensors, in a segment that may hold these ops. held: for each op."""
        return self._levels(self.activations.profile(held))

    def _levels(self, taken: NDArray[np.int64]) -> NDArray[np.intp]:
        return (taken > NARROW_BYTES).astype(np.intp)
