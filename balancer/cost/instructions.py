"""Bytes of the instructions that an op compiles to. The chip keeps none of them: they are sent with each inference."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balancer.graph import Graph, Op

# Of an executable, besides those of its ops.
BASE_BYTES = 4_096


def instruction_bytes(graph: Graph, op: Op) -> int:
    """Bytes of the op's instructions on the chip; 0 for a folded op."""
    return 0 if op.folded else 3_000
