"""The verb `compile`, and what it and `solve --compile` show of the compiler's reports."""

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
    """Compile a plan's segments into its directory; exit code 1 unless all were compiled."""
    import balancer
    from balancer.cli import drawing
    from balancer.plan import load_plan

    plan, chosen = load_plan(arguments.plan), compiler(arguments)
    quiet = arguments.quiet or arguments.json
    with drawing.progress_bar("compiling", len(plan.segments), quiet=quiet) as advance:
        found = balancer.compile_plan(plan, chosen, progress=advance)
    if arguments.json:
        print_json(_document(found))
    else:
        say_compiled(found.plan)
        _say_troubles(found)
        done = len(found.plan.segments) - len(found.refused)
        print(f"compiled: {done} of {len(found.plan.segments)} segments, in {found.plan.directory}")
    return 1 if found.refused else 0


def _document(found: Compilation) -> dict[str, object]:
    segments = found.plan.to_json()["segments"]
    return {
        "compiled": len(segments) - len(found.refused),
        "segments": [{key: s[key] for key in ("name", "predicted", "reported")} for s in segments],
        "refused": [{"segment": r.name, "reason": r.reason, "remedy": r.remedy} for r in found.refused],
        "doubts": [{"segment": name, "doubt": doubt} for name, doubt in found.doubts],
    }


def say_compiled(plan: Plan) -> None:
    """What was reported beside what was predicted, and the ops that stay on the CPU."""
    from balancer.cli import drawing

    drawing.reported(plan)
    for segment in plan.segments:
        for op in segment.reported.not_mapped if segment.reported else ():
            print(f"on the CPU: op {op.op} {op.type} of {segment.name}: {op.reason}")


def _say_troubles(found: Compilation) -> None:
    for name, doubt in found.doubts:
        print(f"doubt: {name}: {doubt}")
    for refused in found.refused:
        print(f"not compiled: {refused.name}: {refused.reason}; {refused.remedy}")


def teller(arguments: argparse.Namespace) -> Callable[[RefineRound], None]:
    """Prints each round of solving and compiling, where JSON does not have stdout to itself."""
    from balancer.cli import drawing

    stream = sys.stderr if arguments.json else sys.stdout

    def tell(found: RefineRound) -> None:
        if not arguments.quiet:
            print(drawing.round_line(found), file=stream, flush=True)

    return tell
