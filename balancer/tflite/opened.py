"""A model's file, opened once: its bytes, its graph, and what cuts segments out of it.

Whoever needs the model after that takes this record, so that the file is decoded once on its way from `balance` to the
files of a plan.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.tflite.cut import Cutter
from balancer.tflite.read import read_model_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from balancer.graph import Graph


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """data: the file's bytes, which nobody changes. path: where they were read, None where they were given as bytes."""

    data: bytes
    path: Path | None
    cutter: Cutter

    @property
    def graph(self) -> Graph:
        return self.cutter.graph

    @property
    def name(self) -> str:
        """The model's name without ending, from which the names of its segments are made."""
        return self.graph.name

    @property
    def where(self) -> str:
        """What messages call it."""
        return "model" if self.path is None else str(self.path)

    def __reduce__(self) -> tuple[Callable[..., OpenedModel], tuple[bytes, Path | None, str]]:
        """Pickled as its bytes alone, and decoded again: what is decoded takes as much memory once more."""
        return _reopened, (self.data, self.path, self.name)

    @cached_property
    def inline(self) -> bytes:
        """The model with all constants in its flatbuffer: `data` itself wherever that is so, else a copy.

        Raises ModelError if a copy would be larger than 2 GiB.
        """
        return self.cutter.inline() or self.data

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def open_model(model: str | Path | bytes) -> OpenedModel:
    """A full-integer .tflite file, by its path or as its bytes; then its name is "model".

    Raises ModelError where it is no such model; the message names the place and the remedy.
    """
    if isinstance(model, bytes):
        return opened_model(model, None, name="model")
    path = Path(model)
    return opened_model(read_model_bytes(path), path, name=path.stem)


def opened_model(data: bytes, path: Path | None, *, name: str) -> OpenedModel:
    """The same for bytes that were read before. Raises ModelError."""
    return OpenedModel(data, path, Cutter(data, name=name, where=None if path is None else str(path)))


def _reopened(data: bytes, path: Path | None, name: str) -> OpenedModel:
    return opened_model(data, path, name=name)
