"""Ctrl-C while solvers work: it ends them at once, and what they know by then is not lost."""

from __future__ import annotations

import inspect
import itertools
import sys
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from balancer import solve as solve_package
from balancer.solve import Constraints, Ended, Problem, Solution, SolverOptions, check, solve, structured_problem
from balancer.solve.auto import solve_auto
from balancer.solve.cpsat import _solve
from balancer.solve.downset import DownSetWork
from balancer.solve.structure import Structure

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

FAST, SLOW = "fast", "slow"
_OPS = Structure(stage_ns=1, op_ns=(3, 9, 2, 4), relaxed=True)
# The best pipeline of two stages is not cut from the order of execution: 9 ns alone beside the others.
ONE_KIND = structured_problem((0, 0, 0, 0), [(FAST, 2)], {FAST: _OPS})
TWO_KINDS = structured_problem(
    (0, 0, 0, 0), [(FAST, 1), (SLOW, 1)], {FAST: _OPS, SLOW: replace(_OPS, op_ns=(6, 18, 4, 8))}
)
ONE_PIPELINE = SolverOptions(max_pipelines=1, max_replicas=1)
CASES = {
    "one kind": (ONE_KIND, ONE_PIPELINE),
    "several pipelines": (ONE_KIND, SolverOptions()),
    "downset": (ONE_KIND, replace(ONE_PIPELINE, solver="downset")),
    "cpsat": (ONE_KIND, replace(ONE_PIPELINE, solver="cpsat")),
    "two kinds": (TWO_KINDS, ONE_PIPELINE),
    "a latency": (ONE_KIND, replace(ONE_PIPELINE, constraints=Constraints(max_latency_ns=99))),
    "a pinned op": (ONE_KIND, replace(ONE_PIPELINE, constraints=Constraints(pinned={0: 0}))),
    "a latency and a pinned op": (
        ONE_KIND, replace(ONE_PIPELINE, constraints=Constraints(pinned={0: 0}, max_latency_ns=99)),
    ),
    "a latency and an op that the quickest pipeline has elsewhere": (
        ONE_KIND, replace(ONE_PIPELINE, constraints=Constraints(pinned={1: 1}, max_latency_ns=99)),
    ),
}  # fmt: skip


TOO_MANY = "too many down-sets to list"
CASES[TOO_MANY] = CASES["one kind"]


def _solved(case: str, problem: Problem) -> Solution:
    _, options = CASES[case]
    return solve_auto(problem, options, DownSetWork(down_sets=2)) if case == TOO_MANY else solve(problem, options)


class CtrlC:
    """Comes at the k-th of some events, once."""

    def __init__(self, k: int) -> None:
        self.left, self.came = k, False

    def event(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.came = True
            raise KeyboardInterrupt


def _interrupted_by(ctrl_c: CtrlC, problem: Problem) -> Problem:
    """The same problem; its costs are the events."""

    def counted(costs: Callable[..., Any]) -> Callable[..., Any]:
        def costed(*arguments: Any) -> Any:
            ctrl_c.event()
            return costs(*arguments)

        return costed

    return replace(problem, exact=counted(problem.exact), batch=lambda sets, kind: counted(problem.batch(sets, kind)))


@pytest.mark.parametrize("case", CASES)
def test_ctrl_c_at_any_cost_ends_a_search_with_the_best_so_far_or_is_passed_on(case: str) -> None:
    problem, options = CASES[case]
    for k in itertools.count(1):
        ctrl_c = CtrlC(k)
        try:
            solution = _solved(case, _interrupted_by(ctrl_c, problem))
        except KeyboardInterrupt:
            continue
        check(problem, solution, options)
        assert (solution.ended is Ended.INTERRUPTED) == ctrl_c.came
        if not ctrl_c.came:
            return


_SOLVERS = str(Path(solve_package.__file__).parent)


def _solved_with_ctrl_c(k: int, case: str) -> Ended | list[str]:
    """How a search ends if Ctrl-C comes at the k-th call of a solver's function: as its solution says, or the functions
    through which it was passed on.
    """
    problem, options = CASES[case]
    ctrl_c = CtrlC(k)

    def watch(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        # An exception in a generator that is being thrown away goes nowhere: not in generators.
        if event == "call" and code.co_filename.startswith(_SOLVERS) and not code.co_flags & inspect.CO_GENERATOR:
            ctrl_c.event()

    sys.setprofile(watch)
    try:
        solution = _solved(case, problem)
    except KeyboardInterrupt as error:
        names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        return [name for name in names[names.index("_solved") + 1 : names.index("watch")] if name != "solve"]
    finally:
        sys.setprofile(None)
    check(problem, solution, options)
    return solution.ended


@pytest.mark.parametrize(
    ("case", "step"), [("one kind", 5), ("several pipelines", 5), (TOO_MANY, 7), ("two kinds", 7), ("a latency", 29)]
)
def test_once_a_plan_is_known_ctrl_c_does_not_lose_it(case: str, step: int) -> None:
    """Also between searches, and while one is set up. Passed on are only the last step, which makes the solution, and what
    `auto` looks up between its steps.
    """
    known = False
    for k in itertools.count(1, step):
        end = _solved_with_ctrl_c(k, case)
        if end is Ended.COMPLETE:
            break
        known |= end is Ended.INTERRUPTED
        if isinstance(end, Ended):
            assert end is Ended.INTERRUPTED
        else:
            looking_up = len(set(end) - {"solve_auto", "_sharing", "_searched"}) <= 1
            assert not known or "solution" in end or looking_up, f"{k}: {end}"
    assert known


# CP-SAT, which runs in a thread


class Slow:
    """A solver that takes a while to begin, and does not hear before that. It ends when it is told to."""

    def __init__(self) -> None:
        self.begun, self.told = threading.Event(), threading.Event()

    def solve(self, model: object) -> str:
        time.sleep(0.05)
        self.begun.set()
        assert self.told.wait(20)
        return "told"

    def stop_search(self) -> None:
        if self.begun.is_set():
            self.told.set()


_MOMENTS = [
    (threading.Thread.start, "call", 1), (threading.Thread.start, "return", 1), (threading.Event.wait, "call", 1),
    (threading.Event.wait, "return", 1), (threading.Event.wait, "call", 2),
]  # fmt: skip


@pytest.mark.parametrize(("function", "event", "k"), _MOMENTS)
def test_ctrl_c_leaves_no_search_behind(function: Any, event: str, k: int) -> None:
    before, solver, ctrl_c = set(threading.enumerate()), Slow(), CtrlC(k)

    def watch(frame: FrameType, happened: str, argument: object) -> None:
        if happened == event and frame.f_code is function.__code__:
            ctrl_c.event()

    sys.setprofile(watch)
    try:
        with pytest.raises(KeyboardInterrupt):
            _solve(solver, None)  # type: ignore[arg-type]
    finally:
        sys.setprofile(None)
    assert ctrl_c.came
    assert solver.told.is_set() or not solver.begun.is_set()
    while set(threading.enumerate()) != before:  # a thread that had not begun ends by itself
        time.sleep(0.001)
    assert solver.told.is_set() == solver.begun.is_set()
