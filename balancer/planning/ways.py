"""Other ways to use devices of several kinds, for a comparison: each kind for itself, copies on all, the compiler's rule."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from balancer.cost.cpu_hardware import CpuHardware
from balancer.cost.devices import Devices
from balancer.errors import InfeasibleError
from balancer.ground.opsets import interval_set
from balancer.planning.options import Options
from balancer.planning.solving import solve_costed_model
from balancer.solve import PipelineSpec, StageSpec, steady_rate
from balancer.solve.baselines import parameter_count

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.cost.hardware import AnyHardware
    from balancer.planning.costed_model import CostedModel
    from balancer.solve import Kind, Problem

    Pipelines = Sequence[PipelineSpec]

COPIES_ON_ALL, DEFAULT = "copies on everything", "compiler default"


def one_of(kind: AnyHardware, count: int) -> str:
    """The name of the row in which one device of a kind holds the whole model. count: how many there are."""
    return f"{kind.name} alone" if isinstance(kind, CpuHardware) and count == 1 else f"one {kind.name}"


def all_of(kind: AnyHardware, count: int) -> str:
    """The name of the row for the best plan on all devices of a kind."""
    return one_of(kind, count) if count == 1 else f"{kind.name}={count} alone"


def ways_on_kinds(costed: CostedModel, problem: Problem, options: Options) -> dict[str, Pipelines | None]:
    """The ways by name, in the order of the table. None for a way that is not possible.

    problem: as rows are valued. options: of them, the seconds limit each search.
    """
    kinds, everything = costed.devices.kinds, interval_set(0, problem.n_ops)
    whole = {kind.name: [PipelineSpec((StageSpec(everything, kind.name),))] for kind, _ in kinds}
    possible = {name: copy if steady_rate(problem, copy) else [] for name, copy in whole.items()}
    return {
        **{one_of(kind, count): whole[kind.name] for kind, count in kinds},
        COPIES_ON_ALL: [copy for kind, count in kinds for copy in possible[kind.name] * count],
        DEFAULT: _default_on_best(costed, problem),
        **{
            all_of(kind, count): _best_on(costed.on(Devices(((kind, count),))), options)
            for kind, count in kinds
            if count > 1
        },
    }


def cut_on(kind: Kind, cuts: Iterable[int], n_ops: int) -> Pipelines:
    """One pipeline with one device of the kind for each stage, cut in the model's order."""
    return [PipelineSpec(tuple(StageSpec(interval_set(a, b), kind) for a, b in pairwise([0, *cuts, n_ops])))]


def default_cuts(costed: CostedModel, segments: int) -> tuple[int, ...]:
    """Where the compiler's `--num_segments` cuts, by its rule as far as it is known: the first op of each later segment."""
    return parameter_count([op.parameter_bytes for op in costed.graph.ops], min(segments, len(costed.graph.ops)))


def _default_on_best(costed: CostedModel, problem: Problem) -> Pipelines:
    """The compiler's rule on all devices of one kind: of the Edge TPUs on which it is fastest, as far as there are any."""
    kinds = costed.devices.kinds
    tpus = [(kind, count) for kind, count in kinds if not isinstance(kind, CpuHardware)] or kinds
    made = [cut_on(kind.name, default_cuts(costed, count), problem.n_ops) for kind, count in tpus]
    return max(made, key=lambda pipelines: steady_rate(problem, pipelines) or 0)


def _best_on(costed: CostedModel, options: Options) -> Pipelines | None:
    """The best plan on devices of one kind."""
    try:
        return solve_costed_model(costed, Options(seconds=options.seconds)).pipelines
    except InfeasibleError:
        return None
