"""The verbs: what each takes, which library call it makes, and how its result is shown."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balancer.errors import OutputError, PlanError

if TYPE_CHECKING:
    from collections.abc import Callable

    from balancer.plan import Plan
    from balancer.verification import Verification

DEMO_WIDTH = 2350  # three hidden layers of 5.6 MB each: no TPU holds two of them
_LISTED_TPUS = 64


@dataclass(frozen=True)
class Verb:
    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    description: str = ""


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=True))


def _whole(lowest: int, highest: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"must be from {lowest} to {highest}, not {value}")
        return value

    number.__name__ = "number"
    return number


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a full-integer .tflite file")


def _hardware(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hardware",
        default="pcie",
        metavar="P",
        help="a preset (pcie, pcie-python, usb, usb-desktop) or a hardware file; default pcie",
    )


def _tpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", "--tpus", type=_whole(1, _LISTED_TPUS), required=True, metavar="N", help="how many Edge TPUs"
    )


def _force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace files that are there")


# solve, compare


def _solve_arguments(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    _tpus(parser)
    _hardware(parser)
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="write model, segments and plan here; without it nothing is written"
    )
    parser.add_argument(
        "--pipelines", type=_whole(1, _LISTED_TPUS), metavar="K", help="at most so many pipelines side by side"
    )
    parser.add_argument("--overflow", choices=("stream", "error"), default="stream",
                        help="error: refuse plans that stream parameters for want of room (exit code 3)")  # fmt: skip
    _force(parser)


def _solve(arguments: argparse.Namespace) -> int:
    from balancer.balancing import balance, save

    plan = balance(
        arguments.model, arguments.tpus, hardware=arguments.hardware, pipelines=arguments.pipelines,
        overflow=arguments.overflow,
    )  # fmt: skip
    if arguments.output:
        plan = save(plan, arguments.output, force=arguments.force)
    if arguments.json:
        _print_json(plan.to_json())
        return 0
    _draw_plan(plan)
    if plan.directory:
        print(f"written to {plan.directory}: {len(plan.segments)} segments and {plan.file_name}")
    return 0


def _draw_plan(plan: Plan) -> None:
    from balancer.cli import drawing

    drawing.stages(plan)
    drawing.comparison(plan)
    drawing.remarks(plan)


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    _tpus(parser)
    _hardware(parser)


def _compare(arguments: argparse.Namespace) -> int:
    from balancer.balancing import balance
    from balancer.cli import drawing

    plan = balance(arguments.model, arguments.tpus, hardware=arguments.hardware)
    if arguments.json:
        _print_json({"comparison": plan.to_json()["comparison"]})
    else:
        drawing.comparison(plan)
    return 0


# predict


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--cuts", metavar="I,J", help="first op of each segment but the first: 12,57")
    how.add_argument("--segments", metavar="OPS", help='ops of each segment: "0-11,14;12,13,15-60"')
    how.add_argument("--plan", metavar="FILE", help="the segments of a plan file")
    _hardware(parser)


def _predict(arguments: argparse.Namespace) -> int:
    from balancer.balancing import predict
    from balancer.cli import drawing

    plan = predict(arguments.model, _segments(arguments), hardware=arguments.hardware)
    if arguments.json:
        document = plan.to_json()
        _print_json({"segments": document["segments"], "pipelines": document["pipelines"]})
    else:
        drawing.stages(plan)
    return 0


def _segments(arguments: argparse.Namespace) -> list[list[int]]:
    from balancer.balancing.predicting import cut_segments
    from balancer.plan import load_plan, parse_op_ranges
    from balancer.tflite.read import load_graph

    n_ops = len(load_graph(arguments.model).ops)
    try:
        if arguments.cuts is not None:
            return [list(s) for s in cut_segments([int(c) for c in arguments.cuts.split(",")], n_ops)]
        if arguments.segments is not None:
            return [parse_op_ranges(part, n_ops) for part in arguments.segments.split(";")]
    except ValueError as error:
        raise PlanError(
            str(error), "segments", "give op indices as in --cuts 12,57 or --segments '0-11;12-60'"
        ) from error
    plan = load_plan(arguments.plan)
    _same_model(plan, arguments)
    if len(plan.partitions()) > 1:
        raise PlanError("has several partitions", arguments.plan, "give the one that you mean with --segments")
    return [parse_op_ranges(segment.ops, n_ops) for segment in plan.partitions()[0]]


def _same_model(plan: Plan, arguments: argparse.Namespace) -> None:
    import hashlib

    from balancer.tflite.read import read_model_bytes

    if hashlib.sha256(read_model_bytes(Path(arguments.model))).hexdigest() != plan.model.sha256:
        raise PlanError("was made for another model (the hash differs)", arguments.plan, "solve this model")


# verify


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN.json", help="a plan file in its directory")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--inputs", metavar="FILE", help=".npy for one input (leading axis = items), or .npz by tensor name"
    )
    how.add_argument("--random", type=_whole(1, 1_000_000), default=3, metavar="K", help="K random inputs; default 3")


def _verify(arguments: argparse.Namespace) -> int:
    from balancer.balancing import verify
    from balancer.cli import drawing
    from balancer.plan import load_plan

    plan = load_plan(arguments.plan)
    with drawing.progress("verifying", quiet=arguments.quiet or arguments.json) as advance:
        result = verify(plan, arguments.inputs or arguments.random, progress=advance)
    if arguments.json:
        _print_json({"bit_exact": result.bit_exact, **asdict(result)})
    else:
        _say_verified(result)
    return 0 if result.bit_exact else 1


def _say_verified(result: Verification) -> None:
    print(f"{result.items} inputs, {result.compared_tensors} boundary tensors equal ({result.runtime})")
    if result.mismatch:
        m = result.mismatch
        print(f"first difference: {m.segment}, tensor '{m.tensor}', input {m.item}: {m.elements} elements differ, "
              f"by up to {m.largest_difference:g}")  # fmt: skip
    verified = ", ".join(result.verified_segments) or "nothing"
    for op in result.stopped_by:
        print(f"not run: {op}: no kernel in this interpreter; verified: {verified}")
    print(f"bit-exact: {'yes' if result.bit_exact else 'no'}")


# inspect


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a .tflite file, compiled (*_edgetpu.tflite) or not")


def _inspect(arguments: argparse.Namespace) -> int:
    from balancer.cli import drawing
    from balancer.tflite.package import is_compiled, read_package
    from balancer.tflite.read import read_graph, read_model_bytes

    path = Path(arguments.model)
    data = read_model_bytes(path)
    if is_compiled(data, str(path)):
        package = read_package(data, name=path.stem, where=str(path))
        _print_json(asdict(package)) if arguments.json else drawing.package(package)
        return 0
    graph = read_graph(data, name=path.stem, where=str(path))
    _print_json(drawing.graph_document(graph)) if arguments.json else drawing.graph(graph)
    return 0


# synth, demo


def _synth_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("family", choices=("fc", "conv"), help="dense layers, or 3x3 convolutions")
    parser.add_argument(
        "--width", type=_whole(1, 65_536), required=True, metavar="W", help="neurons or filters of a layer"
    )
    parser.add_argument("--layers", type=_whole(1, 1000), default=5, metavar="L", help="weight layers; default 5")
    parser.add_argument(
        "--inputs", type=_whole(1, 65_536), default=64, metavar="I", help="fc: length of the input; default 64"
    )
    parser.add_argument(
        "--size", type=_whole(1, 4096), default=64, metavar="S", help="conv: side of the picture; default 64"
    )
    parser.add_argument(
        "--channels", type=_whole(1, 4096), default=3, metavar="C", help="conv: its channels; default 3"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="default synth_<family>_<width>.tflite")
    _force(parser)


def _synth(arguments: argparse.Namespace) -> int:
    from balancer.balancing.saving import write_file
    from balancer.tflite import synth

    try:
        if arguments.family == "fc":
            data = synth.fc(arguments.width, layers=arguments.layers, inputs=arguments.inputs)
        else:
            data = synth.conv(
                arguments.width, layers=arguments.layers, size=arguments.size, channels=arguments.channels
            )
    except ValueError as error:
        raise OutputError(str(error), "synth", "choose other sizes") from error
    path = Path(arguments.output or f"synth_{arguments.family}_{arguments.width}.tflite")
    write_file(path, data, force=arguments.force)
    if arguments.json:
        _print_json({"file": str(path), "bytes": len(data)})
    else:
        print(f"{path}: {len(data)} bytes")
    return 0


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", "--tpus", type=_whole(1, _LISTED_TPUS), default=4, metavar="N", help="Edge TPUs; default 4"
    )
    _hardware(parser)


def _demo(arguments: argparse.Namespace) -> int:
    import tempfile

    from balancer.balancing import balance, save, verify
    from balancer.cli import drawing
    from balancer.plan import load_plan
    from balancer.tflite import synth

    with tempfile.TemporaryDirectory(prefix="balancer-demo-") as folder:
        model = Path(folder) / f"fc_{DEMO_WIDTH}.tflite"
        model.write_bytes(synth.fc(DEMO_WIDTH))
        plan = save(balance(model, arguments.tpus, hardware=arguments.hardware), Path(folder) / "plan")
        with drawing.progress("verifying", quiet=arguments.quiet or arguments.json) as advance:
            result = verify(load_plan(Path(folder) / "plan" / plan.file_name), 3, progress=advance)
    if arguments.json:
        _print_json({"plan": plan.to_json(), "verification": {"bit_exact": result.bit_exact, **asdict(result)}})
    else:
        _draw_plan(plan)
        _say_verified(result)
    return 0 if result.bit_exact else 1


VERBS = (
    Verb("solve", "find the best plan for N TPUs, and write it with -o", _solve_arguments, _solve),
    Verb("predict", "what given segments would cost", _predict_arguments, _predict),
    Verb("compare", "one TPU, copies, the compiler's split and ours, side by side", _compare_arguments, _compare),
    Verb("verify", "run a plan's segments beside the whole model, bit for bit, on the CPU", _verify_arguments, _verify),
    Verb("inspect", "a model op by op, or what the compiler put into a compiled one", _inspect_arguments, _inspect),
    Verb("synth", "write one of the papers' synthetic models", _synth_arguments, _synth),
    Verb("demo", "the whole job on a synthetic model, without any hardware", _demo_arguments, _demo),
)
