"""Names for the types of numpy arrays. They are for type checkers: import this module under TYPE_CHECKING.

`BoolArray | bool` and the like stand in signatures where numpy broadcasts a plain number.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

IntArray: TypeAlias = NDArray[np.int64]
"""Whole numbers: ns, bytes, counts."""

FloatArray: TypeAlias = NDArray[np.float64]
"""Periods in ns, prices, and whatever may be infinite."""

BoolArray: TypeAlias = NDArray[np.bool_]
"""A mask: one truth value for each row, segment or op."""

IndexArray: TypeAlias = NDArray[np.intp]
"""Positions in another array: row numbers of down-sets, op indices."""

WordArray: TypeAlias = NDArray[np.uint64]
"""Op sets as bits: op i is bit i % 64 of word i // 64."""

Rows: TypeAlias = IndexArray | slice
"""Which rows of an array are asked about."""
