"""The cost model's predictions beside published measurements and compiled files.

    python benchmarks/fidelity.py --data FILE.csv         synthetic models: times and streamed bytes
    python benchmarks/fidelity.py --decisions FILE.csv    how often the faster of two configurations is predicted
    python benchmarks/fidelity.py --compiled DIR          parameter bytes of X.tflite and compiled/X_edgetpu.tflite
    python benchmarks/fidelity.py --packages FILE.csv --models DIR         what compiled packages record
    python benchmarks/fidelity.py --usb FILE.csv --models DIR              Keras networks on one USB TPU, three hosts
    python benchmarks/fidelity.py --detectors FILE.csv    YOLO on one TPU, both clocks
    python benchmarks/fidelity.py --imagenet FILE.csv --model M.tflite     the compiler's split on N TPUs
    python benchmarks/fidelity.py --grid FILE.csv --model M.tflite         partitions of 8 TPUs into pipelines

Several of these may be given at once; --json FILE writes each predicted value beside the measured one. Rows with `use` =
0 and rows without a split are not scored. Nothing is timed here: the same files always give the same figures.
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from fidelity_packages import score_packages
from fidelity_usb import score_single
from sampling import measuring_parser, recorded

from balancer.cost.feeding import StageCost, period_ns, stage_cost
from balancer.cost.hardware import Hardware, load_hardware
from balancer.cost.layout import layout
from balancer.cost.segment import SegmentCosts
from balancer.errors import MeasurementError
from balancer.ground.opsets import op_set
from balancer.ground.rates import latency_ns, pipeline_rate, plan_rate
from balancer.ground.units import MIB
from balancer.learning.measurements import SyntheticRow, read_measurements
from balancer.planning.costed_model import CostedModel, open_costed_model
from balancer.planning.ways import default_cuts
from balancer.tflite.package import load_package
from balancer.tflite.read import load_graph

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence

    from sampling import Sample

    from balancer.graph import Graph

    Configuration = tuple[int, tuple[int, ...]]  # TPUs, split

NOT_COUNTED = {"UNIDIRECTIONAL_SEQUENCE_LSTM"}  # its layout on the chip is not known
SMALL_BYTES = 50_000
BATCHED = 50
SHORT_MS = 1  # below it an error is told in ms, since percentages of small times say little
LEAST_DECIDED_MS, LEAST_DECIDED_RATIO = 1.5, 1.05  # of two measured times that are compared


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


@dataclass
class DataScores:
    """Errors of predicted times by kind of row, and which rows' streamed bytes are exact."""

    errors: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    exact: list[bool] = field(default_factory=list)

    def add_group(self, key: tuple[str, int, int, str], rows: Sequence[SyntheticRow]) -> None:
        """Print and count the rows of one family, number of TPUs, batch and partitioner."""
        long = [row for row in rows if measured_ms(row) >= SHORT_MS]
        short = [row for row in rows if measured_ms(row) < SHORT_MS]
        kind = "single" if key[1] == 1 else "batch1" if key[2] == 1 else "batched"
        percentages = [abs(predicted_ms(row) / measured_ms(row) - 1) * 100 for row in long]
        differences_ms = [abs(predicted_ms(row) - measured_ms(row)) for row in short]
        self.errors[kind] += percentages
        self.errors["below"] += differences_ms
        for unit, part, errors in (("%", long, percentages), ("ms", short, differences_ms)):
            if part:
                known = [exact for row in part if (exact := streamed_exact(row)) is not None]
                self.exact += known
                p90 = sorted(errors)[int(0.9 * (len(errors) - 1))]
                share = f"{100 * mean(known):.1f} %" if known else "-"
                print(
                    f"{key[0]:6} {key[1]:2} {key[2]:5} {key[3]:18} {len(part):5} {mean(errors):6.3f} {unit:2} "
                    f"{p90:8.3f} {share:>15}"
                )

    def print_summary(self) -> None:
        means = {kind: mean(self.errors[kind]) for kind in ("single", "batch1", "batched", "below")}
        print(
            f"MAPE single {means['single']:.2f} % batch1 {means['batch1']:.2f} % batched {means['batched']:.2f} % | "
            f"below 1 ms {means['below']:.3f} ms | off-chip exact {100 * mean(self.exact):.1f} %"
        )


def score_data(path: Path) -> list[Sample]:
    """Print the errors of times and streamed bytes. Returns the predicted and the measured ms of each row."""
    groups: dict[tuple[str, int, int, str], list[SyntheticRow]] = defaultdict(list)
    for row in read_rows(path):
        groups[row.family, row.n_tpus, row.batch, row.partitioner].append(row)
    print(
        f"{'family':6} {'N':>2} {'batch':>5} {'partitioner':18} {'rows':>5} {'mean':>9} {'p90':>8} {'off-chip exact':>15}"
    )
    scores = DataScores()
    for key, rows in sorted(groups.items()):
        scores.add_group(key, rows)
    scores.print_summary()
    return [
        {
            "score": "data", "family": row.family, "tpus": row.n_tpus, "batch": row.batch, "width": row.width,
            "partitioner": row.partitioner, "layers": row.layers, "predicted_ms": predicted_ms(row),
            "measured_ms": measured_ms(row),
        }
        for _, rows in sorted(groups.items())
        for row in rows
    ]  # fmt: skip


def configurations(rows: Iterable[SyntheticRow]) -> list[dict[Configuration, list[SyntheticRow]]]:
    """For each model its configurations with their rows: those on one TPU, and those measured with large batches."""
    models: dict[tuple[str, int, int, str], dict[Configuration, list[SyntheticRow]]] = {}
    for row in rows:
        if row.batch >= BATCHED or row.n_tpus == 1:
            model = models.setdefault((row.family, row.layers, row.width, row.inputs), {})
            model.setdefault((row.n_tpus, row.split), []).append(row)
    return list(models.values())


def score_decisions(path: Path) -> list[Sample]:
    """Print how often the configuration that is predicted faster was measured faster. Returns each pair."""
    samples: list[Sample] = []
    for model in configurations(read_rows(path)):
        for (a, rows_a), (b, rows_b) in combinations(model.items(), 2):
            measured = [statistics.median(measured_ms(row) for row in rows) for rows in (rows_a, rows_b)]
            if min(measured) < LEAST_DECIDED_MS or max(measured) <= LEAST_DECIDED_RATIO * min(measured):
                continue
            predicted = [statistics.median(predicted_ms(row) for row in rows) for rows in (rows_a, rows_b)]
            samples.append({
                "score": "decisions", "tpus": [a[0], b[0]], "predicted_ms": predicted, "measured_ms": measured,
                "right": (predicted[0] < predicted[1]) == (measured[0] < measured[1]),
            })  # fmt: skip
    same = [sample["right"] for sample in samples if len(set(sample["tpus"])) == 1]
    different = [sample["right"] for sample in samples if len(set(sample["tpus"])) == 2]
    for name, right in (("equal n_tpus", same), ("different n_tpus", different)):
        print(f"{name}: {sum(right)} of {len(right)} right")
    print(f"decisions: {100 * mean(same + different):.1f} % of {len(samples)} pairs right")
    return samples


def blob_bytes(graph: Graph, hardware: Hardware) -> int:
    """Parameter bytes of the ops that run on the Edge TPU, as the compiled file holds them."""
    costs = SegmentCosts(graph, hardware)
    on_cpu = costs.on_cpu(graph.all_ops)
    layouts = [layout(graph, op) for op in graph.ops if costs.mapped >> op.index & 1 and not on_cpu >> op.index & 1]
    return sum(lay.streamed + lay.always_streamed for lay in layouts)


def score_compiled(folder: Path) -> list[Sample]:
    """Print predicted parameter bytes beside those of each compiled file, and return both."""
    errors, samples = [], []
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
        samples.append({
            "score": "compiled", "model": source.stem, "predicted_bytes": predicted, "compiled_bytes": true,
            "counted": not left_out,
        })  # fmt: skip
        if not left_out:
            errors.append(error)
    print(
        f"parameter bytes: mean error {mean(errors):.2f} % max {max(errors, default=float('nan')):.2f} % over {len(errors)}"
    )
    return samples


def default_stages(costed: CostedModel, segments: int) -> list[StageCost]:
    """The stages of the compiler's split into this many segments."""
    edges = [0, *default_cuts(costed, segments), len(costed.graph.ops)]
    return [stage_cost(costed.costs.terms(op_set(range(a, b)))) for a, b in pairwise(edges)]


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


def score_imagenet(path: Path, model: Path) -> list[Sample]:
    """Print rate, latency and streamed MiB of the compiler's split beside the measured ones, and return them."""
    costed = open_costed_model(model, "pcie")
    errors, latencies, samples = [], [], []
    print(f"{'N':>2} {'fps':>8} {'measured':>9} {'ms':>8} {'measured':>9} {'streamed MiB':>13} {'reported':>9}")
    for r in unpruned(path, {"n_segments", "throughput_fps", "latency_ms_mean", "off_chip_mib_total"}):
        stages = default_stages(costed, int(r["n_segments"]))
        fps = 1e9 / period_ns(stages, costed.hardware)
        ms = latency_ns((s.stage_ns for s in stages), costed.hardware.host.handover_ns) / 1e6
        fps_measured, ms_measured = float(r["throughput_fps"]), float(r["latency_ms_mean"])
        streamed = sum(stage.streamed_bytes for stage in stages) / MIB
        reported = r["off_chip_mib_total"] or "-"
        print(
            f"{len(stages):2} {fps:8.2f} {fps_measured:9.2f} {ms:8.2f} {ms_measured:9.2f} {streamed:13.2f} {reported:>9}"
        )
        errors.append(100 * abs(fps / fps_measured - 1))
        latencies.append(100 * abs(ms / ms_measured - 1))
        samples.append({
            "score": "imagenet", "tpus": len(stages), "predicted_per_s": fps, "measured_per_s": fps_measured,
            "predicted_ms": ms, "measured_ms": ms_measured, "predicted_streamed_mib": streamed,
            "reported_streamed_mib": None if reported == "-" else float(reported),
        })  # fmt: skip
    print(f"latency MAPE {mean(latencies):.2f} %")
    print(f"throughput MAPE {mean(errors):.2f} % over {len(errors)}")
    return samples


def score_grid(path: Path, model: Path) -> list[Sample]:
    """Print the rate of each partition of 8 TPUs into pipelines beside the measured one, and return them."""
    costed = open_costed_model(model, "pcie")
    host_ns_per_stage = costed.hardware.host.host_ns_per_stage

    @cache
    def stages_of(segments: int) -> tuple[StageCost, ...]:
        return tuple(default_stages(costed, segments))

    rates: list[tuple[float, float, str]] = []
    for r in unpruned(path, {"partition", "fps_total"}):
        pipelines = [stages_of(int(p)) for p in r["partition"].split("+")]
        pipeline_rates = [pipeline_rate([s.stage_ns for s in p], [1] * len(p)) for p in pipelines]
        fps = float(plan_rate(pipeline_rates, [[host_ns_per_stage * len(p)] for p in pipelines]))
        measured = float(r["fps_total"])
        rates.append((fps, measured, r["partition"]))
        print(
            f"{r['partition']:16} predicted {fps:8.2f} measured {measured:8.2f} fps {100 * (fps / measured - 1):+6.2f} %"
        )
    mape = mean([100 * abs(fps / measured - 1) for fps, measured, _ in rates])
    _, measured, name = max(rates)
    print(
        f"grid MAPE {mape:.2f} %, best predicted {name} measured {measured:.2f} fps of best {max(m for _, m, _ in rates):.2f}"
    )
    return [
        {"score": "grid", "partition": name, "predicted_per_s": fps, "measured_per_s": measured}
        for fps, measured, name in rates
    ]


def score(arguments: argparse.Namespace) -> Iterable[list[Sample]]:
    """The samples of each score that was asked for."""
    by_file: list[tuple[Path | None, Callable[[Path], list[Sample]]]] = [
        (arguments.compiled, score_compiled),
        (arguments.data, score_data),
        (arguments.decisions, score_decisions),
    ]
    by_model: list[tuple[Path | None, Callable[[Path, Path], list[Sample]]]] = [
        (arguments.imagenet, score_imagenet),
        (arguments.grid, score_grid),
    ]
    for path, print_score in by_file:
        if path:
            yield print_score(path)
    if arguments.packages:
        yield score_packages(arguments.packages, arguments.models)
    if arguments.usb or arguments.detectors:
        yield score_single(arguments.usb, arguments.detectors, arguments.models)
    for path, print_model_score in by_model:
        if path:
            yield print_model_score(path, arguments.model)


def main(argv: Sequence[str] | None = None) -> int:
    parser = measuring_parser(__doc__)
    parser.add_argument("--data", type=Path, metavar="CSV", help="measured times of synthetic models")
    parser.add_argument("--decisions", type=Path, metavar="CSV", help="the same file, compared in pairs")
    parser.add_argument("--compiled", type=Path, metavar="DIR", help="a folder of models with their compiled files")
    parser.add_argument("--packages", type=Path, metavar="CSV", help="what the compiler recorded in packages")
    parser.add_argument("--usb", type=Path, metavar="CSV", help="measured times of Keras networks on a USB TPU")
    parser.add_argument("--detectors", type=Path, metavar="CSV", help="measured times of YOLO on one TPU")
    parser.add_argument("--models", type=Path, metavar="DIR", help="a folder with the models of --packages and --usb")
    parser.add_argument("--imagenet", type=Path, metavar="CSV", help="measured pipelines of the compiler's split")
    parser.add_argument("--grid", type=Path, metavar="CSV", help="measured partitions of 8 TPUs into pipelines")
    parser.add_argument("--model", type=Path, metavar="TFLITE", help="the model that --imagenet and --grid are about")
    arguments = parser.parse_args(argv)
    if (arguments.imagenet or arguments.grid) and not arguments.model:
        parser.error("--imagenet and --grid need --model")
    if (arguments.packages or arguments.usb) and not arguments.models:
        parser.error("--packages and --usb need --models")
    with recorded("fidelity", arguments) as samples:
        for scored in score(arguments):
            samples += scored
    return 0


if __name__ == "__main__":
    sys.exit(main())
