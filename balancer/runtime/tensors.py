"""Where the tensors of items on their way are kept: by reference within a process, in shared memory across processes.

A plan's tensors live from the stage that makes them (the model's inputs: from the start) to the last stage that reads
them (the model's outputs: to the end). In a process they are dropped there; in shared memory, where each item in flight
has a frame of its own, tensors whose lives do not overlap share the same bytes of the frame.

The shared memory has no name (memfd): it goes with the last process that has it open, however that ends.
"""

from __future__ import annotations

import math
import mmap
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from balancer.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from balancer.plan import Segment

_ALIGNMENT = 64
ENDLESS = 1 << 30  # the stage after all stages


class Tensors(Protocol):
    """The tensors of one item, by name."""

    def __getitem__(self, name: str, /) -> Any: ...

    def __setitem__(self, name: str, value: Any, /) -> None: ...

    def __contains__(self, name: object, /) -> bool: ...

    def pop(self, name: str, default: Any, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """shape: None where it is not known before it is there. Such a tensor stays out of shared memory, as does one of a
    type that numpy does not have.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Life:
    """made, read: index of the stage that makes it (-1: a model input) and of the last that reads it."""

    spec: TensorSpec
    made: int
    read: int


def _fits_memory(spec: TensorSpec) -> bool:
    try:
        return spec.shape is not None and math.prod(spec.shape) * np.dtype(spec.dtype).itemsize == spec.bytes
    except TypeError:
        return False


def lives(segments: Sequence[Segment], results: Iterable[str]) -> dict[str, Life]:
    """The lives of the tensors of one pipeline. results: names of the model's outputs."""
    final, found = set(results), dict[str, Life]()
    for k, segment in enumerate(segments):
        for tensor in segment.inputs:
            spec = TensorSpec(tensor.tensor, tensor.shape, tensor.dtype, tensor.bytes)
            before = found.get(tensor.tensor, Life(spec, -1, k))
            found[tensor.tensor] = Life(spec, before.made, max(before.read, k))
        for made in segment.outputs:
            spec = TensorSpec(made.tensor, made.shape, made.dtype, made.bytes)
            found[made.tensor] = Life(spec, k, ENDLESS if made.tensor in final else k)
    return found


def dead_after(found: Mapping[str, Life], stage: int) -> tuple[str, ...]:
    """The tensors that no later stage reads, and the caller does not get."""
    return tuple(name for name, life in found.items() if life.read == stage)


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """Where each tensor lies in a frame. spec by name; offset in bytes; size of a frame, in whole pages."""

    specs: dict[str, TensorSpec]
    offsets: dict[str, int]
    frame_bytes: int


def layout(pipelines: Sequence[Mapping[str, Life]]) -> FrameLayout:
    """One layout for the items of all pipelines."""
    merged = {n: life for found in pipelines for n, life in found.items() if _fits_memory(life.spec)}
    if len(pipelines) > 1:  # their stages are no common time
        merged = {name: Life(life.spec, -1, ENDLESS) for name, life in merged.items()}
    offsets: dict[str, int] = {}
    placed: list[tuple[int, int, Life]] = []
    for name, life in sorted(merged.items(), key=lambda pair: (-pair[1].spec.bytes, pair[0])):
        offset = _free_offset(life, placed)
        offsets[name] = offset
        placed.append((offset, offset + max(1, life.spec.bytes), life))
    size = max((end for _, end, _ in placed), default=1)
    return FrameLayout({n: life.spec for n, life in merged.items()}, offsets, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)


def _free_offset(life: Life, placed: Sequence[tuple[int, int, Life]]) -> int:
    """The lowest place where it meets no tensor that lives at the same time."""
    size, offset = max(1, life.spec.bytes), 0
    for start, end, other in sorted(placed, key=lambda entry: entry[0]):
        if other.made <= life.read and life.made <= other.read:
            if offset + size <= start:
                break
            offset = max(offset, -(-end // _ALIGNMENT) * _ALIGNMENT)
    return offset


class SharedFrames:
    """Frames in shared memory. fd: for a child that is to map them, too."""

    def __init__(self, plan: FrameLayout, count: int, fd: int | None = None) -> None:
        self.layout, self.count = plan, count
        size = plan.frame_bytes * count
        self.fd = -1 if fd is None else fd
        try:
            if fd is None:
                self.fd = os.memfd_create("balancer")
                os.ftruncate(self.fd, size)
            self._memory = mmap.mmap(self.fd, size)
        except OSError as error:
            if self.fd >= 0:
                os.close(self.fd)
            raise PlanError(
                f"{size} bytes of shared memory are not to be had ({error.strerror})", "pipeline", "use a shorter queue"
            ) from error
        self._views = [self._view(k) for k in range(count)]

    def _view(self, frame: int) -> dict[str, Any]:
        base = frame * self.layout.frame_bytes
        return {
            name: np.ndarray(spec.shape or (), np.dtype(spec.dtype), self._memory, base + self.layout.offsets[name])
            for name, spec in self.layout.specs.items()
        }

    def view(self, frame: int) -> dict[str, Any]:
        """Arrays on the frame's memory, by tensor."""
        return self._views[frame]

    def close(self) -> None:
        """Give it back. Arrays on it that somebody still holds keep it until they go."""
        self._views.clear()
        with suppress(BufferError):
            self._memory.close()
        os.close(self.fd)


class FrameTensors:
    """An item's tensors in a frame; those of unknown shape beside it. Like a dict, but that values are copied in."""

    def __init__(self, frame: int, views: Mapping[str, Any]) -> None:
        self.frame = frame
        self.beside: dict[str, Any] = {}
        self._views = views

    def __getitem__(self, name: str) -> Any:
        return self._views[name] if name in self._views else self.beside[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self._views:
            if self._views[name] is not value:
                self._views[name][...] = value
        else:
            self.beside[name] = value

    def __contains__(self, name: object) -> bool:
        return name in self._views or name in self.beside

    def pop(self, name: str, default: Any) -> Any:
        """What is in the frame stays until the frame is used again."""
        return self.beside.pop(name, default)
