"""The verbs about devices: devices, run, bench, tune."""

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
    from collections.abc import Callable

    from balancer.opened import OpenedPlan
    from balancer.plan import Plan
    from balancer.runtime.assigning import Assigned
    from balancer.runtime.options import RunOptions
    from balancer.runtime.pipeline import Pipeline
    from balancer.runtime.pycoral_runner import PycoralRunner
    from balancer.solve.bisection import Bisection

_BENCH_INPUTS = 4  # different random inputs, used in turn


def devices_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-open", action="store_true", help="list the TPUs without opening them")


def devices(arguments: argparse.Namespace) -> int:
    """List the Edge TPUs of this machine, each with its problem if it has one."""
    from balancer.cli import drawing_runs
    from balancer.runtime.devices import list_devices
    from balancer.runtime.probe import probed

    listed = list_devices()
    if not arguments.no_open:
        listed = [probed(device) if device.usable else device for device in listed]
    if arguments.json:
        print_json({"devices": [asdict(d) for d in listed]})
    else:
        drawing_runs.devices(listed, "seen, not opened" if arguments.no_open else "works")
    return 0


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `run`."""
    add_plan(parser)
    parser.add_argument(
        "--inputs",
        required=True,
        metavar="FILE|DIR",
        help="a .npy file for a model with one input, a .npz file "
        "with an array for each input tensor (the first axis counts the inputs), or a folder of pictures",
    )
    parser.add_argument(
        "-o",
        "--outputs",
        required=True,
        metavar="DIR",
        help="write a .npz file for each input here, with an array for each output tensor",
    )
    parser.add_argument(
        "--on-error", choices=("stop", "continue"), default="stop",
        help="what to do when an input fails: stop, or continue with the next one; default stop",
    )  # fmt: skip
    parser.add_argument(
        "--runner", choices=("balancer", "pycoral"), default="balancer",
        help="what runs the pipeline: balancer, or Google's pycoral where it is installed; default balancer",
    )  # fmt: skip
    add_keep_state(parser)
    add_devices(parser, LIVE_FIRST)
    add_interpreter(parser)
    add_force(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run a plan on inputs. Exit code 1 if one of them failed."""
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
    options = run_options(arguments, opened, devices, recorded, on_error=arguments.on_error)
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
    document = {
        "outputs": str(folder), "items": total, "failures": failures, "state": runner.state, "notes": runner.notes,
    }  # fmt: skip
    if arguments.json:
        print_json(document)
    else:
        drawing.state(runner.state)
        print(*(f"note: {note}\n" for note in runner.notes), sep="", end="")
        print(*(f"failed: {line}" for line in failures), sep="\n", end="\n" if failures else "")
        print(f"{total - len(failures)} of {total} results in {folder}")
    return 1 if failures else 0


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be created ({error.strerror})", str(folder), "choose another folder") from error


def _runner(
    arguments: argparse.Namespace, plan: OpenedPlan, devices: Assigned, options: RunOptions
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
        "--seconds", type=positive, default=5.0, metavar="S", help="measure for about S seconds in all; default 5"
    )
    add_keep_state(parser)
    add_devices(parser, NONE_FIRST)
    add_interpreter(parser)


def bench(arguments: argparse.Namespace) -> int:
    """Measure a plan's rate, latency and stages, and print them beside the predicted numbers."""
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
        Pipeline(opened, devices, run_options(arguments, opened, devices, inputs)) as pipeline,
        drawing.progress("measuring", quiet=arguments.quiet or arguments.json) as advance,
    ):
        measurement = measure(pipeline, inputs, seconds=arguments.seconds, progress=advance)
    if arguments.json:
        print_json({"format": "balancer-benchmark", "version": 1, **measurement.to_json(), "state": pipeline.state})
    else:
        drawing.state(pipeline.state)
        drawing_runs.measurement(measurement)
    return 0


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
        help="take the times from this file instead of running plans; columns plan,stage,measured_ms",
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
    tuned = balancer.tune(opened, source, rounds=arguments.rounds, options=options, on_round=_teller(arguments))
    saved = balancer.save(tuned.plan, folder, force=arguments.force)
    if not arguments.json:
        drawing_runs.tuned(tuned)
        drawing.state(tuned.plan.state)
        print(f"written to {saved.directory}: {len(saved.segments)} segments and {saved.file_name}")
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


def _teller(arguments: argparse.Namespace) -> Callable[[Any], None]:
    """A function that prints each round: on stderr with --json, which has stdout to itself."""
    from balancer.cli import drawing_runs

    stream = sys.stderr if arguments.json else sys.stdout

    def tell(tune_round: Any) -> None:
        if not arguments.quiet:
            print(drawing_runs.round_line(tune_round), file=stream, flush=True)

    return tell


def _source(arguments: argparse.Namespace, plan: OpenedPlan) -> Any:
    """The source of measured times that the arguments choose. Raises DeviceError for --sim-outputs live."""
    from balancer.loops.sources import PipelineTimes, RecordedTimes, TrueCosts
    from balancer.planning.costed_model import costed_model_of
    from balancer.runtime.options import RunOptions

    if arguments.sim_outputs == "live":
        what = "outputs computed live take the time of this CPU, which says nothing about Edge TPUs"
        raise DeviceError(what, "--sim-outputs live", "leave it out, or use --sim-outputs recorded")
    truth = simulated_truth(arguments, plan)
    if arguments.recorded:
        return RecordedTimes(Path(arguments.recorded))
    names = {name.strip() for name in (arguments.devices or "").split(",")}
    if truth is None and "sim" in names:
        # The first plan's own costs are the truth in every round. With those of each plan, predictions would always be right.
        truth = TrueCosts(costed_model_of(plan))
    options = RunOptions(processes=arguments.processes, exact=arguments.exact, seconds=arguments.item_timeout)
    return PipelineTimes(
        devices=arguments.devices, seconds=arguments.seconds, options=options, truth=truth, jitter=arguments.sim_jitter,
        outputs=arguments.sim_outputs, compiler=None if names <= {"sim", "cpu"} else partial(compiler, arguments),
    )  # fmt: skip
