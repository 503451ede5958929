"""What the runner itself costs, and whether it keeps the promised rate.

    python benchmarks/pipeline.py [--models DIR] [--items 3000] [--pairs 9]

1. Overhead per stage and item: null devices, boundary tensors of 600 KiB by reference, in threads and in processes.
2. Simulated TPUs that replay recorded outputs, stages of 2 ms and more: measured over promised rate.
3. A model in two CPU stages against the whole model on one thread: median of pairs run one after the other.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import balancer
from balancer.inputs import random_items
from balancer.interpreter import open_interpreter
from balancer.planning.predicting import predict
from balancer.runtime.measuring import measure
from balancer.runtime.options import RunOptions
from balancer.runtime.pipeline import Pipeline
from balancer.runtime.recipes import Simulation
from balancer.runtime.recording import recorded_outputs
from balancer.runtime.simulated import Behaviour
from balancer.tflite import synth
from balancer.tflite.read import load_graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.plan import Plan

ZOO = Path(__file__).resolve().parents[2] / "shared" / "models" / "zoo"
WIDTH, SIDE, STAGES = 150, 64, 4  # 64 x 64 x 150 int8: 600 KiB


def overhead_us(plan: Plan, items: int, *, processes: bool) -> float:
    """Microseconds per stage and item, in steady state."""
    with Pipeline(plan, "none", RunOptions(processes=processes)) as pipeline:
        inputs = random_items(pipeline.interface.inputs, 1)
        for _ in pipeline.map(inputs * 200):
            pass
        start = time.perf_counter()
        for _ in pipeline.map(islice(cycle(inputs), items)):
            pass
        return (time.perf_counter() - start) / items / len(plan.segments) * 1e6


def overheads(folder: Path, items: int) -> None:
    model = folder / "conv.tflite"
    model.write_bytes(synth.conv(WIDTH, layers=STAGES, size=SIDE))
    # One convolution a stage; the op that quantises the picture goes with the first.
    parts = [range(2), *(range(k, k + 1) for k in range(2, STAGES + 1))]
    plan = balancer.save(predict(model, parts), folder / "conv")
    size = plan.segments[1].inputs[0].bytes
    print(f"overhead per stage and item, {STAGES} null devices, boundary tensors of {size // 1024} KiB:")
    for name, processes in (("threads", False), ("processes", True)):
        runs = [overhead_us(plan, items, processes=processes) for _ in range(3)]
        print(f"  {name}: {median(runs):.1f} us (runs: {', '.join(f'{r:.1f}' for r in runs)})")


def simulated(models: Path, folder: Path, name: str, n_tpus: int) -> None:
    """One line: the rate of simulated TPUs with recorded outputs."""
    plan = balancer.save(balancer.balance(models / f"{name}_int8.tflite", n_tpus), folder / f"{name}{n_tpus}")
    # Stages of at least 2 ms each: where the plan's are shorter, all are slower by one factor.
    slower = max(1.0, 2e6 / min(s.predicted.stage_ns for s in plan.segments))
    behaviours = {s.name: Behaviour(stage_ns=int(s.predicted.stage_ns * slower)) for s in plan.segments}
    promised = plan.predicted.throughput_per_s / slower
    probe = Pipeline(plan, "sim")
    inputs = random_items(probe.interface.inputs, 4)
    simulation = Simulation(behaviours=behaviours, outputs="recorded", recordings=recorded_outputs(plan, inputs))
    with Pipeline(plan, "sim", RunOptions(simulation=simulation)) as pipeline:
        found = measure(pipeline, inputs, seconds=6)
    shape = "; ".join("-".join(str(stage.replicas) for stage in p.stages) for p in plan.pipelines)
    print(
        f"  {name} on {n_tpus} simulated TPUs ({shape}): {found.throughput_per_s:.1f}/s, promised {promised:.1f}: "
        f"{100 * (found.throughput_per_s / promised - 1):+.2f} %"
    )


def two_cpu_stages(models: Path, folder: Path, name: str, pairs: int) -> None:
    """The cut that evens out two stages on this CPU, found by their times; then pairs of runs."""
    path = models / f"{name}_int8.tflite"
    plan = balancer.save(_even(path, folder), folder / f"{name}_cpu")
    whole = open_interpreter(path.read_bytes())
    ratios = []
    with Pipeline(plan, "cpu") as pipeline:
        inputs = random_items(pipeline.interface.inputs, 1) * 8
        for _ in range(pairs):
            start = time.perf_counter()
            for item in inputs:
                whole.run([item[n] for n in whole.input_names])
            alone = time.perf_counter() - start
            start = time.perf_counter()
            for _ in pipeline.map(inputs):
                pass
            ratios.append(alone / (time.perf_counter() - start))
    print(
        f"{name} in two CPU stages against the whole on one thread: {median(ratios):.2f} x, median of {pairs} pairs "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


def _even(path: Path, folder: Path) -> Plan:
    """The plan of two segments whose halves take the same time here: bisected."""
    low, high = 1, len(load_graph(path).ops) - 1
    while high - low > 1:
        cut = (low + high) // 2
        n = len(load_graph(path).ops)
        plan = balancer.save(predict(path, [range(cut), range(cut, n)]), folder / f"even{cut}")
        with Pipeline(plan, "cpu") as pipeline:
            for _ in pipeline.map(random_items(pipeline.interface.inputs, 1) * 3):
                pass
            first, last = (s.stage_ns for s in pipeline.statistics().stages)
        low, high = (cut, high) if first < last else (low, cut)
    return predict(path, [range(high), range(high, n)])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ZOO, help="the folder with the zoo")
    parser.add_argument("--items", type=int, default=3000, help="for the overhead")
    parser.add_argument("--pairs", type=int, default=9)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        overheads(folder, arguments.items)
        print("rates on simulated TPUs, recorded outputs replayed:")
        for name, n_tpus in (
            ("ResNet50", 4),
            ("ResNet101", 8),
            ("InceptionV3", 4),
            ("InceptionV3", 8),
            ("MobileNetV2", 4),
        ):
            simulated(arguments.models, folder, name, n_tpus)
        two_cpu_stages(arguments.models, folder, "ResNet101", arguments.pairs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
