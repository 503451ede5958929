"""Arrays to run a model on: from files, or at random."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.arrays import load_arrays
from balancer.errors import InputError
from balancer.graph import boundary_names

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from balancer.graph import Graph
    from balancer.ground.opsets import OpSet

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model. low, high: the range of useful float values; unused for integers."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    low: float = -1.0
    high: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelInterface:
    """A model's inputs, and the names of its outputs, in the model's order. stateful: its ops that hold state."""

    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    stateful: OpSet = 0


def model_interface(graph: Graph) -> ModelInterface:
    """What the model takes and gives. Names are those of the segments' files; float inputs have the range that the op
    which quantises them can tell apart.
    """
    names = boundary_names(graph, [])
    inputs = tuple(_input_spec(graph, t, names[t]) for t in dict.fromkeys(graph.inputs))
    return ModelInterface(inputs, tuple(names[t] for t in dict.fromkeys(graph.outputs)), graph.stateful)


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
    """`count` items of uniform noise: integers of 8 bits over their whole range, wider ones 0 or 1, floats low to
    high.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    return [{spec.name: _noise(spec, generator) for spec in specs} for _ in range(count)]


def _noise(spec: InputSpec, generator: np.random.Generator) -> Any:
    dtype = _numpy_type(spec)
    if dtype.kind == "f":
        return generator.uniform(spec.low, spec.high, spec.shape).astype(dtype)
    if dtype.itemsize == 1 and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max + 1, spec.shape).astype(dtype)
    return generator.integers(0, 2, spec.shape).astype(dtype)


def npz_bytes(arrays: Item) -> bytes:
    """A .npz file of these arrays by name, as `load_items` reads it."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def load_items(path: Path, specs: Sequence[InputSpec]) -> list[Item]:
    """Items from a .npy file (a model with one input) or a .npz file (arrays by tensor name); the leading axis counts
    them.

    A leading axis of items may stand before the input's shape or in place of its batch of 1. Raises InputError where
    the file does not fit the model.
    """
    arrays = _arrays(path, specs)
    counts = set()
    per_item: dict[str, list[Any]] = {}
    for spec in specs:
        if spec.name not in arrays:
            raise InputError(
                f"has no array for input '{spec.name}'", str(path), f"give one of shape {list(spec.shape)}"
            )
        per_item[spec.name] = _split(arrays[spec.name], spec, path)
        counts.add(len(per_item[spec.name]))
    if len(counts) != 1 or counts == {0}:
        raise InputError(f"the inputs have {sorted(counts)} items", str(path), "give as many of each, at least one")
    return [dict(zip(per_item, values, strict=True)) for values in zip(*per_item.values(), strict=True)]


def _arrays(path: Path, specs: Sequence[InputSpec]) -> dict[str, Any]:
    loaded = load_arrays(path, {spec.name for spec in specs})
    if isinstance(loaded, dict):
        return loaded
    if len(specs) != 1:
        raise InputError(f"is one array, the model has {len(specs)} inputs", str(path), "give a .npz by tensor name")
    return {specs[0].name: loaded}


def _split(array: Any, spec: InputSpec, path: Path) -> list[Any]:
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
