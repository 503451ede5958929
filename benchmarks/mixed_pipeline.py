"""Whether a plan over Edge TPUs and this machine's CPU keeps its predicted rate when it runs.

    python benchmarks/mixed_pipeline.py [FILES] [-n pcie=2,cpu=1] [--seconds 6] [--rounds 3] [--kills 3] [--json FILE]

Edge TPUs are simulated with the predicted times of their stages, and replay outputs that were recorded before. Stages on the
CPU really run, as `balancer run` runs them. For each model:

1. The fastest plan, or, where that leaves the CPU idle, the fastest one with a stage for each device. The CPU is the calibrated
   one of `balancer calibrate --cpu`. Without a calibration the rough preset is scaled by one factor, until it agrees with the
   plan's stages on the CPU as they run alone.
2. Rounds in turn: these stages alone, the pipeline, and the same pipeline with all stages simulated. The measured rate is held
   against the predicted one, and against the one that the stages allow as they ran alone in that round: a slow spell of the
   machine meets both. Processor time beside the predicted time of the stages alone says how good the calibration is, whatever
   else runs. What the pipeline with all stages simulated misses is not the CPU stages' fault: other programs have the cores, or
   the stages are shorter than a millisecond or two, in which threads do not wake up in time.
3. Results are compared with those of the same items one at a time: each in its place, with the same bytes.
4. Each stage gets a process of its own, and those on the CPU are killed while items go through. All results have to come all
   the same, in their order.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import psutil
from models import ROOT, add_files, existing, zoo
from sampling import measuring_parser, recorded, spread, timed

import balancer
from balancer.cost.devices import Devices
from balancer.ground.rates import pipeline_rate
from balancer.inputs import InputSpec, random_items
from balancer.interpreter import open_interpreter
from balancer.opened import OpenedPlan, open_plan
from balancer.planning.asked_devices import devices_asked
from balancer.runtime.assigning import Assigned, kernels_on
from balancer.runtime.measuring import measure
from balancer.runtime.options import RunOptions
from balancer.runtime.pipeline import Pipeline
from balancer.runtime.recipes import Simulation
from balancer.runtime.recording import recorded_outputs
from balancer.runtime.simulated import Behaviour

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sampling import Sample

    from balancer.inputs import Item
    from balancer.plan import Plan, Segment

MODELS = ("ResNet50", "InceptionV3", "EfficientNetB0")
ITEMS, KILL_ITEMS = 4, 60
ALONE_S, LEAST_RUNS = 0.7, 9  # of a stage alone: how long at least, and how often
SCALINGS, AGREES = 4, 0.03  # of the rough preset: how often at most, and when it agrees with what was measured


@dataclass(frozen=True)
class Case:
    """A model's plan. scale: of the preset's times on the CPU; None with a calibration. best: whether no plan is faster."""

    opened: OpenedPlan
    scale: float | None
    best: bool

    @property
    def plan(self) -> Plan:
        return self.opened.plan

    @property
    def on_cpu(self) -> list[Segment]:
        return [segment for segment in self.plan.segments if not self.plan.is_compiled(segment.name)]


def solved(path: Path, asked: str) -> Case:
    """The plan that is run, with the CPU as it is calibrated or scaled."""
    devices, scale = devices_asked(asked), 1.0
    rough = any(kind.rough for kind, _ in devices.kinds)
    case = _planned(path, devices, 1.0 if rough else None)
    for _ in range(SCALINGS if rough else 0):
        alone = alone_ns(case)
        predicted = sum(segment.predicted.stage_ns for segment in case.on_cpu)
        factor = sum(alone.values()) / predicted
        if abs(factor - 1) < AGREES:
            break
        scale *= factor
        case = _planned(path, _scaled(devices, scale), scale)
    return case


def _planned(path: Path, devices: Devices, scale: float | None) -> Case:
    plan, best = balancer.balance(path, devices), True
    if all(plan.is_compiled(segment.name) for segment in plan.segments):
        each = balancer.Options(stages=devices.total, pipelines=1, replicas=1)
        plan, best = balancer.balance(path, devices, options=each), False
    return Case(open_plan(plan), scale, best)


def _scaled(devices: Devices, scale: float) -> Devices:
    """The devices with all times of rough kinds multiplied."""
    kinds = []
    for kind, count in devices.kinds:
        times = {name: value * scale for name, value in kind.constants.items() if "_ns" in name} if kind.rough else {}
        kinds.append((kind.changed(times), count))
    return Devices(tuple(kinds))


def alone_ns(case: Case, clock: Callable[[], float] = time.perf_counter) -> dict[str, int]:
    """For each segment on the CPU how long it takes by this clock with nothing else of ours running; the median."""
    found = {}
    for segment in case.on_cpu:
        kernels = kernels_on(case.plan.devices_under(segment.name), proven=False)
        interpreter = open_interpreter(case.opened.segment_file(segment), kernels)
        values = [case_input(interpreter_input) for interpreter_input in segment.inputs]

        def infer() -> None:
            interpreter.run(values)  # noqa: B023 - called before the next segment
            interpreter.outputs()  # noqa: B023

        infer()
        times, end = list[float](), time.monotonic() + ALONE_S
        while len(times) < LEAST_RUNS or time.monotonic() < end:
            times.append(timed(infer, clock)[1])
        found[segment.name] = int(median(times) * 1e9)
        interpreter.close()
    return found


def case_input(tensor: Any) -> Any:
    """Random values for a boundary tensor."""
    spec = InputSpec(name=tensor.tensor, shape=tensor.shape, dtype=tensor.dtype)
    return random_items([spec], 1)[0][tensor.tensor]


def rate_per_s(case: Case, alone: Mapping[str, int]) -> float:
    """The rate that the plan's stages allow, those on the CPU with these times."""
    times = {segment.name: segment.predicted.stage_ns for segment in case.plan.segments} | dict(alone)
    rates = [
        pipeline_rate([times[s.segment] for s in p.stages], [s.replicas for s in p.stages]) for p in case.plan.pipelines
    ]
    return min(float(sum(rates)), 1e9 / max(1, case.plan.predicted.host_ns))


def kept(case: Case, simulation: Simulation, items: Sequence[Item], seconds: float, rounds: int) -> list[Sample]:
    """Each round's predicted and measured rate."""
    samples: list[Sample] = []
    for _ in range(rounds):
        before = alone_ns(case)
        with Pipeline(case.opened, "sim", RunOptions(simulation=simulation)) as pipeline:
            found = measure(pipeline, items, seconds=seconds)
        after = alone_ns(case)
        alone = {name: (before[name] + after[name]) // 2 for name in before}
        behaviours = {s.name: Behaviour(stage_ns=alone.get(s.name, s.predicted.stage_ns)) for s in case.plan.segments}
        simulated = RunOptions(simulation=replace(simulation, behaviours=behaviours))
        with Pipeline(case.opened, Assigned(("sim",) * case.plan.predicted.tpus_used), simulated) as pipeline:
            reference = measure(pipeline, items, seconds=seconds).throughput_per_s
        in_pipeline = {s.segment: s.stage_ns for s in found.stages}
        samples.append({
            "part": "rate", "model": case.plan.stem, "predicted_per_s": case.plan.predicted.throughput_per_s,
            "allowed_per_s": rate_per_s(case, alone), "measured_per_s": found.throughput_per_s,
            "simulated_per_s": reference, "processor_ns": alone_ns(case, time.thread_time), "alone_ns": alone,
            "in_pipeline_ns": in_pipeline, "bottleneck": found.bottleneck,
        })  # fmt: skip
    return samples


def in_order(case: Case, simulation: Simulation, items: Sequence[Item], kills: int) -> Sample:
    """Results of a stream of items against those of each item alone, while processes of stages on the CPU are killed."""
    with Pipeline(case.opened, "sim", RunOptions(simulation=simulation)) as pipeline:
        alone = [_bytes(pipeline.run([item])[0]) for item in items]
    options, wrong = RunOptions(simulation=simulation, processes=True, restarts=kills), 0
    stream = [items[k % len(items)] for k in range(KILL_ITEMS)]
    deadly = {KILL_ITEMS * (k + 1) // (kills + 2) for k in range(kills)}
    with Pipeline(case.opened, "sim", options) as pipeline:
        came = 0
        for k, result in enumerate(pipeline.map(stream)):
            came += 1
            wrong += _bytes(result) != alone[k % len(items)]
            if k in deadly:
                next(_computing()).kill()
    return {"part": "order", "model": case.plan.stem, "items": KILL_ITEMS, "came": came, "wrong": wrong, "kills": kills}


def _bytes(result: Any) -> bytes:
    return b"".join(value.tobytes() for value in result.values())


def _computing() -> Iterator[psutil.Process]:
    """The processes of stages on the CPU: those of simulated TPUs that replay load no interpreter."""
    children = psutil.Process().children(recursive=True)
    return (child for child in children if any("lite" in m.path for m in child.memory_maps()))


def ratios(rates: Sequence[Sample], to: str, of: str = "measured") -> list[float]:
    """One rate divided by another, in each round."""
    return [sample[f"{of}_per_s"] / sample[f"{to}_per_s"] for sample in rates]


def report(case: Case, rates: Sequence[Sample], order: Sample) -> None:
    """A few lines about one model."""
    plan = case.plan
    stages = [f"{s.kind} {plan.segment(s.segment).op_ranges}" for p in plan.pipelines for s in p.stages for _ in s.tpus]
    print(f"{plan.stem}: {'; '.join(stages)}{'' if case.best else ' (the fastest plan leaves the CPU idle)'}")
    alone = [sum(s["alone_ns"].values()) for s in rates]
    in_pipeline = [sum(s["in_pipeline_ns"][n] for n in s["alone_ns"]) for s in rates]
    on_cpu_ns = sum(segment.predicted.stage_ns for segment in case.on_cpu)
    predicted, measured = (median(s[f"{what}_per_s"] for s in rates) for what in ("predicted", "measured"))
    source = "calibrated" if case.scale is None else f"preset x {case.scale:.2f}"
    print(f"  predicted {predicted:.2f}/s ({source}), measured {measured:.2f}/s (simulated TPUs, this CPU)")
    print(
        f"  measured : predicted                          {spread(ratios(rates, 'predicted'), 3)}, {len(rates)} rounds"
    )
    print(f"  measured : allowed by its stages alone        {spread(ratios(rates, 'allowed'), 3)}")
    print(f"  all simulated : allowed                       {spread(ratios(rates, 'allowed', 'simulated'), 3)}")
    processor = [sum(s["processor_ns"].values()) / on_cpu_ns for s in rates]
    print(f"  stages on the CPU, processor time : predicted {spread(processor, 3)}")
    print(f"                                alone : predicted {spread([ns / on_cpu_ns for ns in alone], 3)}")
    slower = [ns / least for ns, least in zip(in_pipeline, alone, strict=True)]
    print(f"                            in pipeline : alone {spread(slower, 3)}")
    print(
        f"  {order['came']} of {order['items']} results in order after {order['kills']} kills, {order['wrong']} of them wrong"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = measuring_parser(__doc__)
    add_files(parser, f"{', '.join(MODELS)} of the zoo")
    parser.add_argument("-n", default="pcie=2,cpu=1", metavar="DEVICES", help="default: pcie=2,cpu=1")
    parser.add_argument("--seconds", type=float, default=6, help="of each round (default: 6)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--kills", type=int, default=3, help="of processes on the CPU (default: 3)")
    arguments = parser.parse_args(argv)
    files = existing(parser, arguments.files, zoo(*MODELS) if (ROOT.parent / "shared").is_dir() else [])
    medians: dict[str, list[float]] = {"predicted": [], "allowed": []}
    with recorded("mixed_pipeline", arguments) as samples:
        for path in files:
            case = solved(path, arguments.n)
            items = random_items(Pipeline(case.opened, "sim").interface.inputs, ITEMS)
            simulation = Simulation(outputs="recorded", recordings=recorded_outputs(case.opened, items))
            rates = kept(case, simulation, items, arguments.seconds, arguments.rounds)
            order = in_order(case, simulation, items, arguments.kills)
            samples += [*rates, order]
            report(case, rates, order)
            for to, found in medians.items():
                found.append(median(ratios(rates, to)))
    for to, found in medians.items():
        print(f"measured : {to}, median over {len(found)} models: {spread(found, 3)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
