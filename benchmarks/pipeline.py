"""What the runner itself costs, and whether it keeps the predicted rate.

    python benchmarks/pipeline.py [--models DIR] [--items 3000] [--pairs 9] [--seconds 6] [--parts 1 2 3] [--json FILE]

1. Overhead per stage and item, in microseconds: devices that do nothing hand on boundary tensors of 600 KiB by
   reference, in threads and in processes. Median, lowest and highest of three runs, each after 200 items that are not
   counted.
2. Simulated TPUs with stages of at least 2 ms, whose outputs were recorded before: the measured rate beside the
   predicted one.
3. ResNet101 in two stages on the CPU against the whole model on one thread, run in turn: how many times as fast the
   pipeline is, as the median, lowest and highest of the pairs.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from models import ZOO
from sampling import measuring_parser, paired, recorded, spread, timed

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

    from sampling import Sample

    from balancer.plan import Plan

WIDTH, SIDE, STAGES = 150, 64, 4  # 64 x 64 x 150 int8: 600 KiB
WARM_UP_ITEMS, RUNS, PAIR_ITEMS = 200, 3, 8
LEAST_STAGE_NS = 2e6
SIMULATED = (("ResNet50", 4), ("ResNet101", 8), ("InceptionV3", 4), ("InceptionV3", 8), ("MobileNetV2", 4))
IN_TWO = "ResNet101"


def overhead_us(plan: Plan, items: int, *, processes: bool) -> float:
    """Microseconds per stage and item, in steady state."""
    with Pipeline(plan, "none", RunOptions(processes=processes)) as pipeline:
        inputs = random_items(pipeline.interface.inputs, 1)

        def run(count: int) -> None:
            assert sum(1 for _ in pipeline.map(islice(cycle(inputs), count))) == count

        run(WARM_UP_ITEMS)
        _, seconds = timed(lambda: run(items))
    return seconds / items / len(plan.segments) * 1e6


def overheads(folder: Path, items: int) -> list[Sample]:
    model = folder / "conv.tflite"
    model.write_bytes(synth.conv(WIDTH, layers=STAGES, size=SIDE))
    # One convolution a stage; the op that quantises the picture goes with the first.
    parts = [range(2), *(range(k, k + 1) for k in range(2, STAGES + 1))]
    plan = balancer.save(predict(model, parts), folder / "conv")
    size = plan.segments[1].inputs[0].bytes
    print(f"overhead per stage and item, {STAGES} null devices, boundary tensors of {size // 1024} KiB:")
    samples: list[Sample] = []
    for name, processes in (("threads", False), ("processes", True)):
        runs = [overhead_us(plan, items, processes=processes) for _ in range(RUNS)]
        print(f"  {name}: {spread(runs, 1)} us")
        samples.append({"part": "overhead", "workers": name, "boundary_bytes": size, "overhead_us": runs})
    return samples


def simulated(models: Path, folder: Path, case: tuple[str, int], seconds: float) -> Sample:
    """One line: the rate of simulated TPUs with recorded outputs. case: a model's name and a number of TPUs."""
    name, n_tpus = case
    plan = balancer.save(balancer.balance(models / f"{name}_int8.tflite", n_tpus), folder / f"{name}{n_tpus}")
    # Where a stage of the plan is shorter than the least, all stages are slowed down by one factor.
    slower = max(1.0, LEAST_STAGE_NS / min(s.predicted.stage_ns for s in plan.segments))
    behaviours = {s.name: Behaviour(stage_ns=int(s.predicted.stage_ns * slower)) for s in plan.segments}
    predicted = plan.predicted.throughput_per_s / slower
    inputs = random_items(Pipeline(plan, "sim").interface.inputs, 4)
    simulation = Simulation(behaviours=behaviours, outputs="recorded", recordings=recorded_outputs(plan, inputs))
    with Pipeline(plan, "sim", RunOptions(simulation=simulation)) as pipeline:
        measured = measure(pipeline, inputs, seconds=seconds).throughput_per_s
    shape = "; ".join("-".join(str(stage.replicas) for stage in p.stages) for p in plan.pipelines)
    print(
        f"  {name} on {n_tpus} simulated TPUs (replicas {shape}): measured {measured:.1f}/s, predicted {predicted:.1f}/s: "
        f"{100 * (measured / predicted - 1):+.2f} %"
    )
    return {
        "part": "simulated", "model": name, "tpus": n_tpus, "measured_per_s": measured, "predicted_per_s": predicted,
    }  # fmt: skip


def two_cpu_stages(path: Path, folder: Path, pairs: int) -> Sample:
    """One line: the model in two CPU stages of about the same time against the whole model."""
    plan = balancer.save(_even(path, folder), folder / "cpu")
    whole = open_interpreter(path.read_bytes())
    with Pipeline(plan, "cpu") as pipeline:
        inputs = random_items(pipeline.interface.inputs, 1) * PAIR_ITEMS

        def alone() -> None:
            for item in inputs:
                whole.run([item[n] for n in whole.input_names])

        def in_two() -> None:
            assert sum(1 for _ in pipeline.map(inputs)) == len(inputs)

        times = paired(alone, in_two, pairs)
    print(
        f"{path.stem} in two CPU stages, times as fast as the whole model on one thread: {spread(times.ratios, 2)}, "
        f"median of {pairs} pairs"
    )
    return {"part": "two CPU stages", "model": path.stem, "whole_s": times.first_s, "two_stages_s": times.second_s}


def _even(path: Path, folder: Path) -> Plan:
    """The plan of two segments whose halves take about the same time on this CPU, by bisection over measured times."""
    n = len(load_graph(path).ops)
    low, high = 1, n - 1
    while high - low > 1:
        cut = (low + high) // 2
        plan = balancer.save(predict(path, [range(cut), range(cut, n)]), folder / f"even{cut}")
        with Pipeline(plan, "cpu") as pipeline:
            for _ in pipeline.map(random_items(pipeline.interface.inputs, 1) * 3):
                pass
            first, last = (s.stage_ns for s in pipeline.statistics().stages)
        low, high = (cut, high) if first < last else (low, cut)
    return predict(path, [range(high), range(high, n)])


def main(argv: Sequence[str] | None = None) -> int:
    parser = measuring_parser(__doc__)
    parser.add_argument("--models", type=Path, default=ZOO, metavar="DIR", help="the folder with the zoo's models")
    parser.add_argument("--items", type=int, default=3000, help="items of a run for the overhead (default: 3000)")
    parser.add_argument("--pairs", type=int, default=9, help="pairs of runs on the CPU (default: 9)")
    parser.add_argument("--seconds", type=float, default=6, help="of measuring each simulated plan (default: 6)")
    parser.add_argument("--parts", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3], help="default: all three")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch, recorded("pipeline", arguments) as samples:
        folder = Path(scratch)
        if 1 in arguments.parts:
            samples += overheads(folder, arguments.items)
        if 2 in arguments.parts:
            print("rates on simulated TPUs, recorded outputs replayed:")
            samples += [simulated(arguments.models, folder, case, arguments.seconds) for case in SIMULATED]
        if 3 in arguments.parts:
            samples.append(two_cpu_stages(arguments.models / f"{IN_TWO}_int8.tflite", folder, arguments.pairs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
