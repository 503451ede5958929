"""The arguments that say which compiler, and what it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.cli.arguments import whole_number

if TYPE_CHECKING:
    import argparse

    from balancer.compiler import Compiler

_MOST_SECONDS = 24 * 3600


def add_compile(parser: argparse.ArgumentParser, what: str) -> None:
    """--compile, and the arguments of the compiler."""
    parser.add_argument("--compile", action="store_true", help=what)
    add_compiler(parser)


def add_compiler(parser: argparse.ArgumentParser) -> None:
    """Arguments named as the compiler names them."""
    group = parser.add_argument_group("the vendor's compiler")
    group.add_argument("--edgetpu_compiler_binary", metavar="PATH", help="default: edgetpu_compiler on the PATH")
    group.add_argument(
        "--timeout_sec",
        type=whole_number(1, _MOST_SECONDS),
        default=180,
        metavar="S",
        help="for one segment; default 180",
    )
    group.add_argument(
        "-j", "--jobs", type=whole_number(1, 256), metavar="J", help="segments at a time; default: one for each CPU"
    )
    group.add_argument(
        "--search_delegate",
        action="store_true",
        help="where a segment fails as a whole, let the TPU's part end earlier",
    )
    group.add_argument(
        "--delegate_search_step", type=whole_number(1, 10_000), default=1, metavar="K", help="by K ops; default 1"
    )
    group.add_argument(
        "--min_runtime_version", type=whole_number(10, 1000), metavar="R", help="of the Edge TPU runtime that runs it"
    )
    group.add_argument("--cache", metavar="DIR", help="what was compiled before; default: in the user's cache folder")


def compiler(arguments: argparse.Namespace) -> Compiler:
    """The compiler that the arguments name. Raises CompilerError."""
    from balancer.compiler import CompilerOptions, find_compiler

    options = CompilerOptions(
        seconds=arguments.timeout_sec, search_delegate=arguments.search_delegate,
        search_step=arguments.delegate_search_step, runtime_version=arguments.min_runtime_version,
    )  # fmt: skip
    return find_compiler(arguments.edgetpu_compiler_binary, options, cache=arguments.cache, jobs=arguments.jobs)
