"""The shape of every tensor, also where the file leaves shapes open.

A free batch is read as 1. What follows from that is worked out op by op, in execution order.

A converter that does not know the batch adds a chain of small int32 ops that compute shapes as the model runs, and
writes placeholders into the static shapes behind it. With the batch fixed, each of these ops gives a constant: the op
is *folded*. In pictures, for an input of shape (-1, 28, 28, 3):

    file                                                    here

    input (-1,28,28,3) ----+--------> CONV_2D               input (1,28,28,3)
                           |             |
                         SHAPE           |                  [1, 28, 28, 3]
                           |             |
    begin [0], end [1] -> STRIDED_SLICE  | (-1,28,28,8)     1
                           |             |
    784, 8 -------------> PACK           |                  [1, 784, 8]
                           |             v
                           +--------> RESHAPE               RESHAPE with a constant shape
                                         |
                                         v (1,1,1)          (1,784,8): the file's (1,1,1) was a placeholder

Folded ops do not enter segments; the constants that they compute do. A shape stays unknown (None) if the file leaves it
open and no rule gives it: behind WHERE, UNIQUE, a custom op, or an op whose shape input could not be folded. Nothing is
folded from an unknown shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from balancer.errors import ModelError
from balancer.tflite import constant_folding
from balancer.tflite.flatbuffer import Table
from balancer.tflite.schema import schema
from balancer.tflite.shape_rules import OpInputs, Shape, shapes_of_outputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from balancer.tflite.constant_folding import Value
    from balancer.tflite.model import Model

# Element types of constants that rules may read; more than those that are folded, since axes and paddings come in many.
_NUMPY = {"INT32": "<i4", "INT64": "<i8", "UINT32": "<u4", "FLOAT32": "<f4", "INT8": "i1", "UINT8": "u1", "BOOL": "u1"}
_MOST_DIMENSIONS, _LARGEST_DIMENSION = 8, (1 << 31) - 1
_MOST_FOLDED_BYTES = 4 * constant_folding.MOST_ELEMENTS  # of all inputs of an op


@dataclass(frozen=True, slots=True, eq=False)
class ModelShapes:
    """What is known of a model's tensors before it runs.

    shapes: by tensor; None if not known. values: by tensor, the constants that folded ops compute. folded: indices of
    the folded ops.
    """

    shapes: tuple[Shape | None, ...]
    values: Mapping[int, Value]
    folded: frozenset[int]


def propagate_shapes(model: Model) -> ModelShapes:
    """The shapes of a model's tensors with its batch fixed at 1, and the constants that follow from them.

    Raises ModelError if more than the batch of an input is open, or if a shape that was worked out contradicts the
    file's.
    """
    state = _Propagation(
        model=model,
        shapes=[_static_shape(model, t) for t in range(len(model.tensors))],
        values={},
        folded=set(),
        open=frozenset(t for t, tensor in enumerate(model.tensors) if -1 in _signature(tensor)),
        outputs=frozenset(int(t) for t in model.subgraph["outputs"]),
    )
    for t in model.subgraph["inputs"]:
        _check_input(model, int(t))
        if state.shapes[t] is None:
            state.shapes[t] = ()
    for i, operator in enumerate(model.operators):
        _visit(state, i, operator)
    return ModelShapes(tuple(state.shapes), state.values, frozenset(state.folded))


def inferred_shapes(
    model: Model, i: int, shapes: Sequence[Shape | None], values: Mapping[int, Value]
) -> list[Shape | None]:
    """The shape of each output of op i by its rule, None where no rule gives it.

    shapes: of all tensors. values: of those that folded ops compute.
    """
    operator = model.operators[i]
    read = [int(t) for t in operator["inputs"]]  # -1: an optional input that is absent
    op = OpInputs(
        [None if t < 0 else shapes[t] for t in read],
        [None if t < 0 else _known_value(model, t, values) for t in read],
        operator["builtin_options"] or Table("NONE", {}),
    )
    return shapes_of_outputs(model.op_types[i], len(operator["outputs"]), op)


@dataclass(slots=True)
class _Propagation:
    """How far the walk has come.

    shapes, values, folded: as in ModelShapes. open: tensors with a free dimension in the file. outputs: the model's.

    Before an op is visited, the entries of all its inputs are final: the file's order is an execution order.
    """

    model: Model
    shapes: list[Shape | None]
    values: dict[int, Value]
    folded: set[int]
    open: frozenset[int]
    outputs: frozenset[int]


def _static_shape(model: Model, t: int) -> Shape | None:
    """The shape in the file, with 1 for a free dimension; None if it gives none."""
    tensor = model.tensors[t]
    if "shape" in tensor.fields and (len(tensor["shape"]) or model.constants[t] is not None):
        return tuple(abs(int(d)) for d in tensor["shape"])
    # Files write a scalar and "no shape" alike, as an empty shape. `has_rank` tells them apart, but only new converters
    # write it; `_visit` decides for the others.
    return () if tensor["has_rank"] else None


def _signature(tensor: Table) -> Shape:
    """The shape with -1 for each free dimension. Converters write it beside `shape`, which has placeholders there."""
    signed = tensor["shape_signature"]
    return tuple(int(d) for d in (signed if len(signed) else tensor["shape"]))


def _check_input(model: Model, t: int) -> None:
    """Raises ModelError if more than the first dimension of a model input is free."""
    tensor = model.tensors[t]
    signature = _signature(tensor)
    if -1 in signature[1:]:
        raise ModelError(
            f"its shape {list(signature)} has more free dimensions than the batch",
            f"{model.where}: input '{tensor['name']}'",
            "convert the model with fixed input sizes; only the batch may be left free",
        )


def _visit(state: _Propagation, i: int, operator: Table) -> None:
    """Fold op i or infer the shapes of its outputs, if the file's own shapes cannot be trusted there."""
    kind = state.model.op_types[i]
    value = _folded_value(state, operator, kind)
    outputs = [int(t) for t in operator["outputs"]]
    if value is not None:
        _check_shape(state.model, outputs[0], value.shape, f"op {i} {kind}")
        state.values[outputs[0]], state.shapes[outputs[0]] = value, value.shape
        state.folded.add(i)
        return
    if not kind.startswith("CUSTOM"):
        # Builtin ops without a shape in the file give scalars; custom ops may give anything.
        for t in outputs:
            state.shapes[t] = () if state.shapes[t] is None else state.shapes[t]
    reads_folded = any(int(t) in state.values for t in operator["inputs"])
    if not reads_folded and not any(t in state.open for t in outputs):
        return
    inferred = inferred_shapes(state.model, i, state.shapes, state.values)
    for t, shape in zip(outputs, inferred, strict=True):
        if shape is not None:
            _check_shape(state.model, t, shape, f"op {i} {kind}")
            state.shapes[t] = shape
        elif t in state.open:
            state.shapes[t] = None  # a placeholder, not a shape


def _check_shape(model: Model, t: int, shape: Shape, place: str) -> None:
    """Raises ModelError if a shape that was worked out is impossible, or contradicts what the file says of it."""
    if len(shape) > _MOST_DIMENSIONS or not all(0 <= d <= _LARGEST_DIMENSION for d in shape):
        what = f"the shape of its output would be {list(shape)}"
        raise ModelError(what, f"{model.where}: {place}", "convert the model again")
    tensor = model.tensors[t]
    given = _signature(tensor)
    if not given and not tensor["has_rank"]:
        return  # no shape, or a scalar: files write them alike
    if len(given) != len(shape) or any(g not in (-1, d) for g, d in zip(given, shape, strict=True)):
        what = f"its output '{tensor['name']}' has shape {list(shape)}, the file says {list(given)}"
        raise ModelError(what, f"{model.where}: {place}", "convert the model again")


def _folded_value(state: _Propagation, operator: Table, kind: str) -> Value | None:
    """What an op computes from shapes and constants alone, starting at a SHAPE; None for other ops."""
    model = state.model
    outputs, read = [int(t) for t in operator["outputs"]], [int(t) for t in operator["inputs"]]
    if len(outputs) != 1 or not read or min(read) < 0:
        return None
    if outputs[0] in state.outputs:
        return None  # an output of the model must stay the output of an op
    type_name = model.tensor_types[outputs[0]]
    if type_name not in constant_folding.DTYPES:
        return None
    if kind == "SHAPE":
        return _shape_value(state, operator, read[0], type_name)
    # An op on ordinary constants alone is left to the runtime: only what starts at a SHAPE is folded.
    if not any(t in state.values for t in read) or not constant_folding.is_foldable(kind):
        return None
    if any(_is_quantised(model, t) for t in (*outputs, *read)):
        return None
    values = _foldable_values(state, read)
    if values is None:
        return None
    return constant_folding.folded(kind, values, operator["builtin_options"], constant_folding.DTYPES[type_name])


def _shape_value(state: _Propagation, operator: Table, t: int, type_name: str) -> Value | None:
    """What SHAPE gives for tensor t. type_name: element type of its output in the file.

    Kernels take the element type from the op's option; if the file says another one, nothing is folded.
    """
    options, shape = operator["builtin_options"], state.shapes[t]
    if shape is None or options is None or options.type != "ShapeOptions":
        return None
    types = schema().enums["TensorType"]
    if not 0 <= options["out_type"] < len(types) or types[options["out_type"]] != type_name:
        return None
    return np.array(shape, constant_folding.DTYPES[type_name])


def _foldable_values(state: _Propagation, read: Sequence[int]) -> list[Value] | None:
    """The values of these tensors; None unless all are known, small, and of an element type that is folded."""
    model = state.model
    size_bytes = 0
    for t in read:
        if model.tensor_types[t] not in constant_folding.DTYPES:
            return None
        data = state.values[t] if t in state.values else model.constants[t]
        if data is None:
            return None
        size_bytes += data.nbytes
    if size_bytes > _MOST_FOLDED_BYTES:
        return None
    values = [_known_value(model, t, state.values) for t in read]
    present = [value for value in values if value is not None]
    return present if len(present) == len(values) else None


def _is_quantised(model: Model, t: int) -> bool:
    quantisation = model.tensors[t]["quantization"]
    return quantisation is not None and len(quantisation["scale"]) > 0


def _known_value(model: Model, t: int, values: Mapping[int, Value]) -> Value | None:
    """The value of a constant tensor as an array of its shape.

    None for an activation, for an element type that no rule reads, and for a sparse constant, whose bytes are not its
    elements.
    """
    if t in values:
        return values[t]
    tensor = model.tensors[t]
    data, dtype = model.constants[t], _NUMPY.get(model.tensor_types[t])
    if data is None or dtype is None or tensor["sparsity"]:
        return None
    return data.view(dtype).reshape([abs(int(d)) for d in tensor["shape"]])
