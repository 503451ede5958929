"""The solver `cpsat`: one pipeline, by OR-Tools CP-SAT on the structure of the cost. Takes constraints that the others
do not, serves graphs with too many down-sets, and proves in a way of its own.

Where `exact` is above the structure, each partition found is costed again, and the model learns what its stages really
take; rounds of this are limited. One worker, a fixed seed and a limit that counts work: the same answer every time.
"""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from balancer.errors import InfeasibleError
from balancer.solve.block_folding import folded
from balancer.solve.bounds import least_total_ns, pipeline_bound_ns
from balancer.solve.budget import Budget, BudgetSpent
from balancer.solve.constraining import keeps, starts
from balancer.solve.cpsat_model import LONGEST_NS, Measure, StageModel
from balancer.solve.periods import MOST_REPLICAS
from balancer.solve.problem import PipelineSpec, Solution, StageSpec, evaluate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.ground.opsets import OpSet
    from balancer.solve.problem import Problem, SolverOptions, Value

MOST_WORK = 10.0  # in CP-SAT's deterministic time: one to three times as many seconds
MOST_ROUNDS = 20
OVER = "all down-sets"
_WORK_UNIT = 1e6  # a budget counts whole units
_LEAST_WORK = 0.01
_BUILDING = 4e-5  # of a model, for each op and stage, in the same unit
_ROUNDING = 1e-9  # CP-SAT's bound is a float
_POLL_SECONDS = 0.2


def solve_cpsat(
    problem: Problem, options: SolverOptions, known: Iterable[PipelineSpec] = (), budget: Budget | None = None
) -> Solution:
    """The best pipeline under the constraints of the options; proven, as far as limits of work go.

    Starts from pipelines of the execution order that keep the constraints, and from `known` ones. budget: what is left
    of one that others spent from; None for one of its own. Raises InfeasibleError where there is none or none was found
    in the limits, ValueError where the cost's structure is not known.
    """
    problem = folded(problem, options)
    search = PipelineSearch(problem, options, budget)
    for pipeline in (*known, *starts(problem, options)):
        search.consider(pipeline)
    try:
        search.run_all(0)
        search.settle()
    except KeyboardInterrupt:
        if search.best is None:
            raise
        search.statistics["interrupted"] = 1
        search.bounds.append(search.fastest_ns)
    if search.best is None:
        outcome = "no partition was found within the limits" if search.bounds else "there is no partition"
        raise InfeasibleError(
            f"{outcome} that keeps the constraints",
            f"{problem.n_ops} ops on {search.devices} TPUs",
            "loosen the constraints or allow more TPUs",
        )
    pipeline, value = search.best
    bound = min([value.objective_ns, *search.bounds])
    least_latency = None
    if search.least_latency:
        least_latency = min([value.latency_ns, *search.bounds])
        bound = min(value.objective_ns, search.fastest_ns)
    over = f"{OVER}, {replace(options, max_pipelines=1).scope}"
    return Solution(
        solver="cpsat", pipelines=(pipeline,), value=value, bound_ns=bound, latency_bound_ns=least_latency, over=over,
        statistics=search.statistics,
    )  # fmt: skip


def cpsat_budget(options: SolverOptions) -> Budget:
    """What the models of one problem may take together."""
    return Budget(int(MOST_WORK * _WORK_UNIT), options.seconds)


class PipelineSearch:
    """Models of 1, 2 ... stages, each held to being better than the best so far.

    aims: what pipelines are compared by, the first first. best: a pipeline and what it is worth. bounds: of the first aim,
    from models that were left with something open; in ns. waiting: models still to come, which share what may still be
    spent.
    """

    def __init__(
        self, problem: Problem, options: SolverOptions, budget: Budget | None = None, *, whole_replicas: bool = True
    ) -> None:
        """budget: shared with other searches; None for one of its own. whole_replicas: whether a pipeline of one stage
        may have several.
        """
        if any(kind not in problem.structures for kind, _ in problem.devices):
            raise ValueError("the solver 'cpsat' takes kinds of devices whose cost's structure is known")
        self.problem, self.options, self.constraints = problem, options, options.constraints
        self.kinds = [kind for kind, _ in problem.devices]
        self.structures = [problem.structures[kind] for kind in self.kinds]
        self.devices = sum(count for _, count in problem.devices)
        self.most_replicas = min(options.max_replicas or MOST_REPLICAS, MOST_REPLICAS)
        self.whole_replicas = whole_replicas
        self.least_latency = self.constraints.max_objective_ns is not None
        self.aims = (Measure.RATE, Measure.DEVICES, Measure.STREAMED, Measure.LATENCY)
        if self.least_latency:
            self.aims = (Measure.LATENCY, Measure.RATE, Measure.DEVICES, Measure.STREAMED)
        self.fastest_ns = min(
            pipeline_bound_ns(problem, stages, self.devices, self.most_replicas) for stages in self.stages()
        )
        self.budget = budget or cpsat_budget(options)
        self.best: tuple[PipelineSpec, Value] | None = None
        self.bounds: list[int] = []
        self.waiting = 1
        self._found: list[PipelineSpec] = []
        self.statistics = {"models": 0, "rounds": 0, "branches": 0, "conflicts": 0}

    def stages(self) -> Sequence[int]:
        if self.options.stages:
            return [self.options.stages]
        return range(1, min(self.devices, self.problem.n_ops) + 1)

    def consider(self, pipeline: PipelineSpec) -> None:
        """Take a pipeline if it keeps the constraints, by exact costs, and is the best."""
        value = evaluate(self.problem, [pipeline])
        if value is None or not keeps(self.problem, pipeline, self.constraints):
            return
        self._found.append(pipeline)
        if self.best is None or self._rank(value) < self._rank(self.best[1]):
            self.best = pipeline, value

    def take_found(self) -> list[PipelineSpec]:
        """The pipelines found since this was last asked for, the best and others."""
        found, self._found = self._found, []
        return found

    def _rank(self, value: Value) -> tuple[int, ...]:
        return tuple(aim.of(value) for aim in self.aims)

    def run_all(self, rank: int) -> None:
        """Models of each number of stages, for the aim of this rank, with those before it at their best."""
        for stages in self.stages():
            self.waiting = len(self.stages()) - self.stages().index(stages)
            bound = self.run(stages, rank=rank)
            if bound is not None and rank == 0:
                self.bounds.append(bound)

    def settle(self) -> None:
        """Settle ties: of the pipelines with the least of the first aim, the one with the least of the next, and so on.

        Where the structure is not all of the cost, streamed bytes are known to the model from below alone, and ties may
        stay open. They do where a limit is reached.
        """
        if self.best is not None and not self.bounds:
            for rank in range(1, len(self.aims)):
                self.run_all(rank)

    def run(self, stages: int, most_ns: int = LONGEST_NS, rank: int = 0) -> int | None:
        """The best pipeline of just so many stages with a period of at most most_ns, if it is better than the best in the
        aim of this rank, and as good in those before it.

        Returns a bound on that aim for what is still open, None where that is nothing.
        """
        most = min(self.most_replicas, self.devices - stages + 1) if stages > 1 or self.whole_replicas else 1
        least = pipeline_bound_ns(self.problem, stages, self.devices if most > 1 else stages, max(1, most))
        limit = min(most_ns, self._most(Measure.RATE, rank))
        if most < 1 or least > limit or self._least_latency_ns(stages) > self._most(Measure.LATENCY, rank):
            return None
        floor = {Measure.RATE: least, Measure.LATENCY: self._least_latency_ns(stages)}.get(self.aims[rank], 0)
        try:
            self.budget.spend(int(stages * self.problem.n_ops * _BUILDING * _WORK_UNIT))
        except BudgetSpent:
            return floor
        model = self._model(stages, most, limit, rank)
        model.model.add(model.period >= least)
        self.statistics["models"] += 1
        bound: int | None = floor
        for _ in range(MOST_ROUNDS):
            done, bound = self._round(model)
            if done:
                break
        # CP-SAT may have stopped before it had a bound at all.
        return None if bound is None else max(bound, floor)

    def _model(self, stages: int, most_replicas: int, most_ns: int, rank: int) -> StageModel:
        """A model of so many stages, whose aim is the one of this rank."""
        devices = [count for _, count in self.problem.devices]
        model = StageModel(
            self.problem, self.structures, self.constraints, stages=stages, devices=devices,
            most_replicas=most_replicas, most_ns=most_ns,
        )  # fmt: skip
        for aim in self.aims[: rank + 1]:
            measure = model.measure(aim)
            if self.best is not None:
                model.model.add(measure <= self._most(aim, rank))
        model.model.minimize(measure)
        if self.best and len(self.best[0].stages) == stages:
            model.hint(self.best[0])
        return model

    def _most(self, aim: Measure, rank: int) -> int:
        """As much as there may be of an aim in a pipeline that is better than the best in the aim of this rank."""
        held = self.constraints
        most = {Measure.RATE: held.max_objective_ns, Measure.LATENCY: held.max_latency_ns}.get(aim)
        most = LONGEST_NS if most is None else min(most, LONGEST_NS)
        at = self.aims.index(aim)
        if self.best is not None and at <= rank:
            most = min(most, aim.of(self.best[1]) - (at == rank))
        return most

    def _least_latency_ns(self, stages: int) -> int:
        """No pipeline of so many stages has a lower latency."""
        least = least_total_ns(self.structures[0], stages) if len(self.kinds) == 1 else 0
        return least + stages * self.problem.handover_ns

    def _round(self, model: StageModel) -> tuple[bool, int | None]:
        """Solve once: whether that was all for this model, and a bound on what it may still give, None for nothing."""
        from ortools.sat.python import cp_model

        solver = self._solver(cp_model)
        status = _solve(solver, model.model)
        spent = solver.response_proto.deterministic_time
        self.statistics["rounds"] += 1
        self.statistics["branches"] += solver.num_branches
        self.statistics["conflicts"] += solver.num_conflicts
        if status == cp_model.INFEASIBLE:
            return True, None
        bound = math.ceil(solver.best_objective_bound * (1 - _ROUNDING))
        surprised = False
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            found = model.partition(solver)
            self.consider(PipelineSpec(tuple(StageSpec(ops, self.kinds[k], r) for ops, k, r in found)))
            surprised = self._learn(model, found, solver)
        try:
            self.budget.spend(int(spent * _WORK_UNIT))
        except BudgetSpent:
            self.budget.left = 0
            return True, None if status == cp_model.OPTIMAL and not surprised else bound
        return (
            status != cp_model.OPTIMAL or not surprised,
            None if status == cp_model.OPTIMAL and not surprised else bound,
        )

    def _learn(self, model: StageModel, stages: Sequence[tuple[OpSet, int, int]], solver: Any) -> bool:
        """Tell the model what stages take that `exact` finds dearer; whether there are any."""
        done, surprised = 0, False
        for j, (ops, kind, _) in enumerate(stages):
            cost = self.problem.exact(ops, self.kinds[kind])
            if cost is None or cost.time_ns > solver.value(model.times[j]):
                model.exclude(ops, done, kind, cost.time_ns if cost else None)
                surprised = True
            done |= ops
        return surprised

    def _solver(self, cp_model: Any) -> Any:
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 1
        solver.parameters.catch_sigint_signal = False
        solver.parameters.max_deterministic_time = max(_LEAST_WORK, self.budget.left / _WORK_UNIT / self.waiting)
        if self.budget.seconds_left is not None:
            solver.parameters.max_time_in_seconds = max(_LEAST_WORK, self.budget.seconds_left)
        return solver


def _solve(solver: Any, model: Any) -> Any:
    """In a thread, so that Ctrl-C stops the search at once. Raises KeyboardInterrupt then."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(solver.solve(model)), daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
    except KeyboardInterrupt:
        solver.stop_search()
        thread.join()
        raise
    return found[0]
