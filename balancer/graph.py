"""A model as plain data: ops in execution order, the tensors between them, and which op depends on which.

This module knows no file format and no cost. Its words:

op set      a set of ops as the bits of an int: bit i is the op with index i in the execution order.
parameter   a constant tensor. Every other tensor is an activation.
folded op   an op that only computes shapes (SHAPE, STRIDED_SLICE, PACK ... of a free batch). It keeps its index and
            costs nothing. Each segment that reads its result has that as a constant.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from balancer.ground.opsets import members, op_set

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import networkx

    from balancer.ground.opsets import OpSet

_STATE = {"resource", "variant"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value between ops, or a constant.

    shape: None if it is not known before the model runs (outputs of WHERE and of some custom ops); then `bytes` is 0.
    bytes: size of the value. dtype: the file's name of the element type in lower case, which mostly is numpy's ("int8").
    is_parameter: constant, also if a folded op computes it. is_variable: state, kept from one inference to the next.
    all_zero: a constant in the file whose bytes are all 0.
    """

    index: int
    name: str
    shape: tuple[int, ...] | None
    dtype: str
    bytes: int
    is_parameter: bool = False
    is_variable: bool = False
    all_zero: bool = False
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Op:
    """One operator.

    inputs, intermediates: tensor indices, -1 if an optional one is absent. options: its scalar options by name.
    macs: multiply-accumulates of one inference. parameter_bytes: of its constant inputs as the file holds them, each
    tensor once. unmapped: why the Edge TPU does not take the op; empty if it does. This is a property of the op alone:
    its neighbours in a segment may keep it on the CPU nevertheless.
    """

    index: int
    type: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    intermediates: tuple[int, ...] = ()
    options: Mapping[str, int | float] = field(default_factory=dict)
    macs: int = 0
    parameter_bytes: int = 0
    unmapped: str = ""
    folded: bool = False

    @property
    def mapped(self) -> bool:
        return not self.unmapped


class Interface(NamedTuple):
    """Tensor indices that enter and leave a segment, in the fixed order of its file."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """A model.

    tensors, ops: by index. inputs, outputs: tensor indices in the model's order. together: disjoint op sets that share
    state, each of which must stay in one segment.
    """

    name: str
    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    together: tuple[OpSet, ...] = ()

    @cached_property
    def producer(self) -> dict[int, int]:
        """For each activation the op that computes it. Model inputs and parameters are absent."""
        return {t: op.index for op in self.ops if not op.folded for t in op.outputs}

    @cached_property
    def activations(self) -> tuple[tuple[int, ...], ...]:
        """For each op the activations that it reads, each once, in the order of its inputs. Folded ops read none."""
        return tuple(() if op.folded else self._activations_of(op) for op in self.ops)

    def _activations_of(self, op: Op) -> tuple[int, ...]:
        read = (t for t in op.inputs if t >= 0)
        return tuple(
            dict.fromkeys(t for t in read if not (self.tensors[t].is_parameter or self.tensors[t].is_variable))
        )

    @cached_property
    def readers(self) -> dict[int, tuple[int, ...]]:
        """For each activation the ops that read it, ascending. An activation that no op reads is absent."""
        readers: dict[int, list[int]] = {}
        for op in self.ops:
            for t in self.activations[op.index]:
                readers.setdefault(t, []).append(op.index)
        return {t: tuple(ops) for t, ops in readers.items()}

    @cached_property
    def before(self) -> tuple[OpSet, ...]:
        """For each op the set of ops whose outputs it reads."""
        return tuple(op_set(self.producer[t] for t in read if t in self.producer) for read in self.activations)

    @cached_property
    def ancestors(self) -> tuple[OpSet, ...]:
        """For each op all ops that it depends on, directly or through others."""
        ancestors: list[OpSet] = []
        # In execution order: the ancestors of all that an op reads are known when its turn comes.
        for before in self.before:
            union = before
            for i in members(before):
                union |= ancestors[i]
            ancestors.append(union)
        return tuple(ancestors)

    @cached_property
    def mapped(self) -> OpSet:
        """The ops that the Edge TPU takes. Folded ops are not among them."""
        return op_set(op.index for op in self.ops if op.mapped and not op.folded)

    def on_cpu(self, ops: OpSet, mapped: OpSet) -> OpSet:
        """The ops of a segment that run on the CPU. mapped: the ops that the Edge TPU takes.

        The compiler maps one part of a segment to the Edge TPU. An unmapped op that depends on a mapped op of the segment
        ends this part: it runs on the CPU, and so do all ops of the segment that depend on it. An unmapped op that
        depends on no mapped one runs on the CPU before the Edge TPU starts, and keeps no other op off the chip.
        """
        unmapped = ops & ~mapped & ~self.folded
        ending = self.ending(ops, mapped)
        if not ending:
            return unmapped
        return unmapped | op_set(i for i in members(ops & mapped) if self.ancestors[i] & ending)

    def ending(self, ops: OpSet, mapped: OpSet) -> OpSet:
        """The unmapped ops of a segment that depend on a mapped one of it: they end the Edge TPU's part."""
        # Mapped ops outside the segment do not count: their results enter like any boundary tensor.
        inside = ops & mapped
        return op_set(u for u in members(ops & ~mapped & ~self.folded) if self.ancestors[u] & inside)

    @cached_property
    def all_ops(self) -> OpSet:
        return (1 << len(self.ops)) - 1

    @cached_property
    def folded(self) -> OpSet:
        return op_set(op.index for op in self.ops if op.folded)

    @cached_property
    def stateful(self) -> OpSet:
        """Ops that read or write state, which stays from one inference to the next: a variable tensor or a resource."""
        held = {t.index for t in self.tensors if t.is_variable or t.dtype in _STATE}
        return op_set(op.index for op in self.ops if held & {*op.inputs, *op.outputs, *op.intermediates})

    @cached_property
    def macs(self) -> int:
        return sum(op.macs for op in self.ops)

    @cached_property
    def parameter_bytes(self) -> int:
        """Bytes of all constants that ops read, each tensor once."""
        read = {t for op in self.ops if not op.folded for t in op.inputs if t >= 0 and self.tensors[t].is_parameter}
        return sum(self.tensors[t].bytes for t in read)

    @cached_property
    def _rank(self) -> dict[int, tuple[int, int]]:
        """A sort key for activations: model inputs in the model's order, then by the op that produces them."""
        made = {t: (op.index, k) for op in self.ops for k, t in enumerate(op.outputs)}
        # Reversed, so that an input that is listed twice keeps its first position.
        return made | {t: (-1, k) for k, t in reversed(list(enumerate(self.inputs)))}

    def interface(self, ops: OpSet) -> Interface:
        """The input and output tensors of the segment that holds these ops.

        Inputs: model inputs in the model's order, then boundary tensors in the order they are produced. Outputs: model
        outputs in the model's order, then boundary tensors in the order they are produced. Each tensor appears once.
        The segment that holds every op has the model's own interface, including inputs that no op reads.
        """
        if ops | self.folded == self.all_ops:
            return Interface(tuple(dict.fromkeys(self.inputs)), tuple(dict.fromkeys(self.outputs)))
        inside = [i for i in members(ops) if not self.ops[i].folded]
        made = {t for i in inside for t in self.ops[i].outputs}
        read = {t for i in inside for t in self.activations[i]} - made
        final = tuple(dict.fromkeys(t for t in self.outputs if t in made))
        leaving = [t for t in made if any(not ops >> r & 1 for r in self.readers.get(t, ()))]
        onward = sorted(set(leaving) - set(final), key=self._rank.__getitem__)
        return Interface(tuple(sorted(read, key=self._rank.__getitem__)), final + tuple(onward))

    def to_networkx(self) -> networkx.DiGraph:
        """A directed graph with the ops as nodes (attribute `op`) and the dependences between them as edges.

        An edge's attribute `tensors` lists the tensors that the first op gives to the second. Folded ops have no edges.
        """
        import networkx

        drawn = networkx.DiGraph(name=self.name)
        drawn.add_nodes_from((op.index, {"op": op}) for op in self.ops)
        for tensor, readers in self.readers.items():
            for reader in readers if tensor in self.producer else ():
                edge = (self.producer[tensor], reader)
                if not drawn.has_edge(*edge):
                    drawn.add_edge(*edge, tensors=[])
                drawn.edges[edge]["tensors"].append(tensor)
        return drawn


def boundary_names(graph: Graph, segments: Iterable[OpSet]) -> dict[int, str]:
    """For each tensor that enters or leaves a segment or the model, its name in the segments' files.

    Names are unique and not empty, since runners match tensors by name. They depend only on the model and on which
    tensors cross a boundary.
    """
    crossing = sorted({t for ops in (graph.all_ops, *segments) for side in graph.interface(ops) for t in side})
    uses = Counter(tensor.name for tensor in graph.tensors)
    taken = set(uses)
    names = {}
    for t in crossing:
        name = graph.tensors[t].name
        if not name or uses[name] > 1:
            name = f"{name}_t{t}"
            while name in taken:
                name += "_"
            taken.add(name)
        names[t] = name
    return names
