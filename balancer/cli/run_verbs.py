"""The verbs that run a plan: devices, run, bench, tune."""

from __future__ import annotations

import itertools
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balancer.cli.arguments import (
    MOST_TPUS,
    add_force,
    add_interpreter,
    add_keep_state,
    choose_interpreter,
    print_json,
    whole_number,
)  # fmt: skip
from balancer.cli.compiler_options import add_compiler, compiler
from balancer.cli.run_options import (
    LIVE_FIRST,
    NONE_FIRST,
    add_devices,
    add_plan,
    chosen_devices,
    run_options,
    simulated_truth,
)
from balancer.cli.solver_options import positive
from balancer.errors import DeviceError, OutputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from balancer.opened import OpenedPlan
    from balancer.plan import Plan
    from balancer.runtime.options import RunOptions
    from balancer.runtime.pipeline import Pipeline
    from balancer.runtime.pycoral_runner import PycoralRunner
    from balancer.solve.bisection import Bisection

_BENCH_INPUTS = 4


def devices_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-open", action="store_true", help="list them without opening them")


def devices(arguments: argparse.Namespace) -> int:
    """List the Edge TPUs, each with what is wrong with it."""
    from balancer.cli import drawing_runs
    from balancer.runtime.devices import list_devices
    from balancer.runtime.probe import probed

    found = list_devices()
    if not arguments.no_open:
        found = [d if d.problem and "initialised" not in d.problem else probed(d) for d in found]
    if arguments.json:
        print_json({"devices": [asdict(d) for d in found]})
    else:
        drawing_runs.devices(found, "seen, not opened" if arguments.no_open else "works")
    return 0


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `run`."""
    add_plan(parser)
    parser.add_argument(
        "--inputs", required=True, metavar="FILE|DIR", help=".npy, .npz by tensor name, or a folder of pictures"
    )
    parser.add_argument(
        "-o", "--outputs", required=True, metavar="DIR", help="gets a .npz for each input, by tensor name"
    )
    parser.add_argument("--on-error", choices=("stop", "continue"), default="stop", help="when an input fails")
    parser.add_argument("--runner", choices=("balancer", "pycoral"), default="balancer", help="pycoral: Google's own")
    add_keep_state(parser)
    add_devices(parser, LIVE_FIRST)
    add_interpreter(parser)
    add_force(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run a plan on inputs; exit code 1 if one of them failed."""
    from balancer.cli import drawing
    from balancer.cli.run_inputs import Reading, given_inputs, outcomes
    from balancer.directory.writing import check_writable, put_file, result_folder
    from balancer.inputs import model_interface, npz_bytes
    from balancer.opened import open_plan

    choose_interpreter(arguments)
    opened = open_plan(arguments.plan)
    devices = chosen_devices(arguments, opened.plan)
    given = given_inputs(Path(arguments.inputs), model_interface(opened.graph).inputs)
    folder, total = Path(arguments.outputs), len(given)
    _make_folder(folder)
    for one in given:
        check_writable(folder / f"{one.name}.npz", force=arguments.force)
    reading = Reading(given, going_on=arguments.on_error == "continue")
    recorded = reading.at_once() if arguments.sim_outputs == "recorded" else []
    options = run_options(arguments, opened, recorded, on_error=arguments.on_error)
    failures: list[str] = []
    with (
        result_folder(folder),
        _runner(arguments, opened, devices, options) as runner,
        drawing.progress_bar("running", total, quiet=arguments.quiet or arguments.json) as advance,
    ):
        for k, outcome in enumerate(outcomes(reading, runner.map)):
            if outcome.result is None:
                failures.append(outcome.failure)
            else:
                path = folder / f"{outcome.given.name}.npz"
                put_file(path, npz_bytes(outcome.result), force=arguments.force)
            advance(k + 1)
    document = {"outputs": str(folder), "items": total, "failures": failures, "state": runner.state}
    if arguments.json:
        print_json(document)
    else:
        drawing.state(runner.state)
        print(*(f"failed: {line}" for line in failures), sep="\n", end="\n" if failures else "")
        print(f"{total - len(failures)} of {total} results in {folder}")
    return 1 if failures else 0


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be made ({error.strerror})", str(folder), "choose another folder") from error


def _runner(
    arguments: argparse.Namespace, plan: OpenedPlan, devices: Sequence[str], options: RunOptions
) -> Pipeline | PycoralRunner:
    from balancer.runtime.pipeline import Pipeline
    from balancer.runtime.pycoral_runner import PycoralRunner

    if arguments.runner == "pycoral":
        return PycoralRunner(plan, devices, keep_state=arguments.keep_state)
    return Pipeline(plan, devices, options)


def bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `bench`."""
    add_plan(parser)
    parser.add_argument(
        "--seconds", type=positive, default=5.0, metavar="S", help="in all, for latency and rate; default 5"
    )
    add_keep_state(parser)
    add_devices(parser, NONE_FIRST)
    add_interpreter(parser)


def bench(arguments: argparse.Namespace) -> int:
    """Measure a plan: rate, latency, and each stage, predicted beside measured."""
    from balancer.cli import drawing, drawing_runs
    from balancer.inputs import model_interface, random_items
    from balancer.opened import open_plan
    from balancer.runtime.measuring import measure
    from balancer.runtime.pipeline import Pipeline

    choose_interpreter(arguments)
    opened = open_plan(arguments.plan)
    devices = chosen_devices(arguments, opened.plan)
    inputs = random_items(model_interface(opened.graph).inputs, _BENCH_INPUTS)
    with (
        Pipeline(opened, devices, run_options(arguments, opened, inputs)) as pipeline,
        drawing.progress("measuring", quiet=arguments.quiet or arguments.json) as advance,
    ):
        found = measure(pipeline, inputs, seconds=arguments.seconds, progress=advance)
    if arguments.json:
        print_json({"format": "balancer-benchmark", "version": 1, **asdict(found), "state": pipeline.state})
    else:
        drawing.state(pipeline.state)
        drawing_runs.measurement(found)
    return 0


def tune_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tune`."""
    add_plan(parser)
    parser.add_argument("--rounds", type=whole_number(1, 100), default=5, metavar="R", help="at most; default 5")
    parser.add_argument(
        "--seconds", type=positive, default=5.0, metavar="S", help="to measure each plan for; default 5"
    )
    parser.add_argument("--recorded", metavar="FILE.csv", help="take times from a file: plan,stage,measured_ms")
    parser.add_argument(
        "--pipelines", type=whole_number(1, MOST_TPUS), metavar="K", help="at most so many side by side"
    )
    parser.add_argument("--replicas", type=whole_number(1, MOST_TPUS), metavar="R", help="at most so many TPUs a stage")
    parser.add_argument(
        "--bisection", action="store_true", help="run Google's profiling bisection on the same times, too"
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="write the best plan here; default: beside the plan's directory, _tuned"
    )
    add_devices(parser, NONE_FIRST)
    add_compiler(parser)
    add_interpreter(parser)
    add_force(parser)


def tune(arguments: argparse.Namespace) -> int:
    """Measure, correct, solve again; write the best plan as measured."""
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
    found = balancer.tune(opened, source, rounds=arguments.rounds, options=options, on_round=_teller(arguments))
    saved = balancer.save(found.plan, folder, force=arguments.force)
    if not arguments.json:
        drawing_runs.tuned(found)
        drawing.state(found.plan.state)
        print(f"written to {saved.directory}: {len(saved.segments)} segments and {saved.file_name}")
    beside = _bisect(arguments, opened, source) if arguments.bisection else None
    if arguments.json:
        rounds = [asdict(r) for r in found.rounds]
        bisection = asdict(beside) if beside else None
        print_json(
            {
                "rounds": rounds,
                "best": found.best.number,
                "gain": found.gain,
                "ended": found.ended,
                "plan": saved.to_json(),
                "bisection": bisection,
            }
        )
    elif beside:
        drawing_runs.bisection(beside)
    return 0


def _bisect(arguments: argparse.Namespace, plan: OpenedPlan, source: Any) -> Bisection:
    """Many more segments are measured than by tuning: that is what is to be seen."""
    from balancer.cli import drawing
    from balancer.loops import tuning

    with drawing.progress("bisecting, segments measured", quiet=arguments.quiet or arguments.json) as advance:
        count = itertools.count(1)

        def counted(asked: Plan) -> Any:
            advance(next(count))
            return source(asked)

        return tuning.bisected(plan, counted)


def _teller(arguments: argparse.Namespace) -> Callable[[Any], None]:
    from balancer.cli import drawing_runs

    stream = sys.stderr if arguments.json else sys.stdout

    def tell(found: Any) -> None:
        if not arguments.quiet:
            print(drawing_runs.round_line(found), file=stream, flush=True)

    return tell


def _source(arguments: argparse.Namespace, plan: OpenedPlan) -> Any:
    """Where the times come from, as the arguments say."""
    from balancer.loops.sources import PipelineTimes, RecordedTimes, TrueCosts
    from balancer.planning.setting import setting_of
    from balancer.runtime.options import RunOptions

    if arguments.sim_outputs == "live":
        what = "what is computed live takes the time of this CPU, which says nothing of Edge TPUs"
        raise DeviceError(what, "--sim-outputs live", "leave it out, or use --sim-outputs recorded")
    truth = simulated_truth(arguments, plan)
    if arguments.recorded:
        return RecordedTimes(Path(arguments.recorded))
    names = {name.strip() for name in (arguments.devices or "").split(",")}
    if truth is None and "sim" in names:
        truth = TrueCosts(setting_of(plan))  # what this plan was costed with, whatever other plans learn
    options = RunOptions(processes=arguments.processes, seconds=arguments.item_timeout)
    return PipelineTimes(
        devices=arguments.devices, seconds=arguments.seconds, options=options, truth=truth, jitter=arguments.sim_jitter,
        outputs=arguments.sim_outputs, compiler=None if names <= {"sim", "cpu"} else partial(compiler, arguments),
    )  # fmt: skip
