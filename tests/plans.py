"""Plans in their directories, as tests need them: cut from a synthetic model, or with other numbers of TPUs."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import balancer
from balancer.ground.opsets import interval_set
from balancer.planning.asked_devices import devices_asked
from balancer.planning.assembling import assemble
from balancer.planning.costed_model import open_costed_model
from balancer.solve import Ended, PipelineSpec, Solution, StageSpec, evaluate
from balancer.tflite import synth

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from balancer.plan import Plan

WIDE = synth.fc(1800, layers=6)  # streams on one TPU and on two


def three_stages(folder: Path, model: bytes) -> Plan:
    """The plan of `folder/net.tflite` in three stages of one TPU each, saved in `folder/plan`."""
    (folder / "net.tflite").write_bytes(model)
    return balancer.save(
        balancer.balance(folder / "net.tflite", 3, options=balancer.Options(stages=3)), folder / "plan"
    )


def on_kinds(folder: Path, model: bytes, kinds: Sequence[str]) -> Plan:
    """The plan of `folder/net.tflite` in stages of about as many ops, one device of these kinds for each; saved in
    `folder/plan`.
    """
    (folder / "net.tflite").write_bytes(model)
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    costed = open_costed_model(folder / "net.tflite", devices_asked(counts))
    n_ops = len(costed.graph.ops)
    edges = [n_ops * k // len(kinds) for k in range(len(kinds) + 1)]
    pipeline = PipelineSpec(
        tuple(
            StageSpec(interval_set(a, b), kind) for (a, b), kind in zip(itertools.pairwise(edges), kinds, strict=True)
        )
    )
    value = evaluate(costed.problem(), [pipeline])
    assert value is not None
    given = Solution(
        solver="given", pipelines=(pipeline,), value=value, bound_ns=None, over="nothing", ended=Ended.NOT_SEARCHED
    )
    return balancer.save(assemble(costed, given, ()), folder / "plan")


def with_replicas(plan: Plan, replicas: list[list[int]]) -> Plan:
    """The same partition in several pipelines, its stages with so many devices of their kinds."""
    numbers, pipelines = defaultdict[str, "itertools.count[int]"](itertools.count), []
    for counts in replicas:
        stages = tuple(
            replace(stage, replicas=n, tpus=tuple(itertools.islice(numbers[stage.kind], n)))
            for stage, n in zip(plan.pipelines[0].stages, counts, strict=True)
        )
        pipelines.append(replace(plan.pipelines[0], stages=stages))
    return replace(plan, pipelines=tuple(pipelines), n_tpus=sum(map(sum, replicas)))


def on_kind(plan: Plan, name: str) -> Plan:
    """The plan as if it was made for the same number of Edge TPUs of a kind with this name."""
    pipelines = (replace(p, stages=tuple(replace(stage, kind=name) for stage in p.stages)) for p in plan.pipelines)
    (devices,) = plan.devices
    return replace(
        plan,
        hardware=replace(plan.hardware, name=name),
        devices=(replace(devices, kind=name),),
        pipelines=tuple(pipelines),
    )
