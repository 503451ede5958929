"""Sets of ops as integers. Bit i stands for the op with index i in the execution order.

Python's integers have as many bits as a model needs. They can be compared in one step and serve as keys. In files an op
set is text: closed ranges of indices, as in "0-11,14".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

OpSet = int


def op_set(ops: Iterable[int]) -> OpSet:
    """The set of these op indices.

    >>> bin(op_set([0, 3]))
    '0b1001'
    """
    bits = 0
    for i in ops:
        bits |= 1 << i
    return bits


def interval_set(start: int, end: int) -> OpSet:
    """The set of the ops from start to end - 1.

    >>> bin(interval_set(1, 4))
    '0b1110'
    """
    return (1 << end) - (1 << start)


def members(ops: OpSet) -> Iterator[int]:
    """The indices in the set, ascending.

    >>> list(members(0b1001))
    [0, 3]
    """
    while ops:
        low = ops & -ops
        yield low.bit_length() - 1
        ops ^= low


def op_ranges(ops: Iterable[int]) -> str:
    """Ascending op indices as closed ranges.

    >>> op_ranges([0, 1, 2, 5])
    '0-2,5'
    """
    ranges: list[list[int]] = []
    for i in ops:
        if ranges and i == ranges[-1][1] + 1:
            ranges[-1][1] = i
        else:
            ranges.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def op_text(ops: OpSet) -> str:
    """An op set as it stands in files: closed ranges.

    >>> op_text(0b100111)
    '0-2,5'
    """
    return op_ranges(members(ops))


def parse_op_set(text: str, n_ops: int) -> OpSet:
    """The op set of such a text. Raises ValueError where it is none of a model of n_ops ops, or lists an op twice.

    >>> bin(parse_op_set("0-2,5", 6))
    '0b100111'
    """
    listed = parse_op_ranges(text, n_ops)
    ops = op_set(listed)
    if ops.bit_count() < len(listed):
        raise ValueError(f"'{text[:40]}' lists an op twice")
    return ops


def parse_op_ranges(text: str, n_ops: int) -> list[int]:
    """The op indices that a text like "0-11,14" lists, in its order.

    n_ops: indices run from 0 to n_ops - 1. Raises ValueError where the text has another form, names an op that does not
    exist, or lists more ops than there are.

    >>> parse_op_ranges("5,0-2", n_ops=8)
    [5, 0, 1, 2]
    """
    indices: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isascii() and first.isdigit() and (not dash or (last.isascii() and last.isdigit()))):
            raise ValueError(f"'{part.strip()}' is neither an op index nor a range like 3-7")
        # Nine digits are more than any model's ops, and keep `int` from working on a text of megabytes.
        a, b = int(first[:9]), int((last if dash else first)[:9])
        if b < a or b >= n_ops:
            raise ValueError(f"'{part.strip()}' is not within ops 0 to {n_ops - 1}")
        if len(indices) + b - a + 1 > n_ops:
            raise ValueError(f"'{part.strip()}' lists ops a second time")
        indices.extend(range(a, b + 1))
    return indices
