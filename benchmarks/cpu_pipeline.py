"""What the cost model of the host's CPU is worth: calibrates this machine, then predicts models that took no part in it.

    python benchmarks/cpu_pipeline.py [FILES] [--segments 4] [--seconds 90] [--items 24] [--turns 7] [--json FILE]

1. Whole models on one thread, with the interpreter's default delegates: predicted against measured.
2. Their segments, each model cut into four of equal op counts: the same.
3. Plans for two stages on the CPU, run for real: the measured rate against the predicted one, and how many times as fast as
   the whole model on one thread they are, predicted and measured, beside a cut into equal op counts and one by the
   parameter rule of the vendor's compiler.

All models, segments and plans are measured in turn, and while another thread computes, as in the calibration. What counts
is the time in which a thread computes, so other programs on the machine hardly matter. The wall clock says the same where the
machine has two cores for this; on a busy machine it says less. The last column is the share of the time in which other
programs held the core of the slowest stage.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING

from models import add_files, existing, zoo
from sampling import measuring_parser, recorded

import balancer
from balancer.cost.devices import Devices
from balancer.ground.opsets import op_set
from balancer.inputs import random_items
from balancer.learning.cpu_calibrating import (
    CpuCalibration,
    calibrate_cpu,
    companion_run,
    inputs_of,
    opened_run,
    reference_run,
)
from balancer.learning.interleaved import TimingLimits, beside, interleaved
from balancer.planning.costed_model import open_costed_model
from balancer.planning.options import Options
from balancer.planning.predicting import cut_segments, predict
from balancer.runtime.pipeline import Pipeline
from balancer.solve.baselines import equal_op_counts, parameter_count
from balancer.tflite.read import read_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sampling import Sample

    from balancer.cost.cpu_hardware import CpuHardware
    from balancer.cost.segment import SegmentCosts
    from balancer.plan import Plan
    from balancer.planning.costed_model import CostedModel

STAGES, WARM_UP = 2, 2
MODELS = (
    "ResNet50", "MobileNetV2", "EfficientNetB0", "InceptionV3", "DenseNet121", "NASNetMobile", "YOLOv8n_320", "unet_small",
)  # fmt: skip
WHOLE = "whole"
WAYS = ("ours", "equal op counts", "parameter rule")


@dataclass(frozen=True)
class Timed:
    """A model or segment: its predicted ns, and what runs it once."""

    model: str
    part: str
    predicted_ns: int
    run: Callable[[], object]


@dataclass(frozen=True)
class Run:
    """One run of a pipeline, in ns for each item. busy_ns: that the slowest stage's thread computed. lost: the share of the
    run in which that thread waited for a core that others held.
    """

    wall_ns: float
    busy_ns: float
    lost: float


def timed_parts(costed: CostedModel, segments: int) -> list[Timed]:
    """The whole model, then its segments of equal op counts."""
    n = len(costed.graph.ops)
    partitions = [[range(n)], cut_segments(equal_op_counts(n, segments), n)]
    names = [WHOLE, *(f"segment {k}" for k in range(segments))]
    parts = [ops for partition in partitions for ops in partition]
    return [_timed(costed, name, op_set(ops)) for name, ops in zip(names, parts, strict=True)]


def _timed(costed: CostedModel, name: str, ops: int) -> Timed:
    data = costed.model.cutter.cut(ops)
    costs: SegmentCosts = costed.costs
    run = opened_run(data, inputs_of(read_graph(data, name=name)))
    return Timed(costed.graph.name, name, costs.terms(ops).stage_ns, run)


def thread_times() -> dict[str, tuple[int, int]]:
    """For each thread of this process: ns that it computed, and ns that it waited for a core."""
    found = {}
    for folder in Path("/proc/self/task").iterdir():
        try:
            computed, waited, _ = (folder / "schedstat").read_text().split()
        except OSError:  # the thread has just ended
            continue
        found[folder.name] = (int(computed), int(waited))
    return found


def one_run(pipeline: Pipeline, items: int) -> Run:
    """Some items through an open pipeline."""
    inputs = random_items(pipeline.interface.inputs, 1)
    before, start = thread_times(), perf_counter_ns()
    done = sum(1 for _ in pipeline.map(islice(cycle(inputs), items)))
    wall = perf_counter_ns() - start
    assert done == items
    spent = [(c - before.get(t, (0, 0))[0], w - before.get(t, (0, 0))[1]) for t, (c, w) in thread_times().items()]
    computed, waited = max(spent)
    return Run(wall / items, computed / items, waited / wall)


def plans_of(path: Path, cpu: CpuHardware) -> dict[str, Plan]:
    """The plan of the whole model on one thread, and the plans for two stages, by name."""
    graph = open_costed_model(path, cpu).graph
    n = len(graph.ops)
    cuts = {
        "equal op counts": equal_op_counts(n, STAGES),
        "parameter rule": parameter_count([op.parameter_bytes for op in graph.ops], STAGES),
    }
    ours = balancer.balance(path, Devices(((cpu, STAGES),)), options=Options(stages=STAGES))
    whole = predict(path, [range(n)], hardware=cpu)
    return {WHOLE: whole, "ours": ours} | {
        name: predict(path, cut_segments(at, n), hardware=cpu) for name, at in cuts.items()
    }


def run_plans(plans: dict[str, Plan], items: int, turns: int) -> dict[str, list[Run]]:
    """Each plan's runs, taken in turn. The whole model runs beside another thread, as a stage of a pipeline does."""
    runs: dict[str, list[Run]] = {name: [] for name in plans}
    with ExitStack() as opened:
        pipelines = {name: opened.enter_context(Pipeline(plan)) for name, plan in plans.items()}
        companion = companion_run()
        for pipeline in pipelines.values():
            one_run(pipeline, WARM_UP)
        for _ in range(turns):
            for name, pipeline in pipelines.items():
                with beside(companion if name == WHOLE else None):
                    runs[name].append(one_run(pipeline, items))
    return runs


def errors_of(parts: Sequence[Timed], limits: TimingLimits) -> list[Sample]:
    """Predicted and measured ns of each part."""
    with beside(companion_run()):
        timings = interleaved([part.run for part in parts], reference_run(), limits)
    print(f"  {timings.rounds} rounds")
    return [
        {"model": p.model, "part": p.part, "predicted_ns": p.predicted_ns, "measured_ns": ns, "error": p.predicted_ns / ns - 1}
        for p, ns in zip(parts, timings.ns, strict=True)
    ]  # fmt: skip


def print_errors(samples: Sequence[Sample]) -> None:
    """A line for each model, and the medians."""
    print(f"  {'model':<22}{'predicted ms':>13}{'measured ms':>13}{'error':>8}   segments")
    for model in dict.fromkeys(s["model"] for s in samples):
        whole, *rest = (s for s in samples if s["model"] == model)
        parts = " ".join(f"{100 * s['error']:+.0f}" for s in rest)
        times = (whole["predicted_ns"] / 1e6, whole["measured_ns"] / 1e6)
        print(f"  {model:<22}{times[0]:>13.2f}{times[1]:>13.2f}{100 * whole['error']:>+7.1f}%   {parts} %")
    for name, chosen in (("whole models", True), ("segments", False)):
        sizes = [abs(s["error"]) for s in samples if (s["part"] == WHOLE) == chosen]
        print(f"  median error of {len(sizes)} {name}: {100 * median(sizes):.1f} %")


def print_plan(name: str, plans: dict[str, Plan], runs: dict[str, list[Run]]) -> list[Sample]:
    """A line for each way to cut one model."""
    samples: list[Sample] = []
    alone = {field: _typical(runs[WHOLE], field) for field in ("busy_ns", "wall_ns")}
    for way in WAYS:
        predicted = 1e9 / plans[way].predicted.throughput_per_s
        busy, wall = _typical(runs[way], "busy_ns"), _typical(runs[way], "wall_ns")
        gains = (plans[way].predicted.throughput_per_s / plans[WHOLE].predicted.throughput_per_s,
                 alone["busy_ns"] / busy, alone["wall_ns"] / wall)  # fmt: skip
        lost = median(run.lost for run in runs[way])
        rates = [1e9 / predicted, 1e9 / busy]
        samples.append({"model": name, "way": way, "predicted_per_s": rates[0], "measured_per_s": rates[1],
                        "wall_per_s": 1e9 / wall, "gains": gains, "lost": lost})  # fmt: skip
        said = f"  {name[:14] if way == WAYS[0] else '':<15}{way:<16}{rates[0]:>9.2f}{rates[1]:>9.2f}"
        gained = "".join(f"{gain:>6.2f}" for gain in gains)
        print(f"{said}{100 * (rates[1] / rates[0] - 1):>+7.1f}%{gained}{100 * lost:>5.0f}%")
    return samples


def _typical(runs: Sequence[Run], field: str) -> float:
    return float(median(getattr(run, field) for run in runs))


def print_plans(samples: Sequence[Sample]) -> None:
    """The medians over models."""
    ours = [s for s in samples if s["way"] == "ours"]
    off = [abs(s["measured_per_s"] / s["predicted_per_s"] - 1) for s in ours]
    wall = [s["wall_per_s"] / s["predicted_per_s"] for s in ours]
    print(f"  median of {len(ours)} plans: measured within {100 * median(off):.1f} % of predicted; by the wall clock")
    print(
        f"  {median(wall):.2f} of predicted, while others held the cores for {100 * median(s['lost'] for s in ours):.0f} %"
    )
    for other in WAYS[1:]:
        rates = [(a, b) for a, b in zip(ours, (s for s in samples if s["way"] == other), strict=True)]
        said = median(a["predicted_per_s"] / b["predicted_per_s"] for a, b in rates)
        seen = median(a["measured_per_s"] / b["measured_per_s"] for a, b in rates)
        print(f"  ours against {other}, median: {said:.2f} times the rate predicted, {seen:.2f} times measured")


def main(argv: Sequence[str] | None = None) -> int:
    parser = measuring_parser(__doc__)
    add_files(parser, f"{len(MODELS)} models of the zoo")
    parser.add_argument("--segments", type=int, default=4, help="of each model in part 2 (default: 4)")
    parser.add_argument("--seconds", type=float, default=90, help="of timing models and segments (default: 90)")
    parser.add_argument("--items", type=int, default=24, help="of one run of a plan (default: 24)")
    parser.add_argument("--turns", type=int, default=7, help="runs of each plan (default: 7)")
    arguments = parser.parse_args(argv)
    files = existing(parser, arguments.files, zoo(*MODELS))
    with recorded("cpu_pipeline", arguments) as samples:
        cpu = _calibrated().hardware
        print("\n1, 2. predicted and measured, one thread:")
        parts = [part for path in files for part in timed_parts(open_costed_model(path, cpu), arguments.segments)]
        limits = TimingLimits(rounds=12, seconds=arguments.seconds, least_rounds=4)
        errors = errors_of(parts, limits)
        print_errors(errors)
        samples += errors
        print(f"\n3. plans for cpu={STAGES}, run for real; gain: over the whole model on one thread")
        print(f"  {'':<31}{'inferences/s':>18}{'':>8}{'gain':>18}{'core':>6}")
        print(
            f"  {'model':<15}{'cut':<16}{'predicted':>9}{'measured':>9}{'':>8}{'pred.':>6}{'meas.':>6}{'wall':>6}{'lost':>6}"
        )
        ways: list[Sample] = []
        for path in files:
            plans = plans_of(path, cpu)
            runs = run_plans(plans, arguments.items, arguments.turns)
            ways += print_plan(path.stem.removesuffix("_int8"), plans, runs)
        print_plans(ways)
        samples += ways
    return 0


def _calibrated() -> CpuCalibration:
    made = calibrate_cpu()
    print(f"calibrated with {made.interpreter}:")
    print(
        f"{len(made.residuals)} small models in {made.rounds} rounds, mean error of the fit {100 * made.error:.1f} %,"
    )
    print(f"{len(made.left_out)} left out")
    return made


if __name__ == "__main__":
    sys.exit(main())
