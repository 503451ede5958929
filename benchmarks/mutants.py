"""How many small faults the tests notice: operators and constants are changed one at a time, and the nearest tests run.

    python benchmarks/mutants.py [--modules solve cost/batch.py ...] [--count 12] [--seed 1] [--list] [--json FILE]

A *mutant* is a copy of the package with one change: another arithmetic, bit or comparison operator, `and` for `or`, `min`
for `max`, `any` for `all`, an integer one larger or smaller, the other truth value, a `not` left out, a bound of a slice
moved or left out. It is *killed* where a test fails, does not end, or takes several times the CPU time that it takes
without the change; else it *survives*. Mutants are drawn at random from the chosen modules, each place in the code with
the same likelihood.
Docstrings, annotations, decorators, error and log messages, and module constants that only limit work are left alone.

`nearest_tests.json` names the tests of each module, the fastest first; a folder's row serves modules without one. Once a
survivor is judged to change no behaviour, it goes into `equivalent_mutants.json` with the reason: it is no longer run,
and does not count against the tests. The checkout is never changed. The exit code is 1 where a mutant survives.
"""

from __future__ import annotations

import ast
import compileall
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from models import ROOT
from sampling import measuring_parser, recorded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sampling import Sample

    Change = tuple[tuple[int, int, bytes], ...]  # byte spans of the source, each with what replaces it
    Site = list[Change]  # the ways to change one place

PACKAGE = ROOT / "balancer"
NEAREST, EQUIVALENT = (ROOT / "benchmarks" / f"{name}.json" for name in ("nearest_tests", "equivalent_mutants"))
DEFAULT_MODULES = (
    "solve", "cost", "tflite", "plan", "workers.py", "worker_states.py", "queues.py", "ground", "planning",
)  # fmt: skip
OPERATORS: dict[type[ast.AST], tuple[bytes, bytes]] = {
    ast.Add: (b"+", b"-"), ast.Sub: (b"-", b"+"), ast.Mult: (b"*", b"//"), ast.FloorDiv: (b"//", b"*"),
    ast.Div: (b"/", b"*"), ast.Mod: (b"%", b"//"), ast.BitAnd: (b"&", b"|"), ast.BitOr: (b"|", b"&"),
    ast.BitXor: (b"^", b"|"), ast.LShift: (b"<<", b">>"), ast.RShift: (b">>", b"<<"), ast.Lt: (b"<", b"<="),
    ast.LtE: (b"<=", b"<"), ast.Gt: (b">", b">="), ast.GtE: (b">=", b">"), ast.Eq: (b"==", b"!="),
    ast.NotEq: (b"!=", b"=="), ast.Is: (b"is", b"is not"), ast.IsNot: (b"is not", b"is"), ast.In: (b"in", b"not in"),
    ast.NotIn: (b"not in", b"in"), ast.And: (b"and", b"or"), ast.Or: (b"or", b"and"), ast.Not: (b"not", b""),
    ast.Invert: (b"~", b""),
}  # fmt: skip
LEFT_ALONE: dict[type[ast.AST], set[str]] = {
    ast.FunctionDef: {"decorator_list", "returns"}, ast.ClassDef: {"decorator_list"}, ast.arg: {"annotation"},
    ast.AnnAssign: {"annotation"}, ast.Raise: {"exc", "cause"}, ast.Assert: {"msg"}, ast.JoinedStr: {"values"},
}  # fmt: skip
OTHER_FUNCTION = {"min": b"max", "max": b"min", "any": b"all", "all": b"any"}
CHECKING_KEYWORDS = {"strict", "repr", "stacklevel"}  # arguments that check or show something and compute nothing
LOGGERS = {"log", "_log", "_LOG", "logger", "logging", "warnings"}
# A module constant with one of these words in its name limits work, memory or sizes, or stands for "too large".
LIMITS = {
    "MOST", "MAX", "LEAST", "LARGEST", "LONGEST", "DEEPEST", "NEVER", "FEW", "AHEAD", "ONCE", "WORK", "POLL", "SEED",
    "SAMPLES", "UNBOUNDED", "ROUNDS", "STATUSES", "UPDATES", "PART",
}  # fmt: skip
KILLED, SURVIVED, EQUAL = "killed", "SURVIVED", "equal"
FAILED, OUT_OF_CPU_TIME, OUT_OF_TIME = "a test fails", "out of CPU time", "out of time"
ENDINGS = {0: "", -signal.SIGXCPU: OUT_OF_CPU_TIME}
# How much longer than without a change the tests of a mutant may take. CPU time is what a loop takes on any machine; the
# clock, which goes on while other programs run, only ends what waits for ever.
SPARE_CPU_SECONDS, SPARE_CPU_FACTOR = 10, 4
SPARE_SECONDS, SPARE_FACTOR = 60, 8
MEMORY_BYTES = 8 << 30


class _Sites(ast.NodeVisitor):
    """Collects the places of a module that can be changed."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.lines = [0, *(match.end() for match in re.finditer(rb"\n", source))]
        self.sites: list[Site] = []

    def generic_visit(self, node: ast.AST) -> None:
        left_alone = LEFT_ALONE.get(type(node), set())
        for name, value in ast.iter_fields(node):
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, ast.AST) and name not in left_alone:
                    self.visit(part)

    def _span(self, node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.lines[node.lineno - 1] + node.col_offset, self.lines[node.end_lineno - 1] + node.end_col_offset

    def _swap(self, operator: ast.AST, start: int, end: int) -> Change:
        """The operator that stands in this span, beside parentheses and comments, replaced."""
        old, new = OPERATORS[type(operator)]
        gap = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), self.source[start:end])
        match = re.search(rb"\s+".join(map(re.escape, old.split())), gap)
        assert match is not None
        return ((start + match.start(), start + match.end(), new),)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        text = any(
            isinstance(side, ast.Constant | ast.JoinedStr) and _is_text(side) for side in (node.left, node.right)
        )
        if type(node.op) in OPERATORS and not text:
            self.sites.append([self._swap(node.op, self._span(node.left)[1], self._span(node.right)[0])])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in OPERATORS and not _is_text(node.value):
            self.sites.append([self._swap(node.op, self._span(node.target)[1], self._span(node.value)[0])])
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for k, operator in enumerate(node.ops):
            self.sites.append([self._swap(operator, self._span(sides[k])[1], self._span(sides[k + 1])[0])])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        spans = [self._span(value) for value in node.values]
        swaps = (self._swap(node.op, a[1], b[0]) for a, b in pairwise(spans))
        self.sites.append([tuple(part for swap in swaps for part in swap)])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if type(node.op) in OPERATORS:
            self.sites.append([self._swap(node.op, self._span(node)[0], self._span(node.operand)[0])])
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        start, end = self._span(node)
        if isinstance(node.value, bool):
            self.sites.append([((start, end, str(not node.value).encode()),)])
        elif isinstance(node.value, int):
            values = [node.value + 1, node.value - 1] if node.value else [1]
            self.sites.append([((start, end, str(value).encode()),) for value in values])

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if bound is not None and not isinstance(bound, ast.Constant):
                start, end = self._span(bound)
                self.sites.append([((end, end, b" + 1"),), ((start, end, b""),)])
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in OTHER_FUNCTION:
            self.sites.append([((*self._span(node.func), OTHER_FUNCTION[node.func.id]),)])
        if not (isinstance(node.func, ast.Attribute) and _name(node.func.value) in LOGGERS):
            self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg not in CHECKING_KEYWORDS:
            self.visit(node.value)

    def visit_Module(self, node: ast.Module) -> None:
        for part in node.body:
            targets = part.targets if isinstance(part, ast.Assign) else ()
            names = {_name(target) for target in targets}
            # Lower-case names are type aliases here.
            if not any(name and (LIMITS & set(name.split("_")) or not name.isupper()) for name in names):
                self.visit(part)

    def visit_If(self, node: ast.If) -> None:
        if _name(node.test) != "TYPE_CHECKING":
            self.generic_visit(node)


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


@dataclass(frozen=True)
class Mutant:
    """One change. file: of the module, below the package. before, after: the changed line of source."""

    file: str
    line: int
    before: str
    after: str
    source: bytes

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.before, self.after


def mutants(file: str) -> list[list[Mutant]]:
    """For each place of the module that can be changed, its mutants."""
    source = (PACKAGE / file).read_bytes()
    visitor = _Sites(source)
    visitor.visit(ast.parse(source))
    return [[_mutant(file, source, change) for change in site] for site in visitor.sites]


def _mutant(file: str, source: bytes, change: Change) -> Mutant:
    mutated = source
    for start, end, new in reversed(change):
        mutated = mutated[:start] + new + mutated[end:]
    k = source.count(b"\n", 0, change[0][0])
    before, after = (text.decode().split("\n")[k].strip() for text in (source, mutated))
    return Mutant(file, k + 1, before, after, mutated)


def nearest(table: dict[str, list[str]], file: str) -> list[str]:
    """The module's test files: those of its own row, or else of its folder's. Raises LookupError where none is named."""
    for path in (file, *(parent.as_posix() for parent in Path(file).parents)):
        if path in table:
            tests = [f"tests/test_{name}.py" for name in table[path]]
            missing = [test for test in tests if not (ROOT / test).exists()]
            if missing:
                raise LookupError(f"{NEAREST.name} names {missing[0]} for {path}, which does not exist")
            return tests
    raise LookupError(f"{NEAREST.name} has no row for {file}, and none for a folder that holds it")


@dataclass(frozen=True)
class Limits:
    """Seconds that a run of tests may take: of CPU time in each process, and by the clock."""

    cpu_s: float
    clock_s: float


@dataclass
class Trials:
    """A copy of the checkout, in which tests run. limits: of a mutant's run, by test file, once known."""

    folder: Path
    limits: dict[str, Limits] = field(default_factory=dict)

    def killer(self, mutant: Mutant, tests: Iterable[str]) -> tuple[str, str]:
        """The first test file that kills the mutant, and how the file ended; both empty where none does.

        Ends the program where a test file fails without any change.
        """
        path = self.folder / "balancer" / mutant.file
        original = path.read_bytes()
        for test in tests:
            if test not in self.limits:
                self.limits[test] = self._baseline(test)
            path.write_bytes(mutant.source)
            try:
                ending = self._ending(test, self.limits[test])
            finally:
                path.write_bytes(original)
            if ending:
                return test, ending
        return "", ""

    def _baseline(self, test: str) -> Limits:
        start, cpu_start = time.perf_counter(), _children_cpu_s()
        if self._ending(test, None):
            raise SystemExit(f"{test} fails without any change: mend it first, or take it out of {NEAREST.name}")
        cpu_s, clock_s = _children_cpu_s() - cpu_start, time.perf_counter() - start
        return Limits(SPARE_CPU_SECONDS + SPARE_CPU_FACTOR * cpu_s, SPARE_SECONDS + SPARE_FACTOR * clock_s)

    def _ending(self, test: str, limits: Limits | None) -> str:
        """How the test file ends: empty where all its tests pass, else FAILED, OUT_OF_CPU_TIME or OUT_OF_TIME."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n0", test]
        # Byte code is never written: two sources of one size within a second would share it.
        environment = os.environ | {
            "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_PROFILE": "unshrunk",
        }  # fmt: skip
        process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, preexec_fn=lambda: _limit(limits),
        )  # fmt: skip
        try:
            code = process.wait(limits.clock_s if limits else None)
            return ENDINGS.get(code, FAILED)
        except subprocess.TimeoutExpired:
            return OUT_OF_TIME
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _limit(limits: Limits | None) -> None:
    """Limit the memory, and perhaps the CPU time, of this process and of those that it starts."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if limits:
        seconds = int(limits.cpu_s) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


def copied(folder: Path) -> Trials:
    """The checkout copied into the folder, with the real models beside it as they are here."""
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "dist"))
    if (ROOT.parent / "shared").exists():
        (folder / "shared").symlink_to((ROOT.parent / "shared").resolve())
    # Once for all runs. A mutant is newer than its module's byte code, which is then left aside.
    compileall.compile_dir(folder / "checkout" / "balancer", quiet=2)
    return Trials(folder / "checkout")


def modules(names: Sequence[str]) -> Iterator[str]:
    """Paths of modules below the package. names: modules and folders. Raises LookupError."""
    for name in names:
        path = PACKAGE / name
        if not path.exists():
            raise LookupError(f"no module or folder {name} in {PACKAGE.name}/")
        for module in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            yield module.relative_to(PACKAGE).as_posix()


def drawn(files: Iterable[str], count: int, seed: int) -> tuple[list[Mutant], int]:
    """The mutants to try, ordered by file and line, and the number of places that they are drawn from."""
    sites = [site for file in files for site in mutants(file)]
    dice = random.Random(seed)
    chosen = [dice.choice(site) for site in dice.sample(sites, min(count, len(sites)))]
    return sorted(chosen, key=lambda mutant: (mutant.file, mutant.line, mutant.after)), len(sites)


def equivalents() -> dict[tuple[str, str, str], str]:
    """The reasons why mutants change no behaviour, by `Mutant.key`."""
    rows = json.loads(EQUIVALENT.read_text(encoding="utf-8"))
    return {(row["file"], row["before"], row["after"]): row["reason"] for row in rows}


def tell(mutant: Mutant, verdict: str, tests: str) -> None:
    """Print what became of the mutant, where it is, the tests that say so, and the line before and after."""
    print(f"{verdict:8} balancer/{mutant.file}:{mutant.line}  {tests}".rstrip())
    print(f"    - {mutant.before}\n    + {mutant.after}", flush=True)


def tell_shares(verdicts: Sequence[str]) -> None:
    """The share killed of all mutants, and of those that change behaviour."""
    killed, equal, tried = verdicts.count(KILLED), verdicts.count(EQUAL), len(verdicts)
    print(f"\n{killed} of {tried} mutants killed ({100 * killed / max(1, tried):.0f} %)")
    changing = tried - equal
    print(f"{equal} change no behaviour; {100 * killed / max(1, changing):.0f} % of the {changing} others killed")


def stale(files: Iterable[str], judged: Iterable[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Judged mutants of these modules that no place in the code can become any more."""
    possible = {mutant.key for file in files for site in mutants(file) for mutant in site}
    return [key for key in judged if key[0] in files and key not in possible]


def try_all(chosen: Sequence[Mutant], tests: dict[str, list[str]], samples: list[Sample]) -> None:
    """Run the tests on each mutant, and fill in a sample for each. Ctrl-C ends this early."""
    judged = equivalents()
    with tempfile.TemporaryDirectory(prefix="balancer-mutants-") as scratch, suppress(KeyboardInterrupt):
        trials = copied(Path(scratch))
        for mutant in chosen:
            killer, ending = ("", "") if mutant.key in judged else trials.killer(mutant, tests[mutant.file])
            verdict = EQUAL if mutant.key in judged else KILLED if killer else SURVIVED
            tell(mutant, verdict, f"{killer}: {ending}" if killer else "")
            samples.append({
                "file": mutant.file, "line": mutant.line, "before": mutant.before, "after": mutant.after,
                "verdict": verdict, "killed_by": killer or None, "ending": ending or None,
            })  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = measuring_parser(__doc__)
    parser.add_argument("--modules", nargs="+", default=DEFAULT_MODULES, metavar="PATH", help="modules and folders")
    parser.add_argument("--count", type=int, default=12, help="mutants to draw (default: 12)")
    parser.add_argument("--seed", type=int, default=1, help="of the draw (default: 1)")
    parser.add_argument("--list", action="store_true", help="show the mutants drawn and their tests, and run nothing")
    arguments = parser.parse_args(argv)
    table: dict[str, list[str]] = json.loads(NEAREST.read_text(encoding="utf-8"))
    try:
        files = list(modules(arguments.modules))
        tests = {file: nearest(table, file) for file in files}
    except LookupError as error:
        parser.error(error.args[0])
    chosen, places = drawn(files, arguments.count, arguments.seed)
    print(f"{len(chosen)} mutants from {places} places in {len(files)} modules, seed {arguments.seed}", flush=True)
    for path in table:
        if not (PACKAGE / path).exists():
            print(f"{NEAREST.name}: there is no balancer/{path} any more")
    for file, before, after in stale(files, equivalents()):
        print(f"{EQUIVALENT.name}: no longer possible in balancer/{file}: {before} -> {after}")
    if arguments.list:
        for mutant in chosen:
            tell(mutant, EQUAL if mutant.key in equivalents() else "drawn", " ".join(tests[mutant.file]))
        return 0
    with recorded("mutants", arguments) as samples:
        try_all(chosen, tests, samples)
    verdicts = [sample["verdict"] for sample in samples]
    tell_shares(verdicts)
    return 1 if SURVIVED in verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
