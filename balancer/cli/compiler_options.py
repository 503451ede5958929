"""The arguments for the vendor's compiler: which one to run, and its options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.cli.arguments import say_unused, whole_number

if TYPE_CHECKING:
    import argparse

    from balancer.compiler import Compiler

_MOST_SECONDS = 24 * 3600
COMPILER_OPTIONS = (
    "--edgetpu_compiler_binary", "--timeout_sec", "--jobs", "--search_delegate", "--delegate_search_step",
    "--min_runtime_version", "--cache",
)  # fmt: skip


def add_compile(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --compile, and the arguments of the compiler. what: the help of --compile."""
    parser.add_argument("--compile", action="store_true", help=what)
    add_compiler(parser)


def add_compiler(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the compiler. Those with underscores have the compiler's own names."""
    group = parser.add_argument_group("options for the vendor's compiler")
    group.add_argument(
        "--edgetpu_compiler_binary",
        metavar="PATH",
        help="the compiler's program; default: edgetpu_compiler on the PATH",
    )
    group.add_argument(
        "--timeout_sec",
        type=whole_number(1, _MOST_SECONDS),
        default=180,
        metavar="S",
        help="seconds that one segment may take; default 180",
    )
    group.add_argument(
        "-j",
        "--jobs",
        type=whole_number(1, 256),
        metavar="J",
        help="compile J segments at a time; default: one for each CPU",
    )
    group.add_argument(
        "--search_delegate",
        action="store_true",
        help="if a segment cannot be compiled as a whole, leave ops at its end on the CPU until the rest can be",
    )
    group.add_argument(
        "--delegate_search_step",
        type=whole_number(1, 10_000),
        default=1,
        metavar="K",
        help="with --search_delegate: leave K more ops at each try; default 1",
    )
    group.add_argument(
        "--min_runtime_version",
        type=whole_number(10, 1000),
        metavar="R",
        help="compile for Edge TPU runtimes from version R on",
    )
    group.add_argument(
        "--cache",
        metavar="DIR",
        help="where compiled segments are kept for later calls; default: in the user's cache folder",
    )


def compiler_if_asked(arguments: argparse.Namespace) -> Compiler | None:
    """The compiler with --compile, else None. Raises as `compiler` does."""
    if arguments.compile:
        return compiler(arguments)
    say_unused(arguments, COMPILER_OPTIONS, "without --compile")
    return None


def compiler(arguments: argparse.Namespace) -> Compiler:
    """The compiler that the arguments name. Raises CompilerError if it is not there or does not say its version."""
    from balancer.compiler import CompilerOptions, find_compiler

    if not arguments.search_delegate:
        say_unused(arguments, ["--delegate_search_step"], "without --search_delegate")
    options = CompilerOptions(
        seconds=arguments.timeout_sec, search_delegate=arguments.search_delegate,
        search_step=arguments.delegate_search_step, runtime_version=arguments.min_runtime_version,
    )  # fmt: skip
    return find_compiler(arguments.edgetpu_compiler_binary, options, cache=arguments.cache, jobs=arguments.jobs)
