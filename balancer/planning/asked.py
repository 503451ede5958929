"""What a plan was asked to keep to, and whether other ways to use the TPUs keep to it as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from balancer.solve import PipelineSpec, SolverOptions, StageSpec, evaluate
from balancer.solve.constraining import keeps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.planning.setting import Setting


@dataclass(frozen=True)
class Asked:
    """Limits and constraints of a plan. overflow: of `setting.OVERFLOW`."""

    options: SolverOptions
    overflow: str = "stream"

    def kept_by(self, setting: Setting, n_tpus: int, pipelines: Sequence[PipelineSpec]) -> bool:
        """Whether these pipelines keep to all of it, under the setting's costs."""
        options, problem = self.options, setting.problem(n_tpus, overflow=self.overflow)
        if evaluate(problem, pipelines) is None:
            return False
        one = options.stages is not None or bool(options.constraints)
        most = 1 if one else options.max_pipelines
        if most is not None and len(pipelines) > most:
            pipelines = _as_replicas(pipelines)
        return (
            (most is None or len(pipelines) <= most)
            and all(_within(pipeline, options) for pipeline in pipelines)
            and (not options.constraints or keeps(problem, pipelines[0], options.constraints))
        )


def _within(pipeline: PipelineSpec, options: SolverOptions) -> bool:
    most, stages = options.max_replicas, options.stages
    return (stages is None or len(pipeline.stages) == stages) and all(
        most is None or stage.replicas <= most for stage in pipeline.stages
    )


def _as_replicas(pipelines: Sequence[PipelineSpec]) -> Sequence[PipelineSpec]:
    """Copies of the whole model as one stage with so many replicas, which is the same thing."""
    if any(len(pipeline.stages) > 1 for pipeline in pipelines):
        return pipelines
    first = pipelines[0].stages[0]
    return [PipelineSpec((StageSpec(first.ops, first.kind, sum(pipeline.devices for pipeline in pipelines)),))]
