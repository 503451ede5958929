"""A plan's partition with other numbers of TPUs."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balancer.plan import Plan


def with_replicas(plan: Plan, replicas: list[list[int]]) -> Plan:
    """The same partition in several pipelines, its stages with so many TPUs."""
    tpu, pipelines = itertools.count(), []
    for counts in replicas:
        stages = tuple(
            replace(stage, replicas=n, tpus=tuple(next(tpu) for _ in range(n)))
            for stage, n in zip(plan.pipelines[0].stages, counts, strict=True)
        )
        pipelines.append(replace(plan.pipelines[0], stages=stages))
    return replace(plan, pipelines=tuple(pipelines), n_tpus=next(tpu))
