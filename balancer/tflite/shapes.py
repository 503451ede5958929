"""Shapes when the file leaves them open: a free batch is read as 1, and what follows from that is worked out op by op.

A converter that does not know the batch leaves a chain of small int32 ops (SHAPE, STRIDED_SLICE, PACK ...) in the
file that computes shapes as the model runs, and writes placeholders into the static shapes behind them. With the
batch fixed at 1 these ops are constants (*folded*), and the shapes behind them can be computed instead of trusted. A
shape that the file leaves open and no rule gives (behind WHERE, UNIQUE, a custom op, or a shape that could not be
folded) is not known before the model runs: it is None, and nothing is folded from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.errors import ModelError
from balancer.tflite import constant_folding
from balancer.tflite.schema import schema
from balancer.tflite.shape_rules import Shape, shapes_of_outputs

if TYPE_CHECKING:
    from balancer.tflite.flatbuffer import Table
    from balancer.tflite.model import Model

_NUMPY = {"INT32": "<i4", "INT64": "<i8", "UINT32": "<u4", "FLOAT32": "<f4", "INT8": "i1", "UINT8": "u1", "BOOL": "u1"}
_MAX_RANK, _MAX_DIMENSION = 8, (1 << 31) - 1


class Shapes:
    """Static shapes of all tensors, and the values of what folded ops compute.

    shape[t]: None where it is not known before the model runs. folded: indices of folded ops. value[t]: the constant
    that a folded op computes. Raises ModelError where more than the batch of an input is open, or where a shape that
    is worked out contradicts the file's.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.shape: dict[int, Shape | None] = {t: self._static(t) for t in range(len(model.tensors))}
        self.value: dict[int, Any] = {}
        self.folded: set[int] = set()
        self.final = {int(t) for t in model.subgraph["outputs"]}
        self.open = {t for t in range(len(model.tensors)) if -1 in _signature(model.tensors[t])}
        for t in model.subgraph["inputs"]:
            self._check_input(int(t))
        for i, operator in enumerate(model.operators):
            self._visit(i, operator)

    def _static(self, t: int) -> Shape | None:
        tensor = self.model.tensors[t]
        if "shape" in tensor.fields and (len(tensor["shape"]) or self.model.is_constant(t)):
            return tuple(abs(int(d)) for d in tensor["shape"])
        # The file writes a scalar and "no shape" alike; `has_rank`, or any producer but a custom op, tells a scalar.
        return () if tensor["has_rank"] else None

    def _check_input(self, t: int) -> None:
        tensor = self.model.tensors[t]
        signature = _signature(tensor)
        if -1 in signature[1:]:
            raise ModelError(
                f"its shape {list(signature)} is really dynamic", f"{self.model.where}: input '{tensor['name']}'",
                "convert the model with fixed input sizes; only the batch may be left free",
            )  # fmt: skip
        if self.shape[t] is None:
            self.shape[t] = ()

    def _visit(self, i: int, operator: Table) -> None:
        kind = self.model.type_name(operator)
        if self._fold(i, operator, kind):
            return
        outputs = [int(t) for t in operator["outputs"]]
        if not kind.startswith("CUSTOM"):
            for t in outputs:
                self.shape[t] = () if self.shape[t] is None else self.shape[t]
        reads_folded = any(int(t) in self.value for t in operator["inputs"])
        if not reads_folded and not any(t in self.open for t in outputs):
            return
        for t, shape in zip(outputs, self._inferred(operator, kind), strict=True):
            if shape is not None:
                self._check_shape(t, shape, f"op {i} {kind}")
                self.shape[t] = shape
            elif t in self.open:
                self.shape[t] = None

    def _check_shape(self, t: int, shape: Shape, place: str) -> None:
        """A shape that was worked out must be one, and the one that the file gives, as far as it gives one."""
        if len(shape) > _MAX_RANK or not all(0 <= d <= _MAX_DIMENSION for d in shape):
            raise ModelError(
                f"the shape of its output would be {list(shape)}", f"{self.model.where}: {place}",
                "convert the model again",
            )  # fmt: skip
        tensor = self.model.tensors[t]
        given = _signature(tensor)
        if not given and not tensor["has_rank"]:
            return  # no shape at all, or a scalar: the file writes them alike
        if len(given) != len(shape) or any(g not in (-1, d) for g, d in zip(given, shape, strict=True)):
            raise ModelError(
                f"its output '{tensor['name']}' has shape {list(shape)}, the file says {list(given)}",
                f"{self.model.where}: {place}", "convert the model again",
            )  # fmt: skip

    def _fold(self, i: int, operator: Table, kind: str) -> bool:
        """Fold an op that computes from shapes and constants alone, starting at a SHAPE; whether it is one."""
        outputs = [int(t) for t in operator["outputs"]]
        read = [int(t) for t in operator["inputs"]]
        if len(outputs) != 1 or not read or min(read) < 0 or outputs[0] in self.final:
            return False
        type_name = self.model.type_of(self.model.tensors[outputs[0]])
        if type_name not in constant_folding.DTYPES or any(
            self._is_quantised(t) for t in (*outputs, *read) if kind != "SHAPE"
        ):
            return False
        value = self._shape_value(operator, read[0], type_name) if kind == "SHAPE" else None
        if any(t in self.value for t in read) and constant_folding.is_foldable(kind):
            value = self._folded(operator, kind, read, constant_folding.DTYPES[type_name])
        if value is None:
            return False
        self._check_shape(outputs[0], value.shape, f"op {i} {kind}")
        self.value[outputs[0]], self.shape[outputs[0]] = value, value.shape
        self.folded.add(i)
        return True

    def _shape_value(self, operator: Table, t: int, type_name: str) -> Any:
        """What SHAPE gives of this tensor, or None: its option alone says of which type, whatever the file says."""
        options, shape = operator["builtin_options"], self.shape[t]
        if shape is None or options is None or options.type != "ShapeOptions":
            return None
        types = schema().enums["TensorType"]
        if not 0 <= options["out_type"] < len(types) or types[options["out_type"]] != type_name:
            return None
        return np.array(shape, constant_folding.DTYPES[type_name])

    def _folded(self, operator: Table, kind: str, read: list[int], dtype: Any) -> Any:
        if not all(
            self._known(t) and self.model.type_of(self.model.tensors[t]) in constant_folding.DTYPES for t in read
        ):
            return None
        if sum(self._known_bytes(t) for t in read) > 4 * constant_folding.MOST_ELEMENTS:
            return None
        values = [self.constant(t) for t in read]
        if any(value is None for value in values):
            return None
        return constant_folding.folded(kind, values, operator["builtin_options"], dtype)

    def _is_quantised(self, t: int) -> bool:
        quantisation = self.model.tensors[t]["quantization"]
        return quantisation is not None and len(quantisation["scale"]) > 0

    def _known(self, t: int) -> bool:
        return t in self.value or self.model.is_constant(t)

    def _known_bytes(self, t: int) -> int:
        return self.value[t].nbytes if t in self.value else len(self.model.constant(t))

    def constant(self, t: int) -> Any:
        """Value of a known tensor as an array of its shape; None for an activation, an element type without numpy's,
        or a sparse constant.
        """
        if t in self.value:
            return self.value[t]
        data = self.model.constant(t)
        dtype = _NUMPY.get(self.model.type_of(self.model.tensors[t]))
        if data is None or dtype is None or self.model.tensors[t]["sparsity"]:
            return None
        return data.view(dtype).reshape([abs(int(d)) for d in self.model.tensors[t]["shape"]])

    def _inferred(self, operator: Table, kind: str) -> list[Shape | None]:
        """The shape of each output, None where it is not known before the op runs."""
        read = [int(t) if t >= 0 else None for t in operator["inputs"]]
        return shapes_of_outputs(
            kind,
            len(operator["outputs"]),
            [None if t is None else self.shape[t] for t in read],
            [None if t is None else self.constant(t) for t in read],
            operator["builtin_options"],
        )


def _signature(tensor: Table) -> Shape:
    signed = tensor["shape_signature"]
    return tuple(int(d) for d in (signed if len(signed) else tensor["shape"]))
