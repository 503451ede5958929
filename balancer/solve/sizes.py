"""The sizes of pipelines: how many stages and devices they have, by kind, and numbers for such counts.

A pipeline's stages are counted by what they ask of the host: kinds whose stages take equal host work are one class. So the
host's work follows from a pipeline's size. With devices of one kind, a size is a number of stages and a number of devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from balancer.ground.arrays import IntArray
    from balancer.solve.problem import Problem

Counts = tuple[int, ...]  # of devices by kind, or of stages by class


@dataclass(frozen=True)
class CountNumbers:
    """Numbers for vectors of counts, a mixed-radix code: 0 stands for no counts, the last number for `most`."""

    most: Counts

    @cached_property
    def vectors(self) -> list[Counts]:
        """The counts that each number stands for."""
        return list(product(*(range(count + 1) for count in self.most)))

    @cached_property
    def counts(self) -> IntArray:
        """[number, entry]: the same as an array."""
        return np.array(self.vectors)

    @cached_property
    def strides(self) -> list[int]:
        """For each entry, what one more adds to the number: states advance by an addition, not a look-up."""
        return [math.prod(count + 1 for count in self.most[k + 1 :]) for k in range(len(self.most))]

    @cached_property
    def totals(self) -> IntArray:
        """[number]: the sum of the counts."""
        total: IntArray = self.counts.sum(axis=1)
        return total

    def number(self, counts: Counts) -> int:
        """The number that stands for these counts."""
        return sum(count * stride for count, stride in zip(counts, self.strides, strict=True))


@dataclass(frozen=True)
class StageClasses:
    """Classes of kinds whose stages take equal host work. of_kind: the class of each kind. host_ns: of each class."""

    of_kind: tuple[int, ...]
    host_ns: tuple[int, ...]

    def counts(self, kinds: Counts) -> Counts:
        """Counts by class from counts by kind."""
        return tuple(
            sum(count for count, own in zip(kinds, self.of_kind, strict=True) if own == k)
            for k in range(len(self.host_ns))
        )

    def work_ns(self, stages: Counts) -> int:
        """The host's work for one input in a pipeline of these stages."""
        return sum(count * ns for count, ns in zip(stages, self.host_ns, strict=True))


def stage_classes(problem: Problem) -> StageClasses:
    """The classes of a problem's kinds, in the order in which they are named first."""
    host_ns = [problem.host_ns.get(kind, 0) for kind, _ in problem.devices]
    distinct = list(dict.fromkeys(host_ns))
    return StageClasses(tuple(distinct.index(ns) for ns in host_ns), tuple(distinct))
