"""The inputs of `run`: arrays of a file, or pictures of a folder, read one at a time.

Each input keeps its name through the run, so that results and failures can name their file.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from balancer.errors import BalancerError, StageError
from balancer.inputs import load_items
from balancer.runtime.images import image_files, load_image
from balancer.workers import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from balancer.inputs import InputSpec, Item
    from balancer.runtime.items import Result

    class Run(Protocol):
        """Runs items, as `Pipeline.map` does."""

        def __call__(self, items: Iterable[Item], /) -> Iterable[Result | Failure]:
            """A result or Failure for each item, in their order. Raises StageError."""


@dataclass(frozen=True, slots=True)
class Given:
    """One input, not read yet.

    name: for its result. where: its file and its place in it, for messages. load: reads it; raises BalancerError if it
    cannot be read.
    """

    name: str
    where: str
    load: Callable[[], Item]


@dataclass(frozen=True, slots=True)
class InputOutcome:
    """The outcome for one input. result: its outputs by tensor name; None if it failed. failure: then the reason."""

    given: Given
    result: Result | None
    failure: str = ""


def given_inputs(path: Path, specs: Sequence[InputSpec]) -> list[Given]:
    """The inputs in a file of arrays, or in a folder of pictures. Raises InputError if the path is neither."""
    if path.is_dir():
        return [
            Given(f"{k:06}_{picture.stem}", str(picture), partial(_picture, picture, specs[0]))
            for k, picture in enumerate(image_files(path))
        ]
    return [
        Given(f"{path.stem}_{k:06}", f"{path}, item {k}", partial(dict, item))
        for k, item in enumerate(load_items(path, specs))
    ]


def _picture(path: Path, spec: InputSpec) -> Item:
    return {spec.name: load_image(path, spec)}


@dataclass(slots=True)
class Reading:
    """Reads inputs one at a time.

    going_on: what to do with an input that cannot be read. If true, it is added to `unread` and skipped; if false, the
    error is raised.
    """

    given: Sequence[Given]
    going_on: bool
    unread: list[InputOutcome] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[Given, Item]]:
        for one in self.given:
            try:
                item = one.load()
            except BalancerError as error:
                if not self.going_on:
                    raise
                self.unread.append(InputOutcome(one, None, str(error)))
                continue
            yield one, item

    def at_once(self) -> list[Item]:
        """Read all inputs now, and keep them in memory, so that they are not read a second time."""
        read = list(self)
        self.given = [replace(one, load=partial(dict, item)) for one, item in read]
        return [item for _, item in read]


def outcomes(reading: Reading, run: Run) -> Iterator[InputOutcome]:
    """The outcome for each input: first the inputs that are run, in their order, then those that could not be read.

    Raises what `run` raises; a StageError then names the file of the input that it was raised for.
    """
    handed: list[Given] = []

    def items() -> Iterator[Item]:
        for one, item in reading:
            handed.append(one)
            yield item

    done = 0
    try:
        for result in run(items()):
            one, done = handed[done], done + 1
            yield _outcome(one, result)
    except StageError as error:
        if done == len(handed):  # all inputs have results, so the error is not about one of them
            raise
        what, where, remedy = error.args
        raise StageError(what, f"{handed[done].where}: {where}", remedy) from error
    yield from reading.unread


def _outcome(one: Given, result: Result | Failure) -> InputOutcome:
    if isinstance(result, Failure):
        return InputOutcome(one, None, f"{one.where}: {result.error}")
    return InputOutcome(one, result)
