"""Tables and progress on a terminal. Each table says whether its numbers are predicted, reported or measured."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from textwrap import fill
from typing import TYPE_CHECKING, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from balancer.ground.opsets import op_ranges
from balancer.ground.wording import counted
from balancer.plan import EDGE_TPU, STATE_WORDS, pycoral_obstacle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from balancer.compiler.report import Report
    from balancer.plan import ComparisonRow, Plan, PlanPipeline, PlanStage
    from balancer.planning.sizing import Sizing
    from balancer.tflite.package import Package

_WIDTH = 80
_OPS_WIDTH = 10  # leaves room for the widest of the other columns
_KIB, _MIB = 1 << 10, 1 << 20
_LEFT = {"", "on", "devices", "ops", "type", "mapped", "tensor", "constant"}
COMPLETE, NOT_SEARCHED = "complete", "not_searched"
_CUT_SHORT = {
    "complete": "",
    NOT_SEARCHED: "",
    "interrupted": "; interrupted, the best so far",
    "limit_reached": "; a limit was reached, the best so far",
    "down_sets_left_out": "; too many down-sets for this solver",
}
_FOLDED = {"ops", "mapped", "tensor"}


class Listing:
    """A table in 80 columns, on a terminal or in a pipe.

    Cells are plain text, never markup: the names in a model may hold any characters.
    """

    def __init__(self, title: str, headings: tuple[str, ...]) -> None:
        self._table = Table(
            title=title or None, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False
        )
        for heading in headings:
            side: Literal["left", "right"] = "left" if heading in _LEFT else "right"
            self._table.add_column(heading, justify=side, overflow="fold", no_wrap=heading not in _FOLDED)

    def row(self, *cells: str) -> None:
        self._table.add_row(*(Text(cell) for cell in cells))

    def print(self) -> None:
        Console(width=_WIDTH, highlight=False).print(self._table)


def size(count: int) -> str:
    """Bytes as the compiler prints them: 0 B, 98.50 KiB, 7.14 MiB."""
    if count < _KIB:
        return f"{count} B"
    return f"{count / _KIB:.2f} KiB" if count < _MIB else f"{count / _MIB:.2f} MiB"


def short_size(count: int) -> str:
    """Bytes with three digits: 898 KiB, 6.43 MiB."""
    for unit, name in ((_MIB, "MiB"), (_KIB, "KiB")):
        if count >= unit - unit // 2000:
            value = count / unit
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {name}"
    return f"{count} B"


def in_lines(text: str, indent: str = "    ", first: str = "") -> str:
    """The text in lines of 80 columns, broken between words; longer words stay whole. indent: before all lines but the first,
    which has `first` before it.
    """
    return fill(
        text, _WIDTH, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def milliseconds(ns: int) -> str:
    """A time in ms, to the microsecond."""
    return f"{ns / 1e6:.3f}"


def stages(plan: Plan) -> None:
    """Print a table for each different pipeline, and the plan's predicted performance."""
    p = plan.predicted
    print(
        f"{plan.stem}: {counted(plan.model.ops, 'op')}, {size(plan.model.parameter_bytes)} of parameters, "
        f"{plan.model.macs / 1e6:.0f} million MACs"
    )
    shown: dict[tuple[str, ...], list[PlanPipeline]] = {}
    for pipeline in plan.pipelines:
        shown.setdefault(tuple(s.segment for s in pipeline.stages), []).append(pipeline)
    for alike in shown.values():
        _stage_table(plan, alike)
    used = f"{p.tpus_used} of {devices_in_words(plan)} ({plan.costs_label});"
    print(in_lines(f"{p.throughput_per_s:.1f} inferences/s with {used}", " " * 11, first="predicted: "))
    print(
        f"           latency {milliseconds(p.latency_ns)} ms, first inference {milliseconds(p.first_inference_ns)} ms"
    )


def _stage_table(plan: Plan, alike: list[PlanPipeline]) -> None:
    pipeline = alike[0]
    each = ", each" if len(alike) > 1 else ""
    count = len(pipeline.stages)
    table = Listing(
        f"{counted(len(alike), 'pipeline')}{each} of {counted(count, 'stage')}, predicted",
        ("stage", "ops", "TPUs" if len(plan.devices) == 1 else "on", "cached", "streamed", "in", "out", "ms"),
    )
    for k, stage in enumerate(pipeline.stages):
        segment = plan.segment(stage.segment)
        table.row(
            str(k),
            _ranges_in_lines(segment.op_ranges),
            _numbers(plan, [a.stages[k] for a in alike]),
            short_size(segment.predicted.cached_bytes),
            short_size(segment.predicted.streamed_bytes),
            short_size(sum(t.bytes for t in segment.inputs)),
            short_size(sum(t.bytes for t in segment.outputs)),
            milliseconds(segment.predicted.stage_ns),
        )
    table.print()
    instructions = [plan.segment(stage.segment).predicted.instruction_bytes for stage in pipeline.stages]
    print(in_lines(", ".join(map(short_size, instructions)), first="instructions, sent with each inference: "))
    _say_streamed(plan, pipeline)
    if count > 1:
        print(f"{'slowest stage' if _host_limits(plan) else 'bottleneck'}: {pipeline.predicted.bottleneck}\n")


def _numbers(plan: Plan, alike: Sequence[PlanStage]) -> str:
    """The numbers of the devices of stages that run one segment, with their kind where the plan has several."""
    numbers = op_ranges(t for stage in alike for t in stage.tpus)
    return numbers if len(plan.devices) == 1 else f"{alike[0].kind} {numbers}"


def _say_streamed(plan: Plan, pipeline: PlanPipeline) -> None:
    """Print why each stage streams parameters: for lack of room, or because they are operands that are never cached."""
    beyond, never = [], []
    for k, stage in enumerate(pipeline.stages):
        cost = plan.segment(stage.segment).predicted
        if cost.overflow_bytes:
            beyond.append(f"stage {k} {short_size(cost.overflow_bytes)} (room {short_size(cost.capacity_bytes)})")
        if cost.streamed_bytes > cost.overflow_bytes:
            never.append(f"stage {k} {short_size(cost.streamed_bytes - cost.overflow_bytes)}")
    if beyond:
        print(in_lines(", ".join(beyond), first="streamed, beyond the room for parameters: "))
    if never:
        print(in_lines(", ".join(never), first="streamed, constants of element-wise ops, never cached: "))


def _ranges_in_lines(ranges: str) -> str:
    """Ranges of ops in lines that end behind a comma: a table would break numbers.

    >>> _ranges_in_lines("0-146,220-222,244-246")
    '0-146,\\n220-222,\\n244-246'
    """
    lines = [""]
    for part in ranges.replace(",", ",\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > _OPS_WIDTH:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _host_limits(plan: Plan) -> bool:
    """Whether the host sets the rate, not a stage."""
    host = plan.predicted.host_ns
    return host > 0 and plan.predicted.throughput_per_s >= 1e9 / host * (1 - 1e-6)


def devices_in_words(plan: Plan) -> str:
    """The devices that a plan is for: "4 TPUs", or "pcie=2,cpu=1" where it is for others than Edge TPUs of one kind."""
    if len(plan.devices) == 1 and plan.devices[0].device == EDGE_TPU:
        return counted(plan.n_tpus, "TPU")
    return ",".join(f"{devices.kind}={devices.count}" for devices in plan.devices)


def comparison(devices: str, rows: Sequence[ComparisonRow]) -> None:
    """Print the ways to use the devices, with their speed-ups. devices: in words.

    The stand-in for the compiler is marked, and so are ways that break the limits of the plan.
    """
    table = Listing(f"{devices}, predicted", ("", "per s", "latency ms", "streamed", "x one TPU", "x default"))
    for row in rows:
        table.row(row.name + _mark(row), *_figures(row))
    table.print()
    notes = [f"{row.name}: {row.note}" for row in rows if row.note]
    if any(row.stand_in for row in rows):
        print("*   a stand-in: the compiler's parameter-count rule, not a run of the compiler")
    if any(row.breaks_limits for row in rows):
        print("+   breaks the limits or constraints that were asked for")
    print(*notes, sep="\n")


def _mark(row: ComparisonRow) -> str:
    """The mark behind a row's name. Short: with a long mark, the table would not fit 80 columns."""
    if row.stand_in:
        return " *+" if row.breaks_limits else " *"
    return "+" if row.breaks_limits else ""


def _figures(row: ComparisonRow) -> list[str]:
    if row.throughput_per_s is None or row.latency_ns is None or row.streamed_bytes is None:
        return ["none", "", "", "", ""]
    ratios = [f"{s:.2f}" if s is not None else "" for s in (row.speedup_over_one_tpu, row.speedup_over_default)]
    return [f"{row.throughput_per_s:.1f}", milliseconds(row.latency_ns), short_size(row.streamed_bytes), *ratios]


def sizing(result: Sizing, asked: Sequence[str]) -> None:
    """Print the rates on 1, 2, 3 ... TPUs, and how many TPUs are worth having. asked: the targets in words."""
    table = Listing("the fastest plans found, predicted", ("TPUs", "used", "per s", "latency ms", "overflow"))
    for row in result.rows:
        if row.throughput_per_s is None or row.latency_ns is None or row.overflow_bytes is None:
            table.row(str(row.n_tpus), "", "none found", "", "")
            continue
        rate, latency = f"{row.throughput_per_s:.1f}", milliseconds(row.latency_ns)
        table.row(str(row.n_tpus), str(row.tpus_used), rate, latency, size(row.overflow_bytes))
    table.print()
    most = result.rows[-1].n_tpus
    print(f"a plan without overflow exists: {_from(result.fits_at_n, most)}")
    fits = result.fits_at_n or most + 1
    streaming = op_ranges(row.n_tpus for row in result.rows if row.n_tpus >= fits and row.overflow_bytes)
    if streaming:
        print(f"but the fastest one has some:   on {streaming} TPUs")
    knee = f"from {counted(result.knee_n, 'TPU')} on, up to {most}" if result.knee_n else _from(None, most)
    print(f"another TPU adds less than 5 %: {knee}")
    if asked:
        print(f"{' at '.join(asked)}: {_from(result.target_n, most)}")


def _from(n: int | None, most: int) -> str:
    return f"from {counted(n, 'TPU')} on" if n else f"nowhere up to {counted(most, 'TPU')}"


def remarks(plan: Plan) -> None:
    """Print what is proved of the plan, what limits its rate, and whether pycoral can run it."""
    s = plan.solver
    if s.bound_ns is None and s.ended == NOT_SEARCHED:
        print(f"no proof: the cuts are those of {s.name}, which claims nothing")
    elif s.bound_ns is None:
        print(in_lines(f"no proof: {s.name} has no bound over {s.over}"))
    else:
        print(in_lines(f"proof: {_claim(plan, s.bound_ns)} over {s.over};", "       "))
        print(f"       by {s.name}, under the predicted costs{_CUT_SHORT[s.ended]}")
    if _host_limits(plan):
        print(f"limit: the host, which works {milliseconds(plan.predicted.host_ns)} ms for each inference")
    state(plan.state)
    obstacle = pycoral_obstacle(plan)
    if obstacle:
        print(f"not for pycoral's PipelinedModelRunner: {obstacle}")


def state(kept: str | None) -> None:
    """Print what happens to a model's state between inputs. kept: as in `Plan.state`; None prints nothing."""
    if kept is not None:
        print(STATE_WORDS[kept])


def _claim(plan: Plan, bound_ns: int) -> str:
    """What is proved, in words: of the rate, or of the latency if that was minimised."""
    s, latency = plan.solver, plan.predicted.latency_ns
    least = s.latency_bound_ns
    if least is not None:
        above = f"latency at most {_percent(latency - least, least)} above the optimum"
        return "latency optimal" if latency <= least else above
    if s.objective_ns <= bound_ns:
        return "optimal"
    return f"within {_percent(s.objective_ns - bound_ns, s.objective_ns)} of the optimum"


def _percent(part: int, whole: int) -> str:
    """A share in percent, rounded up: a small gap must not print as 0."""
    return f"{-(-10_000 * part // max(1, whole)) / 100:.2f} %"


def package(package: Package) -> None:
    """Print what a compiled file holds."""
    said = (
        f"{package.name}: compiled; reported by its package: {size(package.cached_bytes)} of parameters cached, "
        f"{size(package.streamed_bytes)} streamed, {size(package.instruction_bytes)} of instructions, "
        f"{size(package.narrow_bytes_per_tile)} of narrow memory a tile; needs runtime {package.min_runtime_version}"
    )
    print(in_lines(said))
    table = Listing("", ("", "tensor", "type", "shape", "bytes"))
    for side, layers in (("in", package.inputs), ("out", package.outputs)):
        for layer in layers:
            table.row(side, layer.name, layer.dtype, "x".join(map(str, layer.shape)), str(layer.size_bytes))
    table.print()
    print(in_lines(f"on the CPU: {', '.join(package.cpu_ops) or 'nothing'}"))


def report(printed: Report) -> None:
    """Print what the compiler's report says of each model. printed: the report."""
    verdict = {True: "succeeded", False: "failed", None: "without a verdict"}[printed.succeeded]
    print(f"reported by edgetpu_compiler {printed.version or '(no version line)'}: {verdict}")
    for model in printed.models:
        table = Listing(model.output_file or model.input_file or "", ("", "reported"))
        for name in ("cached_bytes", "remaining_bytes", "streamed_bytes", "subgraphs", "ops", "cpu_ops"):
            value = getattr(model, name)
            text = "not reported" if value is None else size(value) if name.endswith("bytes") else str(value)
            table.row(name.removesuffix("_bytes").replace("_", " "), text)
        table.print()
        for row in model.statuses:
            print(f"{row.count:5} {row.type}: {row.status}")
    for failure in printed.failures:
        print(in_lines(f"failure: {failure.reason}; {failure.remedy}"))


@contextmanager
def progress(what: str, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A counter on stderr during long work. It shows nothing if `quiet`, or if stderr is not a terminal.

    what: the work, in words. Yields a function to call with the number done.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda done: None
        return
    console = Console(stderr=True)
    with console.status(f"{what} …") as status:
        yield lambda done: status.update(f"{what}: {done} done")


@contextmanager
def progress_bar(what: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr. It shows nothing if `quiet`, or if stderr is not a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
