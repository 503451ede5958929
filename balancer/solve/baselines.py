"""Other ways to cut an execution order, to compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def equal_op_counts(n_ops: int, segments: int) -> tuple[int, ...]:
    """Cuts into segments whose numbers of ops differ by at most one, longer ones last."""
    return tuple(n_ops * j // segments for j in range(1, segments))


def parameter_count(op_bytes: Sequence[int], segments: int) -> tuple[int, ...]:
    """Cuts by the rule of the compiler's `--num_segments`, as far as it is known.

    op_bytes: parameter bytes of each op as the file holds them. Limit = total // segments + 1; a segment takes ops
    while their sum stays within it, at least one; the last takes the rest. Source: libcoral,
    `parameter_count_based_partitioner.cc`, in the file's op order, which reproduces the published splits of the
    closed compiler (five-convolution models, two SSD detectors, ResNet-101).
    """
    limit = sum(op_bytes) // segments + 1
    cuts: list[int] = []
    held = 0
    for i, size in enumerate(op_bytes):
        full = held + size > limit and i > (cuts[-1] if cuts else 0)
        starving = len(op_bytes) - i <= segments - 1 - len(cuts)  # each segment left needs an op
        if len(cuts) < segments - 1 and i > 0 and (full or starving):
            cuts.append(i)
            held = 0
        held += size
    return tuple(cuts)
