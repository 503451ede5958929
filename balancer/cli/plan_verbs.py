"""The verbs about plans: solve, compare, size, predict, verify, demo."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cli import compile_verb
from balancer.cli.arguments import (
    MOST_TPUS,
    add_force,
    add_hardware,
    add_interpreter,
    add_keep_state,
    add_model,
    add_tpus,
    choose_interpreter,
    devices_of,
    print_json,
    whole_number,
)  # fmt: skip
from balancer.cli.compiler_options import add_compile, compiler_if_asked
from balancer.cli.run_options import add_plan
from balancer.cli.solver_options import add_solver, constraints, positive
from balancer.errors import InfeasibleError, PlanError
from balancer.ground.units import NS_PER_MS
from balancer.ground.wording import counted

if TYPE_CHECKING:
    import argparse

    from balancer.plan import Plan
    from balancer.verification import Verification

DEMO_WIDTH, DEMO_LAYERS = 2350, 6  # four hidden layers of 5.6 MB each, of which one TPU cannot hold two


def solve_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `solve`."""
    add_model(parser)
    add_tpus(parser)
    add_hardware(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="write the plan's directory: model, segments, plan file; without it nothing is written",
    )
    parser.add_argument(
        "--pipelines",
        type=whole_number(1, MOST_TPUS),
        metavar="K",
        help="allow at most K pipelines side by side; default: any number",
    )
    parser.add_argument(
        "--replicas",
        type=whole_number(1, MOST_TPUS),
        metavar="R",
        help="allow at most R TPUs for one stage; default: any number",
    )
    parser.add_argument("--overflow", choices=("stream", "error"),
                        help="what to do with plans whose parameters do not all fit on the chips. stream: take the plan with "
                             "the highest rate. error: refuse such plans (exit code 3). Default: stream; with --compile, "
                             "once the compiler has reported less memory than predicted, prefer plans that fit")  # fmt: skip
    parser.add_argument("--compilable", choices=("any", "likely", "sure"),
                        help="which segments a plan may have, judged by the memory that their activations need. sure: only "
                             "segments that the compiler surely takes. likely: none that it surely refuses. any: all. "
                             "Default: the fastest plan whose segments surely compile, if there is one, else the fastest "
                             "that may")  # fmt: skip
    parser.add_argument(
        "--profile", metavar="FILE",
        help="a file with costs of ops that replace the predicted ones, as `balancer profile` writes it",
    )  # fmt: skip
    add_keep_state(parser)
    add_force(parser)
    add_solver(parser)
    add_compile(
        parser, "compile the plan with the vendor's compiler, correct the costs by its reports, forbid the segments "
        "that it refuses, and solve again until prediction and reports agree",
    )  # fmt: skip


def solve(arguments: argparse.Namespace) -> int:
    """Solve, print the plan, and write its directory with -o."""
    import balancer
    from balancer.cli import drawing
    from balancer.cli.cpu_remarks import warn_of_cpu
    from balancer.directory.writing import check_free

    devices = devices_of(arguments)
    if arguments.output is not None:
        check_free(
            Path(arguments.output), f"{Path(arguments.model).stem}_plan_{devices.total}.json", force=arguments.force
        )
    chosen = compiler_if_asked(arguments)
    options = balancer.Options(
        pipelines=arguments.pipelines, replicas=arguments.replicas, overflow=arguments.overflow,
        compilable=arguments.compilable, solver=arguments.solver, constraints=constraints(arguments),
        seconds=arguments.time_limit,
    )  # fmt: skip
    with drawing.progress("solving; Ctrl-C takes the best so far", quiet=arguments.quiet or arguments.json):
        plan = balancer.balance(
            arguments.model, devices, options=options, profile=arguments.profile, keep_state=arguments.keep_state
        )
        if chosen is not None:
            tell = compile_verb.teller(arguments, arguments.output)
            plan = balancer.refine(plan, chosen, options=options, on_round=tell).plan
    if arguments.output is not None:
        plan = balancer.save(plan, arguments.output, force=arguments.force)
    warn_of_cpu(plan)
    if arguments.json:
        print_json(plan.to_json())
        return 0
    draw_plan(plan)
    if plan.directory:
        print(f"written to {plan.directory}: {counted(len(plan.segments), 'segment')} and {plan.file_name}")
    return 0


def draw_plan(plan: Plan) -> None:
    """Print all that is known of a plan: stages, comparison, what is proved, what the compiler reported."""
    from balancer.cli import drawing
    from balancer.cli.cpu_remarks import idle_stages
    from balancer.cli.drawing_compiling import compiling
    from balancer.cli.drawing_models import cpu_parts

    drawing.stages(plan)
    if plan.comparison:
        drawing.comparison(drawing.devices_in_words(plan), plan.comparison)
    drawing.remarks(plan)
    cpu_parts(plan)
    idle_stages(plan)
    compiling(plan)
    if any(segment.reported for segment in plan.segments):
        compile_verb.say_compiled(plan)


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_tpus(parser)
    add_hardware(parser)
    add_compile(
        parser, "also run the vendor's compiler: on the best plan, and with its own --num_segments; the reported memory then "
        "replaces the predicted memory",
    )  # fmt: skip


def compare(arguments: argparse.Namespace) -> int:
    """Solve, and print the comparison without the plan."""
    import balancer
    from balancer.cli import drawing

    chosen = compiler_if_asked(arguments)
    with drawing.progress("solving", quiet=arguments.quiet or arguments.json):
        plan = balancer.balance(arguments.model, devices_of(arguments))
        rows = plan.comparison
        if chosen is not None:
            rows = balancer.compare_compiled(plan, chosen, on_round=compile_verb.teller(arguments))
    if arguments.json:
        print_json({"comparison": [asdict(row) for row in rows]})
    else:
        drawing.comparison(drawing.devices_in_words(plan), rows)
    return 0


def size_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `size`."""
    parser.add_argument(
        "model", metavar="MODEL",
        help="a full-integer .tflite file; or a plan, whose hardware and corrected costs then count, without the segments "
        "that the compiler refused",
    )  # fmt: skip
    parser.add_argument(
        "--target-fps",
        type=positive,
        metavar="F",
        help="say how many TPUs give F inferences/s; exit code 3 if no number of TPUs does",
    )
    parser.add_argument(
        "--max-latency", type=positive, metavar="MS",
        help="count only plans in which one input alone takes at most MS milliseconds",
    )  # fmt: skip
    parser.add_argument(
        "--max-tpus", type=whole_number(1, MOST_TPUS), default=16, metavar="N", help="try 1 to N TPUs; default 16"
    )
    add_hardware(parser)
    parser.set_defaults(hardware=None)  # of the plan, or pcie


def size(arguments: argparse.Namespace) -> int:
    """Print the rates on 1, 2, 3 ... TPUs. Exit code 3 if no number of TPUs meets the targets."""
    import balancer
    from balancer.cli import drawing

    targets = ((arguments.target_fps, "{:g} inferences/s"), (arguments.max_latency, "a latency of {:g} ms"))
    asked = [words.format(value) for value, words in targets if value is not None]
    with drawing.progress("sizing, numbers of TPUs", quiet=arguments.quiet or arguments.json) as advance:
        sizing = balancer.size(
            arguments.model, hardware=arguments.hardware, max_tpus=arguments.max_tpus, target_per_s=arguments.target_fps,
            max_latency_ns=None if arguments.max_latency is None else arguments.max_latency * NS_PER_MS, progress=advance,
        )  # fmt: skip
    if arguments.json:
        print_json(asdict(sizing))
    else:
        drawing.sizing(sizing, asked)
    return InfeasibleError.exit_code if asked and sizing.target_n is None else 0


def predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `predict`."""
    add_model(parser)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--cuts", metavar="I,J", help="the first op of each segment but the first: 12,57 gives three")
    how.add_argument("--segments", metavar="OPS", help='the ops of each segment: "0-11,14;12,13,15-60"')
    how.add_argument("--plan", metavar="PLAN", help="take the segments of this plan: its directory, or its file")
    add_hardware(parser)


def predict(arguments: argparse.Namespace) -> int:
    """Print the predicted cost of the given segments."""
    import balancer
    from balancer.cli import drawing
    from balancer.cli.drawing_compiling import compiling
    from balancer.cli.drawing_models import cpu_parts

    plan = balancer.predict(arguments.model, _segments(arguments), hardware=arguments.hardware)
    if arguments.json:
        document = plan.to_json()
        print_json({"segments": document["segments"], "pipelines": document["pipelines"]})
    else:
        drawing.stages(plan)
        cpu_parts(plan)
        compiling(plan)
    return 0


def _whole_numbers(text: str) -> list[int]:
    """The numbers in a text such as "12,57". Raises ValueError, which names the part that is not a whole number."""
    numbers = text.split(",")
    wrong = next((number for number in numbers if not number.strip().isdecimal()), None)
    if wrong is not None:
        raise ValueError(f"'{wrong}' is not a whole number")
    return [int(number) for number in numbers]


def _segments(arguments: argparse.Namespace) -> list[list[int]]:
    """The op indices of each segment, from --cuts, --segments or --plan. Raises PlanError."""
    from balancer.ground.opsets import members, parse_op_ranges
    from balancer.plan import load_plan
    from balancer.planning.predicting import cut_segments
    from balancer.tflite.read import load_graph

    n_ops = len(load_graph(arguments.model).ops)
    try:
        if arguments.cuts is not None:
            return [list(s) for s in cut_segments(_whole_numbers(arguments.cuts), n_ops)]
        if arguments.segments is not None:
            return [parse_op_ranges(part, n_ops) for part in arguments.segments.split(";")]
    except ValueError as error:
        raise PlanError(
            str(error), "segments", "give op indices as in --cuts 12,57 or --segments '0-11;12-60'"
        ) from error
    plan = load_plan(arguments.plan)
    _same_model(plan, arguments)
    if len(plan.partitions()) > 1:
        what = "has pipelines that are cut differently"
        raise PlanError(what, arguments.plan, "choose one of them, and give its segments with --segments")
    return [list(members(segment.ops)) for segment in plan.partitions()[0]]


def _same_model(plan: Plan, arguments: argparse.Namespace) -> None:
    """Raise PlanError if the plan was made for another model."""
    import hashlib

    from balancer.tflite.read import read_model_bytes

    if hashlib.sha256(read_model_bytes(Path(arguments.model))).hexdigest() != plan.model.sha256:
        raise PlanError("was made for another model (the hash differs)", arguments.plan, "solve this model")


def verify_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `verify`."""
    add_plan(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--inputs", metavar="FILE",
        help="a .npy file for a model with one input, or a .npz file with an array for each input tensor; the first axis "
        "counts the inputs",
    )  # fmt: skip
    how.add_argument(
        "--random", type=whole_number(1, 1_000_000), default=3, metavar="K", help="make K random inputs; default 3"
    )
    add_keep_state(parser)
    add_interpreter(parser)


def verify(arguments: argparse.Namespace) -> int:
    """Print whether the segments compute what the model computes. Exit code 1 if not, or if it could not be shown."""
    import balancer
    from balancer.cli import drawing

    choose_interpreter(arguments)
    with drawing.progress("verifying", quiet=arguments.quiet or arguments.json) as advance:
        result = balancer.verify(
            arguments.plan, arguments.inputs or arguments.random, keep_state=arguments.keep_state, progress=advance
        )
    if arguments.json:
        print_json({"bit_exact": result.bit_exact, **asdict(result)})
    else:
        _say_verified(result)
    return 0 if result.bit_exact else 1


def _say_verified(result: Verification) -> None:
    """Print what was compared, and the first difference if there is one."""
    from balancer.cli import drawing

    drawing.state(result.state)
    items, tensors = counted(result.items, "input"), counted(result.compared_tensors, "boundary tensor")
    print(f"{items}, {tensors} equal ({result.runtime})")
    if result.mismatch:
        m = result.mismatch
        print(f"first difference: {m.segment}, tensor '{m.tensor}', input {m.item}:")
        print(f"    {counted(m.elements, 'element')} off, by up to {m.largest_difference:g}")
    verified = ", ".join(result.verified_segments) or "nothing"
    for op in result.stopped_by:
        print(f"not run: {op}: no kernel in this interpreter; verified: {verified}")
    shown = "no" if result.mismatch else "not shown"
    print(f"bit-exact: {'yes' if result.bit_exact else shown}")


def demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", "--tpus", type=whole_number(1, MOST_TPUS), default=4, metavar="N", help="how many Edge TPUs; default 4"
    )
    add_hardware(parser)


def demo(arguments: argparse.Namespace) -> int:
    """Solve, cut, verify and compare a synthetic model in a temporary folder. Exit code 1 if it is not bit-exact."""
    import balancer
    from balancer.cli import drawing
    from balancer.directory.writing import temporary_folder, write_file
    from balancer.tflite import synth

    with temporary_folder("demo") as folder:
        model = folder / f"fc_{DEMO_WIDTH}.tflite"
        write_file(model, synth.fc(DEMO_WIDTH, layers=DEMO_LAYERS))
        plan = balancer.save(balancer.balance(model, arguments.tpus, hardware=arguments.hardware), folder / "plan")
        with drawing.progress("verifying", quiet=arguments.quiet or arguments.json) as advance:
            result = balancer.verify(folder / "plan", 3, progress=advance)
    if arguments.json:
        print_json({"plan": plan.to_json(), "verification": {"bit_exact": result.bit_exact, **asdict(result)}})
    else:
        draw_plan(plan)
        _say_verified(result)
    return 0 if result.bit_exact else 1
