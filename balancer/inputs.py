"""Arrays to run a model on: from files, or at random."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.arrays import load_arrays
from balancer.errors import InputError
from balancer.graph import boundary_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from balancer.graph import Graph, Tensor
    from balancer.ground.opsets import OpSet

Array = NDArray[Any]  # of any element type and shape: a model decides
Item = dict[str, Array]  # a model's inputs, or its outputs, by tensor name


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model. dtype: a numpy name. low, high: range of useful values of a float input; else unused."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    low: float = -1.0
    high: float = 1.0


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How the integers of a tensor stand for real numbers: real = scale * (integer - zero_point)."""

    scale: float
    zero_point: int

    def integers(self, values: ArrayLike, dtype: str) -> Array:
        """The nearest integers of this numpy type, of two equally near ones the even one; what is outside the type's
        range becomes its lowest or highest value.

        >>> Quantisation(0.5, -128).integers([-1.0, 0.0, 3.5, 1000.0], "int8").tolist()
        [-128, -128, -121, 127]
        """
        limits = np.iinfo(dtype)
        steps = np.rint(np.asarray(values, np.float64) / self.scale) + self.zero_point
        integers: Array = np.clip(steps, limits.min, limits.max).astype(dtype)
        return integers

    def reals(self, integers: ArrayLike) -> NDArray[np.float32]:
        """The real numbers that the integers stand for.

        >>> Quantisation(0.5, -128).reals([-128, -121]).tolist()
        [0.0, 3.5]
        """
        return (np.asarray(integers, np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)


@dataclass(frozen=True, slots=True)
class ModelInterface:
    """A model's inputs, and the names of its outputs, in the model's order. stateful: its ops that hold state.

    quantisation: by name, of those inputs and outputs that have one; a float tensor has none.
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    stateful: OpSet = 0
    quantisation: Mapping[str, Quantisation] = field(default_factory=dict)


def model_interface(graph: Graph) -> ModelInterface:
    """What the model takes and gives. Names are those of the segments' files; float inputs have the range that the op
    which quantises them can tell apart.
    """
    names = boundary_names(graph, [])
    inputs = tuple(_input_spec(graph, t, names[t]) for t in dict.fromkeys(graph.inputs))
    outputs = tuple(names[t] for t in dict.fromkeys(graph.outputs))
    found = {names[t]: _quantisation(graph.tensors[t]) for t in (*graph.inputs, *graph.outputs)}
    return ModelInterface(inputs, outputs, graph.stateful, {name: q for name, q in found.items() if q is not None})


def _quantisation(tensor: Tensor) -> Quantisation | None:
    """None where the file gives an activation none, or one that means nothing."""
    if "int" not in tensor.dtype or len(tensor.scales) != 1 or len(tensor.zero_points) != 1:
        return None
    (scale,), (zero_point,) = tensor.scales, tensor.zero_points
    return Quantisation(scale, zero_point) if 0 < scale < math.inf else None


def _input_spec(graph: Graph, t: int, name: str) -> InputSpec:
    tensor = graph.tensors[t]
    for reader in graph.readers.get(t, ()):
        op = graph.ops[reader]
        if op.type != "QUANTIZE" or not op.outputs:
            continue
        made = graph.tensors[op.outputs[0]]
        if made.scales and made.zero_points:
            lowest = 0 if made.dtype == "uint8" else -128
            low = (lowest - made.zero_points[0]) * made.scales[0]
            return InputSpec(name, tensor.shape or (), tensor.dtype, low, low + 255 * made.scales[0])
    return InputSpec(name, tensor.shape or (), tensor.dtype)


def random_items(specs: Sequence[InputSpec], count: int, seed: int = 0) -> list[Item]:
    """Items of uniform noise: 8-bit integers over their whole range, wider ones 0 or 1, floats from low to high.

    The same seed gives the same items. Raises InputError where an input's element type is unknown to numpy.

    >>> (item,) = random_items([InputSpec("in", (1, 3), "int8")], 1)
    >>> item["in"].shape, item["in"].dtype.name
    ((1, 3), 'int8')
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    return [{spec.name: _noise(spec, generator) for spec in specs} for _ in range(count)]


def _noise(spec: InputSpec, generator: np.random.Generator) -> Array:
    dtype = _numpy_type(spec)
    if dtype.kind == "f":
        return generator.uniform(spec.low, spec.high, spec.shape).astype(dtype)
    if dtype.itemsize == 1 and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max + 1, spec.shape).astype(dtype)
    return generator.integers(0, 2, spec.shape).astype(dtype)


def npz_bytes(arrays: Mapping[str, Array]) -> bytes:
    """A .npz file of these arrays by name, as `load_items` reads it."""
    buffer = io.BytesIO()
    members: dict[str, Any] = dict(arrays)
    np.savez(buffer, **members)
    return buffer.getvalue()


def load_items(path: Path, specs: Sequence[InputSpec]) -> list[Item]:
    """Items from a .npy file (for a model with one input) or a .npz file (arrays by tensor name).

    The leading axis counts the items. It stands before the input's shape, or in place of its batch of 1. Raises
    InputError where the file does not fit the model.
    """
    arrays = _arrays(path, specs)
    counts = set()
    per_item: dict[str, list[Array]] = {}
    for spec in specs:
        if spec.name not in arrays:
            raise InputError(
                f"has no array for input '{spec.name}'", str(path), f"give one of shape {list(spec.shape)}"
            )
        per_item[spec.name] = _split(arrays[spec.name], spec, path)
        counts.add(len(per_item[spec.name]))
    if len(counts) != 1 or counts == {0}:
        raise InputError(
            f"the inputs have {sorted(counts)} items", str(path), "give the same number of each, at least one"
        )
    return [dict(zip(per_item, values, strict=True)) for values in zip(*per_item.values(), strict=True)]


def _arrays(path: Path, specs: Sequence[InputSpec]) -> Item:
    loaded = load_arrays(path, {spec.name for spec in specs})
    if isinstance(loaded, dict):
        return loaded
    if len(specs) != 1:
        raise InputError(f"is one array, the model has {len(specs)} inputs", str(path), "give a .npz by tensor name")
    return {specs[0].name: loaded}


def _split(array: Array, spec: InputSpec, path: Path) -> list[Array]:
    """The array's items, each with the input's shape. Raises InputError where it does not fit the input."""
    wanted = _numpy_type(spec)
    if array.dtype != wanted:
        raise InputError(f"input '{spec.name}' is {array.dtype}", str(path), f"convert it to {wanted}")
    if array.ndim and array.shape[1:] == spec.shape:
        return [np.ascontiguousarray(item) for item in array]
    if spec.shape[:1] == (1,) and array.ndim and array.shape[1:] == spec.shape[1:]:
        return [np.ascontiguousarray(item[None]) for item in array]
    raise InputError(
        f"input '{spec.name}' has shape {list(array.shape)}", str(path), f"give items of shape {list(spec.shape)}"
    )


def _numpy_type(spec: InputSpec) -> np.dtype[Any]:
    try:
        return np.dtype(spec.dtype)
    except TypeError as error:
        raise InputError(f"has element type {spec.dtype}", f"input '{spec.name}'", "this type cannot be fed") from error
