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
    choose_interpreter,
    print_json,
    whole_number,
)  # fmt: skip
from balancer.cli.compiler_options import add_compiler, compiler
from balancer.cli.run_options import LIVE_FIRST, NONE_FIRST, add_devices, add_plan, run_options
from balancer.cli.solver_options import positive
from balancer.errors import OutputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from balancer.plan import Plan
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
        drawing_runs.devices(found)
    return 0


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `run`."""
    add_plan(parser)
    parser.add_argument(
        "--inputs", required=True, metavar="FILE|DIR", help=".npy, .npz by tensor name, or a folder of pictures"
    )
    parser.add_argument("--outputs", required=True, metavar="DIR", help="gets a .npz for each input, by tensor name")
    parser.add_argument("--on-error", choices=("stop", "continue"), default="stop", help="when an input fails")
    parser.add_argument("--runner", choices=("balancer", "pycoral"), default="balancer", help="pycoral: Google's own")
    add_devices(parser, LIVE_FIRST)
    add_interpreter(parser)
    add_force(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run a plan on inputs; exit code 1 if one of them failed."""
    from balancer.balancing.saving import check_writable, write_file
    from balancer.cli import drawing
    from balancer.cli.run_inputs import Reading, given_inputs, outcomes
    from balancer.inputs import npz_bytes
    from balancer.plan import load_plan
    from balancer.runtime.recipes import interface, plan_model

    choose_interpreter(arguments)
    plan = load_plan(arguments.plan)
    given = given_inputs(Path(arguments.inputs), interface(plan_model(plan), plan.stem).inputs)
    folder, total = Path(arguments.outputs), len(given)
    _make_folder(folder)
    for one in given:
        check_writable(folder / f"{one.name}.npz", force=arguments.force)
    reading = Reading(given, going_on=arguments.on_error == "continue")
    recorded = reading.at_once() if arguments.sim_outputs == "recorded" else []
    options = run_options(arguments, plan, recorded, on_error=arguments.on_error)
    failures: list[str] = []
    with (
        _runner(arguments, plan, options) as runner,
        drawing.progress_bar("running", total, quiet=arguments.quiet or arguments.json) as advance,
    ):
        for k, outcome in enumerate(outcomes(reading, runner.map)):
            if outcome.result is None:
                failures.append(outcome.failure)
            else:
                path = folder / f"{outcome.given.name}.npz"
                write_file(path, npz_bytes(outcome.result), force=arguments.force)
            advance(k + 1)
    document = {"outputs": str(folder), "items": total, "failures": failures}
    if arguments.json:
        print_json(document)
    else:
        print(*(f"failed: {line}" for line in failures), sep="\n", end="\n" if failures else "")
        print(f"{total - len(failures)} of {total} results in {folder}")
    return 1 if failures else 0


def _make_folder(folder: Path) -> None:
    from balancer.errors import OutputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be made ({error.strerror})", str(folder), "choose another folder") from error


def _runner(arguments: argparse.Namespace, plan: Plan, options: Any) -> Pipeline | PycoralRunner:
    from balancer.runtime.pipeline import Pipeline
    from balancer.runtime.pycoral_runner import PycoralRunner

    if arguments.runner == "pycoral":
        return PycoralRunner(plan, arguments.devices)
    return Pipeline(plan, arguments.devices, options)


def bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `bench`."""
    add_plan(parser)
    parser.add_argument(
        "--seconds", type=positive, default=5.0, metavar="S", help="in all, for latency and rate; default 5"
    )
    add_devices(parser, NONE_FIRST)
    add_interpreter(parser)


def bench(arguments: argparse.Namespace) -> int:
    """Measure a plan: rate, latency, and each stage, predicted beside measured."""
    from balancer.cli import drawing, drawing_runs
    from balancer.inputs import random_items
    from balancer.plan import load_plan
    from balancer.runtime.measuring import measure
    from balancer.runtime.pipeline import Pipeline
    from balancer.runtime.recipes import interface, plan_model

    choose_interpreter(arguments)
    plan = load_plan(arguments.plan)
    inputs = random_items(interface(plan_model(plan), plan.stem).inputs, _BENCH_INPUTS)
    with (
        Pipeline(plan, arguments.devices, run_options(arguments, plan, inputs)) as pipeline,
        drawing.progress("measuring", quiet=arguments.quiet or arguments.json) as advance,
    ):
        found = measure(pipeline, inputs, seconds=arguments.seconds, progress=advance)
    if arguments.json:
        print_json({"format": "balancer-benchmark", "version": 1, **asdict(found)})
    else:
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
    from balancer import balancing
    from balancer.balancing import tuning
    from balancer.cli import drawing_runs
    from balancer.plan import load_plan
    from balancer.solve import Options

    choose_interpreter(arguments)
    plan = load_plan(arguments.plan)
    folder = Path(arguments.output or f"{Path(arguments.plan).parent.resolve()}_tuned")
    if folder.exists() and any(folder.iterdir()) and not arguments.force:
        raise OutputError("is there already", str(folder), "use --force to replace it, or name another with -o")
    source = _source(arguments, plan)
    options = Options(max_pipelines=arguments.pipelines, max_replicas=arguments.replicas)
    found = tuning.tune(plan, source, rounds=arguments.rounds, options=options, on_round=_teller(arguments))
    saved = balancing.save(found.plan, folder, force=arguments.force)
    if not arguments.json:
        drawing_runs.tuned(found)
        print(f"written to {saved.directory}: {len(saved.segments)} segments and {saved.file_name}")
    beside = _bisect(arguments, plan, source) if arguments.bisection else None
    if arguments.json:
        rounds = [asdict(r) for r in found.rounds]
        bisection = asdict(beside) if beside else None
        print_json(
            {
                "rounds": rounds,
                "gain": found.gain,
                "ended": found.ended,
                "plan": saved.to_json(),
                "bisection": bisection,
            }
        )
    elif beside:
        drawing_runs.bisection(beside)
    return 0


def _bisect(arguments: argparse.Namespace, plan: Plan, source: Any) -> Bisection:
    """Many more segments are measured than by tuning: that is what is to be seen."""
    from balancer.balancing import tuning
    from balancer.cli import drawing

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


def _source(arguments: argparse.Namespace, plan: Plan) -> Any:
    """Where the times come from, as the arguments say."""
    from balancer.balancing.sources import PipelineTimes, RecordedTimes
    from balancer.balancing.tuning import truth_of

    if arguments.recorded:
        return RecordedTimes(Path(arguments.recorded))
    names = {name.strip() for name in (arguments.devices or "").split(",")}
    simulated = names <= {"sim", "cpu"}
    truth = truth_of(plan, arguments.sim_errors) if names == {"sim"} and arguments.sim_errors is not None else None
    return PipelineTimes(
        devices=arguments.devices, seconds=arguments.seconds, options=run_options(arguments, plan, []),
        compiler=None if simulated else partial(compiler, arguments), truth=truth,
    )  # fmt: skip
