"""The verb `compile`, and how it and `solve --compile` show the compiler's reports."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from balancer.cli.arguments import print_json
from balancer.cli.compiler_options import add_compiler, compiler
from balancer.cli.run_options import add_plan

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

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
        say_compiled(compilation.plan)
        _say_troubles(compilation)
        _say_uncompiled(compilation.plan)
        print(f"compiled: {total - len(compilation.refused)} of {total} segments, in {compilation.plan.directory}")
    return 1 if compilation.refused else 0


def _document(compilation: Compilation) -> dict[str, object]:
    """The JSON document of `compile`."""
    from balancer.directory.compiling import to_compile

    plan = compilation.plan
    segments, compiled = plan.to_json()["segments"], {segment.name for segment in to_compile(plan)}
    return {
        "compiled": len(compiled) - len(compilation.refused),
        "on_cpu": [segment.name for segment in plan.segments if segment.name not in compiled],
        "segments": [{key: s[key] for key in ("name", "predicted", "reported")} for s in segments],
        "refused": [{"segment": r.name, "reason": r.reason, "remedy": r.remedy} for r in compilation.refused],
        "doubts": [{"segment": name, "doubt": doubt} for name, doubt in compilation.doubts],
    }


def say_compiled(plan: Plan) -> None:
    """Print what was reported beside what was predicted, and the ops that the compiler left on the CPU."""
    from balancer.cli import drawing

    drawing.reported(plan)
    for segment in plan.segments:
        for op in segment.reported.not_mapped if segment.reported else ():
            print(f"on the CPU: op {op.op} {op.type} of {segment.name}: {op.reason}")


def _say_uncompiled(plan: Plan) -> None:
    """Print which segments run on the CPU as they are."""
    for segment in plan.segments:
        if not plan.is_compiled(segment.name):
            kind = plan.devices_under(segment.name).kind
            print(f"not to be compiled: {segment.name}, which the interpreter runs on {kind}")


def _say_troubles(compilation: Compilation) -> None:
    """Print contradictions in the reports, and the segments that were not compiled."""
    for name, doubt in compilation.doubts:
        print(f"doubt: {name}: {doubt}")
    for refused in compilation.refused:
        print(f"not compiled: {refused.name}: {refused.reason}; {refused.remedy}")


def teller(arguments: argparse.Namespace, output: str | None = None) -> Callable[[RefineRound], None]:
    """A function that prints each round of compiling and solving: on stderr with --json, which has stdout to itself.

    output: a plan's directory, in which it keeps what the compiler printed about segments that it refused.
    """
    from balancer.cli import drawing
    from balancer.directory.saving import save_logs

    stream = sys.stderr if arguments.json else sys.stdout

    def tell(compile_round: RefineRound) -> None:
        if not arguments.quiet:
            print(drawing.round_line(compile_round), file=stream, flush=True)
        if output is None:
            return
        logs = {f"{r.name}_round_{compile_round.number}_refused.log": r.log for r in compile_round.refused}
        for path in save_logs(output, logs) if logs else ():
            if not arguments.quiet:
                print(f"         its output: {path}", file=stream, flush=True)

    return tell
