"""`balancer calibrate --cpu`: times small models on this machine's CPU, and fits the constants of its kind to them.

The interpreter is the one that the user has, with its default delegates (XNNPACK), on one thread, while another thread
computes: as the stages of a plan on the CPU run. What the pipeline itself does for each stage is timed with stages that
compute nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from balancer.cost.cpu_hardware import CpuHardware
from balancer.cost.hardware import FORMAT, VERSION, load_kind
from balancer.inputs import random_items
from balancer.interpreter import Kernels, open_interpreter, runtime_label
from balancer.learning.cpu_fit import TimedModel, fit
from balancer.learning.interleaved import CLOCKS, DEFAULT, Clocks, TimingLimits, beside, interleaved
from balancer.planning.machine import CPU, preset_of_this_cpu
from balancer.planning.predicting import predict
from balancer.runtime.devices import usable_cores
from balancer.runtime.options import RunOptions
from balancer.runtime.pipeline import Pipeline
from balancer.tflite.chains import Chain, Step, calibration_chains
from balancer.tflite.read import read_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from balancer.documents import JsonObject
    from balancer.graph import Graph
    from balancer.inputs import Array

DELEGATED = Kernels(delegated=True)
_STAGES = 4  # of the pipeline whose own work is timed
_RUNS, _ITEMS, _ALONE = 5, 400, 10  # runs of many items, each followed by so many items alone


class HostWork(NamedTuple):
    """What a pipeline does for one stage and item besides running it: ns of work, and ns until the next stage has it."""

    ns_per_stage: int
    handover_ns: int


@dataclass(frozen=True, slots=True)
class CalibratedConstant:
    """A constant, with one standard deviation as a share of its value; None where it was not fitted. source: in words."""

    name: str
    value: int
    error: float | None
    known: str
    source: str


@dataclass(frozen=True, slots=True)
class CpuCalibration:
    """The result.

    residuals: the relative error of each timed model's fitted time, by name. left_out: models that were left out of the fit.
    error: the mean error of the others. rounds: of timing. slowest: how many times its best the reference took in the slowest
    round.
    """

    hardware: CpuHardware
    constants: tuple[CalibratedConstant, ...]
    residuals: dict[str, float]
    left_out: tuple[str, ...]
    error: float
    rounds: int
    slowest: float
    interpreter: str


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured with; tests give their own. opened: makes a function that runs a model once on its inputs.
    clocks: see `interleaved`. host: the work of the pipeline. label: the interpreter, in words. cores: of this machine.
    """

    opened: Callable[[bytes, Sequence[Array]], Callable[[], object]]
    clocks: Clocks
    host: Callable[[], HostWork]
    label: Callable[[], str]
    cores: int


def opened_run(model: bytes, inputs: Sequence[Array]) -> Callable[[], object]:
    """A function that runs the model once as a stage does: inputs in, inference, outputs out.

    Raises DependencyError if there is no interpreter, InterpreterError if it refuses the model.
    """
    interpreter = open_interpreter(model, DELEGATED)

    def run() -> object:
        interpreter.run(inputs)
        return interpreter.outputs()

    return run


def inputs_of(graph: Graph) -> list[Array]:
    """Random values for the inputs of a model or segment: whole numbers of all sizes, floats from -1 to 1."""
    random = np.random.Generator(np.random.PCG64(len(graph.ops)))
    return [_values(random, graph.tensors[t].shape or (), graph.tensors[t].dtype) for t in graph.inputs]


def _values(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    if dtype.startswith("float"):
        return random.uniform(-1, 1, shape).astype(dtype)
    # Wider integers are indices and shapes, where large values would be out of range.
    low, high = {"int8": (-128, 128), "uint8": (0, 256)}.get(dtype, (0, 2))
    return random.integers(low, high, shape).astype(dtype)


def host_work() -> HostWork:
    """The pipeline's own work for each stage and item: the computing time of this process while stages do nothing, and the
    time of one item alone through all stages.
    """
    chain = next(c for c in calibration_chains() if len(c.steps) == _STAGES)
    plan = predict(chain.model(), [range(k, k + 1) for k in range(_STAGES)])
    with Pipeline(plan, "none", RunOptions()) as pipeline:
        (item,) = random_items(pipeline.interface.inputs, 1)
        works, alones = [], []
        for _ in range(_RUNS):
            start = time.process_time_ns()
            done = sum(1 for _ in pipeline.map(repeat(item, _ITEMS)))
            works.append((time.process_time_ns() - start) // (done * _STAGES))
            alones += [_alone_ns(pipeline, item) // _STAGES for _ in range(_ALONE)]
    return HostWork(min(works), min(alones))


def _alone_ns(pipeline: Pipeline, item: Mapping[str, Array]) -> int:
    """ns from giving the pipeline one item to its result."""
    start = time.perf_counter_ns()
    for _ in pipeline.map([item]):
        pass
    return time.perf_counter_ns() - start


BENCH = Bench(opened_run, CLOCKS, host_work, lambda: runtime_label((DELEGATED,)), usable_cores())


def reference_run(bench: Bench = BENCH) -> Callable[[], object]:
    """What is timed beside all others: convolutions, which most of a network's time goes to."""
    return _convolutions(bench, layers=3)


def companion_run(bench: Bench = BENCH) -> Callable[[], object] | None:
    """What another thread does meanwhile, as another stage of a plan would; None on a machine of one core."""
    return _convolutions(bench, layers=40) if bench.cores > 1 else None


def _convolutions(bench: Bench, layers: int) -> Callable[[], object]:
    model = Chain("convolutions", (1, 28, 28, 64), (Step("CONV_2D", 64),) * layers).model()
    return bench.opened(model, inputs_of(read_graph(model, name="convolutions")))


def calibrate_cpu(
    *, limits: TimingLimits = DEFAULT, progress: Callable[[int, int], None] = lambda done, total: None, bench: Bench = BENCH,
    chains: Sequence[Chain] | None = None,
) -> CpuCalibration:  # fmt: skip
    """This machine's CPU.

    limits: of timing; by default a minute. progress: called with the number of rounds that are done, and of all.

    Raises DependencyError if no interpreter or no scipy is installed.
    """
    chains = calibration_chains() if chains is None else chains
    label = bench.label()
    models = [chain.model() for chain in chains]
    graphs = [read_graph(model, name=chain.name) for model, chain in zip(models, chains, strict=True)]
    runs = [bench.opened(model, inputs_of(graph)) for model, graph in zip(models, graphs, strict=True)]
    with beside(companion_run(bench)):
        timings = interleaved(
            runs, reference_run(bench), limits, clocks=bench.clocks, progress=lambda done: progress(done, limits.rounds)
        )
    timed = [TimedModel(c.name, g, ns) for c, g, ns in zip(chains, graphs, timings.ns, strict=True)]
    fitted = fit(timed)
    constants = _constants(fitted.constants, fitted.errors, f"{len(timed)} models on {label}", bench)
    hardware = CpuHardware.with_constants(CPU, {c.name: c.value for c in constants})
    names = [chain.name for chain in chains]
    return CpuCalibration(
        hardware, constants, dict(zip(names, fitted.residuals, strict=True)), fitted.left_out, fitted.error, timings.rounds,
        timings.slowest, label,
    )  # fmt: skip


def _constants(
    fitted: dict[str, float], errors: dict[str, float], source: str, bench: Bench
) -> tuple[CalibratedConstant, ...]:
    """All constants of the kind: fitted, measured, those of the machine, and what no model depends on, from the preset."""
    host, preset = bench.host(), preset_of_this_cpu()
    start = load_kind(preset).constants
    own = {
        "threads": (1, "one thread for each stage"), "cores": (bench.cores, "cores that this process may use"),
        "host_ns_per_stage": (host.ns_per_stage, "computing time of a pipeline whose stages do nothing"),
        "handover_ns": (host.handover_ns, "one item alone through a pipeline whose stages do nothing"),
    }  # fmt: skip
    made = []
    for name in CpuHardware.constant_names():
        if name in own:
            value, words = own[name]
            made.append(CalibratedConstant(name, value, None, "measured", words))
        elif name in fitted:
            made.append(CalibratedConstant(name, _within_limits(name, fitted[name]), errors[name], "fitted", source))
        else:
            words = f"as in {preset}: nothing that was timed depends on it"
            made.append(CalibratedConstant(name, start[name], None, "kept", words))
    return tuple(made)


def _within_limits(name: str, value: float) -> int:
    least, largest = CpuHardware.limits(name)
    return min(max(round(value), least), largest)


def cpu_document(calibration: CpuCalibration, name: str = CPU) -> JsonObject:
    """The JSON document of the hardware file. name: of the kind."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "device": CpuHardware.DEVICE,
        "name": name,
        "description": f"calibrated with {calibration.interpreter}",
        "constants": {c.name: _entry(c) for c in calibration.constants},
    }


def _entry(constant: CalibratedConstant) -> JsonObject:
    source = constant.source
    if constant.error is not None:
        sure = (
            f"{100 * constant.error:.1f} % of one standard deviation"
            if np.isfinite(constant.error)
            else "no effect seen"
        )
        source = f"{source}; {sure}"
    return {"value": constant.value, "known": constant.known, "source": source}
