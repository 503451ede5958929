"""Many op sets at once, as the rows of an array: how the down-sets of a graph are held, and questions about all of them.

A down-set holds, with an op, all that it depends on. Each cut of a pipeline is one: the ops before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from balancer.ground.opsets import members as members_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.ground.opsets import OpSet

WORD = 64
_OCTETS = (np.arange(256)[:, None] >> np.arange(8)) & 1  # the bits of every byte


class OpGroups(NamedTuple):
    """OpGroups of ops, one after the other. starts: where each begins; none is empty."""

    ops: Any
    starts: Any


class DownSets:
    """Op sets as the rows of a uint64 array (op i is bit i % 64 of word i // 64), and questions about all at once.

    A set stands before the sets that contain it.
    """

    def __init__(self, words: Any, n_ops: int) -> None:
        self.n_ops = n_ops
        self.words = words
        self._columns = [np.ascontiguousarray(column) for column in words.T]

    @classmethod
    def of(cls, sets: Sequence[OpSet], n_ops: int) -> DownSets:
        """These sets, in this order."""
        count = word_count(n_ops)
        raw = b"".join(ops.to_bytes(8 * count, "little") for ops in sets)
        return cls(np.frombuffer(raw, np.dtype("<u8")).astype(np.uint64).reshape(len(sets), count), n_ops)

    def __len__(self) -> int:
        return len(self.words)

    def set_of(self, row: int) -> OpSet:
        return int.from_bytes(self.words[row].astype("<u8").tobytes(), "little")

    def take(self, rows: Any) -> DownSets:
        """These rows alone."""
        return DownSets(self.words[rows], self.n_ops)

    def holds_any(self, ops: OpSet, rows: Any = slice(None)) -> Any:
        """Which of the rows hold one of the ops."""
        found: Any = False
        for k, word in words_of(ops):
            found = found | ((self._columns[k][rows] & word) != 0)
        return found if ops else np.zeros(len(self._columns[0][rows]), bool)

    def holds_all(self, ops: OpSet, rows: Any = slice(None)) -> Any:
        """Which of the rows hold all the ops."""
        found: Any = True
        for k, word in words_of(ops):
            found = found & ((self._columns[k][rows] & word) == word)
        return found if ops else np.ones(len(self._columns[0][rows]), bool)

    def containing(self, ops: OpSet, rows: Any) -> Any:
        """Those of the row numbers whose sets contain these ops."""
        for k, word in reversed(words_of(ops)):  # the last ops are the ones that most sets lack
            rows = rows[(self._columns[k][rows] & word) == word]
        return rows

    def total(self, weights: Sequence[int]) -> Any:
        """For each set the sum of its ops' weights, int64.

        By bytes: a table of the 256 sums of eight ops, looked up for all sets at once.
        """
        octets = self.words.astype("<u8").view(np.uint8).reshape(len(self), -1)
        padded = np.zeros(octets.shape[1] * 8, np.int64)
        padded[: len(weights)] = weights
        total = np.zeros(len(self), np.int64)
        for k in range(octets.shape[1]):
            eight = padded[8 * k : 8 * k + 8]
            if eight.any():
                total += (_OCTETS @ eight)[octets[:, k]]
        return total

    def members(self, rows: Any) -> Any:
        """Which ops are in which of the rows, as booleans: one op a column."""
        octets = self.words[rows].astype("<u8").view(np.uint8)
        return np.unpackbits(octets, axis=-1, count=self.n_ops, bitorder="little").astype(bool)

    def weigh(self, groups: OpGroups, any_weights: Any, all_weights: Any, rows: Any) -> Any:
        """For each of the rows the sum of any_weights over the groups of which it holds an op, and of all_weights over
        those that it holds entirely, int64.
        """
        single = np.diff(groups.starts, append=len(groups.ops)) == 1
        weights = np.zeros(self.n_ops, np.int64)
        np.add.at(weights, groups.ops[groups.starts[single]], (any_weights + all_weights)[single])
        total = self._weight_of(weights, rows)
        for k in np.nonzero(~single & ((any_weights != 0) | (all_weights != 0)))[0].tolist():
            members = groups.ops[groups.starts[k] : (*groups.starts[k + 1 : k + 2], len(groups.ops))[0]]
            ops = sum(1 << i for i in members.tolist())
            if any_weights[k]:
                total += self.holds_any(ops, rows) * any_weights[k]
            if all_weights[k]:
                total += self.holds_all(ops, rows) * all_weights[k]
        return total

    def _weight_of(self, weights: Any, rows: Any) -> Any:
        """For each of the rows the sum of its ops' weights: eight ops at a time, where any of them weighs something."""
        total = np.zeros(len(rows), np.int64)
        octets = np.unique(np.nonzero(weights)[0] // 8)
        padded = np.concatenate([weights, np.zeros(8, np.int64)])
        for k in octets.tolist():
            eight = ((self._columns[k // 8][rows] >> np.uint64(8 * (k % 8))) & np.uint64(255)).astype(np.intp)
            total += (_OCTETS @ padded[8 * k : 8 * k + 8])[eight]
        return total

    def largest(self, weights: Any, rows: Any) -> Any:
        """For each of the rows the largest weight of its ops, at least 0, int64."""
        found, still = np.zeros(len(rows), np.int64), np.arange(len(rows))
        for value in np.unique(weights[weights > 0])[::-1]:
            if not len(still):
                break
            held = self.holds_any(_op_set(weights == value), rows[still])
            found[still[held]] = value
            still = still[~held]
        return found


class NestedSets(DownSets):
    """Sets each of which contains those before it, as the cuts of one order do. Then a set holds what has entered by its
    row: what else takes a test for each set and op is a comparison of rows here.
    """

    def __init__(self, words: Any, n_ops: int) -> None:
        super().__init__(words, n_ops)
        held = self.members(slice(None))
        self._numbers = np.arange(len(words))
        self.entry = np.where(held[-1], held.argmax(axis=0), len(words))  # of each op: the first row that holds it

    def holds_any(self, ops: OpSet, rows: Any = slice(None)) -> Any:
        return self._numbers[rows] >= min((self.entry[i] for i in members_of(ops)), default=len(self))

    def holds_all(self, ops: OpSet, rows: Any = slice(None)) -> Any:
        return self._numbers[rows] >= max((self.entry[i] for i in members_of(ops)), default=0)

    def total(self, weights: Sequence[int]) -> Any:
        padded = np.zeros(self.n_ops, np.int64)
        padded[: len(weights)] = weights
        return self._weight_of(padded, slice(None))

    def _weight_of(self, weights: Any, rows: Any) -> Any:
        return self._entered(self.entry, weights)[rows]

    def weigh(self, groups: OpGroups, any_weights: Any, all_weights: Any, rows: Any) -> Any:
        if not len(groups.starts):
            return np.zeros(len(self._numbers[rows]), np.int64)
        entry = self.entry[groups.ops]
        first, last = np.minimum.reduceat(entry, groups.starts), np.maximum.reduceat(entry, groups.starts)
        return (self._entered(first, any_weights) + self._entered(last, all_weights))[rows]

    def _entered(self, entry: Any, weights: Any) -> Any:
        """For each row the weight of all that has entered by it."""
        gains = np.zeros(len(self) + 1, np.int64)
        np.add.at(gains, entry, weights)
        return np.cumsum(gains[:-1])

    def largest(self, weights: Any, rows: Any) -> Any:
        gains = np.zeros(len(self) + 1, np.int64)
        np.maximum.at(gains, self.entry, weights)
        return np.maximum.accumulate(gains[:-1])[rows]


def word_count(n_ops: int) -> int:
    return max(1, -(-n_ops // WORD))


def words_of(ops: OpSet) -> list[tuple[int, Any]]:
    """(number, bits) of the words of a set that are not empty."""
    found, k = [], 0
    while ops:
        word = ops & ((1 << WORD) - 1)
        if word:
            found.append((k, np.uint64(word)))
        ops, k = ops >> WORD, k + 1
    return found


def _op_set(chosen: Any) -> OpSet:
    """The ops where a boolean for each op is true."""
    return int.from_bytes(np.packbits(chosen, bitorder="little").tobytes(), "little")
