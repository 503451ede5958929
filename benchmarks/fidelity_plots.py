"""Plots of predicted against measured for docs/fidelity.md.

    python benchmarks/fidelity_plots.py SHARED/data/measurements [--out docs]

One picture per family: time on one TPU over width, with the steps where parameters spill; batched pipelines; and
streamed MiB. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fidelity import BATCHED, default_stages

from balancer.cost.hardware import load_hardware
from balancer.learning.measurements import SyntheticRow, read_measurements
from balancer.planning.setting import open_setting

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MIB = 1 << 20
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def synthetic(folder: Path) -> list[SyntheticRow]:
    rows = read_measurements(folder / "synthetic_fc_conv_pcie.csv")
    return [
        row for row in rows if isinstance(row, SyntheticRow) and row.layers == 5 and row.inputs in ("64", "64x64x3")
    ]


def draw_times(axes: Any, rows: Iterable[SyntheticRow], label: str, colour: str) -> None:
    """Measured as points, predicted as a line, over width."""
    ordered = sorted(rows, key=lambda row: row.width)
    hardware = load_hardware("pcie-python")
    widths = [row.width for row in ordered]
    axes.plot(widths, [row.measured_ns / 1e6 for row in ordered], ".", color=colour, ms=4, label=f"{label}, measured")
    axes.plot(
        widths,
        [row.predicted_ns(hardware) / 1e6 for row in ordered],
        "-",
        color=colour,
        lw=1,
        label=f"{label}, predicted",
    )


def draw_streamed(axes: Any, rows: Iterable[SyntheticRow], label: str, colour: str) -> None:
    ordered = sorted((row for row in rows if row.streamed_mib), key=lambda row: row.width)
    hardware = load_hardware("pcie-python")
    widths = [row.width for row in ordered]
    axes.plot(
        widths, [sum(row.streamed_mib or ()) for row in ordered], ".", color=colour, ms=4, label=f"{label}, reported"
    )
    predicted = [sum(stage.streamed_bytes for stage in row.stages(hardware)) / MIB for row in ordered]
    axes.plot(widths, predicted, "-", color=colour, lw=1, label=f"{label}, predicted")


def family_figure(rows: Sequence[SyntheticRow], family: str) -> Any:
    """Three panels: one TPU, default pipelines with batches, streamed MiB."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    single, batched, streamed = figure.subplots(1, 3)
    of_family = [row for row in rows if row.family == family]
    alone = [row for row in of_family if row.n_tpus == 1]
    draw_times(single, alone, "1 TPU", COLOURS[0])
    draw_streamed(streamed, alone, "1 TPU", COLOURS[0])
    for n in (2, 3, 4):
        default = [
            r for r in of_family if r.n_tpus == n and r.partitioner == "default" and r.batch in (BATCHED, 2 * BATCHED)
        ]
        draw_times(batched, default, f"{n} TPUs", COLOURS[n - 1])
        draw_streamed(streamed, default, f"{n} TPUs", COLOURS[n - 1])
    unit = "neurons" if family == "fc" else "filters"
    for axes, title in (
        (single, "ms, one TPU"),
        (batched, "ms per inference, batched, default split"),
        (streamed, "streamed MiB"),
    ):
        axes.set(title=f"{family}: {title}", xlabel=unit)
        axes.legend(fontsize=6)
        axes.grid(alpha=0.3)
    return figure


def resnet_figure(folder: Path, model: Path) -> Any:
    """Throughput and latency of the compiler's split over N."""
    from matplotlib.figure import Figure

    from balancer.cost.feeding import period_ns
    from balancer.ground.rates import latency_ns

    setting = open_setting(model, "pcie")
    with (folder / "imagenet_pipeline_pcie_resnet101.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    n = [int(r["n_segments"]) for r in rows]
    stages = [default_stages(setting, k) for k in n]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    fps, latency = figure.subplots(1, 2)
    fps.plot(n, [float(r["throughput_fps"]) for r in rows], "o", label="measured")
    fps.plot(n, [1e9 / period_ns(s, setting.hardware) for s in stages], "-", label="predicted")
    latency.plot(n, [float(r["latency_ms_mean"]) for r in rows], "o", label="measured")
    predicted_ns = [latency_ns((stage.stage_ns for stage in s), setting.hardware.host.handover_ns) for s in stages]
    latency.plot(n, [ns / 1e6 for ns in predicted_ns], "-", label="predicted")
    for axes, title in ((fps, "inferences/s"), (latency, "latency, ms")):
        axes.set(title=f"ResNet-101, compiler's split: {title}", xlabel="TPUs")
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurements", type=Path)
    parser.add_argument("--model", type=Path, help="ResNet-101, for its own figure")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args(argv)
    rows = synthetic(arguments.measurements)
    for family in ("fc", "conv"):
        family_figure(rows, family).savefig(arguments.out / f"fidelity_{family}.png", dpi=100)
    if arguments.model:
        resnet_figure(arguments.measurements, arguments.model).savefig(
            arguments.out / "fidelity_resnet101.png", dpi=100
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
