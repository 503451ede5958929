"""The activations that can cross the boundary of a segment, as arrays: who makes and reads them, and what that costs.

Words, for a down-set J of ops (what earlier stages compute):

at hand   an activation that J makes, or a model input
live      an activation at hand that some op outside J reads: it crosses the boundary of J
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from balancer.ground.downsets import OpGroups
from balancer.ground.opsets import op_set

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from balancer.cost.op_terms import TransferTerms
    from balancer.graph import Graph
    from balancer.ground.opsets import OpSet


@dataclass(frozen=True, slots=True)
class Crossing:
    """An activation that a segment can take or hand on.

    tensor: its index in the graph. producer: the op that makes it, -1 for a model input; made: the same as a set, empty for a
    model input. readers: as a set. final: the model gives it to its caller. input_ns, output_ns: to send it into a
    segment and to fetch it out of one. known: its shape is known.
    """

    tensor: int
    producer: int
    made: OpSet
    readers: OpSet
    final: bool
    input_ns: int
    output_ns: int
    known: bool


class LiveTensors(NamedTuple):
    """The activations that are live at one set: their numbers, and for each the group of ops outside that read it."""

    tensors: NDArray[np.intp]
    readers: OpGroups


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossings:
    """All activations of a graph that can cross. An activation's number is its position.

    One entry for each activation:
    producer       the op that makes it, -1 for a model input
    made           whether an op makes it
    final, input_ns, output_ns   as in `Crossing`
    passing        1 if it is made and not final: it leaves a set only while ops outside read it; else 0
    passing_ns     output_ns if it is passing, else 0
    unknown        1 if its shape is not known, else 0
    unknown_made   1 if its shape is not known and an op makes it, else 0
    nothing        0

    One entry for each pair of an activation and an op that reads it, ordered by activation:
    pair_tensor    the activation's number
    pair_reader    the op
    pair_scratch   scratch bytes in each tile where the activation enters the op's segment

    all_known: whether the shapes of all activations are known.
    """

    tensors: tuple[Crossing, ...]
    producer: NDArray[np.intp]
    made: NDArray[np.bool_]
    final: NDArray[np.bool_]
    input_ns: NDArray[np.int64]
    output_ns: NDArray[np.int64]
    passing: NDArray[np.int64]
    passing_ns: NDArray[np.int64]
    unknown: NDArray[np.int64]
    unknown_made: NDArray[np.int64]
    nothing: NDArray[np.int64]
    all_known: bool
    pair_tensor: NDArray[np.intp]
    pair_reader: NDArray[np.intp]
    pair_scratch: NDArray[np.int64]

    def made_in(self, held: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which activations the ops of a set make. held: for each op whether the set holds it."""
        # Model inputs index the last op with their producer -1; `made` is false for them.
        return self.made & held[self.producer]

    def live_pairs(self, held: NDArray[np.bool_]) -> NDArray[np.intp]:
        """The pairs of a live activation and an op outside the set that reads it. held: as in `made_in`."""
        at_hand = ~self.made | held[self.producer]
        return np.nonzero(at_hand[self.pair_tensor] & ~held[self.pair_reader])[0]

    def live(self, held: NDArray[np.bool_]) -> LiveTensors:
        """The activations that are live at a set. held: as in `made_in`."""
        pairs = self.live_pairs(held)
        tensors = self.pair_tensor[pairs]
        # Pairs are ordered by activation: a group begins where the activation's number changes.
        starts = np.nonzero(np.diff(tensors, prepend=-1))[0]
        return LiveTensors(tensors[starts], OpGroups(self.pair_reader[pairs], starts))


def crossings_of(
    graph: Graph, transfers: Sequence[TransferTerms], input_scratch: Mapping[tuple[int, int], int]
) -> Crossings:
    """transfers: of each tensor. input_scratch: (tensor, op that reads it) -> scratch bytes in each tile where the tensor
    enters a segment.
    """
    tensors = tuple(_crossings(graph, transfers))
    pairs = [(k, r, c.tensor) for k, c in enumerate(tensors) for r in graph.readers.get(c.tensor, ())]
    producer = np.array([c.producer for c in tensors], np.intp)
    made, final = producer >= 0, np.array([c.final for c in tensors], bool)
    output_costs = np.array([c.output_ns for c in tensors], np.int64)
    passing = (made & ~final).astype(np.int64)
    unknown = np.array([not c.known for c in tensors], np.int64)
    return Crossings(
        tensors=tensors,
        producer=producer,
        made=made,
        final=final,
        input_ns=np.array([c.input_ns for c in tensors], np.int64),
        output_ns=output_costs,
        passing=passing,
        passing_ns=passing * output_costs,
        unknown=unknown,
        unknown_made=unknown * made,
        nothing=np.zeros(len(tensors), np.int64),
        all_known=not unknown.any(),
        pair_tensor=np.array([k for k, _, _ in pairs], np.intp),
        pair_reader=np.array([r for _, r, _ in pairs], np.intp),
        pair_scratch=np.array([input_scratch[t, r] for _, r, t in pairs], np.int64),
    )


def _crossings(graph: Graph, transfers: Sequence[TransferTerms]) -> Iterator[Crossing]:
    """Activations that an op reads, or that an op makes and the model gives; those that nobody takes never cross."""
    final = set(graph.outputs)
    # Sorted, so that arrays do not depend on the order of a set.
    for t in sorted(set(graph.producer) | set(graph.readers)):
        tensor, readers = graph.tensors[t], graph.readers.get(t, ())
        producer = graph.producer.get(t, -1)
        if readers or (producer >= 0 and t in final):
            yield Crossing(
                tensor=t,
                producer=producer,
                made=1 << producer if producer >= 0 else 0,
                readers=op_set(readers),
                final=t in final,
                input_ns=transfers[t].input_ns,
                output_ns=transfers[t].output_ns,
                known=tensor.shape is not None,
            )
