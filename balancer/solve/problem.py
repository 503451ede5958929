"""The problem and its answers as values, and the one place that says which of two plans is better.

Ops are numbers and costs are functions here; files, bytes and silicon are not known. Words: a *partition* is an ordered
list of op sets whose prefixes are down-sets; a *pipeline* is a partition with a kind of device and replicas for each
stage; a *plan* is several pipelines side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from balancer.ground.rates import latency_ns, objective_ns, pipeline_rate, plan_rate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from fractions import Fraction

    import numpy as np
    from numpy.typing import NDArray

    from balancer.ground.downsets import DownSets
    from balancer.ground.opsets import OpSet
    from balancer.solve.structure import Structure

Kind = str


class Cost(NamedTuple):
    """What one segment costs on one kind of device, for one input.

    shared_ns is what one input takes of each of `Problem.shared`, in their order; empty where it takes nothing of any.
    """

    time_ns: int
    streamed_bytes: int
    shared_ns: tuple[int, ...] = ()


class CostColumns(NamedTuple):
    """The costs of many segments, as arrays of one shape.

    The numbers of a segment that is not allowed have no meaning. shared_ns: one such array for each of `Problem.shared`;
    None where no segment takes anything of them.
    """

    time_ns: NDArray[np.int64]
    streamed_bytes: NDArray[np.int64]
    allowed: NDArray[np.bool_]
    shared_ns: NDArray[np.int64] | None = None


class SharedResource(NamedTuple):
    """Something that devices share, such as a bus or the host's cores: it does `capacity` ns of work in each ns."""

    name: str
    capacity: int


class ExactCost(Protocol):
    """The cost of a segment. Deterministic, and nothing else is assumed: adding an op may make a segment cheaper."""

    def __call__(self, ops: OpSet, kind: Kind, /) -> Cost | None:
        """None where the segment may not stand on this kind of device."""


class LowerBound(Protocol):
    """A lower bound on the time of every segment that contains certain ops."""

    def __call__(self, ops: OpSet, kind: Kind, /) -> int:
        """In ns. Monotone: adding an op never lowers it."""


class Between(Protocol):
    """The costs of segments that lie between pairs of down-sets. A segment holds the ops of its outer set that its inner
    set lacks.
    """

    def __call__(self, inners: NDArray[np.intp], outers: NDArray[np.intp], /) -> CostColumns:
        """inners, outers: row numbers of the sets, of one length, or inners a single row for all. Each outer set contains
        its inner set; inners ascend.
        """


class BatchCost(Protocol):
    """`ExactCost` for many segments at once."""

    def __call__(self, sets: DownSets, kind: Kind, /) -> Between:
        """sets: all down-sets that segments will be asked for between."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Split numbered ops over devices so that the rate is highest.

    before: for each op the set of ops that it reads from. Ops are numbered in an execution order.
    devices: how many there are of each kind.
    exact: the cost of a segment.
    lower: a lower bound on the time of every segment that contains the given ops.
    batch: the same costs as `exact`, for many segments at once.
    together: sets of ops that no cut may separate.
    structures: the terms that make up `exact`, for each kind where they are known.
    op_bytes: parameter bytes of each op as its file holds them, for rules that go by size. Empty where unknown.
    host_ns: by kind, host work for each input and stage. No two stages' host work overlaps. 0 for a kind that is left out.
    handover_ns: by kind, what handing a stage's result on adds to the latency of an input alone. 0 likewise.
    reluctant: kinds of which fewer devices are preferred, between plans of equal rate on equally many devices.
    shared: what else devices share; `Cost.shared_ns` says how much a segment takes of it.
    """

    before: tuple[OpSet, ...]
    devices: tuple[tuple[Kind, int], ...]
    exact: ExactCost
    lower: LowerBound
    batch: BatchCost
    together: tuple[OpSet, ...] = ()
    structures: Mapping[Kind, Structure] = field(default_factory=dict)
    op_bytes: tuple[int, ...] = ()
    host_ns: Mapping[Kind, int] = field(default_factory=dict)
    handover_ns: Mapping[Kind, int] = field(default_factory=dict)
    reluctant: frozenset[Kind] = frozenset()
    shared: tuple[SharedResource, ...] = ()

    @property
    def n_ops(self) -> int:
        return len(self.before)

    @property
    def n_devices(self) -> int:
        """Devices of all kinds together."""
        return sum(count for _, count in self.devices)


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Further conditions on a partition. `solve` says which solvers take them. Stages are numbered from 0.

    pinned: for an op the stage that must hold it.
    kept_from: pairs (op, stage) where the stage must not hold the op.
    together: sets of ops that must share a stage.
    max_boundary_tensors, max_boundary_bytes: of the tensors that cross any one cut.
    max_segment_bytes: of parameters in one segment, as `Problem.op_bytes` counts them.
    max_latency_ns: of an input alone.
    max_objective_ns: ns per inference. Where it is set, latency is minimised instead.
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
        """Whether there are limits on the rate or the latency, and no others."""
        return bool(self) and self == self.times

    @property
    def times(self) -> Constraints:
        """The limits on the rate and the latency alone."""
        return Constraints(max_latency_ns=self.max_latency_ns, max_objective_ns=self.max_objective_ns)

    @property
    def scope(self) -> list[str]:
        """The constraints in words, for the scope of a claim."""
        words = []
        if self.max_objective_ns is not None:
            words.append("at that rate")
        if self.max_latency_ns is not None:
            words.append("within that latency")
        return words + ["the constraints"] * (bool(self) and not self.only_times)


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
    """Which solver to use, and which plans it may choose from.

    max_pipelines: in a plan; None for any number.
    stages: exactly this many segments, in one pipeline; None for any number.
    max_replicas: of one stage; None for any number.
    solver: a name of `SOLVERS`.
    seconds: of wall time, after which the solver returns the best plan so far. With None, only limits that count work
    apply, so that the answer is the same in every run.
    """

    max_pipelines: int | None = None
    stages: int | None = None
    max_replicas: int | None = None
    solver: str = "auto"
    constraints: Constraints = Constraints()
    seconds: float | None = None

    @property
    def scope(self) -> str:
        """The plans that these options allow, in words.

        >>> SolverOptions(max_pipelines=1, max_replicas=2).scope
        '1 pipeline, at most 2 replicas a stage'
        """
        pipelines = "any pipelines" if self.max_pipelines is None else _at_most(self.max_pipelines, "pipeline")
        replicas = "any replicas" if self.max_replicas is None else _at_most(self.max_replicas, "replica") + " a stage"
        if self.stages is not None:
            pipelines = f"1 pipeline of {self.stages} stages"
        return ", ".join([pipelines, replicas, *self.constraints.scope])


def _at_most(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"at most {count} {what}s"


@dataclass(frozen=True, slots=True)
class StageSpec:
    """A stage of a pipeline: the ops of its segment, and the devices that run it, all of one kind."""

    ops: OpSet
    kind: Kind
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """Stages in the order in which an input passes them."""

    stages: tuple[StageSpec, ...]

    @property
    def devices(self) -> int:
        return sum(stage.replicas for stage in self.stages)


class Value(NamedTuple):
    """What a plan is worth. The smaller tuple is the better plan.

    objective_ns: ns per inference in steady state, rounded up. devices: those in use. reluctant: those of reluctant kinds.
    streamed_bytes: the sum over all stages and replicas. latency_ns: of the pipeline with the highest latency.
    """

    objective_ns: int
    devices: int
    reluctant: int
    streamed_bytes: int
    latency_ns: int


class Ended(Enum):
    """How a search ended. The values are also the names under which `Solution.statistics` counts all but the first."""

    COMPLETE = "complete"
    LIMIT_REACHED = "limit_reached"  # of work, of memory, or the clock
    INTERRUPTED = "interrupted"  # by Ctrl-C
    NOT_SEARCHED = "not_searched"  # the cuts were given, or follow a baseline's rule
    LEFT_OUT = "down_sets_left_out"  # the graph has too many down-sets: only some of them were searched


@dataclass(frozen=True, kw_only=True)
class Solution:
    """A plan, its value by `exact`, and what is proven about the optimum.

    bound_ns: a lower bound on the objective_ns of every plan that `over` describes. None where nothing is claimed, as
    for baselines and given plans.
    over: the plans that the claim is about, in words.
    latency_bound_ns: a lower bound on their latency. None where the rate is what was optimised.
    ended: how the search ended.
    passed_over_ns: the objective of a faster plan that the caller did not want, or its latency where that was optimised. None
    where there is none.
    statistics: counts of work for people to read, the same in every run. Code does not read them.
    """

    solver: str
    pipelines: tuple[PipelineSpec, ...]
    value: Value
    bound_ns: int | None
    over: str
    latency_bound_ns: int | None = None
    ended: Ended = Ended.COMPLETE
    passed_over_ns: int | None = None
    statistics: dict[str, int] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """ "optimal" where what was optimised meets its lower bound, else "feasible"."""
        return "optimal" if self.gap == 0 else "feasible"

    @property
    def optimised_ns(self) -> int:
        """What was optimised: the objective, or the latency."""
        return self.value.objective_ns if self.latency_bound_ns is None else self.value.latency_ns

    @property
    def gap(self) -> float:
        """How far what was optimised is above its lower bound, as a share of the value reached; 1 where no bound is claimed."""
        reached = self.optimised_ns
        bound = (self.bound_ns or 0) if self.latency_bound_ns is None else self.latency_bound_ns
        return (reached - bound) / reached if reached else 0.0


def steady_rate(problem: Problem, pipelines: Sequence[PipelineSpec]) -> Fraction | None:
    """Inferences per second of a plan in steady state, from `exact` alone; None where a segment may not stand."""
    rates, work = [], []
    for pipeline in pipelines:
        costs = stage_costs(problem, pipeline)
        if costs is None:
            return None
        rates.append(pipeline_rate([c.time_ns for c in costs], [s.replicas for s in pipeline.stages]))
        work.append(shared_work(problem, pipeline, costs))
    return plan_rate(rates, work, capacities(problem))


def evaluate(problem: Problem, pipelines: Sequence[PipelineSpec]) -> Value | None:
    """The value of a plan, from `exact` alone; None where a segment may not stand."""
    rate = steady_rate(problem, pipelines)
    if rate is None:
        return None
    streamed, latency = 0, 0
    for pipeline in pipelines:
        costs = stage_costs(problem, pipeline) or []
        streamed += sum(c.streamed_bytes * s.replicas for c, s in zip(costs, pipeline.stages, strict=True))
        of_stages = (
            latency_ns([c.time_ns], problem.handover_ns.get(s.kind, 0))
            for c, s in zip(costs, pipeline.stages, strict=True)
        )
        latency = max(latency, sum(of_stages))
    stages = [stage for pipeline in pipelines for stage in pipeline.stages]
    reluctant = sum(stage.replicas for stage in stages if stage.kind in problem.reluctant)
    return Value(objective_ns(rate), sum(stage.replicas for stage in stages), reluctant, streamed, latency)


def capacities(problem: Problem) -> tuple[int, ...]:
    """What the pipelines of a plan share, as ns of work that are done in each ns: the host first, then `Problem.shared`."""
    return (1, *(resource.capacity for resource in problem.shared))


def shared_work(problem: Problem, pipeline: PipelineSpec, costs: Sequence[Cost]) -> tuple[int, ...]:
    """ns of work that one input takes of what pipelines share, as in `capacities`. costs: of each stage."""
    host_ns = sum(problem.host_ns.get(stage.kind, 0) for stage in pipeline.stages)
    takes = [cost.shared_ns for cost in costs if cost.shared_ns]
    return (host_ns, *(sum(own[k] for own in takes) for k in range(len(problem.shared))))


def stage_costs(problem: Problem, pipeline: PipelineSpec) -> list[Cost] | None:
    """The cost of each stage, by `exact`; None where one of them may not stand."""
    costs = [problem.exact(stage.ops, stage.kind) for stage in pipeline.stages]
    known = [cost for cost in costs if cost is not None]
    return known if len(known) == len(costs) else None
