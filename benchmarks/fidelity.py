"""Predicted against measured, on published measurements and compiled files.

    python benchmarks/fidelity.py --data FILE.csv         synthetic models: times and streamed bytes
    python benchmarks/fidelity.py --decisions FILE.csv    how often the faster of two configurations is predicted
    python benchmarks/fidelity.py --compiled DIR          parameter bytes of X.tflite and compiled/X_edgetpu.tflite
    python benchmarks/fidelity.py --imagenet FILE.csv --model M.tflite     the compiler's split on N TPUs
    python benchmarks/fidelity.py --grid FILE.csv --model M.tflite         partitions of 8 TPUs into pipelines

Several may be given at once. Rows with `use` = 0 and rows without a split are not scored.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.cost.feeding import StageCost, period_ns, stage_cost
from balancer.cost.hardware import Hardware, load_hardware
from balancer.cost.layout import layout
from balancer.cost.segment import SegmentCosts
from balancer.errors import BalancerError, MeasurementError
from balancer.ground.opsets import op_set
from balancer.ground.rates import latency_ns, pipeline_rate, plan_rate
from balancer.learning.measurements import SyntheticRow, read_measurements
from balancer.planning.comparing import default_cuts
from balancer.planning.setting import Setting, open_setting
from balancer.tflite.package import load_package
from balancer.tflite.read import load_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balancer.graph import Graph

MIB = 1 << 20
NOT_COUNTED = {"UNIDIRECTIONAL_SEQUENCE_LSTM"}  # its layout on the chip is not known
SMALL_BYTES = 50_000
BATCHED = 50


def read_rows(path: Path) -> list[SyntheticRow]:
    """The rows that can be scored."""
    return [row for row in read_measurements(path) if isinstance(row, SyntheticRow)]


def predicted_ms(row: SyntheticRow) -> float:
    return row.predicted_ns(load_hardware_once("pcie-python")) / 1e6


def measured_ms(row: SyntheticRow) -> float:
    return row.measured_ns / 1e6


@cache
def load_hardware_once(name: str) -> Hardware:
    return load_hardware(name)


def streamed_exact(row: SyntheticRow) -> bool | None:
    """Whether the streamed bytes of every segment are as reported, to 1 % or 0.02 MiB; None without a report."""
    if row.streamed_mib is None or len(row.streamed_mib) != len(row.split):
        return None
    predicted = [stage.streamed_bytes / MIB for stage in row.stages(load_hardware_once("pcie-python"))]
    reported = list(row.streamed_mib)
    if row.partitioner == "google_profiling":  # that tool lists segments in no fixed order
        predicted, reported = sorted(predicted), sorted(reported)
    pairs = zip(predicted, reported, strict=True)
    return all(abs(p - r) <= max(0.02, 0.01 * r) for p, r in pairs)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def score_data(path: Path) -> None:
    groups: dict[tuple[str, int, int, str], list[SyntheticRow]] = {}
    for row in read_rows(path):
        groups.setdefault((row.family, row.n_tpus, row.batch, row.partitioner), []).append(row)
    errors: dict[str, list[float]] = {"single": [], "batch1": [], "batched": [], "below": []}
    exact: list[bool] = []
    print(
        f"{'family':6} {'N':>2} {'batch':>5} {'partitioner':18} {'rows':>5} {'mean':>9} {'p90':>8} {'off-chip exact':>15}"
    )
    for key, rows in sorted(groups.items()):
        long = [row for row in rows if measured_ms(row) >= 1]
        for unit, part in (("%", long), ("ms", [row for row in rows if measured_ms(row) < 1])):
            if not part:
                continue
            found = [
                abs(predicted_ms(row) / measured_ms(row) - 1) * 100
                if unit == "%"
                else abs(predicted_ms(row) - measured_ms(row))
                for row in part
            ]
            kind = "below" if unit == "ms" else "single" if key[1] == 1 else "batch1" if key[2] == 1 else "batched"
            errors[kind] += found
            known = [e for row in part if (e := streamed_exact(row)) is not None]
            exact += known
            p90 = sorted(found)[int(0.9 * (len(found) - 1))]
            share = f"{100 * mean(known):.1f} %" if known else "-"
            print(
                f"{key[0]:6} {key[1]:2} {key[2]:5} {key[3]:18} {len(part):5} {mean(found):6.3f} {unit:2} {p90:8.3f} {share:>15}"
            )
    print(
        f"MAPE single {mean(errors['single']):.2f} % batch1 {mean(errors['batch1']):.2f} % "
        f"batched {mean(errors['batched']):.2f} % | "
        f"below 1 ms {mean(errors['below']):.3f} ms | off-chip exact {100 * mean(exact):.1f} %"
    )


def score_decisions(path: Path) -> None:
    """Pairs of configurations of one model: is the one predicted faster the one measured faster?"""
    models: dict[tuple[str, int, int, str], dict[tuple[int, tuple[int, ...]], list[SyntheticRow]]] = {}
    for row in read_rows(path):
        if row.batch >= BATCHED or row.n_tpus == 1:
            model = models.setdefault((row.family, row.layers, row.width, row.inputs), {})
            model.setdefault((row.n_tpus, row.split), []).append(row)
    same: list[bool] = []
    other: list[bool] = []
    for configurations in models.values():
        for (a, rows_a), (b, rows_b) in combinations(configurations.items(), 2):
            measured = [statistics.median(measured_ms(row) for row in rows) for rows in (rows_a, rows_b)]
            if min(measured) < 1.5 or max(measured) <= 1.05 * min(measured):
                continue
            predicted = [statistics.median(predicted_ms(row) for row in rows) for rows in (rows_a, rows_b)]
            right = (predicted[0] < predicted[1]) == (measured[0] < measured[1])
            (same if a[0] == b[0] else other).append(right)
    for name, pairs in (("equal n_tpus", same), ("different n_tpus", other)):
        print(f"{name}: {sum(pairs)} of {len(pairs)} right")
    pairs = same + other
    print(f"decisions: {100 * mean(pairs):.1f} % of {len(pairs)} pairs right")


def blob_bytes(graph: Graph, hardware: Hardware) -> int:
    """Parameter bytes of what is on the Edge TPU, as the compiled file holds them."""
    costs = SegmentCosts(graph, hardware)
    on_cpu = costs.on_cpu(graph.all_ops)
    layouts = [layout(graph, op) for op in graph.ops if costs.mapped >> op.index & 1 and not on_cpu >> op.index & 1]
    return sum(lay.streamed + lay.always_streamed for lay in layouts)


def score_compiled(folder: Path) -> None:
    errors = []
    for compiled in sorted((folder / "compiled").glob("*_edgetpu.tflite")):
        source = folder / f"{compiled.stem.removesuffix('_edgetpu')}.tflite"
        if not source.exists():
            continue
        package, graph = load_package(compiled), load_graph(source)
        true, predicted = package.cached_bytes + package.streamed_bytes, blob_bytes(graph, load_hardware_once("pcie"))
        error = 100 * abs(predicted - true) / max(true, SMALL_BYTES)
        left_out = any(op.type in NOT_COUNTED for op in graph.ops)
        note = "not counted: layout unknown" if left_out else ""
        print(f"{source.stem:55} {true:9} {predicted:9} {error:6.2f} % {predicted - true:8} B {note}")
        if not left_out:
            errors.append(error)
    print(
        f"parameter bytes: mean error {mean(errors):.2f} % max {max(errors, default=float('nan')):.2f} % over {len(errors)}"
    )


def default_stages(setting: Setting, segments: int) -> list[StageCost]:
    """Stages of the compiler's split."""
    edges = [0, *default_cuts(setting, segments), len(setting.graph.ops)]
    return [stage_cost(setting.costs.terms(op_set(range(a, b)))) for a, b in pairwise(edges)]


def unpruned(path: Path, columns: set[str]) -> list[dict[str, str]]:
    """The rows about the unpruned model. Raises MeasurementError where the file has other columns."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise MeasurementError(f"cannot be read ({error.strerror})", str(path), "give a CSV file") from error
    if not rows or not columns <= set(rows[0]):
        raise MeasurementError(f"has no columns {', '.join(sorted(columns))}", str(path), "give such a file")
    return [r for r in rows if not float(r.get("pruning_pct") or 0)]


def score_imagenet(path: Path, model: Path) -> None:
    setting = open_setting(model, "pcie")
    errors, latencies = [], []
    print(f"{'N':>2} {'fps':>8} {'measured':>9} {'ms':>8} {'measured':>9} {'streamed MiB':>13} {'reported':>9}")
    for r in unpruned(path, {"n_segments", "throughput_fps", "latency_ms_mean", "off_chip_mib_total"}):
        stages = default_stages(setting, int(r["n_segments"]))
        fps = 1e9 / period_ns(stages, setting.hardware)
        ms = latency_ns((s.stage_ns for s in stages), setting.hardware.host.handover_ns) / 1e6
        measured, measured_ms = float(r["throughput_fps"]), float(r["latency_ms_mean"])
        streamed = sum(stage.streamed_bytes for stage in stages) / MIB
        reported = r["off_chip_mib_total"] or "-"
        print(f"{len(stages):2} {fps:8.2f} {measured:9.2f} {ms:8.2f} {measured_ms:9.2f} {streamed:13.2f} {reported:>9}")
        errors.append(100 * abs(fps / measured - 1))
        latencies.append(100 * abs(ms / measured_ms - 1))
    print(f"latency MAPE {mean(latencies):.2f} %")
    print(f"throughput MAPE {mean(errors):.2f} % over {len(errors)}")


def score_grid(path: Path, model: Path) -> None:
    setting = open_setting(model, "pcie")
    hardware = setting.hardware

    @cache
    def part(segments: int) -> tuple[StageCost, ...]:
        return tuple(default_stages(setting, segments))

    found: list[tuple[float, float, str]] = []
    for r in unpruned(path, {"partition", "fps_total"}):
        pipelines = [part(int(p)) for p in r["partition"].split("+")]
        rates = [pipeline_rate([s.stage_ns for s in p], [1] * len(p)) for p in pipelines]
        fps = float(plan_rate(rates, [hardware.host.host_ns_per_stage * len(p) for p in pipelines]))
        measured = float(r["fps_total"])
        found.append((fps, measured, r["partition"]))
        print(
            f"{r['partition']:16} predicted {fps:8.2f} measured {measured:8.2f} fps {100 * (fps / measured - 1):+6.2f} %"
        )
    mape = mean([100 * abs(fps / measured - 1) for fps, measured, _ in found])
    _, measured, name = max(found)
    print(
        f"grid MAPE {mape:.2f} %, best predicted {name} measured {measured:.2f} fps of best {max(m for _, m, _ in found):.2f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "decisions", "compiled", "imagenet", "grid", "model"):
        parser.add_argument(f"--{name}", type=Path)
    arguments = parser.parse_args(argv)
    try:
        return score(parser, arguments)
    except BalancerError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def score(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Everything that was asked for."""
    if (arguments.imagenet or arguments.grid) and not arguments.model:
        parser.error("--imagenet and --grid need --model")
    simple: list[tuple[Path | None, Callable[[Path], None]]] = [
        (arguments.compiled, score_compiled),
        (arguments.data, score_data),
        (arguments.decisions, score_decisions),
    ]
    for path, print_score in simple:
        if path:
            print_score(path)
    if arguments.imagenet:
        score_imagenet(arguments.imagenet, arguments.model)
    if arguments.grid:
        score_grid(arguments.grid, arguments.model)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
