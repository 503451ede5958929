"""Draws what running, measuring and tuning show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.cli.drawing import Listing, milliseconds
from balancer.runtime.provenance import provenance_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.loops.tuning import Tuned, TuneRound
    from balancer.runtime.devices import Device
    from balancer.runtime.measuring import PipelineMeasurement
    from balancer.solve.bisection import Bisection


def devices(found: Sequence[Device], sound: str) -> None:
    """The Edge TPUs of this machine. sound: what to say of one without a problem."""
    if not found:
        print("no Edge TPU is seen here: none in /sys/class/apex, no USB device 1a6e:089a or 18d1:9302;")
        print("`--devices sim` simulates as many as a plan needs")
        return
    for device in found:
        heat = f", {device.celsius:.1f} C" if device.celsius is not None else ""
        print(f"{device.name}: {device.path}{heat}: {device.problem or sound}")
        if device.remedy:
            print(f"    {device.remedy}")


def measurement(found: PipelineMeasurement) -> None:
    """The table of stages, and the rates."""
    table = Listing(
        f"measured ({provenance_text(found.source)}), {found.items} items in {found.seconds:.1f} s",
        ("pipeline", "stage", "devices", "predicted ms", "ms", "queued ms", "share"),
    )
    for stage in found.stages:
        table.row(
            str(stage.pipeline), str(stage.stage), " ".join(dict.fromkeys(stage.devices)), milliseconds(stage.predicted_ns),
            milliseconds(stage.stage_ns), milliseconds(stage.queued_ns), f"{100 * stage.share:.0f} %",
        )  # fmt: skip
    table.print()
    print(f"bottleneck: {found.bottleneck} (predicted: {found.predicted_bottleneck})")
    print(
        f"throughput: {found.throughput_per_s:.1f} inferences/s measured, {found.predicted_throughput_per_s:.1f} predicted"
    )
    spread = found.latency
    print(
        f"latency:    {milliseconds(found.latency_ns)} ms measured (median of {spread.count} inputs alone; p90 "
        f"{milliseconds(spread.p90)}), {milliseconds(found.predicted_latency_ns)} predicted"
    )
    first = "failed" if found.first_inference_ns is None else f"{milliseconds(found.first_inference_ns)} ms"
    print(f"first inference: {first}")
    if found.failures or found.failures_alone:
        alone = spread.count + found.failures_alone
        print(f"failed: {found.failures} of {found.items} in steady state, {found.failures_alone} of {alone} alone")
    print(*(f"note: {note}\n" for note in found.notes), sep="", end="")


def round_line(found: TuneRound) -> str:
    """One round of measuring and solving."""
    return (
        f"round {found.number}: {found.segments} segments; {found.predicted_per_s:.1f}/s predicted, "
        f"{found.measured_per_s:.1f}/s measured ({found.source}); stages off by up to {100 * found.worst:.1f} %"
        + (f"; misses a limit: {found.broken}" if found.broken else "")
    )


def tuned(found: Tuned) -> None:
    """The best round of tuning, and why tuning ended."""
    best, first = found.best, found.rounds[0]
    print(
        f"best: round {best.number}, {best.measured_per_s:.1f}/s, {best.measured_per_s / first.measured_per_s:.3f} times the "
        f"first plan's rate ({found.ended})"
    )
    limits = found.plan.held_to.limits if found.plan.held_to else None
    if limits and (limits.max_objective_ns or limits.max_latency_ns):
        print(
            f"      latency {milliseconds(best.measured_latency_ns)} ms by its stages, "
            f"{milliseconds(first.measured_latency_ns)} before"
        )
    if best.broken:
        print(f"      no plan that was measured keeps the limit: {best.broken}")


def bisection(found: Bisection) -> None:
    """The result of Google's profiling bisection on the same times."""
    print(
        f"profiling bisection: {1e9 / found.slowest_ns:.1f}/s with {len(found.cuts) + 1} single TPUs, after "
        f"{found.rounds} rounds and {found.measured} measured segments"
    )
