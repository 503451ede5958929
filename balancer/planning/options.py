"""The limits that a plan is solved with: as a caller gives them (`Options`), and as a plan remembers them (`HeldTo`)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from balancer.plan import HeldTo, Limits, OpAtStage
from balancer.plan.remembered import LARGEST
from balancer.planning.checks import check_count
from balancer.planning.costed_model import COMPILABLE, OVERFLOW, STREAM
from balancer.solve import SOLVERS, Constraints, PipelineSpec, SolverOptions, StageSpec, evaluate
from balancer.solve.constraining import keeps

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.cost.compilable import Compilable
    from balancer.planning.costed_model import CostedModel
    from balancer.solve import Deadline

_LEAST_SECONDS = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Limits on plans, and how to search for them. `balance`, `refine` and `tune` all take this record.

    pipelines: the largest number of pipelines side by side; None for any. replicas: the largest number of TPUs for one
    stage; None for any. stages: the exact number of stages, in one pipeline; None for any. overflow: what to do with plans
    that stream parameters for lack of on-chip memory. "stream": take the plan with the highest rate. "error": refuse them.
    None: as "stream", but after the compiler has contradicted the predicted memory, prefer plans without overflow.
    compilable: which segments a plan may have, as judged before any compiler runs. "any": all. "likely": none that surely
    fails to compile. "sure": only those that surely compile. None: the fastest plan that surely compiles; where there is
    none, the fastest that may compile, and else the fastest.
    constraints: on ops, cuts, segments, rate or latency; with any of them the plan has one pipeline. solver: a name in
    `balancer.solve.SOLVERS`. seconds: wall time for a solve with all its searches, the comparison included; None for the
    default limits, which count work and so give the same plan on every machine. Each round of a loop solves once.

    Raises ValueError for a value out of range.
    """

    pipelines: int | None = None
    replicas: int | None = None
    stages: int | None = None
    overflow: str | None = None
    compilable: str | None = None
    constraints: Constraints = field(default_factory=Constraints)
    solver: str = "auto"
    seconds: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name, number in (("pipelines", self.pipelines), ("replicas", self.replicas), ("stages", self.stages)):
            if number is not None:
                check_count(name, number)
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds must be above 0, not {self.seconds!r}")
        if self.overflow is not None and self.overflow not in OVERFLOW:
            raise ValueError(f"overflow must be one of {OVERFLOW}, not {self.overflow!r}")
        if self.compilable is not None and self.compilable not in COMPILABLE:
            raise ValueError(f"compilable must be one of {tuple(COMPILABLE)}, not {self.compilable!r}")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, not {self.solver!r}")
        if not isinstance(self.constraints, Constraints):
            raise ValueError(f"constraints must be Constraints, not {self.constraints!r}")

    def until(self, deadline: Deadline) -> Options:
        """The same for what is left to do until a deadline. Where it is over, searches end with the first plan they know."""
        left = deadline.seconds_left
        return self if left is None else replace(self, seconds=max(left, _LEAST_SECONDS))

    @property
    def for_solver(self) -> SolverOptions:
        """The options for solvers, without overflow and compilable: these decide which segments the problem allows."""
        return SolverOptions(
            max_pipelines=self.pipelines, max_replicas=self.replicas, stages=self.stages, solver=self.solver,
            constraints=self.constraints, seconds=self.seconds,
        )  # fmt: skip

    @property
    def overflow_now(self) -> str:
        """The rule for overflow as long as no compiler has contradicted the predicted memory."""
        return self.overflow or STREAM

    @property
    def worst(self) -> Compilable:
        """The worst judgement on whether it compiles that a segment may have. Without the option there is no limit, but a
        preference.
        """
        return COMPILABLE["any" if self.compilable is None else self.compilable]

    @property
    def held_to(self) -> HeldTo:
        """The limits in the form that a plan remembers. Solver and seconds are not limits and not remembered."""
        limits = _limits(self.constraints) if self.constraints else None
        return HeldTo(
            pipelines=self.pipelines,
            replicas=self.replicas,
            stages=self.stages,
            overflow=self.overflow,
            limits=limits,
            compilable=self.compilable,
        )

    def kept_by(self, costed: CostedModel, pipelines: Sequence[PipelineSpec]) -> bool:
        """Whether these pipelines keep all limits under the costed model's costs."""
        problem = costed.problem(overflow=self.overflow_now, worst=self.worst)
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
    """Copies of the whole model, side by side, as one stage with replicas: the same thing, but one pipeline."""
    if any(len(pipeline.stages) > 1 for pipeline in pipelines):
        return pipelines
    first = pipelines[0].stages[0]
    replicas = sum(pipeline.devices for pipeline in pipelines)
    return [PipelineSpec((StageSpec(first.ops, first.kind, replicas),))]


def options_of(held: HeldTo) -> Options:
    """The options that a plan remembers; the inverse of `Options.held_to`."""
    constraints = _constraints(held.limits) if held.limits else Constraints()
    return Options(
        pipelines=held.pipelines,
        replicas=held.replicas,
        stages=held.stages,
        overflow=held.overflow,
        compilable=held.compilable,
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
    """A limit that a plan file can hold. Larger limits are cut off: no plan comes near them, so they mean the same."""
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
