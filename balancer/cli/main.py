"""The program's entry: the arguments, and the one place where an error becomes a line and an exit code."""

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
    """Arguments that no verb can take."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Usage(f"{self.prog}: {message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="balancer", description="Split a TFLite model over several Edge TPUs, as fast as they allow.")
    parser.add_argument("--version", action="version", version=f"balancer {VERSION}")
    commands = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    for verb in VERBS:
        sub = commands.add_parser(verb.name, help=verb.help, description=verb.description or verb.help)
        verb.add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON document on stdout and nothing else there")
        sub.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
        sub.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
        sub.set_defaults(run=verb.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; its exit code. 0 done, 1 error, 2 usage, 3 infeasible, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    if threading.current_thread() is threading.main_thread():
        for end in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(end) is not signal.SIG_IGN:  # as `nohup` starts us
                signal.signal(end, signal.default_int_handler)  # ends what it runs, as Ctrl-C does
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names in a model may be any bytes
    try:
        parsed = build_parser().parse_args(arguments)
        logging.basicConfig(level=logging.INFO if parsed.verbose else logging.WARNING, format="balancer: %(message)s")
        remove_left_over()
        code: int = parsed.run(parsed)
        if sys.stdout is not None:  # as where a shell has closed it
            sys.stdout.flush()
    except _Usage as error:
        return _fail(error, 2, str(error), as_json=as_json)
    except BalancerError as error:
        return _fail(error, error.exit_code, f"balancer: {error}", as_json=as_json)
    except KeyboardInterrupt as error:
        return _fail(error, INTERRUPTED, "balancer: interrupted; nothing was left half-written", as_json=as_json)
    except BrokenPipeError:
        # The reader has gone, as in `balancer inspect m.tflite | head`; keep the interpreter's own flush from failing
        # too.
        _drop_output()
        return 1
    except OSError as error:
        _drop_output()
        where, what = error.filename or "standard output", f"cannot be written ({error.strerror or error})"
        print(f"balancer: {where}: {what}; free some disk space, or write elsewhere", file=sys.stderr)
        return 1
    return code


def _drop_output() -> None:
    """What is still to be printed goes nowhere: the interpreter's own flush at its end would fail, too."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: BaseException, code: int, line: str, *, as_json: bool) -> int:
    if as_json:
        kind = "UsageError" if isinstance(error, _Usage) else type(error).__name__
        try:
            print(json.dumps({"error": {"type": kind, "message": line.removeprefix("balancer: ")}}), flush=True)
        except OSError:
            _drop_output()  # the line on stderr says what there is to say
    print(line, file=sys.stderr)
    return code
