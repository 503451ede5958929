"""The program's entry: it parses the arguments, runs a verb, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from balancer.cli.verbs import VERBS
from balancer.errors import BalancerError
from balancer.processes.scratch import remove_left_over
from balancer.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 130  # as shells report Ctrl-C


class _Usage(Exception):
    """Wrong arguments: exit code 2."""


class _Parser(argparse.ArgumentParser):
    """Raises an error for wrong arguments instead of exiting, so that --json can report it, too."""

    def error(self, message: str) -> NoReturn:
        raise _Usage(f"{self.prog}: {message} (see {self.prog} --help)")


_DESCRIPTION = """\
Splits a full-integer TFLite model over several Coral Edge TPUs so that it runs as fast as they allow.

For two USB accelerators:
  balancer solve MODEL.tflite -n 2 --hardware usb -o plan    find the best split and write it to the folder `plan`
  balancer verify plan                                       check on the CPU that the parts compute the model
  balancer compile plan                                      compile each part with the vendor's compiler (on x86-64)
  balancer run plan --inputs pictures/ --outputs results     run it on the accelerators of this machine
"""
_EXIT_CODES = "exit codes: 0 done, 1 error or a negative result, 2 wrong arguments, 3 no plan meets what was asked"


def build_parser() -> argparse.ArgumentParser:
    """The parser for all verbs. It imports nothing heavy, so that --help is fast."""
    parser = _Parser(
        prog="balancer", description=_DESCRIPTION, epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"balancer {VERSION}")
    commands = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    for verb in VERBS:
        sub = commands.add_parser(verb.name, help=verb.help, description=verb.description or verb.help)
        verb.add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON document on stdout and nothing else there")
        sub.add_argument("-v", "--verbose", action="store_true", help="print more messages on stderr")
        sub.add_argument("-q", "--quiet", action="store_true", help="print no progress on stderr")
        sub.set_defaults(run=verb.run, default_of=sub.get_default)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns its exit code: 0 done, 1 error, 2 wrong arguments, 3 infeasible, 130 interrupted.

    argv: the arguments without the program's name; None for those of this process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    if threading.current_thread() is threading.main_thread():
        for end in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(end) is not signal.SIG_IGN:  # `nohup` ignores SIGHUP, and that is to stay so
                signal.signal(end, signal.default_int_handler)  # then they end child processes, too, as Ctrl-C does
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name in a model may not fit the terminal's encoding
    try:
        parsed = build_parser().parse_args(arguments)
        logging.basicConfig(level=logging.INFO if parsed.verbose else logging.WARNING, format="balancer: %(message)s")
        remove_left_over()
        code: int = parsed.run(parsed)
        if sys.stdout is not None:  # it is None if the shell closed it (`>&-`)
            sys.stdout.flush()
    except _Usage as error:
        return _fail(error, 2, str(error), as_json=as_json)
    except BalancerError as error:
        return _fail(error, error.exit_code, f"balancer: {error}", as_json=as_json)
    except KeyboardInterrupt as error:
        return _fail(error, INTERRUPTED, "balancer: interrupted; nothing was left half-written", as_json=as_json)
    except BrokenPipeError:
        # The reader has ended, as in `balancer inspect m.tflite | head`.
        _drop_output()
        return 1
    except OSError as error:
        _drop_output()
        where, what = error.filename or "standard output", f"cannot be written ({error.strerror or error})"
        print(f"balancer: {where}: {what}; free some disk space, or write elsewhere", file=sys.stderr)
        return 1
    return code


def _drop_output() -> None:
    """Send what is still buffered for stdout to /dev/null. Otherwise the interpreter's own flush at exit would fail."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: BaseException, code: int, line: str, *, as_json: bool) -> int:
    """Print an error on stderr, and with --json also as a document on stdout. Returns the exit code."""
    if as_json:
        kind = "UsageError" if isinstance(error, _Usage) else type(error).__name__
        try:
            print(json.dumps({"error": {"type": kind, "message": line.removeprefix("balancer: ")}}), flush=True)
        except OSError:
            _drop_output()  # the line on stderr still reports the error
    print(line, file=sys.stderr)
    return code
