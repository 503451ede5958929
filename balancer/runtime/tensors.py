"""Where the tensors of items in flight are kept: by reference within a process, in shared memory across processes.

A tensor lives from the stage that makes it (a model input: from the start) to the last stage that reads it (a model
output: to the end). Within a process it is dropped after that stage. In shared memory each item in flight has a frame
of its own, and tensors of one frame whose lives do not overlap share the same bytes:

    stage        0    1    2           frame 0                     frame 1               frame count-1
                                       +-----------------------+   +-----------------+   +---------------+
    input     ====                     | input, then b | out   |   | ...             |   | ...           |
    a         =======                  | a                     |   |                 |   |               |
    b              =======             +-----------------------+   +-----------------+   +---------------+
    out                 ======= end    0        frame_bytes, in whole pages; offsets are multiples of 64

Item k uses frame k % count. Items in flight have consecutive numbers, and there are no more of them than frames, so no
two of them meet in one frame.

The shared memory has no name (memfd): the kernel frees it when the last process that has it open ends, in whatever way.
"""

from __future__ import annotations

import math
import mmap
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from balancer.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from balancer.inputs import Array
    from balancer.plan import Segment

_ALIGNMENT = 64  # bytes: a cache line, and more than any element type needs
ENDLESS = 1 << 30  # a stage after all stages


class Tensors(Protocol):
    """The tensors of one item, by name."""

    def __getitem__(self, name: str, /) -> Array: ...

    def __setitem__(self, name: str, value: Array, /) -> None: ...

    def __contains__(self, name: object, /) -> bool: ...

    def pop(self, name: str, default: None, /) -> Array | None: ...


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that crosses a boundary. shape: None where it is only known once the tensor is computed.

    A tensor without a shape, or of an element type that numpy does not have, stays out of shared memory.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Life:
    """When a tensor is needed. made: index of the stage that makes it, -1 for a model input. read: index of the last
    stage that reads it, ENDLESS for a model output.
    """

    spec: TensorSpec
    made: int
    read: int


def _fits_memory(spec: TensorSpec) -> bool:
    try:
        return spec.shape is not None and math.prod(spec.shape) * np.dtype(spec.dtype).itemsize == spec.bytes
    except TypeError:
        return False


def lives(segments: Sequence[Segment], results: Iterable[str]) -> dict[str, Life]:
    """The lives of one pipeline's tensors, by name. segments: one a stage. results: names of the model's outputs."""
    final, by_name = set(results), dict[str, Life]()
    for k, segment in enumerate(segments):
        for tensor in segment.inputs:
            spec = TensorSpec(tensor.tensor, tensor.shape, tensor.dtype, tensor.bytes)
            before = by_name.get(tensor.tensor, Life(spec, -1, k))
            by_name[tensor.tensor] = Life(spec, before.made, max(before.read, k))
        for made in segment.outputs:
            spec = TensorSpec(made.tensor, made.shape, made.dtype, made.bytes)
            by_name[made.tensor] = Life(spec, k, ENDLESS if made.tensor in final else k)
    return by_name


def dead_after(tensor_lives: Mapping[str, Life], stage: int) -> tuple[str, ...]:
    """The tensors whose last reader is this stage.

    >>> spec = TensorSpec("a", (1,), "int8", 1)
    >>> dead_after({"a": Life(spec, made=0, read=1), "b": Life(spec, made=1, read=ENDLESS)}, 1)
    ('a',)
    """
    return tuple(name for name, life in tensor_lives.items() if life.read == stage)


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """Where each tensor lies in a frame. specs, offsets: by tensor name, offsets in bytes. frame_bytes: whole pages."""

    specs: dict[str, TensorSpec]
    offsets: dict[str, int]
    frame_bytes: int


def layout(pipelines: Sequence[Mapping[str, Life]]) -> FrameLayout:
    """One layout for the items of all pipelines. pipelines: the lives of each one's tensors.

    First fit, largest tensor first.
    """
    merged = {n: life for one in pipelines for n, life in one.items() if _fits_memory(life.spec)}
    if len(pipelines) > 1:
        # Stage 1 of one pipeline is another part of the model than stage 1 of the other, so lives cannot be compared:
        # each tensor gets bytes of its own.
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
    """The lowest offset at which the tensor overlaps no placed one (start, end, life) that lives at the same time."""
    size, offset = max(1, life.spec.bytes), 0
    for start, end, other in sorted(placed, key=lambda entry: entry[0]):
        if other.made <= life.read and life.made <= other.read:
            if offset + size <= start:
                break
            offset = max(offset, -(-end // _ALIGNMENT) * _ALIGNMENT)
    return offset


class SharedFrames:
    """Frames in shared memory, for the parent and the child processes that map the same memory."""

    def __init__(self, frame_layout: FrameLayout, count: int, fd: int | None = None) -> None:
        """count: frames. fd: the memory's file descriptor in a child; None makes new memory.

        Raises PlanError where the system does not give the memory.
        """
        self.layout, self.count = frame_layout, count
        size = frame_layout.frame_bytes * count
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
                f"the system does not give {size} bytes of shared memory ({error.strerror})", "pipeline",
                "use a shorter queue",
            ) from error  # fmt: skip
        self._views = [self._view(k) for k in range(count)]

    def _view(self, frame: int) -> dict[str, Array]:
        base = frame * self.layout.frame_bytes
        return {
            name: np.ndarray(spec.shape or (), np.dtype(spec.dtype), self._memory, base + self.layout.offsets[name])
            for name, spec in self.layout.specs.items()
        }

    def view(self, frame: int) -> dict[str, Array]:
        """Arrays on the frame's memory, by tensor name."""
        return self._views[frame]

    def close(self) -> None:
        """Give the memory back. Arrays on it that somebody still holds keep it until they are gone."""
        self._views.clear()
        with suppress(BufferError):  # raised while there are such arrays
            self._memory.close()
        os.close(self.fd)


class FrameTensors:
    """An item's tensors in a frame. Like a dict, but values are copied into the frame.

    beside: tensors that have no place in the frame, as their shape was not known; they are pickled instead.
    """

    def __init__(self, frame: int, views: Mapping[str, Array]) -> None:
        """frame: its index. views: as `SharedFrames.view` gives them."""
        self.frame = frame
        self.beside: dict[str, Array] = {}
        self._views = views

    def __getitem__(self, name: str) -> Array:
        return self._views[name] if name in self._views else self.beside[name]

    def __setitem__(self, name: str, value: Array) -> None:
        if name in self._views:
            if self._views[name] is not value:
                self._views[name][...] = value
        else:
            self.beside[name] = value

    def __contains__(self, name: object) -> bool:
        """True for every tensor of the frame: whether it was computed yet is not recorded."""
        return name in self._views or name in self.beside

    def pop(self, name: str, default: None) -> Array | None:
        """Drop a tensor beside the frame. One in the frame stays until the frame is used again."""
        return self.beside.pop(name, default)
