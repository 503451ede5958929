"""The verb `tune`, and the plan that it would measure next."""

from __future__ import annotations

import itertools
import os
import sys
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balancer.cli.arguments import (
    MOST_TPUS,
    add_force,
    add_interpreter,
    choose_interpreter,
    print_json,
    say_unused,
    whole_number,
)
from balancer.cli.compiler_options import COMPILER_OPTIONS, add_compiler, compiler
from balancer.cli.run_options import NONE_FIRST, RUN_OPTIONS, add_devices, add_plan, say_unused_devices, simulated_truth
from balancer.cli.solver_options import positive
from balancer.errors import DeviceError, PlanError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from balancer.ground.opsets import OpSet
    from balancer.loops.sources import Seen, Source
    from balancer.loops.tuning import Tuned, TuneRound
    from balancer.opened import OpenedPlan
    from balancer.plan import Plan
    from balancer.solve.bisection import Bisection


def tune_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tune`."""
    add_plan(parser)
    parser.add_argument(
        "--rounds", type=whole_number(1, 100), default=5, metavar="R", help="measure at most R plans; default 5"
    )
    parser.add_argument(
        "--seconds", type=positive, default=5.0, metavar="S", help="measure each plan for about S seconds; default 5"
    )
    parser.add_argument(
        "--recorded", metavar="FILE.csv",
        help="take the times from this file, as `bench --csv` writes it, instead of running plans. Columns "
        "plan,stage,measured_ms, as in the row `plan,0,9.412`: a plan's directory or file, relative to this file's folder; "
        "the number of a stage or the name of a segment; milliseconds for one input. If the next plan's times are not in it, "
        "that plan is written to a directory of its own",
    )  # fmt: skip
    parser.add_argument(
        "--pipelines", type=whole_number(1, MOST_TPUS), metavar="K",
        help="allow at most K pipelines side by side; default: as many as the plan was solved with",
    )  # fmt: skip
    parser.add_argument(
        "--replicas", type=whole_number(1, MOST_TPUS), metavar="R",
        help="allow at most R TPUs for one stage; default: as many as the plan was solved with",
    )  # fmt: skip
    parser.add_argument(
        "--bisection", action="store_true", help="also run Google's profiling bisection with the same source of times"
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR",
        help="write the best plan's directory here; default: the name of the plan's directory with _tuned added",
    )  # fmt: skip
    add_devices(parser, NONE_FIRST)
    add_compiler(parser)
    add_interpreter(parser)
    add_force(parser)


def tune(arguments: argparse.Namespace) -> int:
    """Measure, correct the costs, solve again; write the plan with the best measurement."""
    import balancer
    from balancer.cli import drawing, drawing_runs
    from balancer.directory.writing import check_folder
    from balancer.opened import open_plan

    choose_interpreter(arguments)
    opened = open_plan(arguments.plan)
    folder = Path(arguments.output or f"{(opened.plan.directory or Path()).resolve()}_tuned")
    check_folder(folder, force=arguments.force)
    source = _source(arguments, opened)
    options = balancer.Options(pipelines=arguments.pipelines, replicas=arguments.replicas)
    with _activity(quiet=arguments.quiet or arguments.json) as show:
        tell = _teller(arguments, show)
        tuned = balancer.tune(opened, _shown(source, show), rounds=arguments.rounds, options=options, on_round=tell)
        saved = balancer.save(tuned.plan, folder, force=arguments.force)
    if not arguments.json:
        drawing_runs.tuned(tuned)
        drawing.state(tuned.plan.state)
        print(f"written to {saved.directory}: {len(saved.segments)} segments and {saved.file_name}")
    following = _save_next(arguments, opened.plan, tuned)
    if following is not None and tuned.unmeasured is not None and not arguments.json:
        drawing_runs.to_measure(tuned.unmeasured, following, arguments.plan, arguments.recorded)
    beside = _bisect(arguments, opened, source) if arguments.bisection else None
    if arguments.json:
        rounds = [asdict(r) for r in tuned.rounds]
        bisection = asdict(beside) if beside else None
        print_json(
            {
                "rounds": rounds,
                "best": tuned.best.number,
                "gain": tuned.gain,
                "ended": tuned.ended,
                "plan": saved.to_json(),
                "next": None if following is None else str(following),
                "bisection": bisection,
            }
        )
    elif beside:
        drawing_runs.bisection(beside)
    return 0


def _bisect(arguments: argparse.Namespace, plan: OpenedPlan, source: Any) -> Bisection:
    """Run the profiling bisection, with a counter of measured segments: it measures many more than tuning does."""
    from balancer.cli import drawing
    from balancer.loops import tuning

    with drawing.progress("bisecting, segments measured", quiet=arguments.quiet or arguments.json) as advance:
        count = itertools.count(1)

        def counted(asked: Plan) -> Any:
            advance(next(count))
            return source(asked)

        return tuning.bisected(plan, counted)


@contextmanager
def _activity(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """What is being done, on stderr. It shows nothing if `quiet`, or if stderr is not a terminal.

    Yields a function to call with what begins, in words; with no words it clears the line, so that others can print.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda words: None
        return
    from rich.console import Console

    status = Console(stderr=True).status("")

    def show(words: str) -> None:
        if words:
            status.update(f"{words} …")
            status.start()
        else:
            status.stop()

    try:
        yield show
    finally:
        status.stop()


def _save_next(arguments: argparse.Namespace, first: Plan, tuned: Tuned) -> Path | None:
    """Write the plan that could not be measured, so that somebody can. Returns its directory; None if there is no such plan.

    The directory is that of the first plan with the number of the round added. It stays as it is if it holds the same plan
    already, which may have been compiled since.
    """
    import balancer
    from balancer.plan import load_plan

    if tuned.unmeasured is None:
        return None
    folder = Path(f"{(first.directory or Path()).resolve()}_round_{len(tuned.rounds) + 1}")
    folder = Path(os.path.relpath(folder))
    try:
        there = load_plan(folder)
    except PlanError:
        there = None
    if there is None or not _same_stages(there, tuned.unmeasured):
        balancer.save(tuned.unmeasured, folder, force=arguments.force)
    return folder


def _same_stages(one: Plan, other: Plan) -> bool:
    """Whether both plans have the same segments of the same model on the same TPUs."""

    def stages(plan: Plan) -> list[tuple[OpSet, tuple[int, ...]]]:
        return [(plan.segment(stage.segment).ops, tuple(stage.tpus)) for p in plan.pipelines for stage in p.stages]

    return one.model.sha256 == other.model.sha256 and stages(one) == stages(other)


def _shown(source: Source, show: Callable[[str], None]) -> Source:
    """The same source, which shows each measurement while it is made. show: as of `_activity`."""
    count = itertools.count(1)

    def measured(plan: Plan) -> Seen:
        show(f"round {next(count)}: measuring the plan")
        return source(plan)

    return measured


def _teller(arguments: argparse.Namespace, show: Callable[[str], None]) -> Callable[[TuneRound], None]:
    """A function that prints each round: on stderr with --json, which has stdout to itself. show: see `_shown`."""
    from balancer.cli import drawing_runs

    stream = sys.stderr if arguments.json else sys.stdout

    def tell(tune_round: TuneRound) -> None:
        show("")
        if not arguments.quiet:
            print(drawing_runs.round_line(tune_round), file=stream, flush=True)
        show("solving with what was measured")

    return tell


def _source(arguments: argparse.Namespace, plan: OpenedPlan) -> Any:
    """The source of measured times that the arguments choose. Raises DeviceError for --sim-outputs live."""
    from balancer.loops.sources import PipelineTimes, RecordedTimes, TrueCosts
    from balancer.plan import EDGE_TPU
    from balancer.planning.costed_model import costed_model_of
    from balancer.runtime.options import RunOptions

    if arguments.sim_outputs == "live":
        what = "outputs computed live take the time of this CPU, which says nothing about Edge TPUs"
        raise DeviceError(what, "--sim-outputs live", "leave it out, or use --sim-outputs recorded")
    truth = simulated_truth(arguments, plan)
    if arguments.recorded:
        say_unused(arguments, [*RUN_OPTIONS, *COMPILER_OPTIONS, "--seconds"], "with --recorded")
        return RecordedTimes(Path(arguments.recorded))
    names = {name.strip() for name in (arguments.devices or "").split(",")}
    say_unused_devices(arguments, sum(d.count for d in plan.plan.devices if d.device == EDGE_TPU))
    if truth is None and "sim" in names:
        # The first plan's own costs are the truth in every round. With those of each plan, predictions would always be right.
        truth = TrueCosts(costed_model_of(plan))
    needs_compiled = not names <= {"sim", "cpu"}
    if not needs_compiled:
        say_unused(arguments, COMPILER_OPTIONS, f"on {arguments.devices}, which takes segments that are not compiled")
    options = RunOptions(processes=arguments.processes, exact=arguments.exact, seconds=arguments.item_timeout)
    return PipelineTimes(
        devices=arguments.devices, seconds=arguments.seconds, options=options, truth=truth, jitter=arguments.sim_jitter,
        outputs=arguments.sim_outputs, compiler=partial(compiler, arguments) if needs_compiled else None,
    )  # fmt: skip
