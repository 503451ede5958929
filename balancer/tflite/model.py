"""The tables of a TFLite file as a record, with what can be looked up in them.

Tables refer to each other by number: an op to its tensors and to its operator code, a tensor to the buffer with its
bytes. `decoding.decode_model` makes the record and checks all these numbers. So lookups here, and all code that is
given a Model, follow them without checking again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from balancer.errors import ModelError
from balancer.tflite.schema import schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from balancer.tflite.flatbuffer import Table

IDENTIFIER = b"TFL3"
EDGETPU_CUSTOM_OP = "edgetpu-custom-op"
# More than any interpreter can hold. Sums over a few million such tensors still fit 64 bits.
MOST_TENSOR_BYTES = 1 << 31
# Bits of one element. Types that are not listed (strings, resources, variants) have no fixed size.
_BITS = {
    "FLOAT32": 32, "FLOAT16": 16, "INT32": 32, "UINT8": 8, "INT64": 64, "BOOL": 8, "INT16": 16, "COMPLEX64": 64,
    "INT8": 8, "FLOAT64": 64, "COMPLEX128": 128, "UINT64": 64, "UINT32": 32, "UINT16": 16, "INT4": 4, "BFLOAT16": 16,
    "INT2": 2, "UINT4": 4, "FLOAT8_E4M3FN": 8, "FLOAT8_E5M2": 8,
}  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Model:
    """The tables of a file with one subgraph.

    where: the file's name, for messages. root: the file's root table; the others are parts of it. codes: which op types
    and versions the ops have. is_inline: whether the file itself has all constants in its flatbuffer; the tables do.
    """

    where: str
    root: Table
    subgraph: Table
    tensors: Sequence[Table]
    operators: Sequence[Table]
    buffers: Sequence[Table]
    codes: Sequence[Table]
    is_inline: bool = True

    def type_name(self, operator: Table) -> str:
        """The op's type: 'CONV_2D'; 'CUSTOM:<name>' for a custom op; 'BUILTIN_<number>' for one newer than our schema."""
        code = self.codes[operator["opcode_index"]]
        # The first 127 codes stand in a deprecated field of one byte, all later ones in a wider field. The field that
        # does not hold the code is 0 (or 127, "see the wider field"), so the larger of both is the code.
        number = max(code["builtin_code"], code["deprecated_builtin_code"])
        names = schema().enums["BuiltinOperator"]
        name = names[number] if 0 <= number < len(names) else f"BUILTIN_{number}"
        return f"CUSTOM:{code['custom_code']}" if name == "CUSTOM" else name

    def version(self, operator: Table) -> int:
        """The version of an op's type: newer versions ask more of the kernels that run them."""
        return int(self.codes[operator["opcode_index"]]["version"])

    def type_of(self, tensor: Table) -> str:
        """The element type of a tensor, such as 'INT8'."""
        name: str = schema().enums["TensorType"][tensor["type"]]
        return name

    def constant(self, index: int) -> NDArray[np.uint8] | None:
        """The bytes of a constant tensor; None for an activation or a variable."""
        if index in self._empty_constants:
            return np.zeros(0, np.uint8)
        data: NDArray[np.uint8] = self.buffers[self.tensors[index]["buffer"]]["data"]
        return data if len(data) else None

    def is_constant(self, index: int) -> bool:
        return self.constant(index) is not None

    @cached_property
    def op_types(self) -> tuple[str, ...]:
        """The types of all ops, in the file's order (see `type_name`)."""
        return tuple(self.type_name(operator) for operator in self.operators)

    @cached_property
    def op_versions(self) -> tuple[int, ...]:
        """The versions of all ops' types, in the file's order."""
        return tuple(self.version(operator) for operator in self.operators)

    @cached_property
    def tensor_types(self) -> tuple[str, ...]:
        """The element types of all tensors, in the file's order."""
        return tuple(self.type_of(tensor) for tensor in self.tensors)

    @cached_property
    def constants(self) -> tuple[NDArray[np.uint8] | None, ...]:
        """The bytes of constant tensors, None for the others, in the file's order: views into the file, not copies."""
        return tuple(self.constant(t) for t in range(len(self.tensors)))

    @cached_property
    def _empty_constants(self) -> frozenset[int]:
        """Constants without elements (the shape of a scalar, say). Their buffer is empty like that of an activation;
        what tells them apart is that no op computes them.
        """
        computed = {int(t) for operator in self.operators for t in operator["outputs"]}
        computed |= {int(t) for t in self.subgraph["inputs"]}
        return frozenset(
            t
            for t, tensor in enumerate(self.tensors)
            if 0 in tensor["shape"] and t not in computed and not tensor["is_variable"]
            and not len(self.buffers[tensor["buffer"]]["data"])
        )  # fmt: skip


def refuse_compiled(model: Model) -> None:
    """Raises ModelError if the model is the compiler's output: its ops are hidden in the compiled part."""
    if f"CUSTOM:{EDGETPU_CUSTOM_OP}" in model.op_types:
        raise ModelError(
            "the model is already compiled for the Edge TPU (it holds an edgetpu-custom-op)",
            model.where,
            "give the .tflite file that the compiler was given",
        )


def byte_size(shape: Sequence[int], bits: int) -> int:
    """Bytes of a dense value with elements of so many bits.

    >>> byte_size((1, 4, 4, 3), 8), byte_size((2, 3), 32), byte_size((), 32)
    (48, 24, 4)

    A free dimension (-1) counts as 1. Elements smaller than a byte are packed:

    >>> byte_size((-1, 3), 8), byte_size((3,), 4), byte_size((5,), 2)
    (3, 2, 2)
    """
    return (math.prod(abs(d) for d in shape) * bits + 7) // 8


def element_bits(type_name: str) -> int:
    """Bits of one element; 0 for types without a fixed size.

    >>> element_bits("INT8"), element_bits("INT4"), element_bits("FLOAT32"), element_bits("STRING")
    (8, 4, 32, 0)
    """
    return _BITS.get(type_name, 0)
