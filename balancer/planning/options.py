"""What a plan is held to, as a caller asks for it and as a plan remembers it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from balancer.plan import HeldTo, Limits, OpAtStage
from balancer.plan.remembered import LARGEST
from balancer.planning.checks import check_count
from balancer.planning.setting import OVERFLOW, STREAM
from balancer.solve import Constraints, PipelineSpec, SolverOptions, StageSpec, evaluate
from balancer.solve.constraining import keeps

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.planning.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What plans are held to, and how they are searched for. `balance`, `refine` and `tune` take the same record.

    pipelines: at most so many side by side; replicas: at most so many TPUs a stage; None for any number. stages: exactly so
    many segments, in one pipeline. overflow: "stream" takes the highest rate; "error" refuses plans in which a segment
    streams parameters for want of capacity; None is "stream" until a compiler has contradicted the predicted memory, and
    then takes such plans only where there is no other. constraints: what else a pipeline must keep to; then there is one
    pipeline. solver: a name of `balancer.solve.SOLVERS`. seconds: of wall time for each search, None for limits that count
    work alone.
    """

    pipelines: int | None = None
    replicas: int | None = None
    stages: int | None = None
    overflow: str | None = None
    constraints: Constraints = field(default_factory=Constraints)
    solver: str = "auto"
    seconds: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        for name, number in (("pipelines", self.pipelines), ("replicas", self.replicas), ("stages", self.stages)):
            if number is not None:
                check_count(name, number)
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds must be above 0, not {self.seconds!r}")
        if self.overflow is not None and self.overflow not in OVERFLOW:
            raise ValueError(f"overflow must be one of {OVERFLOW}, not {self.overflow!r}")

    @property
    def for_solver(self) -> SolverOptions:
        """As solvers take them, which know nothing of overflow."""
        return SolverOptions(
            max_pipelines=self.pipelines, max_replicas=self.replicas, stages=self.stages, solver=self.solver,
            constraints=self.constraints, seconds=self.seconds,
        )  # fmt: skip

    @property
    def overflow_now(self) -> str:
        """The rule for overflow while no compiler has contradicted the predicted memory."""
        return self.overflow or STREAM

    @property
    def held_to(self) -> HeldTo:
        """As a plan remembers them."""
        limits = _limits(self.constraints) if self.constraints else None
        return HeldTo(
            pipelines=self.pipelines, replicas=self.replicas, stages=self.stages, overflow=self.overflow, limits=limits
        )

    def kept_by(self, setting: Setting, n_tpus: int, pipelines: Sequence[PipelineSpec]) -> bool:
        """Whether these pipelines keep to all of it, under the setting's costs."""
        problem = setting.problem(n_tpus, overflow=self.overflow_now)
        if evaluate(problem, pipelines) is None:
            return False
        one = self.stages is not None or bool(self.constraints)
        most = 1 if one else self.pipelines
        if most is not None and len(pipelines) > most:
            pipelines = _as_replicas(pipelines)
        return (
            (most is None or len(pipelines) <= most)
            and all(self._allows(pipeline) for pipeline in pipelines)
            and (not self.constraints or keeps(problem, pipelines[0], self.constraints))
        )

    def _allows(self, pipeline: PipelineSpec) -> bool:
        return self.stages in (None, len(pipeline.stages)) and all(
            self.replicas is None or stage.replicas <= self.replicas for stage in pipeline.stages
        )


def _as_replicas(pipelines: Sequence[PipelineSpec]) -> Sequence[PipelineSpec]:
    """Copies of the whole model as one stage with so many replicas, which is the same thing."""
    if any(len(pipeline.stages) > 1 for pipeline in pipelines):
        return pipelines
    first = pipelines[0].stages[0]
    replicas = sum(pipeline.devices for pipeline in pipelines)
    return [PipelineSpec((StageSpec(first.ops, first.kind, replicas),))]


def options_of(held: HeldTo) -> Options:
    """The options of a plan that was held to this."""
    constraints = _constraints(held.limits) if held.limits else Constraints()
    return Options(
        pipelines=held.pipelines,
        replicas=held.replicas,
        stages=held.stages,
        overflow=held.overflow,
        constraints=constraints,
    )


def _limits(constraints: Constraints) -> Limits:
    return Limits(
        pinned=_placed(constraints.pinned.items()), kept_from=_placed(constraints.kept_from),
        together=constraints.together, max_boundary_tensors=_stored(constraints.max_boundary_tensors),
        max_boundary_bytes=_stored(constraints.max_boundary_bytes),
        max_segment_bytes=_stored(constraints.max_segment_bytes), max_latency_ns=_stored(constraints.max_latency_ns),
        max_objective_ns=_stored(constraints.max_objective_ns),
    )  # fmt: skip


def _stored(most: int | None) -> int | None:
    """A limit as a file can hold it: a larger one would limit nothing, either."""
    return None if most is None else min(most, LARGEST)


def _constraints(limits: Limits) -> Constraints:
    return Constraints(
        pinned={p.op: p.stage for p in limits.pinned}, kept_from=frozenset((p.op, p.stage) for p in limits.kept_from),
        together=limits.together, max_boundary_tensors=limits.max_boundary_tensors,
        max_boundary_bytes=limits.max_boundary_bytes, max_segment_bytes=limits.max_segment_bytes,
        max_latency_ns=limits.max_latency_ns, max_objective_ns=limits.max_objective_ns,
    )  # fmt: skip


def _placed(pairs: Iterable[tuple[int, int]]) -> tuple[OpAtStage, ...]:
    return tuple(OpAtStage(op=op, stage=stage) for op, stage in sorted(pairs))
