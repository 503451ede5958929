"""The activations that a cut may cross, as arrays: who makes and reads them, and what handing them over costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from balancer.cost.timing import input_ns, output_ns
from balancer.ground.downsets import OpGroups
from balancer.ground.opsets import op_set

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balancer.cost.segment import SegmentCosts
    from balancer.ground.opsets import OpSet


@dataclass(frozen=True, slots=True)
class Crossing:
    """An activation. made: bit of its producer, 0 for a model input. readers: as a set."""

    index: int
    made: OpSet
    readers: OpSet
    final: bool
    input_ns: int
    output_ns: int
    known: bool


class Waiting(NamedTuple):
    """Activations at hand that ops outside a set read: their numbers, and those ops of each."""

    tensors: Any
    groups: OpGroups


class Crossings:
    """tensors: all activations. Arrays with an entry for each: made by an op, final, ns, and weights to sum.

    readers: the ops that read them, one activation after the other; scratch: bytes a tile where it enters the reader's
    segment.
    """

    def __init__(self, costs: SegmentCosts) -> None:
        graph = costs.graph
        self.tensors = list(_crossings(costs))
        self.producer = np.array([graph.producer.get(c.index, -1) for c in self.tensors], np.intp)
        self.made = self.producer >= 0
        self.final = np.array([c.final for c in self.tensors], bool)
        self.input_ns = np.array([c.input_ns for c in self.tensors], np.int64)
        self.output_ns = np.array([c.output_ns for c in self.tensors], np.int64)
        known = np.array([c.known for c in self.tensors], bool)
        self.all_known = bool(known.all())
        self.nothing = np.zeros(len(self.tensors), np.int64)
        # Those that leave a set only because somebody outside reads them.
        self.passed = (self.made & ~self.final).astype(np.int64)
        self.passed_ns = self.passed * self.output_ns
        self.unknown = (~known).astype(np.int64)
        self.unknown_made = self.unknown * self.made
        read = [(k, r, c.index) for k, c in enumerate(self.tensors) for r in graph.readers.get(c.index, ())]
        self.tensor = np.array([k for k, _, _ in read], np.intp)
        self.readers = np.array([r for _, r, _ in read], np.intp)
        self._pairs = [(t, r) for _, r, t in read]
        self._costs = costs

    @cached_property
    def scratch(self) -> Any:
        return np.array([self._costs.input_scratch[pair] for pair in self._pairs], np.int64)

    def made_in(self, held: Any) -> Any:
        """Which activations the ops of a set make. held: whether each op is in it."""
        return self.made & held[self.producer]

    def waiting_pairs(self, held: Any) -> Any:
        """Numbers of the readers outside a set whose activation is at hand: made in it, or a model input."""
        at_hand = ~self.made | held[self.producer]
        return np.nonzero(at_hand[self.tensor] & ~held[self.readers])[0]

    def waiting(self, held: Any) -> Waiting:
        """What ops outside a set wait for."""
        pairs = self.waiting_pairs(held)
        tensors = self.tensor[pairs]
        starts = np.nonzero(np.diff(tensors, prepend=-1))[0]
        return Waiting(tensors[starts], OpGroups(self.readers[pairs], starts))


def _crossings(costs: SegmentCosts) -> Iterator[Crossing]:
    graph, hardware = costs.graph, costs.hardware
    final = set(graph.outputs)
    for t in sorted(set(graph.producer) | set(graph.readers)):
        tensor, readers = graph.tensors[t], graph.readers.get(t, ())
        made = 1 << graph.producer[t] if t in graph.producer else 0
        if (made and t in final) or readers:
            yield Crossing(
                t, made, op_set(readers), t in final, input_ns(tensor.bytes, hardware), output_ns(tensor.bytes, hardware),
                tensor.shape is not None,
            )  # fmt: skip
