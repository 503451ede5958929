"""The solver `cpsat`: one pipeline, by OR-Tools CP-SAT on the structure of the cost.

It takes constraints that the other solvers do not, serves graphs with too many down-sets to enumerate, and its proofs are
independent of theirs.

`exact` may be above the structure. So each partition that CP-SAT finds is costed again, the model learns the true times of
its stages, and CP-SAT runs again; the number of these rounds is limited. One worker, a fixed seed and a limit that counts
work give the same answer in every run.
"""

from __future__ import annotations

import itertools
import math
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from balancer.errors import InfeasibleError, NotFoundError
from balancer.ground.wording import counted
from balancer.solve.block_folding import folded
from balancer.solve.bounds import least_total_ns, pipeline_bound_ns
from balancer.solve.budget import Budget, BudgetSpent
from balancer.solve.constraining import keeps, starts
from balancer.solve.cpsat_model import Criterion, stage_model
from balancer.solve.cpsat_times import LONGEST_NS
from balancer.solve.limits import max_replicas
from balancer.solve.problem import Ended, PipelineSpec, Solution, StageSpec, evaluate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ortools.sat.python.cp_model import CpModel, CpSolver
    from ortools.sat.python.cp_model_helper import CpSolverStatus

    from balancer.ground.opsets import OpSet
    from balancer.solve.cpsat_model import StageModel
    from balancer.solve.problem import Problem, SolverOptions, Value

MOST_WORK = 10.0  # in CP-SAT's deterministic time; takes one to three times as many seconds
MOST_ROUNDS = 20  # of one model
OVER = "all down-sets"
WORK_UNIT = 1e6  # a budget counts whole units: millionths of deterministic time
_LEAST_WORK = 0.01  # of deterministic time, and in seconds: less gives CP-SAT no chance to start
_BUILDING = 4e-5  # deterministic time to count for building a model, for each op and stage
_ROUNDING = 1e-9  # CP-SAT's bound is a float
_POLL_SECONDS = 0.2
_STOP_SECONDS = 0.01


def solve_cpsat(
    problem: Problem, options: SolverOptions, known: Iterable[PipelineSpec] = (), budget: Budget | None = None
) -> Solution:
    """The best pipeline under the constraints of the options, proven as far as limits of work allow.

    The search starts from pipelines of the execution order that keep the constraints, and from `known` ones. budget:
    shared with other searches; None for a new one. Raises InfeasibleError where there is no pipeline or none was found
    within the limits, ValueError where the structure of a kind's cost is not known.
    """
    problem = folded(problem, options)
    search = PipelineSearch(problem, options, budget)
    try:
        for pipeline in itertools.chain(known, starts(problem, options)):
            search.consider(pipeline)
        search.run_all(0)
        search.break_ties()
    except KeyboardInterrupt:
        if search.best is None:
            raise
        search.interrupt()
    if search.best is None:
        where = f"{counted(problem.n_ops, 'op')} on {counted(search.devices, 'TPU')}"
        remedy = "loosen the constraints or allow more TPUs"
        if search.bounds:
            what = "no partition was found within the limits that keeps the constraints"
            raise NotFoundError(what, where, f"allow more time, {remedy}")
        raise InfeasibleError("there is no partition that keeps the constraints", where, remedy)
    pipeline, value = search.best
    bound = min([value.objective_ns, *search.bounds])
    least_latency = None
    if search.minimises_latency:
        least_latency = min([value.latency_ns, *search.bounds])
        bound = min(value.objective_ns, search.fastest_ns)
    over = f"{OVER}, {replace(options, max_pipelines=1).scope}"
    return Solution(
        solver="cpsat", pipelines=(pipeline,), value=value, bound_ns=bound, latency_bound_ns=least_latency, over=over,
        ended=search.ended, statistics=search.statistics,
    )  # fmt: skip


def cpsat_budget(options: SolverOptions) -> Budget:
    """The work and the time for all models of one problem together."""
    return Budget(int(MOST_WORK * WORK_UNIT), options.seconds)


class PipelineSearch:
    """A search by one model for each number of stages. Each model must improve on the best pipeline so far.

    criteria: in the order in which pipelines are compared by them (lexicographically).
    best: a pipeline and its value.
    bounds: lower bounds on the first criterion, in ns, from models that were not solved to the end.
    waiting: models still to come. They share the rest of the budget.
    """

    def __init__(
        self,
        problem: Problem,
        options: SolverOptions,
        budget: Budget | None = None,
        *,
        may_replicate_whole: bool = True,
    ) -> None:
        """budget: shared with other searches; None for a new one. may_replicate_whole: whether a pipeline of one stage may
        have replicas. Raises ValueError where the structure of a kind's cost is not known.
        """
        if any(kind not in problem.structures for kind, _ in problem.devices):
            raise ValueError("the solver 'cpsat' takes kinds of devices whose cost's structure is known")
        self.problem, self.options, self.constraints = problem, options, options.constraints
        self.kinds = [kind for kind, _ in problem.devices]
        self.structures = [problem.structures[kind] for kind in self.kinds]
        self.devices = problem.n_devices
        self.most_replicas = max_replicas(options)
        self.may_replicate_whole = may_replicate_whole
        self.minimises_latency = self.constraints.max_objective_ns is not None
        self.criteria = (Criterion.RATE, Criterion.DEVICES, Criterion.STREAMED, Criterion.LATENCY)
        if self.minimises_latency:
            self.criteria = (Criterion.LATENCY, Criterion.RATE, Criterion.DEVICES, Criterion.STREAMED)
        self.fastest_ns = min(
            pipeline_bound_ns(problem, stages, self.devices, self.most_replicas) for stages in self.stages()
        )
        self.budget = budget or cpsat_budget(options)
        self.best: tuple[PipelineSpec, Value] | None = None
        self.bounds: list[int] = []
        self.waiting = 1
        self._interrupted = False
        self._considered: list[PipelineSpec] = []
        self.statistics = {"models": 0, "rounds": 0, "branches": 0, "conflicts": 0}

    @property
    def ended(self) -> Ended:
        if self._interrupted:
            return Ended.INTERRUPTED
        return Ended.LIMIT_REACHED if self.bounds else Ended.COMPLETE

    def interrupt(self) -> None:
        """Take note of Ctrl-C. Models that were not solved may hold anything down to the general bound."""
        self._interrupted = True
        self.statistics[Ended.INTERRUPTED.value] = 1
        self.bounds.append(self.fastest_ns)

    def stages(self) -> Sequence[int]:
        """The numbers of stages to try."""
        if self.options.stages:
            return [self.options.stages]
        return range(1, min(self.devices, self.problem.n_ops) + 1)

    def consider(self, pipeline: PipelineSpec) -> None:
        """Take a pipeline if it keeps the constraints, by `exact`. It becomes the best if it ranks first."""
        value = evaluate(self.problem, [pipeline])
        if value is None or not keeps(self.problem, pipeline, self.constraints):
            return
        self._considered.append(pipeline)
        if self.best is None or self._rank(value) < self._rank(self.best[1]):
            self.best = pipeline, value

    def take_considered(self) -> list[PipelineSpec]:
        """The pipelines that were taken since the last call, whether they became the best or not."""
        taken, self._considered = self._considered, []
        return taken

    def _rank(self, value: Value) -> tuple[int, ...]:
        return tuple(criterion.of(value) for criterion in self.criteria)

    def run_all(self, rank: int) -> None:
        """Solve a model of each number of stages for the criterion of this rank. Those before it stay at their best."""
        for stages in self.stages():
            self.waiting = len(self.stages()) - self.stages().index(stages)
            bound = self.run(stages, rank=rank)
            if bound is not None and rank == 0:
                self.bounds.append(bound)

    def break_ties(self) -> None:
        """Minimise the further criteria, one after the other, among the pipelines that are best in those before.

        Ties may stay open where a limit is reached, and where the structure is not all of the cost: there the model knows
        streamed bytes only from below.
        """
        if self.best is not None and not self.bounds:
            for rank in range(1, len(self.criteria)):
                self.run_all(rank)

    def run(self, stages: int, most_ns: int = LONGEST_NS, rank: int = 0) -> int | None:
        """Search the pipelines of exactly so many stages for one that improves on the best.

        It must be better in the criterion of this rank, as good in those before it, and have a period of at most most_ns.
        Returns a lower bound on that criterion for what was not searched; None where everything was.
        """
        most = min(self.most_replicas, self.devices - stages + 1) if stages > 1 or self.may_replicate_whole else 1
        least = pipeline_bound_ns(self.problem, stages, self.devices if most > 1 else stages, max(1, most))
        limit = min(most_ns, self._most(Criterion.RATE, rank))
        if most < 1 or least > limit or self._least_latency_ns(stages) > self._most(Criterion.LATENCY, rank):
            return None
        floors = {Criterion.RATE: least, Criterion.LATENCY: self._least_latency_ns(stages)}
        floor = floors.get(self.criteria[rank], 0)
        try:
            self.budget.spend(int(stages * self.problem.n_ops * _BUILDING * WORK_UNIT))
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
        """A model of so many stages that minimises the criterion of this rank."""
        devices = [count for _, count in self.problem.devices]
        model = stage_model(
            self.problem, self.structures, self.constraints, stages=stages, devices=devices,
            most_replicas=most_replicas, most_ns=most_ns,
        )  # fmt: skip
        for criterion in self.criteria[: rank + 1]:
            quantity = model.criterion(criterion)
            if self.best is not None:
                model.model.add(quantity <= self._most(criterion, rank))
        model.model.minimize(quantity)
        if self.best and len(self.best[0].stages) == stages:
            model.hint(self.best[0])
        return model

    def _most(self, criterion: Criterion, rank: int) -> int:
        """The largest value of a criterion in a pipeline that improves on the best in the criterion of this rank."""
        held = self.constraints
        most = {Criterion.RATE: held.max_objective_ns, Criterion.LATENCY: held.max_latency_ns}.get(criterion)
        most = LONGEST_NS if most is None else min(most, LONGEST_NS)
        at = self.criteria.index(criterion)
        if self.best is not None and at <= rank:
            most = min(most, criterion.of(self.best[1]) - (at == rank))
        return most

    def _least_latency_ns(self, stages: int) -> int:
        """A lower bound on the latency of a pipeline of so many stages."""
        least = least_total_ns(self.structures[0], stages) if len(self.kinds) == 1 else 0
        return least + stages * self.problem.handover_ns

    def _round(self, model: StageModel) -> tuple[bool, int | None]:
        """Solve the model once, and let it learn.

        Returns whether another round is of no use, and a lower bound on what the model may still give; None for nothing.
        """
        from ortools.sat.python import cp_model

        solver = self._solver()
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
            stages = model.partition(solver)
            self.consider(PipelineSpec(tuple(StageSpec(ops, self.kinds[k], r) for ops, k, r in stages)))
            surprised = self._learn(model, stages, solver)
        # Only the optimum of a model whose times are true is an optimum of the problem.
        still_open = None if status == cp_model.OPTIMAL and not surprised else bound
        try:
            self.budget.spend(int(spent * WORK_UNIT))
        except BudgetSpent:
            self.budget.left = 0
            return True, still_open
        return status != cp_model.OPTIMAL or not surprised, still_open

    def _learn(self, model: StageModel, stages: Sequence[tuple[OpSet, int, int]], solver: CpSolver) -> bool:
        """Tell the model the times of stages that are dearer by `exact`; whether there are any."""
        done, surprised = 0, False
        for j, (ops, kind, _) in enumerate(stages):
            cost = self.problem.exact(ops, self.kinds[kind])
            if cost is None or cost.time_ns > solver.value(model.times.anywhere[j]):
                model.exclude(ops, done, kind, cost.time_ns if cost else None)
                surprised = True
            done |= ops
        return surprised

    def _solver(self) -> CpSolver:
        from ortools.sat.python import cp_model

        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 1
        solver.parameters.catch_sigint_signal = False
        solver.parameters.max_deterministic_time = max(_LEAST_WORK, self.budget.left / WORK_UNIT / self.waiting)
        if self.budget.seconds_left is not None:
            solver.parameters.max_time_in_seconds = max(_LEAST_WORK, self.budget.seconds_left)
        return solver


def _solve(solver: CpSolver, model: CpModel) -> CpSolverStatus:
    """The status that CP-SAT ends with.

    CP-SAT runs in a thread, so that Ctrl-C reaches this one and stops the search at once. Raises KeyboardInterrupt then.
    """
    statuses: list[CpSolverStatus] = []
    begun, stopped, ended = threading.Event(), threading.Event(), threading.Event()

    def search() -> None:
        begun.set()
        try:
            if not stopped.is_set():
                statuses.append(solver.solve(model))
        finally:
            ended.set()

    # Not by `join`: interrupted, it may take a thread that runs for one that has ended (Python 3.10 to 3.12, bpo-45274).
    thread = threading.Thread(target=search, daemon=True)
    try:
        thread.start()
        while not ended.wait(_POLL_SECONDS):
            pass
    except KeyboardInterrupt:
        stopped.set()  # for a thread that has not begun
        if begun.is_set():
            while not ended.wait(_STOP_SECONDS):
                solver.stop_search()  # again and again: a search that is still being set up does not hear it
            thread.join()
        raise
    thread.join()
    return statuses[0]
