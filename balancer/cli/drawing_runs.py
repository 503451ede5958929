"""Tables and lines about devices, measurements and tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.cli.drawing import Listing, in_lines, milliseconds
from balancer.ground.wording import counted
from balancer.runtime.provenance import MeasuredOn, provenance_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from balancer.cost.cpu_hardware import CpuHardware
    from balancer.learning.calibrating import Calibration
    from balancer.loops.tuning import Tuned, TuneRound
    from balancer.plan import Plan
    from balancer.runtime.devices import Device
    from balancer.runtime.measuring import PipelineMeasurement
    from balancer.solve.bisection import Bisection


_ON = {MeasuredOn.CPU.value: "measured on this CPU", MeasuredOn.DEVICE.value: "measured on a device"}


def devices(listed: Sequence[Device], sound: str) -> None:
    """Print the Edge TPUs of this machine. sound: what to print for one without a problem."""
    if not listed:
        print("no Edge TPU was found: none in /sys/class/apex, and no USB device 1a6e:089a or 18d1:9302;")
        print("`--devices sim` simulates as many as a plan needs")
        return
    for device in listed:
        heat = f", {device.celsius:.1f} C" if device.celsius is not None else ""
        link = f", {device.mbit_per_s} Mbit/s" if device.mbit_per_s is not None else ""
        print(f"{device.name}: {device.path}{link}{heat}: {device.problem or sound}")
        if device.remedy:
            print(f"    {device.remedy}")


def this_machine(cpu: CpuHardware, counts: Mapping[str, int]) -> None:
    """Print this machine's CPU, and what to type to plan for all that can be used. counts: by kind."""
    cores, threads = cpu.running.cores, cpu.running.threads
    known = f"costed as {cpu.name}, which is rough" if cpu.rough else f"calibrated as {cpu.name}"
    print(f"cpu: {cores} {'core' if cores == 1 else 'cores'}, {threads} for each stage, one left for the host; {known}")
    print(f"to plan for these: -n {','.join(f'{kind}={count}' for kind, count in counts.items())}")


def measurement(result: PipelineMeasurement) -> None:
    """Print the table of stages, rate and latency, each predicted and measured."""
    table = Listing(
        f"measured ({provenance_text(result.source)}), {counted(result.items, 'item')} in {result.seconds:.1f} s",
        ("pipeline", "stage", "devices", "predicted ms", "ms", "queued ms", "share"),
    )
    for stage in result.stages:
        table.row(
            str(stage.pipeline), str(stage.stage), " ".join(dict.fromkeys(stage.devices)), milliseconds(stage.predicted_ns),
            milliseconds(stage.stage_ns), milliseconds(stage.queued_ns), f"{100 * stage.share:.0f} %",
        )  # fmt: skip
    table.print()
    _say_sources(result)
    print(f"bottleneck: {result.bottleneck}")
    if result.bottleneck != result.predicted_bottleneck:
        print(f"            predicted: {result.predicted_bottleneck}")
    print(
        f"throughput: {result.throughput_per_s:.1f} inferences/s measured, {result.predicted_throughput_per_s:.1f} predicted"
    )
    spread = result.latency
    print(
        f"latency:    {milliseconds(result.latency_ns)} ms measured, {milliseconds(result.predicted_latency_ns)} predicted"
    )
    print(f"            measured: median of {counted(spread.count, 'input')} alone; p90 {milliseconds(spread.p90)} ms")
    first = "failed" if result.first_inference_ns is None else f"{milliseconds(result.first_inference_ns)} ms"
    print(f"first inference: {first}")
    if result.failures or result.failures_alone:
        alone = spread.count + result.failures_alone
        print(f"failed: {result.failures} of {result.items} in steady state, {result.failures_alone} of {alone} alone")
    print(*(in_lines(note, " " * 6, first="note: ") + "\n" for note in result.notes), sep="", end="")


def _say_sources(result: PipelineMeasurement) -> None:
    """Print which stages were measured on what, where they differ."""
    if len({stage.source for stage in result.stages}) < 2:
        return
    by_source: dict[str, list[str]] = {}
    for stage in result.stages:
        place = f"{stage.pipeline}.{stage.stage}" if len({s.pipeline for s in result.stages}) > 1 else str(stage.stage)
        by_source.setdefault(_ON.get(text := provenance_text(stage.source), text), []).append(place)
    print("; ".join(f"{_stages(places)}: {words}" for words, places in by_source.items()))


def _stages(places: Sequence[str]) -> str:
    return f"stage {places[0]}" if len(places) == 1 else f"stages {', '.join(places)}"


def round_line(done: TuneRound) -> str:
    """One round of measuring and solving, as text."""
    return (
        f"round {done.number}: {counted(done.segments, 'segment')}; {done.predicted_per_s:.1f}/s predicted, "
        f"{done.measured_per_s:.1f}/s measured ({done.source});\n         stages off by up to {100 * done.worst:.1f} %"
        + (f"; misses a limit: {done.broken}" if done.broken else "")
    )


def tuned(result: Tuned) -> None:
    """Print what tuning has gained, and why it ended."""
    best, first = result.best, result.rounds[0]
    print(
        f"best: round {best.number}, {best.measured_per_s:.1f}/s measured ({best.source}), "
        f"{best.measured_per_s / first.measured_per_s:.3f} times the first"
    )
    print(in_lines(result.ended, " " * 7, first="ended: "))
    limits = result.plan.held_to.limits if result.plan.held_to else None
    if limits and (limits.max_objective_ns or limits.max_latency_ns):
        print(
            f"      latency {milliseconds(best.measured_latency_ns)} ms by its stages, "
            f"{milliseconds(first.measured_latency_ns)} before"
        )
    if best.broken:
        print(f"      no plan that was measured keeps the limit: {best.broken}")


def to_measure(plan: Plan, folder: Path, first: str, recorded: str | None) -> None:
    """Print where the plan is that should be measured next, and how. folder: its directory. first: the plan that was tuned,
    as the user named it. recorded: the file of measured times, None if plans were run.
    """
    print(f"next to be measured: {folder}, {plan.predicted.throughput_per_s:.1f}/s predicted with what was measured")
    if recorded is None:
        print(f"    once that is possible: balancer tune {folder}")
        return
    print(f"    1. where the compiler is:   balancer compile {folder}")
    print(f"    2. where the Edge TPUs are: balancer bench {folder} --csv {recorded}")
    print(f"    3. then here, once more:    balancer tune {first} --recorded {recorded} --force")


def bisection(result: Bisection) -> None:
    """Print the result of Google's profiling bisection with the same times."""
    print(
        f"profiling bisection: {1e9 / result.slowest_ns:.1f}/s with {counted(len(result.cuts) + 1, 'single TPU')}, after "
        f"{counted(result.rounds, 'round')} and {counted(result.measured, 'measured segment')}"
    )


def calibration(result: Calibration) -> None:
    """Print the fitted constants with their errors."""
    origin = provenance_text(result.sources)
    table = Listing(f"fitted to measured times ({origin})", ("constant", "before", "fitted", "error"))
    for constant in result.constants:
        table.row(constant.name, str(constant.before), str(constant.value), f"{100 * constant.error:.1f} %")
    table.print()
    before, after = 100 * result.error_before, 100 * result.error_after
    print(f"{counted(result.rows, 'row')}: mean absolute error {before:.2f} % before, {after:.2f} % after")
    print("error: one standard deviation of the fit, as a share of the value; it says nothing")
    print("       of constants that have hardly moved, since hardly a row depends on them")
