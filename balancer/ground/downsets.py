"""Many op sets at once, as the rows of a bit matrix: the down-sets of a graph, and questions about all of them.

A down-set holds, with an op, all ops that it depends on. Each cut of a pipeline is a down-set: the ops before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from balancer.ground.opsets import members as members_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.ground.arrays import BoolArray, IndexArray, IntArray, Rows, WordArray
    from balancer.ground.opsets import OpSet

WORD_BITS = 64
_BYTE_BITS = (np.arange(256)[:, None] >> np.arange(8)) & 1  # [byte, bit]: the bits of every byte value


Words: TypeAlias = "list[tuple[int, np.uint64]]"
"""The words of an op set that are not empty, with their numbers."""


class OpGroups(NamedTuple):
    """Groups of ops, one after the other in `ops`. Group k begins at starts[k]; no group is empty."""

    ops: IndexArray
    starts: IndexArray


class DownSets:
    """Op sets as the rows of a uint64 array: op i is bit i % 64 of word i // 64.

    Rows are in topological order of inclusion: a set stands before all sets that contain it.
    """

    def __init__(self, words: WordArray, n_ops: int) -> None:
        self.n_ops = n_ops
        self.words = words
        # Questions about one op read one word of each row: columns are kept contiguous for them.
        self._columns: list[WordArray] = [np.ascontiguousarray(column) for column in words.T]

    @classmethod
    def of(cls, sets: Sequence[OpSet], n_ops: int) -> DownSets:
        """These sets, in this order."""
        count = word_count(n_ops)
        raw = b"".join(ops.to_bytes(8 * count, "little") for ops in sets)
        return cls(np.frombuffer(raw, np.dtype("<u8")).astype(np.uint64).reshape(len(sets), count), n_ops)

    def __len__(self) -> int:
        return len(self.words)

    def set_of(self, row: int) -> OpSet:
        """The set in a row, as an integer."""
        return int.from_bytes(self.words[row].astype("<u8").tobytes(), "little")

    def take(self, rows: IndexArray) -> DownSets:
        """These rows alone."""
        return DownSets(self.words[rows], self.n_ops)

    def holds_any(self, ops: OpSet, rows: Rows = slice(None)) -> BoolArray:
        """For each of the rows, whether it holds at least one of the ops."""
        held: BoolArray = np.zeros(len(self._columns[0][rows]), bool)
        for k, word in words_of(ops):
            held |= (self._columns[k][rows] & word) != 0
        return held

    def holds_all(self, ops: OpSet, rows: Rows = slice(None)) -> BoolArray:
        """For each of the rows, whether it holds all the ops."""
        held: BoolArray = np.ones(len(self._columns[0][rows]), bool)
        for k, word in words_of(ops):
            held &= (self._columns[k][rows] & word) == word
        return held

    def containing(self, ops: OpSet, rows: IndexArray) -> IndexArray:
        """Those of the row numbers whose sets contain all the ops."""
        for k, word in reversed(words_of(ops)):  # most sets lack the last ops: testing those first leaves fewest rows
            rows = rows[(self._columns[k][rows] & word) == word]
        return rows

    def total(self, weights: Sequence[int]) -> IntArray:
        """For each set the sum of its ops' weights, int64. weights: by op.

        Byte by byte: the sums of all 256 subsets of eight ops are a table, in which all sets are looked up at once.
        """
        octets = self.words.astype("<u8").view(np.uint8).reshape(len(self), 8 * self.words.shape[1])
        padded = np.zeros(octets.shape[1] * 8, np.int64)
        padded[: len(weights)] = weights
        total = np.zeros(len(self), np.int64)
        for k in range(octets.shape[1]):
            eight = padded[8 * k : 8 * k + 8]
            if eight.any():
                total += (_BYTE_BITS @ eight)[octets[:, k]]
        return total

    def members(self, rows: Rows | int) -> BoolArray:
        """[row, op]: whether each of the rows holds each op; [op] for a single row."""
        octets = self.words[rows].astype("<u8").view(np.uint8)
        return np.unpackbits(octets, axis=-1, count=self.n_ops, bitorder="little").astype(bool)

    def weigh(self, groups: OpGroups, any_weights: IntArray, all_weights: IntArray, rows: IndexArray) -> IntArray:
        """For each of the rows a sum over groups, int64: any_weights[k] where the row holds an op of group k, plus
        all_weights[k] where it holds the whole group.
        """
        # Groups of one op are by far the most; they are summed like weights of ops.
        single = np.diff(groups.starts, append=len(groups.ops)) == 1
        weights = np.zeros(self.n_ops, np.int64)
        np.add.at(weights, groups.ops[groups.starts[single]], (any_weights + all_weights)[single])
        total = self._weight_of(weights, rows)
        for k in np.nonzero(~single & ((any_weights != 0) | (all_weights != 0)))[0].tolist():
            group = groups.ops[groups.starts[k] : (*groups.starts[k + 1 : k + 2], len(groups.ops))[0]]
            ops = sum(1 << i for i in group.tolist())
            if any_weights[k]:
                total += self.holds_any(ops, rows) * any_weights[k]
            if all_weights[k]:
                total += self.holds_all(ops, rows) * all_weights[k]
        return total

    def _weight_of(self, weights: IntArray, rows: IndexArray) -> IntArray:
        """As `total`, for some rows: the same table of eight ops, for those octets that weigh something."""
        total = np.zeros(len(rows), np.int64)
        octets = np.unique(np.nonzero(weights)[0] // 8)
        padded = np.concatenate([weights, np.zeros(8, np.int64)])
        for k in octets.tolist():
            eight = ((self._columns[k // 8][rows] >> np.uint64(8 * (k % 8))) & np.uint64(255)).astype(np.intp)
            total += (_BYTE_BITS @ padded[8 * k : 8 * k + 8])[eight]
        return total

    def largest(self, weights: IntArray, rows: IndexArray) -> IntArray:
        """For each of the rows the largest weight of its ops, at least 0, int64. weights: by op."""
        largest, undecided = np.zeros(len(rows), np.int64), np.arange(len(rows))
        for value in np.unique(weights[weights > 0])[::-1]:
            if not len(undecided):
                break
            held = self.holds_any(_op_set(weights == value), rows[undecided])
            largest[undecided[held]] = value
            undecided = undecided[~held]
        return largest


class NestedSets(DownSets):
    """A chain of sets, each of which contains those before it, as the cuts of one order do.

    A row then holds exactly the ops that have entered by it. What takes a test for each set and op elsewhere is a
    comparison of row numbers here.
    """

    def __init__(self, words: WordArray, n_ops: int) -> None:
        super().__init__(words, n_ops)
        held = self.members(slice(None))
        self._numbers = np.arange(len(words))
        # For each op the first row that holds it; past the last row where none does.
        self.entry: IndexArray = np.where(held[-1], held.argmax(axis=0), len(words))

    def holds_any(self, ops: OpSet, rows: Rows = slice(None)) -> BoolArray:
        held: BoolArray = self._numbers[rows] >= min((self.entry[i] for i in members_of(ops)), default=len(self))
        return held

    def holds_all(self, ops: OpSet, rows: Rows = slice(None)) -> BoolArray:
        held: BoolArray = self._numbers[rows] >= max((self.entry[i] for i in members_of(ops)), default=0)
        return held

    def total(self, weights: Sequence[int]) -> IntArray:
        padded = np.zeros(self.n_ops, np.int64)
        padded[: len(weights)] = weights
        return self._weight_of(padded, slice(None))

    def _weight_of(self, weights: IntArray, rows: Rows) -> IntArray:
        return self._entered(self.entry, weights)[rows]

    def weigh(self, groups: OpGroups, any_weights: IntArray, all_weights: IntArray, rows: Rows) -> IntArray:
        if not len(groups.starts):
            return np.zeros(len(self._numbers[rows]), np.int64)
        entry = self.entry[groups.ops]
        # The first op of a group to enter brings any_weights, the last one all_weights.
        first, last = np.minimum.reduceat(entry, groups.starts), np.maximum.reduceat(entry, groups.starts)
        return (self._entered(first, any_weights) + self._entered(last, all_weights))[rows]

    def _entered(self, entry: IndexArray, weights: IntArray) -> IntArray:
        """For each row the weight of all that has entered by it."""
        gains = np.zeros(len(self) + 1, np.int64)
        np.add.at(gains, entry, weights)
        return np.cumsum(gains[:-1])

    def largest(self, weights: IntArray, rows: Rows) -> IntArray:
        gains = np.zeros(len(self) + 1, np.int64)
        np.maximum.at(gains, self.entry, weights)
        return np.maximum.accumulate(gains[:-1])[rows]


def hold_any(words: WordArray, some: Words) -> BoolArray:
    """For each row of words, whether it holds at least one of the ops."""
    held: BoolArray = np.zeros(len(words), bool)
    for k, word in some:
        held |= (words[:, k] & word) != 0
    return held


def hold_all(words: WordArray, some: Words) -> BoolArray:
    """For each row of words, whether it holds all the ops."""
    held: BoolArray = np.ones(len(words), bool)
    for k, word in some:
        held &= (words[:, k] & word) == word
    return held


def put(words: WordArray, some: Words) -> WordArray:
    """The rows of words with the ops in each."""
    made = words.copy()
    for k, word in some:
        made[:, k] |= word
    return made


class ByteSums:
    """Sums of weights over many op sets. All subsets of eight ops have their sums in a table, for every octet of ops."""

    def __init__(self, weights: Sequence[int]) -> None:
        padded = np.zeros(8 * WORD_BITS // 8 * word_count(len(weights)), np.int64)
        padded[: len(weights)] = weights
        octets = padded.reshape(-1, 8)
        self._octets = np.nonzero(octets.any(axis=1))[0]
        self._table = octets[self._octets] @ _BYTE_BITS.T
        self._rows = np.arange(len(self._octets))

    def of(self, words: WordArray) -> IntArray:
        """For each row of words the sum of its ops' weights."""
        octets = words.astype("<u8", copy=False).view(np.uint8).reshape(len(words), 8 * words.shape[1])
        total: IntArray = self._table[self._rows, octets[:, self._octets]].sum(axis=1)
        return total


def word_count(n_ops: int) -> int:
    """How many words hold a set of n_ops ops; at least one.

    >>> word_count(65)
    2
    """
    return max(1, -(-n_ops // WORD_BITS))


def words_of(ops: OpSet) -> Words:
    """(number, bits) of the words of a set that are not empty.

    >>> [(k, int(word)) for k, word in words_of(1 | 1 << 130)]
    [(0, 1), (2, 4)]
    """
    words, k = [], 0
    while ops:
        word = ops & ((1 << WORD_BITS) - 1)
        if word:
            words.append((k, np.uint64(word)))
        ops, k = ops >> WORD_BITS, k + 1
    return words


def _op_set(mask: BoolArray) -> OpSet:
    """The set of the ops whose entry is true."""
    return int.from_bytes(np.packbits(mask, bitorder="little").tobytes(), "little")
