"""The problem and its answers as values, and the one place that says which of two plans is better.

Knows ops as numbers and costs as functions: nothing of files, bytes or silicon. Words: a *partition* is
an ordered list of op sets whose prefixes are down-sets; a *pipeline* is a partition with replicas for each stage; a
plan is several pipelines side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from balancer.ground.rates import latency_ns, objective_ns, pipeline_rate, plan_rate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from fractions import Fraction

    from balancer.ground.downsets import DownSets
    from balancer.ground.opsets import OpSet
    from balancer.solve.structure import Structure

Kind = str


class Cost(NamedTuple):
    """What one segment costs on one kind of device, for one input."""

    time_ns: int
    streamed_bytes: int


class CostColumns(NamedTuple):
    """`exact` for many segments: arrays of one shape, int64, int64 and bool. Numbers where not allowed mean nothing."""

    time_ns: Any
    streamed_bytes: Any
    allowed: Any


# (inners, outers) -> the costs of the segments that hold what is in each outer set and not in its inner one. Sets by
# their row numbers; one inner set for all, or one for each outer set, which contains it, ascending.
Between = Callable[[Any, Any], CostColumns]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Split numbered ops over devices so that the rate is highest.

    before: for each op the set of ops that it reads from; ops are numbered in an execution order.
    devices: kinds with a count each.
    exact: time and streamed bytes of a segment that holds these ops; None where it may not stand. Deterministic, and
    nothing else: more ops can make it cheaper or dearer.
    lower: ns, at most `exact` of every segment that contains the ops; never less for more ops.
    batch: `exact` for many segments at once: takes all the down-sets that segments may lie between.
    together: sets of ops that no cut may separate.
    structures: what `exact` is made of, by kind; where it is known.
    op_bytes: parameter bytes of each op as its file holds them, for rules that go by size; empty where unknown.
    host_ns: host work for each input and stage that no other host work overlaps.
    handover_ns: from stage to stage, in the latency of an input alone.
    """

    before: tuple[OpSet, ...]
    devices: tuple[tuple[Kind, int], ...]
    exact: Callable[[OpSet, Kind], Cost | None]
    lower: Callable[[OpSet, Kind], int]
    batch: Callable[[DownSets, Kind], Between]
    together: tuple[OpSet, ...] = ()
    structures: Mapping[Kind, Structure] = field(default_factory=dict)
    op_bytes: tuple[int, ...] = ()
    host_ns: int = 0
    handover_ns: int = 0

    @property
    def n_ops(self) -> int:
        return len(self.before)


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What else a partition must keep to; only the solver `cpsat` takes them. Stages are numbered from 0.

    pinned: op -> the stage that it stands in. kept_from: (op, stage) pairs that may not be. together: sets of ops that
    share a stage. max_boundary_tensors, max_boundary_bytes: of the tensors that cross any one cut. max_segment_bytes:
    of parameters, as `Problem.op_bytes` counts them. max_latency_ns: of an input alone. max_objective_ns: with it,
    latency is what is minimised.
    """

    pinned: Mapping[int, int] = field(default_factory=dict)
    kept_from: frozenset[tuple[int, int]] = frozenset()
    together: tuple[OpSet, ...] = ()
    max_boundary_tensors: int | None = None
    max_boundary_bytes: int | None = None
    max_segment_bytes: int | None = None
    max_latency_ns: int | None = None
    max_objective_ns: int | None = None

    def __bool__(self) -> bool:
        return self != Constraints()

    @property
    def only_times(self) -> bool:
        """Whether a rate or a latency, or both, are all that is asked for."""
        return bool(self) and self == self.times

    @property
    def times(self) -> Constraints:
        """The rate and the latency alone."""
        return Constraints(max_latency_ns=self.max_latency_ns, max_objective_ns=self.max_objective_ns)

    @property
    def scope(self) -> list[str]:
        """What they leave to choose from, in words."""
        words = []
        if self.max_objective_ns is not None:
            words.append("at that rate")
        if self.max_latency_ns is not None:
            words.append("within that latency")
        return words + ["the constraints"] * (bool(self) and not self.only_times)


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
    """What to hold a solution to. max_pipelines, max_replicas (of a stage): None for any number. stages: exactly so
    many segments, in one pipeline. solver: a name of `SOLVERS`. seconds: of wall time after which the best so far is
    returned; None leaves it to limits that count work, so that the answer is the same at every run.
    """

    max_pipelines: int | None = None
    stages: int | None = None
    max_replicas: int | None = None
    solver: str = "auto"
    constraints: Constraints = Constraints()
    seconds: float | None = None

    @property
    def scope(self) -> str:
        """Which plans these options leave to choose from, in words."""
        pipelines = "any pipelines" if self.max_pipelines is None else _at_most(self.max_pipelines, "pipeline")
        replicas = "any replicas" if self.max_replicas is None else _at_most(self.max_replicas, "replica") + " a stage"
        if self.stages is not None:
            pipelines = f"1 pipeline of {self.stages} stages"
        return ", ".join([pipelines, replicas, *self.constraints.scope])


def _at_most(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"at most {count} {what}s"


@dataclass(frozen=True, slots=True)
class StageSpec:
    ops: OpSet
    kind: Kind
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    stages: tuple[StageSpec, ...]

    @property
    def devices(self) -> int:
        return sum(stage.replicas for stage in self.stages)


class Value(NamedTuple):
    """What a plan is worth; the smaller tuple is the better plan. Rates are compared as whole ns per inference."""

    objective_ns: int
    devices: int
    streamed_bytes: int
    latency_ns: int


@dataclass(frozen=True, kw_only=True)
class Solution:
    """An answer: pipelines, what they are worth by `exact`, and what is known of the optimum.

    bound_ns: no plan of the kind that `over` names has a smaller objective_ns. latency_bound_ns: none has a lower latency;
    None where the rate is what counts. status: "optimal" or "feasible", in what counts. gap: how far what counts is above
    its bound, as a share of it. over: what the claim is about. statistics: counts of work, the same at every run.
    """

    solver: str
    pipelines: tuple[PipelineSpec, ...]
    value: Value
    bound_ns: int
    over: str
    latency_bound_ns: int | None = None
    statistics: dict[str, int] = field(default_factory=dict)

    @property
    def status(self) -> str:
        return "optimal" if self.gap == 0 else "feasible"

    @property
    def gap(self) -> float:
        reached, bound = self.value.objective_ns, self.bound_ns
        if self.latency_bound_ns is not None:
            reached, bound = self.value.latency_ns, self.latency_bound_ns
        return (reached - bound) / reached if reached else 0.0


def steady_rate(problem: Problem, pipelines: Sequence[PipelineSpec]) -> Fraction | None:
    """Inferences per second of a plan in steady state, from `exact` alone; None where a segment may not stand."""
    rates, hosts = [], []
    for pipeline in pipelines:
        costs = _costs(problem, pipeline)
        if costs is None:
            return None
        rates.append(pipeline_rate([c.time_ns for c in costs], [s.replicas for s in pipeline.stages]))
        hosts.append(problem.host_ns * len(costs))
    return plan_rate(rates, hosts)


def evaluate(problem: Problem, pipelines: Sequence[PipelineSpec]) -> Value | None:
    """The worth of a plan, from `exact` alone; None where a segment may not stand."""
    rate = steady_rate(problem, pipelines)
    if rate is None:
        return None
    streamed, latency = 0, 0
    for pipeline in pipelines:
        costs = _costs(problem, pipeline) or []
        streamed += sum(c.streamed_bytes * s.replicas for c, s in zip(costs, pipeline.stages, strict=True))
        latency = max(latency, latency_ns((c.time_ns for c in costs), problem.handover_ns))
    return Value(objective_ns(rate), sum(pipeline.devices for pipeline in pipelines), streamed, latency)


def _costs(problem: Problem, pipeline: PipelineSpec) -> list[Cost] | None:
    costs = [problem.exact(stage.ops, stage.kind) for stage in pipeline.stages]
    known = [cost for cost in costs if cost is not None]
    return known if len(known) == len(costs) else None
