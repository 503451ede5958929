"""The verb `compile`, and how it and `solve --compile` show the compiler's reports."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from balancer.cli.arguments import print_json
from balancer.cli.compiler_options import add_compiler, compiler
from balancer.cli.run_options import add_plan
from balancer.ground.wording import counted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Collection

    from balancer.directory.compiling import Compilation
    from balancer.loops.refining import RefineRound
    from balancer.plan import Plan


def compile_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `compile`."""
    add_plan(parser)
    add_compiler(parser)


def compile_segments(arguments: argparse.Namespace) -> int:
    """Compile a plan's segments into its directory. Exit code 1 unless all were compiled."""
    import balancer
    from balancer.cli import drawing
    from balancer.directory.compiling import Compilation, to_compile
    from balancer.plan import load_plan

    plan = load_plan(arguments.plan)
    quiet, total = arguments.quiet or arguments.json, len(to_compile(plan))
    compilation = Compilation(plan, (), ())
    if total:  # a plan for the CPU alone needs no compiler
        chosen = compiler(arguments)
        with drawing.progress_bar("compiling", total, quiet=quiet) as advance:
            compilation = balancer.compile_plan(plan, chosen, progress=advance)
    if arguments.json:
        print_json(_document(compilation))
    else:
        say_compiled(compilation.plan, [refused.name for refused in compilation.refused])
        _say_troubles(compilation)
        _say_uncompiled(compilation.plan)
        done = total - len(compilation.refused)
        print(f"compiled: {done} of {counted(total, 'segment')}, in {compilation.plan.directory}")
    return 1 if compilation.refused else 0


def _document(compilation: Compilation) -> dict[str, object]:
    """The JSON document of `compile`. reported: by this compilation; kept: by an earlier one, whose file still stands."""
    from balancer.directory.compiling import to_compile

    plan, kept = compilation.plan, compilation.kept
    segments, compiled = plan.to_json()["segments"], {segment.name for segment in to_compile(plan)}
    return {
        "compiled": len(compiled) - len(compilation.refused),
        "on_cpu": [segment.name for segment in plan.segments if segment.name not in compiled],
        "segments": [
            {
                "name": s["name"],
                "predicted": s["predicted"],
                "reported": None if s["name"] in kept else s["reported"],
                "kept": s["reported"] if s["name"] in kept else None,
            }
            for s in segments
        ],
        "refused": [{"segment": r.name, "reason": r.reason, "remedy": r.remedy} for r in compilation.refused],
        "doubts": [{"segment": name, "doubt": doubt} for name, doubt in compilation.doubts],
    }


def say_compiled(plan: Plan, refused: Collection[str] = ()) -> None:
    """Print what was reported beside what was predicted, and the ops that the compiler left on the CPU.

    refused: names of segments that are not compiled now; what was reported of them before is not shown.
    """
    from balancer.cli import drawing_compiling, drawing_models

    drawing_compiling.reported(plan, refused)
    for segment in plan.segments:
        left = segment.reported.not_mapped if segment.reported and segment.name not in refused else ()
        if left:
            print(f"on the CPU, reported: {counted(len(left), 'op')} of {segment.name}")
            print(drawing_models.by_reason((op.op, op.type, op.reason) for op in left))


def _say_uncompiled(plan: Plan) -> None:
    """Print which segments run on the CPU as they are."""
    for segment in plan.segments:
        if not plan.is_compiled(segment.name):
            kind = plan.devices_under(segment.name).kind
            print(f"not to be compiled: {segment.name}, which the interpreter runs on {kind}")


def _say_troubles(compilation: Compilation) -> None:
    """Print contradictions in the reports, and the segments that were not compiled."""
    from balancer.cli.drawing import in_lines

    for name, doubt in compilation.doubts:
        print(in_lines(f"doubt: {name}: {doubt}"))
    for refused in compilation.refused:
        print(in_lines(f"not compiled: {refused.name}: {refused.reason}; {refused.remedy}"))
        if refused.name in compilation.kept:
            version = compilation.kept[refused.name].compiler_version
            print(in_lines(f"kept: what edgetpu_compiler {version} made of {refused.name} before"))


def teller(arguments: argparse.Namespace, output: str | None = None) -> Callable[[RefineRound], None]:
    """A function that prints each round of compiling and solving: on stderr with --json, which has stdout to itself.

    output: a plan's directory, in which it keeps what the compiler printed about segments that it refused.
    """
    from balancer.cli import drawing_compiling
    from balancer.directory.saving import save_logs
    from balancer.plan.file import REFUSED_LOG

    stream = sys.stderr if arguments.json else sys.stdout

    def tell(compile_round: RefineRound) -> None:
        if not arguments.quiet:
            print(drawing_compiling.round_line(compile_round), file=stream, flush=True)
        if output is None:
            return
        number = compile_round.number
        logs = {REFUSED_LOG.format(f"{r.name}_round_{number}"): r.log for r in compile_round.refused}
        for path in save_logs(output, logs) if logs else ():
            if not arguments.quiet:
                print(f"         its output: {path}", file=stream, flush=True)

    return tell
