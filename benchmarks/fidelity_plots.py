"""Draw predicted and measured values for docs/fidelity.md.

    python benchmarks/fidelity_plots.py MEASUREMENTS [--model ResNet101_int8.tflite] [--out docs]

MEASUREMENTS is the folder with the published measurements. There is one picture per family of synthetic models, with
three panels over the width of the layers: ms on one TPU, which steps up where parameters no longer fit the chip; ms per
inference of batched pipelines; and streamed MiB. Points are measured or reported, lines are predicted. Needs matplotlib.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fidelity import BATCHED, default_stages, load_hardware_once, measured_ms, predicted_ms, read_rows
from sampling import benchmark_parser

from balancer.ground.units import MIB
from balancer.planning.costed_model import open_costed_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.learning.measurements import SyntheticRow

    Points = list[tuple[int, float]]

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def synthetic(folder: Path) -> list[SyntheticRow]:
    """The rows of five layers with the usual inputs."""
    rows = read_rows(folder / "synthetic_fc_conv_pcie.csv")
    return [row for row in rows if row.layers == 5 and row.inputs in ("64", "64x64x3")]


def draw_pair(axes: Any, points: Points, line: Points, label: tuple[str, str], colour: str) -> None:
    """Known values as points and predicted ones as a line. label: of the series, and how its points are known."""
    series, known = label
    axes.plot(*zip(*points, strict=True), ".", color=colour, ms=4, label=f"{series}, {known}")
    axes.plot(*zip(*line, strict=True), "-", color=colour, lw=1, label=f"{series}, predicted")


def draw_times(axes: Any, rows: Iterable[SyntheticRow], label: str, colour: str) -> None:
    """ms over width."""
    ordered = sorted(rows, key=lambda row: row.width)
    measured = [(row.width, measured_ms(row)) for row in ordered]
    draw_pair(axes, measured, [(row.width, predicted_ms(row)) for row in ordered], (label, "measured"), colour)


def draw_streamed(axes: Any, rows: Iterable[SyntheticRow], label: str, colour: str) -> None:
    """Streamed MiB over width."""
    ordered = sorted((row for row in rows if row.streamed_mib), key=lambda row: row.width)
    reported = [(row.width, sum(row.streamed_mib or ())) for row in ordered]
    hardware = load_hardware_once("pcie-python")
    line = [(row.width, sum(stage.streamed_bytes for stage in row.stages(hardware)) / MIB) for row in ordered]
    draw_pair(axes, reported, line, (label, "reported"), colour)


def family_figure(rows: Sequence[SyntheticRow], family: str) -> Any:
    """Three panels: ms on one TPU, ms per inference of the compiler's pipelines with batches, and streamed MiB."""
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
    """Throughput and latency of the compiler's split over the number of TPUs."""
    from matplotlib.figure import Figure

    from balancer.cost.feeding import period_ns
    from balancer.ground.rates import latency_ns

    costed = open_costed_model(model, "pcie")
    with (folder / "imagenet_pipeline_pcie_resnet101.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    n = [int(r["n_segments"]) for r in rows]
    stages = [default_stages(costed, k) for k in n]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    fps, latency = figure.subplots(1, 2)
    fps.plot(n, [float(r["throughput_fps"]) for r in rows], "o", label="measured")
    fps.plot(n, [1e9 / period_ns(s, costed.hardware) for s in stages], "-", label="predicted")
    latency.plot(n, [float(r["latency_ms_mean"]) for r in rows], "o", label="measured")
    predicted_ns = [latency_ns((stage.stage_ns for stage in s), costed.hardware.host.handover_ns) for s in stages]
    latency.plot(n, [ns / 1e6 for ns in predicted_ns], "-", label="predicted")
    for axes, title in ((fps, "inferences/s"), (latency, "latency, ms")):
        axes.set(title=f"ResNet-101, compiler's split: {title}", xlabel="TPUs")
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    parser = benchmark_parser(__doc__)
    parser.add_argument("measurements", type=Path, metavar="MEASUREMENTS", help="the folder with the CSV files")
    parser.add_argument("--model", type=Path, metavar="TFLITE", help="ResNet-101: draw its pipelines, too")
    parser.add_argument(
        "--out", type=Path, default=Path("docs"), metavar="DIR", help="for the pictures (default: docs)"
    )
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
    sys.exit(main())
