"""Multiply-accumulates of an op, from the shapes of its tensors: one formula for each op type that has any.

They count the op's real channels. What the array of the Edge TPU adds by rounding up is left to the cost model.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from balancer.tflite.shape_rules import OpInputs, Shape, UnknownInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class MacsFormula(Protocol):
    """Multiply-accumulates of one inference. op: shapes of its inputs. made: shape of its first output."""

    def __call__(self, op: OpInputs, made: Shape, /) -> int: ...


def macs(kind: str, inputs: Sequence[Shape | None], outputs: Sequence[Shape | None]) -> int:
    """Multiply-accumulates of one inference; 0 for an op type without any.

    inputs, outputs: shapes, None if absent or not known. Raises UnknownInputError or IndexError if a shape that the
    formula needs is not known, or has too few dimensions.

    >>> macs("CONV_2D", [(1, 8, 8, 3), (16, 3, 3, 3), (16,)], [(1, 8, 8, 16)])  # 8 * 8 * 16 outputs of 3 * 3 * 3 taps
    27648
    >>> macs("FULLY_CONNECTED", [(1, 64), (10, 64), None], [(1, 10)])
    640
    >>> macs("RELU", [(1, 8, 8, 3)], [(1, 8, 8, 3)])
    0
    """
    formula = _FORMULAS.get(kind)
    if formula is None:
        return 0
    made = outputs[0]
    if made is None:
        raise UnknownInputError("shape of the output")
    return formula(OpInputs(inputs), made)


def _lstm(op: OpInputs, made: Shape) -> int:
    """Inputs 1 to 8 are the weights of the gates; each element is used once in each time step."""
    shape = op.shape(0)
    steps = shape[-2] if len(shape) > 2 else 1
    return steps * sum(math.prod(weights) for weights in op.shapes[1:9] if weights is not None)


_FORMULAS: Mapping[str, MacsFormula] = {
    # A kernel has the shape (filters, height, width, channels); a depthwise one (1, height, width, channels).
    "CONV_2D": lambda op, made: math.prod(made) * op.shape(1)[1] * op.shape(1)[2] * op.shape(1)[3],
    "DEPTHWISE_CONV_2D": lambda op, made: math.prod(made) * op.shape(1)[1] * op.shape(1)[2],
    "FULLY_CONNECTED": lambda op, made: math.prod(made) * op.shape(1)[1],
    # Each pixel of the input (input 2 of the op) meets the whole kernel.
    "TRANSPOSE_CONV": lambda op, made: math.prod(op.shape(2)[:3]) * math.prod(op.shape(1)),
    "BATCH_MATMUL": lambda op, made: math.prod(made) * op.shape(0)[-1],
    "CONV_3D": lambda op, made: math.prod(made) * math.prod(op.shape(1)[:4]),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _lstm,
}
