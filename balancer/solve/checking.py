"""An independent judge of solutions. It shares no code with the solvers, only the problem's records and op sets.

Every quantity that a solution states is computed again from `Problem.exact`, and every claim is compared with it.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from balancer.errors import InvalidSolutionError
from balancer.ground.opsets import members
from balancer.ground.units import NS_PER_S, ceil_div
from balancer.ground.wording import counted
from balancer.solve.problem import SolverOptions, Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.ground.opsets import OpSet
    from balancer.solve.problem import Constraints, Cost, PipelineSpec, Problem, Solution


def _wrong(what: str) -> InvalidSolutionError:
    remedy = "report it as a defect, with the model and the command; another --solver may help meanwhile"
    return InvalidSolutionError(what, "the solver's answer", remedy)


def check(problem: Problem, solution: Solution, options: SolverOptions | None = None) -> None:
    """Raises InvalidSolutionError with the first thing that is wrong with a solution.

    - Each pipeline holds each op once, and no op reads from a later segment.
    - Each stage may stand on its kind of device and has at least one replica; there are enough devices of each kind.
    - `Problem.lower` is not above the time of any stage.
    - The stated value is that of the pipelines. Bounds are not above it, and the status follows from them.
    - The plan keeps the limits and constraints of the options. Without options these are not checked.
    - No cut separates ops of `Problem.together`, and the number of stages is the one asked for. A solution that claims no
      bound is exempt: a baseline looks at neither.
    """
    if not solution.pipelines:
        raise _wrong("the plan has no pipeline")
    costs: dict[PipelineSpec, list[Cost]] = {}
    for number, pipeline in enumerate(solution.pipelines):
        if pipeline in costs:
            continue  # plans often hold the same pipeline several times
        where = f"pipeline {number}"
        segments = [stage.ops for stage in pipeline.stages]
        _check_partition(problem, segments, where)
        if solution.bound_ns is not None:
            _check_together(segments, problem.together, where)
        costs[pipeline] = _checked_costs(problem, pipeline, where)
    _check_devices(problem, solution.pipelines)
    value = _value(problem, [(pipeline, costs[pipeline]) for pipeline in solution.pipelines])
    if solution.value != value:
        raise _wrong(f"the stated value is {solution.value}, but the pipelines have {value}")
    _check_claims(solution)
    if options is not None:
        _check_limits(solution, options)
        _check_constraints(problem, solution, options.constraints)


def _check_partition(problem: Problem, segments: Sequence[OpSet], where: str) -> None:
    done = 0
    for j, ops in enumerate(segments):
        if not ops:
            raise _wrong(f"{where}: stage {j} holds no op")
        if ops & done:
            raise _wrong(f"{where}: stage {j} holds op {next(members(ops & done))} a second time")
        done |= ops
        for op in members(ops):
            if op >= problem.n_ops:
                raise _wrong(f"{where}: there is no op {op}")
            if problem.before[op] & ~done:
                raise _wrong(f"{where}: op {op} in stage {j} reads from a later stage")
    missing = ((1 << problem.n_ops) - 1) & ~done
    if missing:
        raise _wrong(f"{where}: no stage holds op {next(members(missing))}")


def _check_together(segments: Sequence[OpSet], groups: Sequence[OpSet], where: str) -> None:
    for ops in segments:
        for group in groups:
            if ops & group not in (0, group):
                raise _wrong(f"{where}: a cut separates the ops {[*members(group)]}")


def _checked_costs(problem: Problem, pipeline: PipelineSpec, where: str) -> list[Cost]:
    costs = []
    for j, stage in enumerate(pipeline.stages):
        if stage.replicas < 1:
            raise _wrong(f"{where}: stage {j} has {stage.replicas} replicas")
        cost = problem.exact(stage.ops, stage.kind)
        if cost is None:
            raise _wrong(f"{where}: stage {j} may not stand on a {stage.kind}")
        lower = problem.lower(stage.ops, stage.kind)
        if lower > cost.time_ns:
            raise _wrong(f"{where}: stage {j} takes {cost.time_ns} ns, below its lower bound of {lower} ns")
        costs.append(cost)
    return costs


def _check_devices(problem: Problem, pipelines: Sequence[PipelineSpec]) -> None:
    available = dict(problem.devices)
    used: dict[str, int] = {}
    for stage in (stage for pipeline in pipelines for stage in pipeline.stages):
        used[stage.kind] = used.get(stage.kind, 0) + stage.replicas
    for kind, count in used.items():
        if count > available.get(kind, 0):
            raise _wrong(f"the plan needs {count} devices of kind {kind}, of {available.get(kind, 0)}")


def _value(problem: Problem, costed: Sequence[tuple[PipelineSpec, Sequence[Cost]]]) -> Value:
    alone, devices, streamed, latency = [], 0, 0, 0
    for pipeline, own in costed:
        slowest = max(Fraction(max(c.time_ns, 1), s.replicas) for c, s in zip(own, pipeline.stages, strict=True))
        alone.append((problem.host_ns * len(own), NS_PER_S / slowest))
        devices += sum(stage.replicas for stage in pipeline.stages)
        streamed += sum(c.streamed_bytes * s.replicas for c, s in zip(own, pipeline.stages, strict=True))
        latency = max(latency, sum(c.time_ns + problem.handover_ns for c in own))
    # One host: pipelines with less work for it are served first, the others in the time that is left.
    time, rate = Fraction(NS_PER_S), Fraction(0)
    for host_ns, most in sorted(alone):
        served = most if host_ns * most <= time else time / host_ns
        time, rate = time - served * host_ns, rate + served
    return Value(ceil_div(NS_PER_S * rate.denominator, rate.numerator), devices, streamed, latency)


def _check_claims(solution: Solution) -> None:
    value, bound, latency_bound = solution.value, solution.bound_ns, solution.latency_bound_ns
    if bound is not None and not 0 <= bound <= value.objective_ns:
        raise _wrong(f"the bound of {bound} ns is above the objective of {value.objective_ns} ns")
    if latency_bound is not None and not 0 <= latency_bound <= value.latency_ns:
        raise _wrong(f"the bound of {latency_bound} ns is above the latency of {value.latency_ns} ns")
    met = bound == value.objective_ns if latency_bound is None else latency_bound == value.latency_ns
    if (solution.status == "optimal") != met:
        raise _wrong(f"the status is {solution.status}, but the bounds say otherwise")


def _check_limits(solution: Solution, options: SolverOptions) -> None:
    pipelines = solution.pipelines
    if options.max_pipelines is not None and len(pipelines) > options.max_pipelines:
        raise _wrong(f"there are {len(pipelines)} pipelines, more than {options.max_pipelines}")
    most = max(stage.replicas for pipeline in pipelines for stage in pipeline.stages)
    if options.max_replicas is not None and most > options.max_replicas:
        raise _wrong(f"a stage has {most} replicas, more than {options.max_replicas}")
    if options.stages is not None and solution.bound_ns is not None:
        stages = [len(pipeline.stages) for pipeline in pipelines]
        if stages != [options.stages]:
            raise _wrong(f"there are pipelines of {stages} stages, not one of {options.stages}")


def _check_constraints(problem: Problem, solution: Solution, held: Constraints) -> None:
    value, limit_ns, most_ns = solution.value, held.max_latency_ns, held.max_objective_ns
    if limit_ns is not None and value.latency_ns > limit_ns:
        raise _wrong(f"the latency of {value.latency_ns} ns is above {limit_ns} ns")
    if most_ns is not None and value.objective_ns > most_ns:
        raise _wrong(f"the objective of {value.objective_ns} ns is above {most_ns} ns")
    if held and len(solution.pipelines) > 1:
        raise _wrong(f"there are {len(solution.pipelines)} pipelines, though constraints allow one")
    if held.only_times:
        return
    for pipeline in solution.pipelines if held else ():
        segments = [stage.ops for stage in pipeline.stages]
        _check_together(segments, held.together, "constraints")
        _check_places(problem, segments, held)
        _check_boundaries(problem, segments, held)


def _check_places(problem: Problem, segments: Sequence[OpSet], held: Constraints) -> None:
    stage_of = {op: j for j, ops in enumerate(segments) for op in members(ops)}
    for op, stage in held.pinned.items():
        if stage_of[op] != stage:
            raise _wrong(f"op {op} stands in stage {stage_of[op]}, not in {stage}")
    for op, stage in held.kept_from:
        if stage_of[op] == stage:
            raise _wrong(f"op {op} stands in stage {stage}")
    for j, ops in enumerate(segments):
        size, most = sum(problem.op_bytes[op] for op in members(ops)) if problem.op_bytes else 0, held.max_segment_bytes
        if most is not None and size > most:
            raise _wrong(f"stage {j} holds {size} bytes of parameters, more than {most}")


def _check_boundaries(problem: Problem, segments: Sequence[OpSet], held: Constraints) -> None:
    tensors, size = held.max_boundary_tensors, held.max_boundary_bytes
    if tensors is None and size is None:
        return
    done = 0
    for cut, ops in enumerate(segments[:-1], start=1):
        done |= ops
        crossing = [
            t.size_bytes
            for t in problem.structures[problem.devices[0][0]].transfers
            if t.producer is not None and done >> t.producer & 1 and any(not done >> r & 1 for r in t.readers)
        ]
        if tensors is not None and len(crossing) > tensors:
            raise _wrong(f"cut {cut} is crossed by {counted(len(crossing), 'tensor')}, more than {tensors}")
        if size is not None and sum(crossing) > size:
            raise _wrong(f"cut {cut} is crossed by {sum(crossing)} bytes, more than {size}")
